"""The scan for large magnitudes, by numba."""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import types  # type: ignore[import-not-found,import-untyped,unused-ignore]

from psgrad.kernels.chunks import Float32, Positions, Scratch
from psgrad.kernels.compiled.jit import (
    F4,
    I4,
    IN_F4,
    MAGNITUDE,
    NOTHING,
    OUT_F4,
    OUT_I8,
    U1,
    U4,
    U8,
    check_sizes,
    compiled,
)

PIECE: Final = 1 << 14
"""Elements between two steps: their flags, and the words of flags, fit the first cache."""


@compiled(
    *(IN_F4, OUT_F4, types.boolean, types.float32, types.int64, OUT_I8, OUT_F4, types.uint64),
    returns=types.uint64,
)
def _collect(
    x: Float32,
    kept: Float32,
    keep: bool,
    low: F4,
    start: int,
    where: Positions,
    values: Float32,
    end: U8,
) -> U8:
    """`collect` of x, or of kept + x where there is ``keep``.

    Flags by whole vectors; then the words of 8 flags that are not 0; then their elements. The last
    two have no branch that depends on the data: 1 in 100 is too rare to be foreseen.
    """
    least = F4(low).view(I4)
    flags = np.empty(PIECE, U1)
    eights = flags.view(U8)
    found = np.empty(PIECE // 8, U4)
    for begin in range(U8(0), U8(x.size), U8(PIECE)):
        m = min(U8(PIECE), U8(U8(x.size) - begin))
        if keep:
            for i in range(m):
                v = F4(kept[begin + i] + x[begin + i])
                kept[begin + i] = v
                flags[i] = U1(I4(F4(v).view(I4) & MAGNITUDE) >= least)
        else:
            for i in range(m):
                flags[i] = U1(I4(F4(x[begin + i]).view(I4) & MAGNITUDE) >= least)
        count = U8(0)
        for word in range(U8(U8(m + U8(7)) >> U8(3))):
            found[count] = U4(word)
            count = U8(count + U8(eights[word] != U8(0)))
        for j in range(count):
            base = U8(U8(found[j]) << U8(3))
            for i in range(base, min(U8(base + U8(8)), m)):
                where[end] = start + np.int64(begin + i)
                values[end] = kept[begin + i] if keep else x[begin + i]
                end = U8(end + U8(flags[i]))
    return end


def collect(
    v: Float32,
    add: Float32 | None,
    low: np.float32,
    start: int,
    where: Positions,
    values: Float32,
    end: int,
    scratch: Scratch,
) -> int:
    check_sizes(
        end + v.size <= min(where.size, values.size) and (add is None or add.size == v.size)
    )
    x, kept = (v, NOTHING) if add is None else (add, v)
    return int(_collect(x, kept, add is not None, low, start, where, values, end))
