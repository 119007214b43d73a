"""float32 to 16 bits and back: IEEE binary16 (fp16) and bfloat16 (bf16).

Rounding is to the nearest, ties to even, denormals included. What would round to infinity becomes
the largest finite number of its sign. NumPy has no bfloat16, and its float16 takes 2 ns for each
element, 67 ns where the result is denormal, as it is for gradients below 6e-5; these functions do
not depend on the values.

v[m] is float32, contiguous, finite, and m is at most PIECE.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Uint16 = NDArray[np.uint16]
Uint32 = NDArray[np.uint32]


class To(Protocol):
    """``to_bf16`` or ``to_fp16``."""

    def __call__(
        self, v: Float32, out: Uint16, rounded: Float32, scratch: Uint32, both: bool
    ) -> None: ...


class Back(Protocol):
    """``from_bf16`` or ``from_fp16``."""

    def __call__(self, halves: Uint16, out: Float32) -> None: ...


class Half(NamedTuple):
    """A kind of 16 bits; ``infinity`` is the code of +inf."""

    name: str
    infinity: int
    to: To
    back: Back


PIECE: Final = 32 << 10
FP16_MAX: Final = np.float32(65504)
BF16_MAX: Final = np.uint32(0x7F7F_0000).view(np.float32)
FP16_INFINITY: Final = 0x7C00
BF16_INFINITY: Final = 0x7F80

_SIGN: Final = np.uint32(0x8000_0000)
_EXPONENT: Final = np.uint32(0x7F80_0000)
_HIGH_HALF: Final = np.uint32(0xFFFF_0000)
_BELOW_HALF: Final = np.uint32(0x7FFF)
_ONE: Final = np.uint32(1)
_SHIFT13: Final = np.uint32(13)
_SHIFT16: Final = np.uint32(16)
_UP13: Final = np.uint32(13 << 23)
_REBIAS: Final = np.uint16(0x0800)
_LARGE: Final = (127 + 15) << 23  # |v| >= 2^15: fp16 is near its end


def _frozen(array: NDArray[np.generic]) -> NDArray[np.generic]:
    array.flags.writeable = False
    return array


# An array, because NumPy's maximum with a scalar takes twice the time.
_SMALLEST_NORMAL: Final = _frozen(np.full(PIECE, (127 - 14) << 23, np.uint32))
_FP16_VALUES: Final = _frozen(np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype("f4"))


def to_bf16(v: Float32, out: Uint16, rounded: Float32, scratch: Uint32, both: bool) -> None:
    """out[i] = v[i] as bfloat16; with ``both``, rounded[i] = the same as float32. Scratch is [m].

    Without ``both`` the content of ``rounded`` is arbitrary.
    """
    bits = rounded.view(np.uint32)
    shifted = scratch[: v.size] if both else bits
    # Half of the last place less one, and one more where what stays is odd.
    np.right_shift(v.view(np.uint32), _SHIFT16, out=bits)
    np.bitwise_and(bits, _ONE, out=bits)
    np.add(bits, _BELOW_HALF, out=bits)
    np.add(bits, v.view(np.uint32), out=bits)
    np.right_shift(bits, _SHIFT16, out=shifted)
    np.copyto(out, shifted, casting="unsafe")
    if not is_finite(out, BF16_INFINITY):
        to_bf16(np.clip(v, -BF16_MAX, BF16_MAX), out, rounded, scratch, both)
    elif both:
        np.bitwise_and(bits, _HIGH_HALF, out=bits)


def from_bf16(halves: Uint16, out: Float32) -> None:
    """out[i] = the float32 that halves[i] stands for."""
    bits = out.view(np.uint32)
    np.copyto(bits, halves)
    np.left_shift(bits, _SHIFT16, out=bits)


def to_fp16(v: Float32, out: Uint16, rounded: Float32, scratch: Uint32, both: bool) -> None:
    """out[i] = v[i] as IEEE binary16; else as ``to_bf16``. ``scratch`` is [2 m].

    With 2^e <= |v| < 2^(e + 1), but e at least -14, let a = 2^(e + 13) with the sign of v: the last
    place of v + a is 2^(e - 10), that of fp16, so the addition rounds, and (v + a) - a is the
    result. The bits of v + a are its exponent, e + 140, over k = |result| / 2^(e - 10); the fp16
    code is (e + 14) 2^10 + k, denormal or not, and modulo 2^16 that is bits + bits / 2^13 + 0x800.
    """
    m = v.size
    sign, total = scratch[:m], scratch[m : 2 * m]
    anchor = rounded.view(np.uint32)
    np.bitwise_and(v.view(np.uint32), _EXPONENT, out=anchor)
    if np.maximum.reduce(anchor) >= _LARGE:
        v = np.clip(v, -FP16_MAX, FP16_MAX)
        np.bitwise_and(v.view(np.uint32), _EXPONENT, out=anchor)
    np.maximum(anchor, _SMALLEST_NORMAL[:m], out=anchor)
    np.add(anchor, _UP13, out=anchor)
    np.bitwise_and(v.view(np.uint32), _SIGN, out=sign)
    np.bitwise_or(anchor, sign, out=anchor)
    np.add(v, rounded, out=total.view(np.float32))
    if both:
        np.subtract(total.view(np.float32), rounded, out=rounded)
    np.right_shift(sign, _SHIFT16, out=sign)
    np.add(sign, total, out=sign)
    np.right_shift(total, _SHIFT13, out=total)
    np.add(sign, total, out=sign)
    np.copyto(out, sign, casting="unsafe")
    np.add(out, _REBIAS, out=out)


def from_fp16(halves: Uint16, out: Float32) -> None:
    """out[i] = the float32 that halves[i] stands for."""
    np.take(_FP16_VALUES, halves, out=out, mode="clip")


def is_finite(halves: Uint16, infinity: int) -> bool:
    """Whether none of halves[m], m > 0, is infinite or NaN; ``infinity`` is the code of +inf."""
    return bool(
        np.maximum.reduce(halves.view(np.int16)) < infinity
        and np.maximum.reduce(halves) < infinity | 0x8000
    )


FP16: Final = Half("fp16", FP16_INFINITY, to_fp16, from_fp16)
BF16: Final = Half("bf16", BF16_INFINITY, to_bf16, from_bf16)
