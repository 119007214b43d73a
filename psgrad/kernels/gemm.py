"""How a batched product of row-major arrays is put to BLAS, which counts columns first.

BLAS reads the memory of C[m, n] as C^T, so it is asked for C^T = B^T A^T: the second factor comes
first, and what lies row by row is already transposed for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from psgrad.kernels import Array


class Factor(NamedTuple):
    """``array`` [batch, rows, columns], contiguous: the factor, or its transpose if ``flipped``."""

    array: Array
    flipped: bool

    @property
    def leading(self) -> int:
        """Elements from one row to the next."""
        return int(self.array.shape[-1])

    @property
    def stride(self) -> int:
        """Elements from one matrix to the next."""
        return int(self.array.shape[-2] * self.array.shape[-1])


class Product(NamedTuple):
    """out[..., m, n] = a[..., m, k] b[..., k, n], ``batch`` of them."""

    a: Factor
    b: Factor
    m: int
    n: int
    k: int
    batch: int


def product(a: Array, b: Array, converted: Callable[[Array], Array]) -> Product:
    """The product of a[..., m, k] and b[..., k, n]; ``converted`` gives contiguous copies."""
    *outer, m, k = a.shape
    n = b.shape[-1]
    assert b.shape == (*outer, k, n), f"shapes {a.shape} and {b.shape} do not fit"
    first, second = _factor(a, converted), _factor(b, converted)
    return Product(first, second, m, n, k, len(first.array))


def _factor(x: Array, converted: Callable[[Array], Array]) -> Factor:
    flipped = x.swapaxes(-1, -2)
    # A transpose, such as weight.T, stays as it lies: BLAS can read it either way.
    as_it_lies = not x.flags.c_contiguous and flipped.flags.c_contiguous
    array = converted(flipped if as_it_lies else x)
    return Factor(array.reshape(-1, *array.shape[-2:]), as_it_lies)
