"""JSON as a checkpoint has it: no key twice, no NaN, no infinity, nothing nested without end."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


def parse(data: bytes) -> Any:
    """The value that ``data`` says in UTF-8; raises ``ValueError`` for anything else."""
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_once,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def is_count(value: Any) -> bool:
    """A whole number of at least 0; True and 1.0 are none."""
    return type(value) is int and value >= 0


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key is there twice")
    return made


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond all numbers")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
