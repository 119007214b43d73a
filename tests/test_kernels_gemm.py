"""Products as they are put to BLAS, given to a BLAS of a few lines that counts columns first."""

from __future__ import annotations

import numpy as np
import pytest

from psgrad.kernels.gemm import product


def blas(
    flip_a, flip_b, m, n, k, a, lead_a, stride_a, b, lead_b, stride_b, lead_c, stride_c, batch
):
    """c of cublasGemmStridedBatched, as its manual says: element (i, j) is at [i + j * leading]."""
    c = np.full(batch * stride_c, np.nan)
    for g in range(batch):
        for i in range(m):
            for j in range(n):
                left = [a[g * stride_a + (s + i * lead_a if flip_a else i + s * lead_a)]
                        for s in range(k)]  # fmt: skip
                right = [b[g * stride_b + (j + s * lead_b if flip_b else s + j * lead_b)]
                         for s in range(k)]  # fmt: skip
                c[g * stride_c + i + j * lead_c] = np.dot(left, right)
    return c


def views(shape, seed):
    """An array of ``shape``, as it can lie in memory."""
    *outer, rows, columns = shape
    x = np.random.default_rng(seed).standard_normal((*outer, rows, columns))
    wide = np.random.default_rng(seed).standard_normal((*outer, rows, columns + 2))
    return [x, np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2), wide[..., :columns]]


@pytest.mark.parametrize("outer", [(), (3,), (2, 2)])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (2, 3, 4), (4, 1, 2), (1, 5, 3)])
def test_each_way_to_lie(outer, m, k, n):
    for a in views((*outer, m, k), seed=1):
        for b in views((*outer, k, n), seed=2):
            it = product(a, b, np.ascontiguousarray)
            assert (it.m, it.n, it.k, it.batch) == (m, n, k, int(np.prod(outer)))
            c = blas(
                it.b.flipped, it.a.flipped, n, m, k,
                it.b.array.ravel(), it.b.leading, it.b.stride,
                it.a.array.ravel(), it.a.leading, it.a.stride,
                n, m * n, it.batch,
            )  # fmt: skip
            np.testing.assert_allclose(c.reshape(*outer, m, n), np.matmul(a, b), atol=1e-12)


def test_a_transpose_is_not_turned():
    x = np.ones((3, 2))
    it = product(x.T, x, lambda array: array)
    assert it.a.flipped
    assert not it.b.flipped
    assert np.shares_memory(it.a.array, x)


def test_shapes_that_do_not_fit():
    with pytest.raises(AssertionError, match=r"shapes \(2, 3\) and \(2, 3\) do not fit"):
        product(np.ones((2, 3)), np.ones((2, 3)), np.ascontiguousarray)
