"""What a checkpoint says of itself, field by field, with a look at its shape.

Its files have checksums, so what is read is what was written; but by which program, for which run?
A field that does not fit is a ``CheckpointError`` that names it, before anything rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from psgrad.errors import CheckpointError, shown

MOST: Final = 1 << 53
"""The largest count: more than this no run comes to, and a float64 still has it exactly."""


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    """``value``, which must be an object."""
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{what} must be an object, got {shown(value)}")
    return value


def field(record: Any, key: str, what: str) -> Any:
    """A field that must be there, whatever it is."""
    record = mapping(record, what)
    if key not in record:
        raise CheckpointError(f"{what} has no {key!r}")
    return record[key]


def count(record: Any, key: str, what: str, most: int = MOST, least: int = 0) -> int:
    """A field that must be a whole number from ``least`` to ``most``."""
    return whole(field(record, key, what), f"{key} of {what}", most, least)


def whole(value: Any, what: str, most: int = MOST, least: int = 0) -> int:
    """``value``, which must be a whole number from ``least`` to ``most``; True is none."""
    fits = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not fits or not least <= value <= most:
        raise CheckpointError(
            f"{what} must be a whole number from {least} to {most}, got {shown(value)}"
        )
    return int(value)


def number(record: Any, key: str, what: str, least: float = 0.0) -> float:
    """A field that must be a finite number of at least ``least``."""
    value = real(field(record, key, what), f"{key} of {what}")
    if not least <= value < math.inf:
        raise CheckpointError(
            f"{key} of {what} must be finite and at least {least:g}, got {value:g}"
        )
    return value


def real(value: Any, what: str) -> float:
    """``value``, which must be a number; NaN is one."""
    fits = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    try:
        if fits:
            return float(value)
    except OverflowError:
        pass
    raise CheckpointError(f"{what} must be a number, got {shown(value)}")


def keys_as_counts(record: Any, key: str, what: str, most: int) -> dict[int, Any]:
    """A field that must be an object whose keys are whole numbers, written as Python does."""
    found = {}
    for name, value in mapping(field(record, key, what), f"{key} of {what}").items():
        if not (name.isascii() and name.isdigit() and len(name) < 20 and str(int(name)) == name):
            raise CheckpointError(f"{key} of {what} has the key {shown(name)}, which is no number")
        found[whole(int(name), f"a key in {key} of {what}", most)] = value
    return found
