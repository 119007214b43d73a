"""Matrix products of numbers with fewer bits, as tensor cores make them.

==============  =======================  ======================================
precision       bits of the mantissa     largest finite number
==============  =======================  ======================================
``float32``     24                       3.4e38
``tf32``        11                       3.4e38
``bfloat16``    8                        3.4e38
``float16``     11; fewer below 6.1e-5,  65504
                none below 3e-8
==============  =======================  ======================================

The factors are rounded, to the nearest, ties to even; what is beyond the largest number becomes
infinite. Products are exact, sums and results float32: only factors lose bits. `rounded` is what
the CPU does before it multiplies in float32, and so says what a GPU's tensor cores have to give but
for the order of their sums. It does not make a CPU faster.
"""

from __future__ import annotations

from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from psgrad.kernels import Array, Kernels

Float32 = NDArray[np.float32]

FP16_MAX: Final = np.float32(65504)
_EXPONENT: Final = np.uint32(0x7F80_0000)
_SMALLEST: Final = np.float32(2.0**-14)  # below it, float16 has no more bits
_UP13: Final = np.uint32(13 << 23)
_ONE: Final = np.uint32(1)


def with_precision(kernels: Kernels, precision: str) -> Kernels:
    """``kernels`` whose matrix products are of ``precision``, one of `PRECISIONS`."""
    if precision == "float32":
        return kernels
    return cast(Kernels, _Reduced(kernels, precision))  # mypy cannot see through __getattr__


class _Reduced:
    """``kernels``, but for the products."""

    def __init__(self, kernels: Kernels, precision: str) -> None:
        self._kernels = kernels
        self._precision = precision

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        return self._kernels.matmul(a, b, out, self._precision)


def rounded(x: Float32, precision: str) -> Float32:
    """x, of any shape, with the values that ``precision`` has; float32, and as it lies in memory.

    A copy but for ``float32``. NaN stays NaN; a zero may lose its sign.
    """
    if precision == "float32":
        return x
    assert x.dtype == np.float32, f"{precision} is of float32, got {x.dtype}"
    if precision == "float16":
        return _float16(x)
    return _high_bits(x, 16 if precision == "bfloat16" else 13)


def _high_bits(x: Float32, drop: int) -> Float32:
    """x without the ``drop`` lowest bits of its mantissa. A carry goes into the exponent."""
    shift = np.uint32(drop)
    bits = x.view(np.uint32)
    # Half of the last place less one, and one more where what stays is odd.
    result = bits >> shift
    result &= _ONE
    result += np.uint32((1 << (drop - 1)) - 1)
    result += bits
    result >>= shift
    result <<= shift
    values: Float32 = result.view(np.float32)
    np.copyto(values, x, where=np.isnan(x))
    return values


def _float16(x: Float32) -> Float32:
    """With 2^e <= |x| < 2^(e + 1), e at least -14, let a be 2^(e + 13) with the sign of x.

    The last place of x + a is 2^(e - 10), as float16 has it, so the addition rounds, and
    (x + a) - a is the result. NumPy's own conversion takes 70 times as long where a result is
    below 6.1e-5, as many gradients are.
    """
    if x.size and not max(x.max(), -x.min()) <= FP16_MAX:  # rare, and NaN is there, too
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float32)
    anchor = np.abs(x)
    np.maximum(anchor, _SMALLEST, out=anchor)
    bits = anchor.view(np.uint32)
    bits &= _EXPONENT
    bits += _UP13
    np.copysign(anchor, x, out=anchor)
    result: Float32 = x + anchor
    result -= anchor
    return result
