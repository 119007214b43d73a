"""What a worker puts into a checkpoint.

Float32 vectors over all parameters, such as residuals, are *rows*: each server keeps the part of
its chunks. Everything else is JSON, with small arrays in it as base64.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from psgrad.errors import CheckpointError
from psgrad.layout import Float32

ARRAY: Final = "psgrad.array"  # marks an array in JSON
ROW: Final = "row"
DTYPES: Final = ("bool", "int32", "int64", "uint8", "uint32", "uint64", "float32", "float64")


class Stateful(Protocol):
    """What has a state to go on from, as PyTorch has it."""

    def state_dict(self) -> Mapping[str, Any]:
        """The state: numbers, strings, lists, dicts with strings as keys, NumPy arrays."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Takes over a state of ``state_dict``."""
        ...


@dataclass(frozen=True)
class WorkerState:
    """One worker at its marker. ``rows`` are the memory itself, by name."""

    rows: Mapping[str, Float32]
    record: Mapping[str, Any]

    @classmethod
    def of(cls, state: Mapping[str, Any], n: int) -> WorkerState:
        """``state`` of a worker with n parameters; raises ``CheckpointError`` for another one."""
        rows: dict[str, Float32] = {}
        return cls(rows, _pack(state, n, rows, ""))


def unpack(record: Any, row: Callable[[str], Any], name: str = "") -> Any:
    """The inverse of ``WorkerState.of``; ``row(name)`` gives a row. Raises ``CheckpointError``."""
    try:
        return _unpack(record, row, name)
    except RecursionError as error:
        raise CheckpointError(f"{name or 'a state'} is nested too deep") from error


def _unpack(record: Any, row: Callable[[str], Any], name: str) -> Any:
    if isinstance(record, Mapping):
        if record.get(ARRAY) == ROW:
            return row(name)
        if ARRAY in record:
            return _array(record)
        return {k: _unpack(v, row, f"{name}.{k}" if name else k) for k, v in record.items()}
    if isinstance(record, list):
        return [_unpack(v, row, f"{name}.{i}") for i, v in enumerate(record)]
    return record


def _pack(value: Any, n: int, rows: dict[str, Float32], name: str) -> Any:
    if isinstance(value, np.ndarray):
        return _packed(value, n, rows, name)
    if isinstance(value, Mapping):
        packed = {}
        for key, item in value.items():
            if not isinstance(key, str) or "/" in key or key == ARRAY:
                raise CheckpointError(f"a state's keys are strings without a slash, got {key!r}")
            packed[key] = _pack(item, n, rows, f"{name}.{key}" if name else key)
        return packed
    if isinstance(value, (list, tuple)):
        return [_pack(item, n, rows, f"{name}.{i}") for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return _packed(np.array(value), n, rows, name)  # JSON has no such number
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(
        f"{name or 'a state'} cannot be kept: a state has numbers, strings, lists, dicts and "
        f"NumPy arrays, got {type(value).__name__}"
    )


def _packed(array: NDArray[Any], n: int, rows: dict[str, Float32], name: str) -> dict[str, Any]:
    if array.dtype == np.float32 and array.shape == (n,) and array.flags.c_contiguous:
        if name in rows:
            raise CheckpointError(f"a state has two vectors with the name {name!r}; rename one")
        rows[name] = array
        return {ARRAY: ROW}
    if array.dtype.name not in DTYPES:
        raise CheckpointError(f"{name} cannot be kept: its dtype is {array.dtype}")
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {ARRAY: array.dtype.name, "shape": list(array.shape), "data": data}


def _array(record: Mapping[str, Any]) -> Any:
    try:
        dtype, shape = record[ARRAY], record["shape"]
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r}")
        if not all(type(d) is int and d >= 0 for d in shape):
            raise ValueError(f"shape {list(shape)}")
        data = base64.b64decode(record["data"], validate=True)
        if dtype == "bool" and max(data, default=0) > 1:
            raise ValueError("a bool that is neither 0 nor 1")
        array = np.frombuffer(data, dtype).reshape(shape).copy()
    except (KeyError, TypeError, ValueError, OverflowError, binascii.Error) as error:
        raise CheckpointError(
            f"a checkpoint has an array that is none: {' '.join(str(error).split())[:100]}"
        ) from error
    return array if shape else array.item()
