"""Blocks of floats as small integers times a step, one step a block.

v[m] is float32, contiguous and finite, and short enough to stay in cache over many passes (32 Ki).
``starts`` are the first elements of its blocks: 0, block, 2 block, ...; the last block may be
shorter. Scratch is float32[m] of any content. Where nothing is said, v is only read.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Starts = NDArray[np.intp]

MAX: Final = np.finfo(np.float32).max
SMALLEST_STEP: Final = np.finfo(np.float32).tiny
"""Steps are normal numbers, so that v / step is as exact as it should be, and never 0 / 0."""

# Arrays without dimensions: a call with them is 0.13 us faster than with NumPy's scalars.
_MAGNITUDE: Final = np.array(0x7FFF_FFFF, np.uint32)
_SIGN: Final = np.array(0x8000_0000, np.uint32)
_SMALLEST: Final = np.array(SMALLEST_STEP)
# Sums of squares outside of it have lost bits to denormals, or are infinite.
_SAFE: Final = (np.float32(1e-30), np.float32(1e38))
_NORM_MARGIN: Final = np.array(1 + 2.0**-16, np.float32)
_ZERO: Final = np.float32(0)


def largest_step(levels: int) -> NDArray[np.float32]:
    """The largest step whose product with ``levels`` is finite; float32[()]."""
    with np.errstate(over="ignore"):
        step = MAX / np.float32(levels)
        return np.array(step if step * np.float32(levels) <= MAX else np.nextafter(step, _ZERO))


def block_max(v: Float32, starts: Starts, out: Float32, scratch: Float32) -> None:
    """out[b] = max |v| of block b."""
    bits = scratch.view(np.uint32)
    np.bitwise_and(v.view(np.uint32), _MAGNITUDE, out=bits)
    # Magnitudes are ordered as their bits are, and NumPy's maximum of integers is 3 times as fast.
    np.maximum.reduceat(bits, starts, out=out.view(np.uint32))


def block_norm(v: Float32, starts: Starts, out: Float32, scratch: Float32) -> None:
    """out[b] = (1 + 2^-16) times the Euclidean norm of block b, at most MAX: no |v| is above it.

    Rounded sums of squares are never below one of their terms; the margin is for the square root.
    """
    _sums(v, starts, True, out)
    low, high = _SAFE
    if low < np.minimum.reduce(out) and np.maximum.reduce(out) < high:
        np.sqrt(out, out=out)
        np.multiply(out, _NORM_MARGIN, out=out)
    else:  # rare, or a block of zeros
        norms = np.sqrt(np.add.reduceat(np.multiply(v, v, dtype=np.float64), starts))
        np.copyto(out, np.minimum(norms * _NORM_MARGIN, MAX), casting="same_kind")


def block_mean(v: Float32, starts: Starts, out: Float32, scratch: Float32) -> None:
    """out[b] = mean |v| of block b, over the elements that it has."""
    np.bitwise_and(v.view(np.uint32), _MAGNITUDE, out=scratch.view(np.uint32))
    _sums(scratch, starts, False, out)
    if np.maximum.reduce(out) <= MAX:
        _divide_by_sizes(out, starts, v.size)
    else:
        sums = np.add.reduceat(scratch, starts, dtype=np.float64)
        _divide_by_sizes(sums, starts, v.size)
        np.copyto(out, sums, casting="same_kind")


def steps(
    measures: Float32, levels: NDArray[np.float32], limit: NDArray[np.float32], out: Float32
) -> None:
    """out[b] = measures[b] / levels, but at least SMALLEST_STEP and at most ``limit``.

    ``levels`` is float32[()], a whole number; ``limit`` is ``largest_step`` of it.
    """
    np.divide(measures, levels, out=out)
    np.maximum(out, _SMALLEST, out=out)
    np.minimum(out, limit, out=out)


def spread(values: Float32, block: int, out: Float32) -> None:
    """out[i] = values[i // block]; ``out`` has whole blocks."""
    np.copyto(out.reshape(-1, block), values[:, None])


def quantize(v: Float32, step: Float32, noise: Float32 | None, out: Float32) -> None:
    """out[i] = round(v[i] / step[i] + noise[i]), ties to even.

    ``step`` is the result of ``steps`` for ``block_max`` or ``block_norm``, spread over the
    elements; noise is that of ``hashing.dither``. Then |out| is at most ``levels``, up to 127: the
    quotient exceeds it by rounding only, by 2^-17 (one unit in the last place of 127), and the
    noise stays 2^-16 below 1/2.
    """
    np.divide(v, step, out=out)
    if noise is not None:
        np.add(out, noise, out=out)
    np.rint(out, out=out)


def copy_signs(magnitude: Float32, v: Float32, out: Float32) -> None:
    """out[i] = magnitude[i] with the sign bit of v[i]; ``magnitude`` is not negative."""
    bits = out.view(np.uint32)
    np.bitwise_and(v.view(np.uint32), _SIGN, out=bits)
    np.bitwise_or(bits, magnitude.view(np.uint32), out=bits)


def _sums(v: Float32, starts: Starts, squares: bool, out: Float32) -> None:
    """out[b] = the sum of block b, or of its squares.

    By einsum, which adds more numbers at a time than ``np.add.reduceat``, and where overflow to
    infinity is silent.
    """
    block = int(starts[1]) if starts.size > 1 else v.size
    if v.size % block:
        _sums(v[: starts[-1]], starts[:-1], squares, out[:-1])
        _sums(v[starts[-1] :], starts[:1], squares, out[-1:])
        return
    rows = v.reshape(-1, block)
    if squares:
        np.einsum("ij,ij->i", rows, rows, out=out)
    else:
        np.einsum("ij->i", rows, out=out)


def _divide_by_sizes(sums: NDArray[np.floating], starts: Starts, n: int) -> None:
    """sums[b] /= the elements of block b."""
    last = n - int(starts[-1])
    block = int(starts[1]) if starts.size > 1 else last
    mean = sums[-1] / sums.dtype.type(last)
    np.divide(sums, sums.dtype.type(block), out=sums)
    sums[-1] = mean
