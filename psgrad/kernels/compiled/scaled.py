"""Scaled integers by numba: block by block, each while it lies in the first cache."""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import types  # type: ignore[import-not-found,import-untyped,unused-ignore]
from numpy.typing import NDArray

from psgrad.kernels import hashing, plain
from psgrad.kernels.bits import GROUP, packed_nbytes
from psgrad.kernels.chunks import Blocks, Float32, Measure, Noise, Scratch, Uint8
from psgrad.kernels.compiled.jit import (
    F4,
    I1,
    I2,
    I4,
    IN_F4,
    MAGNITUDE,
    NOTHING,
    OUT_F4,
    OUT_I1,
    OUT_U1,
    U1,
    U4,
    U8,
    Index,
    check_sizes,
    compiled,
    inner,
)
from psgrad.kernels.quantize import SMALLEST_STEP, block_max

Int8 = NDArray[np.int8]
Int16 = NDArray[np.int16]
Uint32 = NDArray[np.uint32]

TINY: Final = np.float32(SMALLEST_STEP)
WEYL: Final = np.uint32(hashing._WEYL)
TO_HALF: Final = np.float32(2.0**-16)
_NO_CODES: Final = np.zeros(0, np.int8)


@inner
def _add_and_max(x: Float32, residual: Float32, begin: Index, end: Index) -> F4:
    """residual += x; the largest magnitude of the sums. Magnitudes are ordered as their bits."""
    top = I4(0)
    for i in range(begin, end):
        v = F4(residual[i] + x[i])
        residual[i] = v
        top = max(top, I4(F4(v).view(I4) & MAGNITUDE))
    return I4(top).view(F4)


@inner
def _max(x: Float32, begin: Index, end: Index) -> F4:
    top = I4(0)
    for i in range(begin, end):
        top = max(top, I4(F4(x[i]).view(I4) & MAGNITUDE))
    return I4(top).view(F4)


@inner
def _draw(words: Uint32, first: Index, count: Index, k0: U4, k1: U4) -> None:
    """words[j] = the number of element first + j of the stream, with both halves made odd."""
    low = U4(first)
    for j in range(count):
        h = U4(U4(U4(low + U4(j)) * WEYL) + k0)
        h = U4(U4(U4(h ^ U4(h >> U4(17))) * U4(0xED5AD4BB)) + k1)
        h = U4(U4(h ^ U4(h >> U4(11))) * U4(0xAC4C1B51))
        h = U4(U4(h ^ U4(h >> U4(15))) * U4(0x31848BAB))
        words[j] = U4(U4(h ^ U4(h >> U4(14))) | U4(0x0001_0001))


@inner
def _round(v: Float32, begin: Index, end: Index, step: F4, codes: Int8, at: Index) -> None:
    for i in range(begin, end):
        codes[i - begin + at] = I1(np.rint(v[i] / step))


@inner
def _round_and_keep(
    kept: Float32, begin: Index, end: Index, step: F4, codes: Int8, at: Index
) -> None:
    for i in range(begin, end):
        code = np.rint(kept[i] / step)
        codes[i - begin + at] = I1(code)
        kept[i] = kept[i] - code * step


@inner
def _dither(
    v: Float32,
    begin: Index,
    end: Index,
    step: F4,
    noise: Int16,
    skip: Index,
    codes: Int8,
    at: Index,
) -> None:
    for i in range(begin, end):
        shift = F4(noise[i - begin + skip]) * TO_HALF
        codes[i - begin + at] = I1(np.rint(v[i] / step + shift))


@inner
def _dither_and_keep(
    kept: Float32,
    begin: Index,
    end: Index,
    step: F4,
    noise: Int16,
    skip: Index,
    codes: Int8,
    at: Index,
) -> None:
    for i in range(begin, end):
        shift = F4(noise[i - begin + skip]) * TO_HALF
        code = np.rint(kept[i] / step + shift)
        codes[i - begin + at] = I1(code)
        kept[i] = kept[i] - code * step


@inner
def _pack(
    codes: Int8, m: Index, packed: Uint8, at: Index, p: Index, digits: Index, radix: U1
) -> None:
    """The planes of a group of m codes as digits of p bytes."""
    bias, weight = U1(0), U1(1)
    for _ in range(digits):
        bias = U1(bias + U1(radix // U1(2)) * weight)
        weight = U1(weight * radix)
    for j in range(p):
        packed[at + j] = U1(U1(codes[j]) + bias)
    weight = radix
    for begin in range(p, m, p):
        for j in range(min(p, U8(m - begin))):
            packed[at + j] = U1(packed[at + j] + U1(U1(codes[begin + j]) * weight))
        weight = U1(weight * radix)


@compiled(
    *(IN_F4, OUT_F4, types.boolean, types.boolean, OUT_F4, OUT_I1, OUT_U1),
    *(types.uint64, types.float32, types.float32, types.uint64, types.uint8),
    *(types.boolean, types.uint64, types.uint32, types.uint32),
)
def _encode(
    x: Float32,
    kept: Float32,
    keep: bool,
    measured: bool,
    steps: Float32,
    codes: Int8,
    packed: Uint8,
    block: Index,
    top: F4,
    limit: F4,
    digits: Index,
    radix: U1,
    noisy: bool,
    start: Index,
    k0: U4,
    k1: U4,
) -> None:
    """`encode_scaled`; where ``measured``, x has been added and ``steps`` has the measures.

    ``codes`` is ``packed`` itself where a code is a byte, else scratch for a group.
    """
    n, at, b = U8(x.size), U8(0), U8(0)
    words = np.empty(block // U8(2) + U8(1) if noisy else U8(0), U4)
    noise = words.view(I2)
    for group in range(U8(0), n, U8(GROUP)):
        m = min(U8(GROUP), U8(n - group))
        base = at if digits == U8(1) else U8(0)
        for begin in range(group, U8(group + m), block):
            end = min(U8(begin + block), U8(group + m))
            if measured:
                measure = F4(steps[b])
            elif keep:
                measure = _add_and_max(x, kept, begin, end)
            else:
                measure = _max(x, begin, end)
            step = min(max(F4(measure / top), TINY), limit)
            steps[b] = step if measure != F4(0) else F4(0)
            b = U8(b + U8(1))
            to = U8(begin - group + base)
            if noisy:
                first = U8(start + begin)
                skip = U8(first & U8(1))
                count = U8(U8(U8(end - begin) + skip + U8(1)) >> U8(1))
                _draw(words, U8(first >> U8(1)), count, k0, k1)
                if keep:
                    _dither_and_keep(kept, begin, end, step, noise, skip, codes, to)
                else:
                    _dither(x, begin, end, step, noise, skip, codes, to)
            elif keep:
                _round_and_keep(kept, begin, end, step, codes, to)
            else:
                _round(x, begin, end, step, codes, to)
        p = U8(U8(m + digits - U8(1)) // digits)
        if digits > U8(1):
            _pack(codes, m, packed, at, p, digits, radix)
        at = U8(at + p)


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
    n, first, key = x.size, 0, 0
    coding, keep = form.coding, residual is not None
    check_sizes(
        steps.size == form.blocks(n)
        and packed.size == packed_nbytes(n, coding)
        and (residual is None or residual.size == n)
    )
    if noise is not None:
        first = noise.start
        if first >> 33 != (first + n) >> 33:  # where the hash gets another key, within the chunk
            plain.encode_scaled(form, measure, x, residual, steps, packed, noise, scratch)
            return
        key = hashing._mix64(noise.stream + (first >> 33))
    sizes = (form.block, float(form.top), float(form.limit), coding.digits, coding.radix & 0xFF)
    keys = (key & 0xFFFF_FFFF, key >> 32)
    whole = coding.digits == 1
    codes = _NO_CODES if whole else scratch.take("compiled.codes", min(n, GROUP), np.int8)
    if measure is block_max:
        kept = NOTHING if residual is None else residual
        codes = packed.view(np.int8) if whole else codes
        _encode(x, kept, keep, False, steps, codes, packed, *sizes, noise is not None, first, *keys)
        return
    # Sums are NumPy's: whoever adds in another order rounds differently.
    room = scratch.take("compiled.room", min(n, GROUP), np.float32)
    for begin in range(0, n, GROUP):
        v = x[begin : begin + GROUP]
        kept = NOTHING if residual is None else residual[begin : begin + GROUP]
        if keep:
            v = np.add(kept, v, out=kept)
        at, b = packed_nbytes(begin, coding), begin // form.block
        starts = form.starts[: form.blocks(v.size)]
        here = steps[b : b + starts.size]
        measure(v, starts, here, room[: v.size])
        out = packed[at : at + packed_nbytes(v.size, coding)]
        codes = out.view(np.int8) if whole else codes
        _encode(
            v, kept, keep, True, here, codes, out, *sizes, noise is not None, first + begin, *keys
        )
