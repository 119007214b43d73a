"""The verdict of a step: what is not finite and where, the norm, the scale."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.guard import BLOCK, check
from psgrad.layout import Layout, SegmentOptions

SHAPES = {"w1": (40, 3), "b1": (3,), "mean": (5,), "w2": (3, 7), "b2": (7,)}
LAYOUT = Layout.of(
    {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()},
    [SegmentOptions("mean", buffer=True), SegmentOptions("b*", weight_decay=0.0)],
)


def judge(grads, layout=LAYOUT, clip_norm=None):
    return check(grads, layout, layout.segments, clip_norm)


def big_layout(n):
    return Layout.of({"w": np.broadcast_to(np.float32(0), (n,))})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("element", range(0, LAYOUT.size, 3))
def test_whatever_is_not_finite_is_named_with_its_tensor(element, value):
    grads = np.ones(LAYOUT.size, np.float32)
    grads[element] = value
    verdict = judge(grads, clip_norm=1.0)
    assert not verdict.finite
    assert verdict.culprit == LAYOUT.tensor_at(element).name
    assert verdict.scale == 0.0
    assert math.isnan(verdict.norm)


def test_every_tensor_can_be_the_culprit():
    culprits = set()
    for element in range(LAYOUT.size):
        grads = np.zeros(LAYOUT.size, np.float32)
        grads[element] = np.nan
        culprits.add(judge(grads).culprit)
    assert culprits == set(SHAPES)


@pytest.mark.parametrize("element", [0, BLOCK - 1, BLOCK, 2 * BLOCK, 2 * BLOCK + 4])
def test_in_any_block(element):
    layout = big_layout(2 * BLOCK + 5)
    grads = np.zeros(layout.size, np.float32)
    grads[element] = np.inf
    assert judge(grads, layout).culprit == "w"
    grads[element] = 3.0
    assert judge(grads, layout).norm == 3.0


def test_the_first_of_several_is_named():
    grads = np.zeros(LAYOUT.size, np.float32)
    for name in ("b2", "w2", "b1"):
        LAYOUT.views(grads)[name][-1] = np.nan
    assert judge(grads).culprit == LAYOUT.tensor_at(int(np.flatnonzero(np.isnan(grads))[0])).name


@pytest.mark.parametrize("value", [1e19, 1e30, float(np.finfo(np.float32).max)])
@pytest.mark.parametrize("n", [3, BLOCK + 3])
def test_a_sum_of_squares_beyond_float32_is_not_an_infinite_gradient(value, n):
    layout = big_layout(n)
    grads = np.full(n, value, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verdict = judge(grads, layout, clip_norm=1.0)
    assert verdict.finite
    assert verdict.norm == pytest.approx(float(np.float32(value)) * math.sqrt(n), rel=1e-6)
    assert np.linalg.norm((grads * np.float32(verdict.scale)).astype(np.float64)) == (
        # Such a scale is subnormal and has few digits.
        pytest.approx(1.0, rel=1e-4)
    )


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 3 * BLOCK), st.floats(1e-12, 1e25), st.integers(0, 2**32 - 1))
def test_the_norm_is_that_of_float64(n, size, seed):
    grads = (np.random.default_rng(seed).standard_normal(n) * size).astype(np.float32)
    exact = float(np.linalg.norm(grads.astype(np.float64)))
    # How a block is summed in float32 is up to the BLAS.
    assert judge(grads, big_layout(n)).norm == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize(
    ("norm", "limit", "scale"),
    [(5.0, None, 1.0), (5.0, 10.0, 1.0), (5.0, 5.0, 1.0), (5.0, 2.5, 0.5), (0.0, 1.0, 1.0)],
)
def test_clipping(norm, limit, scale):
    grads = np.array([0.6 * norm, -0.8 * norm], np.float32)
    verdict = judge(grads, big_layout(2), clip_norm=limit)
    assert verdict.norm == pytest.approx(norm, rel=1e-6)
    assert verdict.scale == pytest.approx(scale, rel=1e-6)


def test_the_gradient_is_not_touched():
    grads = np.full(LAYOUT.size, 9.0, np.float32)
    grads.setflags(write=False)
    assert judge(grads, clip_norm=1e-3).scale < 1


def test_buffers_must_be_finite_but_do_not_count():
    grads = np.zeros(LAYOUT.size, np.float32)
    views = LAYOUT.views(grads)
    views["mean"][:] = 1e30
    assert judge(grads, clip_norm=1.0) == judge(grads)._replace(norm=0.0, scale=1.0)
    views["w1"][0, 0] = 4.0
    assert judge(grads, clip_norm=1.0).norm == 4.0
    views["mean"][2] = np.inf
    assert judge(grads).culprit == "mean"


def test_only_the_segments_that_are_asked_for_count():
    grads = np.zeros(LAYOUT.size, np.float32)
    LAYOUT.views(grads)["w1"][0, 0] = 3.0
    LAYOUT.views(grads)["b1"][0] = np.nan
    mine = [s for s in LAYOUT.segments if s.options.match == "*"]
    verdict = check(grads, LAYOUT, mine, None)
    assert (verdict.finite, verdict.norm) == (True, 3.0)
    assert check(grads, LAYOUT, [], 1.0).norm == 0.0
