"""`ChunkKernels` in NumPy: the specification. What each function guarantees stands there.

Chunks are worked on in groups that stay in cache, with scratch that is kept from call to call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from psgrad.kernels.bits import GROUP, pack, packed_nbytes, unpacked
from psgrad.kernels.chunks import (
    Blocks,
    Float32,
    Measure,
    Noise,
    Positions,
    Scratch,
    Uint8,
    Uint16,
)
from psgrad.kernels.halves import PIECE, Half
from psgrad.kernels.hashing import dither
from psgrad.kernels.quantize import quantize, spread
from psgrad.kernels.quantize import steps as steps_of

name: Final = "numpy"
_MAGNITUDE: Final = 0x7FFF


class _Room(NamedTuple):
    """Scratch for a group of m elements."""

    starts: NDArray[np.intp]  # [blocks]: where they begin; not scratch
    measure: Float32  # [blocks]
    wide: Float32  # [blocks * block]
    each: Float32  # [m]: the begin of ``wide``, which has the step of each element
    values: Float32  # [m]
    noise: Float32 | None  # [m]
    words: NDArray[np.uint32]  # [m + 2]

    @classmethod
    def of(cls, form: Blocks, m: int, stochastic: bool, scratch: Scratch) -> _Room:
        blocks = form.blocks(m)
        end = blocks * form.block
        floats = scratch.take("scaled.floats", 3 * end + blocks, np.float32)
        words = scratch.take("scaled.words", m + 2 if stochastic else 0, np.uint32)
        return cls(
            form.starts[:blocks],
            floats[3 * end :],
            floats[:end],
            floats[:m],
            floats[end : end + m],
            floats[2 * end : 2 * end + m] if stochastic else None,
            words,
        )


def encode_scaled(
    form: Blocks,
    measure: Measure,
    x: Float32,
    residual: Float32 | None,
    steps: Float32,
    packed: Uint8,
    noise: Noise | None,
    scratch: Scratch,
) -> None:
    n, block, at = x.size, 0, 0
    room = _Room.of(form, min(n, GROUP), noise is not None, scratch)
    for start in range(0, n, GROUP):
        v = x[start : start + GROUP]
        m = v.size
        if m != room.values.size:
            room = _Room.of(form, m, noise is not None, scratch)
        if residual is not None:
            kept = residual[start : start + GROUP]
            v = np.add(kept, v, out=kept)  # in its place: one array less that wants the cache
        step = steps[block : block + room.starts.size]
        block += step.size
        measure(v, room.starts, room.measure, room.values)
        steps_of(room.measure, form.top, form.limit, step)
        spread(step, form.block, room.wide)
        if np.count_nonzero(room.measure) < step.size:
            step[room.measure == 0] = 0
        if noise is not None and room.noise is not None:
            dither(noise.stream, noise.start + start, room.noise, room.words)
        quantize(v, room.each, room.noise, room.values)
        if residual is not None:
            np.multiply(room.values, room.each, out=room.each)
            np.subtract(v, room.each, out=v)
        end = at + packed_nbytes(m, form.coding)
        pack(room.values, form.coding, packed[at:end])
        at = end


def add_scaled(
    form: Blocks,
    steps: Float32,
    packed: Uint8,
    size: int,
    share: np.float32,
    out: Float32,
    first: bool,
) -> None:
    values = out if first else np.empty_like(out)
    block, m = form.block, out.size
    np.copyto(values, unpacked(packed[: packed_nbytes(size, form.coding)], form.coding, size)[:m])
    step = steps[: form.blocks(m)] * share
    whole = m - m % block
    rows = values[:whole].reshape(-1, block)
    np.multiply(rows, step[: len(rows), None], out=rows)
    if whole < m:
        np.multiply(values[whole:], step[-1], out=values[whole:])
    if not first:
        np.add(out, values, out=out)


def encode_half(
    kind: Half, x: Float32, residual: Float32 | None, out: Uint16, scratch: Scratch
) -> bool:
    size = min(x.size, PIECE)
    rounded = scratch.take("halves.rounded", size, np.float32)
    words = scratch.take("halves.scratch", 2 * size, np.uint32)
    found = False
    for start in range(0, x.size, PIECE):
        v, part = x[start : start + PIECE], out[start : start + PIECE]
        if residual is None:
            kind.to(v, part, rounded[: v.size], words, False)
        else:
            kept = residual[start : start + PIECE]
            v = np.add(kept, v, out=kept)
            kind.to(v, part, rounded[: v.size], words, True)
            np.subtract(v, rounded[: v.size], out=kept)
        found = found or bool(np.bitwise_and(part, _MAGNITUDE).any())
    return found


def add_half(kind: Half, codes: Uint16, share: np.float32, out: Float32, first: bool) -> None:
    part = out if first else np.empty_like(out)
    kind.back(codes, part)
    if share != 1:
        np.multiply(part, share, out=part)
    if not first:
        np.add(out, part, out=out)


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
    if add is not None:
        np.add(v, add, out=v)
    reach = scratch.take("collect.reach", v.size, np.bool_)
    below = scratch.take("collect.below", v.size, np.bool_)
    np.greater_equal(v, low, out=reach)
    np.less_equal(v, -low, out=below)  # cheaper than |v|, which would be written
    np.logical_or(reach, below, out=reach)
    (hits,) = reach.nonzero()
    begin, end = end, end + hits.size
    np.add(hits, start, out=where[begin:end])
    v.take(hits, out=values[begin:end], mode="clip")
    return end


def sgd(
    params: Float32, grads: Sequence[Float32], shares: Sequence[np.float32], rate: np.float32
) -> bool:
    return False
