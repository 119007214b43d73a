"""Rounding to fewer bits against what the formats are, and products of rounded factors."""

from __future__ import annotations

import numpy as np
import pytest

from psgrad.kernels import PRECISIONS, cpu
from psgrad.kernels.halves import BF16, PIECE
from psgrad.kernels.precision import rounded, with_precision

REDUCED = PRECISIONS[1:]
BITS = {"tf32": 11, "bfloat16": 8, "float16": 11}
EDGES = np.array(
    [0.0, 1.0, -1.0, 2.0**-14, 2.0**-24, 2.0**-25, 2.0**-25 * 1.0001, -3e-8, 6.1e-5, 6e-5, 1e-38,
     1e-45, 65504, 65519.99, 65520, -65520, 1e6, 3.4e38, np.inf, -np.inf, np.nan],
    np.float32,
)  # fmt: skip


def patterns(n=1 << 16):
    """Float32 numbers of any bits: of all sizes, denormal, infinite, NaN."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, n, dtype=np.uint32)
    return np.concatenate([bits.view(np.float32), EDGES])


def same(a, b):
    return np.array_equal(a, b, equal_nan=True)


def test_float16_is_that_of_numpy():
    for values in (patterns(), patterns()[np.abs(patterns()) <= 65504], EDGES):
        with np.errstate(over="ignore"):
            want = values.astype(np.float16).astype(np.float32)
        assert same(rounded(values, "float16"), want)


def test_bfloat16_is_that_of_the_codec():
    values = patterns()
    values = values[np.abs(values) < 3e38]  # the codec has no infinity
    codes, nearest = np.empty(PIECE, np.uint16), np.empty(PIECE, np.float32)
    for start in range(0, values.size, PIECE):
        part = values[start : start + PIECE]
        n = part.size
        BF16.to(part, codes[:n], nearest[:n], np.empty(2 * n, np.uint32), True)
        assert same(rounded(part, "bfloat16"), nearest[:n])


@pytest.mark.parametrize("precision", REDUCED)
def test_to_the_nearest_ties_to_even(precision):
    values = patterns(4096)
    with np.errstate(all="ignore"):
        values = values[(np.abs(values) < 6e4) & (np.abs(values) > 7e-5)].astype(np.float64)
    exponents = np.floor(np.log2(np.abs(values)))
    place = 2.0 ** (exponents - BITS[precision] + 1)
    want = np.rint(values / place) * place  # rint: ties to even
    assert np.array_equal(rounded(values.astype(np.float32), precision), want)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_the_ends_of_wide_formats(precision):
    got = rounded(EDGES, precision)
    assert np.isnan(got[-1])
    assert got[-3:-1].tolist() == [np.inf, -np.inf]
    largest = np.array([np.finfo(np.float32).max, 1.0], np.float32)
    assert rounded(largest, precision).tolist() == [np.inf, 1.0]
    every_nan = np.array([0x7F80_0001, 0x7FFF_FFFF, 0xFFFF_FFFF], np.uint32).view(np.float32)
    assert np.isnan(rounded(every_nan, precision)).all()


@pytest.mark.parametrize("precision", REDUCED)
def test_any_shape_a_copy_and_idempotent(precision):
    x = np.random.default_rng(1).standard_normal((2, 3, 4, 5)).astype(np.float32)
    before = x.copy()
    for view in (x, x.swapaxes(-1, -2), x[:, ::2], x[0, 0].T, x[:0]):
        got = rounded(view, precision)
        assert got.shape == view.shape
        assert got.dtype == np.float32
        assert same(got, rounded(np.ascontiguousarray(view), precision))
        assert same(rounded(got, precision), got)
    assert np.array_equal(x, before)
    assert not np.array_equal(rounded(x, precision), x)


def test_float32_is_left_alone():
    x = np.ones(3, np.float32)
    assert rounded(x, "float32") is x
    assert with_precision(cpu, "float32") is cpu


@pytest.mark.parametrize("precision", REDUCED)
def test_products(precision):
    random = np.random.default_rng(2)
    a = random.standard_normal((3, 6, 40)).astype(np.float32)
    b = random.standard_normal((3, 5, 40)).astype(np.float32).swapaxes(-1, -2)
    kernels = with_precision(cpu, precision)
    out = np.empty((3, 6, 5), np.float32)
    assert kernels.matmul(a, b, out=out) is out
    assert np.array_equal(out, np.matmul(rounded(a, precision), rounded(b, precision)))
    exact = np.matmul(a.astype(np.float64), b.astype(np.float64))
    error = np.abs(out - exact).max()
    assert 2.0 ** -BITS[precision] / 10 < error < 2.0 ** -BITS[precision] * 40
    assert kernels.xp is np
    assert kernels.device == "cpu"
    assert kernels.softmax_cross_entropy is cpu.softmax_cross_entropy
