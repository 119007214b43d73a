"""The kernels under the dense codecs against their formulas in float64, at every extreme."""

from __future__ import annotations

import numpy as np
import pytest

from psgrad.kernels.halves import (
    BF16_INFINITY,
    FP16_INFINITY,
    from_bf16,
    from_fp16,
    is_finite,
    to_bf16,
    to_fp16,
)
from psgrad.kernels.quantize import (
    MAX,
    SMALLEST_STEP,
    block_max,
    block_mean,
    block_norm,
    copy_signs,
    largest_step,
    quantize,
    spread,
    steps,
)

F4 = np.float32


def measured(measure, v, block):
    starts = np.arange(0, v.size, block)
    out = np.full(starts.size, np.nan, F4)
    before = v.copy()
    measure(v, starts, out, np.full(v.size, np.nan, F4))
    np.testing.assert_array_equal(v.view(np.uint32), before.view(np.uint32))
    return out


def rows(v, block):
    return [v[i : i + block].astype(np.float64) for i in range(0, v.size, block)]


SCALES = [1.0, 1e-3, 1e-18, 1e-30, 1e-44, 1e18, 1e30, 1e38]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("n", "block"), [(1, 16), (15, 16), (16, 16), (100, 16), (4096, 512), (4097, 512)]
)
def test_measures_of_blocks(n, block, scale):
    v = (np.random.default_rng(n).uniform(-2, 2, n) * scale).astype(F4)
    v[: min(block, n) : 3] = 0
    expected = [abs(row).max() for row in rows(v, block)]
    np.testing.assert_array_equal(measured(block_max, v, block), np.array(expected, F4))
    expected = [abs(row).mean() for row in rows(v, block)]
    np.testing.assert_allclose(measured(block_mean, v, block), expected, rtol=2e-6, atol=2e-45)
    expected = [min(np.linalg.norm(row) * (1 + 2**-16), MAX) for row in rows(v, block)]
    np.testing.assert_allclose(measured(block_norm, v, block), expected, rtol=2e-6, atol=2e-45)


@pytest.mark.parametrize("measure", [block_max, block_mean, block_norm])
def test_a_block_of_zeros_measures_zero_and_does_not_touch_the_others(measure):
    v = np.zeros(48, F4)
    v[16:32] = 3.0
    v[32:] = -0.0
    out = measured(measure, v, 16)
    assert out[[0, 2]].tolist() == [0, 0]
    assert not np.signbit(out).any()
    assert out[1] > 2.9


def test_no_magnitude_is_above_its_norm():
    rng = np.random.default_rng(0)
    v = np.zeros((4000, 16), F4)
    v[:, 3] = np.exp(rng.uniform(-87, 88, 4000))
    v[::2, 7] = v[::2, 3] * 1e-4
    assert (measured(block_norm, v.reshape(-1), 16) > v[:, 3]).all()


@pytest.mark.parametrize("levels", range(1, 128))
def test_codes_never_exceed_their_levels(levels):
    """With the largest noise, wherever the step was rounded down, up to the largest float."""
    rng = np.random.default_rng(levels)
    v = np.exp(rng.uniform(-85, 88, 4000)).astype(F4)
    v[:50] = np.arange(MAX.view(np.uint32) - 49, MAX.view(np.uint32) + 1, dtype=np.uint32).view(F4)
    limit, step, codes = largest_step(levels), np.zeros_like(v), np.zeros_like(v)
    for measure in (v, np.minimum(v.astype(np.float64) * (1 + 2**-16), MAX).astype(F4)):
        steps(measure, np.array(levels, F4), limit, step)
        for noise in (None, np.full_like(v, 0.5 - 2**-16)):
            quantize(v, step, noise, codes)
            assert codes.max() <= levels
            assert np.isfinite(codes * step).all()
    assert step.max() <= limit


def test_steps_are_normal_numbers():
    step = np.zeros(3, F4)
    steps(np.array([0, 1e-45, 1e-38], F4), np.array(127, F4), largest_step(127), step)
    assert step.tolist() == [SMALLEST_STEP] * 3


def test_rounding_is_to_the_nearest_ties_to_even():
    v = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.49, 2.51], F4)
    out = np.zeros_like(v)
    quantize(v, np.ones_like(v), None, out)
    assert out.tolist() == [0, 2, 2, 0, -2, 0, 3]
    quantize(v, np.ones_like(v), np.full_like(v, 0.25), out)
    assert out.tolist() == [1, 2, 3, 0, -1, 1, 3]


def test_spread_and_signs():
    out = np.zeros(6, F4)
    spread(np.array([1, 2], F4), 3, out)
    assert out.tolist() == [1, 1, 1, 2, 2, 2]
    copy_signs(out, np.array([0.0, -0.0, -1e-45, 5, -7, 1], F4), out2 := np.zeros(6, F4))
    assert out2.tolist() == [1, -1, -1, 2, -2, 2]


# Sixteen bits


def halves(to, v, both=True):
    out = np.full(v.size, 0xA5A5, np.uint16)
    rounded = np.full(v.size, np.nan, F4)
    before = v.copy()
    to(v, out, rounded, np.full(2 * v.size, 0xA5A5A5A5, np.uint32), both)
    np.testing.assert_array_equal(v.view(np.uint32), before.view(np.uint32))
    return out, rounded


def around_halves(codes, to_float):
    """Every finite number of 16 bits, every middle of two neighbours, and what is next to those."""
    values = to_float(codes)
    middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(F4)  # exact
    points = np.concatenate([values, middles])
    ups, downs = np.nextafter(points, F4(np.inf)), np.nextafter(points, F4(-np.inf))
    return np.concatenate([points, ups, downs])


def pieces(v):
    return np.array_split(v, -(-v.size // 32768))


def test_fp16_is_numpys_at_every_number_tie_and_neighbour():
    codes = np.arange(FP16_INFINITY, dtype=np.uint16)
    v = around_halves(codes, lambda c: c.view(np.float16).astype(F4))
    v = np.concatenate([v, -v, np.random.default_rng(0).standard_normal(1000).astype(F4)])
    v = v[abs(v) < 65520]
    for part in pieces(v):
        out, rounded = halves(to_fp16, part)
        with np.errstate(under="ignore"):
            expected = part.astype(np.float16)
        np.testing.assert_array_equal(out, expected.view(np.uint16))
        np.testing.assert_array_equal(rounded, expected.astype(F4))
        np.testing.assert_array_equal(halves(to_fp16, part, both=False)[0], out)


def nearest_bf16(v):
    """By distance in float64, ties to the even code."""
    low = (v.view(np.uint32) >> 16).astype(np.uint32)
    both = np.stack([low, low + 1])
    floats = (both << 16).view(F4).astype(np.float64)
    down, up = abs(floats - v.astype(np.float64))
    take_up = (up < down) | ((up == down) & (low % 2 == 1))
    return np.where(take_up, both[1], both[0]).astype(np.uint16)


def test_bf16_is_the_nearest_at_every_number_tie_and_neighbour():
    codes = np.arange(BF16_INFINITY, dtype=np.uint16)
    v = around_halves(codes, lambda c: (c.astype(np.uint32) << 16).view(F4))
    v = np.abs(v[np.isfinite(v)])
    v = v[v < F4(3.39e38)]
    for part in pieces(np.concatenate([v, -v])):
        out, rounded = halves(to_bf16, part)
        np.testing.assert_array_equal(out, nearest_bf16(part))
        np.testing.assert_array_equal(rounded.view(np.uint32), out.astype(np.uint32) << 16)
        np.testing.assert_array_equal(halves(to_bf16, part, both=False)[0], out)


@pytest.mark.parametrize(
    ("to", "largest", "code"), [(to_fp16, 65504, 0x7BFF), (to_bf16, 3.3895314e38, 0x7F7F)]
)
def test_what_is_too_large_saturates(to, largest, code):
    v = np.array([65503, 65504, 65519.9, 65520, 65536, 1e5, 1e30, 3.3e38, 3.4e38, MAX], F4)
    for both in (True, False):
        for sign in (1, -1):
            out, rounded = halves(to, sign * v, both)
            too_large = v >= F4(largest)
            assert (out[too_large] == (code if sign > 0 else code | 0x8000)).all()
            if both:
                assert (rounded[too_large] == sign * F4(largest)).all()
                expected = halves(to, sign * v[~too_large])[1]
                np.testing.assert_array_equal(rounded[~too_large], expected)


def test_minus_zero_stays():
    v = np.array([0.0, -0.0, 1e-45, -1e-45], F4)
    assert halves(to_fp16, v)[0].tolist() == [0, 0x8000, 0, 0x8000]
    assert halves(to_bf16, v)[0].tolist() == [0, 0x8000, 0, 0x8000]


def test_all_codes_are_read_as_they_should():
    codes = np.arange(1 << 16, dtype=np.uint16)
    out = np.zeros(codes.size, F4)
    from_fp16(codes, out)
    np.testing.assert_array_equal(out, codes.view(np.float16).astype(F4))
    from_bf16(codes, out)
    np.testing.assert_array_equal(out.view(np.uint32), codes.astype(np.uint32) << 16)


@pytest.mark.parametrize("infinity", [FP16_INFINITY, BF16_INFINITY])
def test_infinity_and_nan_are_found(infinity):
    fine = np.array([0, 1, infinity - 1, 0x8000, 0x8000 | infinity - 1], np.uint16)
    assert is_finite(fine, infinity)
    for bad in (infinity, infinity + 1, 0x7FFF, 0x8000 | infinity, 0xFFFF):
        assert not is_finite(np.append(fine, np.uint16(bad)), infinity)
