"""How the compiled kernels are compiled, and the short names that they are written with.

Integers are cast at each step: numba widens uint32 to uint64, and then half as many fit a vector.
Indices are unsigned, because a signed one might count from the end. There is no fast-math, so that
floats are rounded as NumPy's are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import numba  # type: ignore[import-not-found,import-untyped,unused-ignore]
import numpy as np
from llvmlite import binding  # type: ignore[import-not-found,import-untyped,unused-ignore]
from numba import types

if numba.config.DISABLE_JIT:  # type: ignore[attr-defined,unused-ignore]
    raise ImportError("NUMBA_DISABLE_JIT is set")

_NJIT: Final[Callable[..., Any]] = numba.njit
NAME: Final = f"numba {numba.__version__}"

I1: TypeAlias = np.int8
I2: TypeAlias = np.int16
I4: TypeAlias = np.int32
U1: TypeAlias = np.uint8
U2: TypeAlias = np.uint16
U4: TypeAlias = np.uint32
U8: TypeAlias = np.uint64
F4: TypeAlias = np.float32
Index: TypeAlias = int | np.uint64

MAGNITUDE: Final = np.int32(0x7FFF_FFFF)
NOTHING: Final = np.zeros(0, np.float32)
"""Stands for an array that is not given."""

Function = TypeVar("Function", bound=Callable[..., Any])


def _array(dtype: Any, readonly: bool) -> Any:
    return types.Array(dtype, 1, "C", readonly=readonly, aligned=False)


# Arguments that are read only, and those that are written.
IN_F4, IN_U1, IN_U2 = (_array(t, True) for t in (types.float32, types.uint8, types.uint16))
OUT_F4, OUT_U1, OUT_U2 = (_array(t, False) for t in (types.float32, types.uint8, types.uint16))
OUT_I1, OUT_I8 = _array(types.int8, False), _array(types.int64, False)


def _variant() -> str:
    """What compiled code depends on: the sources of all kernels, numba and the CPU."""
    cpu = (binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten())
    sources = [path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("*.py"))]
    parts = (*sources, repr((numba.__version__, cpu)).encode())
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


_VARIANT: Final = _variant()


def compiled(*arguments: Any, returns: Any = types.void) -> Callable[[Any], Callable[..., Any]]:
    """Compiles a function for these types of its arguments, at once.

    numba keeps machine code beside the source, or in the user's cache folder, in files named after
    the function. It writes the index before the code, so that a rank could find new code in the
    index and the code of an older version still on the disk, or that for another CPU where nodes
    share a home: hence the variant in the name. A cache that cannot be used is done without.
    """

    def compile_it(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__qualname__ = f"{function.__name__}-{_VARIANT}"
        signature = returns(*arguments)
        result: Callable[..., Any]
        try:
            result = _NJIT(signature, error_model="numpy", nogil=True, cache=True)(function)
        except Exception:  # of many kinds: no folder, no space, a damaged file
            result = _NJIT(signature, error_model="numpy", nogil=True)(function)
        return result

    return compile_it


def check_sizes(fits: bool) -> None:
    """Raises ValueError where arrays are too short: compiled code would go on beyond their ends."""
    if not fits:
        raise ValueError("the arrays of a chunk do not have the sizes that go together")


def inner(function: Function) -> Function:
    """A part of compiled functions, compiled with them."""
    part: Function = _NJIT(function, error_model="numpy")
    return part
