"""Scaled integers back to floats, by numba."""

from __future__ import annotations

import numpy as np
from numba import types  # type: ignore[import-not-found,import-untyped,unused-ignore]
from numpy.typing import NDArray

from psgrad.kernels.bits import packed_nbytes
from psgrad.kernels.chunks import Blocks, Float32, Uint8
from psgrad.kernels.compiled.jit import (
    F4,
    I1,
    IN_F4,
    IN_U1,
    OUT_F4,
    U1,
    U8,
    Index,
    check_sizes,
    compiled,
    inner,
)

Int8 = NDArray[np.int8]


@inner
def _unpack_signs(packed: Uint8, codes: Int8) -> None:
    """Eight at a time: bit k of a byte as byte k of a word, then 1 or -1 in its place."""
    words = codes.view(U8)
    ones = U8(0x0101_0101_0101_0101)
    for j in range(U8(words.size)):
        bits = U8(U8(U8(packed[j]) * ones) & U8(0x8040_2010_0804_0201))
        negative = U8(U8(U8(bits + U8(0x7F7F_7F7F_7F7F_7F7F)) >> U8(7)) & ones)
        words[j] = U8(U8(negative * U8(0xFE)) + ones)


@inner
def _unpack(packed: Uint8, size: Index, codes: Int8, digits: Index, radix: U1) -> None:
    """The inverse of `_pack`, and of ``bits.pack_signs``."""
    if digits == U8(8):
        _unpack_signs(packed, codes)
        return
    p = U8(U8(size + digits - U8(1)) // digits)
    if radix == U1(3):
        _unpack_trits(packed, size, codes, p)
        return
    shift, bits = U1(0), U1(U8(8) // digits)
    for begin in range(U8(0), size, p):
        for j in range(min(p, U8(size - begin))):
            digit = U1(U1(packed[j] >> shift) & U1(radix - U1(1)))
            codes[begin + j] = I1(digit - U1(radix >> U1(1)))
        shift = U1(shift + bits)


@inner
def _unpack_trits(packed: Uint8, size: Index, codes: Int8, p: Index) -> None:
    rest = np.empty(p, U1)
    for j in range(p):
        rest[j] = packed[j]
    last = U8(U8(4) * p)
    for begin in range(U8(0), min(size, last), p):
        for j in range(min(p, U8(size - begin))):
            above = U1(rest[j] // U1(3))
            codes[begin + j] = I1(U1(rest[j] - U1(above * U1(3))) - U1(1))
            rest[j] = above
    for i in range(last, size):
        codes[i] = I1(rest[i - last] - U1(1))


@inner
def _multiply(
    codes: Int8, steps: Float32, block: Index, share: F4, out: Float32, first: bool
) -> None:
    m, b = U8(out.size), U8(0)
    for begin in range(U8(0), m, block):
        step = F4(steps[b] * share)
        b = U8(b + U8(1))
        if first:
            for i in range(begin, min(U8(begin + block), m)):
                out[i] = F4(codes[i]) * step
        else:
            for i in range(begin, min(U8(begin + block), m)):
                out[i] = out[i] + F4(codes[i]) * step


@compiled(
    *(IN_U1, types.uint64, types.uint64, types.uint8, IN_F4, types.uint64, types.float32),
    *(OUT_F4, types.boolean),
)
def _add_scaled(
    packed: Uint8,
    size: Index,
    digits: Index,
    radix: U1,
    steps: Float32,
    block: Index,
    share: F4,
    out: Float32,
    first: bool,
) -> None:
    if digits == U8(1):
        _multiply(packed.view(I1), steps, block, share, out, first)
    else:
        codes = np.empty(U8(size + U8(7)) & ~U8(7), I1)  # signs come in eights
        _unpack(packed, size, codes, digits, radix)
        _multiply(codes, steps, block, share, out, first)


def add_scaled(
    form: Blocks,
    steps: Float32,
    packed: Uint8,
    size: int,
    share: np.float32,
    out: Float32,
    first: bool,
) -> None:
    check_sizes(
        out.size <= size
        and steps.size >= form.blocks(out.size)
        and packed.size >= packed_nbytes(size, form.coding)
    )
    digits, radix = form.coding.digits, form.coding.radix & 0xFF
    _add_scaled(packed, size, digits, radix, steps, form.block, share, out, first)
