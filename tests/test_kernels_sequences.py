"""The CPU kernels of sequences against their formulas: embeddings, layer norm, causal softmax."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.kernels import LAYER_NORM_EPS, cpu

FLOATS = (np.float32, np.float64)
STEP = 1e-6


def drawn(*shape, seed=1, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def slopes(function, x, weights):
    """d sum(weights * function(x)) / dx, by central differences."""
    found = np.empty_like(x)
    for i in range(x.size):
        sides = []
        for step in (STEP, -STEP):
            moved = x.copy()
            moved.flat[i] += step
            sides.append(float(np.sum(weights * function(moved))))
        found.flat[i] = (sides[0] - sides[1]) / (2 * STEP)
    return found


# ---- products


def test_a_product_of_views_into_an_array():
    a, b = drawn(3, 4), drawn(3, 2, seed=2)
    out = np.full((4, 2), np.nan)
    assert cpu.matmul(a.T, b, out=out) is out
    np.testing.assert_allclose(out, np.einsum("ki,kj->ij", a, b))
    batch = drawn(2, 3, 5, 4)
    np.testing.assert_allclose(
        cpu.matmul(batch, batch.swapaxes(-1, -2)), np.einsum("abik,abjk->abij", batch, batch)
    )


# ---- embeddings


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(0, 99))
def test_embed_and_its_gradient(b, t, v, seed):
    ids = np.random.default_rng(seed).integers(0, v, (b, t)).astype(np.uint8)
    tokens, positions = drawn(v, 3), drawn(t, 3, seed=2)
    h = cpu.embed(ids, tokens, positions)
    assert h.shape == (b * t, 3)
    grad = drawn(b * t, 3, seed=3)
    tokens_grad, positions_grad = np.ones((v, 3)), np.ones((t, 3))
    before = grad.copy()
    cpu.embed_backward(grad, ids, tokens_grad, positions_grad)
    want_tokens, want_positions = np.ones((v, 3)), np.ones((t, 3))
    for row, (i, j) in enumerate(np.ndindex(b, t)):
        np.testing.assert_array_equal(h[row], tokens[ids[i, j]] + positions[j])
        want_tokens[ids[i, j]] += grad[row]
        want_positions[j] += grad[row]
    np.testing.assert_allclose(tokens_grad, want_tokens, atol=1e-13)
    np.testing.assert_allclose(positions_grad, want_positions, atol=1e-13)
    assert np.array_equal(grad, before)


def test_embed_leaves_the_tables():
    tokens, positions = np.ones((2, 3)), np.ones((4, 3))
    cpu.embed(np.zeros((1, 4), np.int64), tokens, positions)
    assert (tokens == 1).all()
    assert (positions == 1).all()


# ---- layer norm


@pytest.mark.parametrize("dtype", FLOATS)
def test_layer_norm_is_the_formula(dtype):
    x, gain, bias = drawn(5, 7, dtype=dtype), drawn(7, seed=2, dtype=dtype), drawn(7, seed=3)
    bias = bias.astype(dtype)
    before = x.copy()
    y, centred, inverse = cpu.layer_norm(x, gain, bias)
    assert y.dtype == centred.dtype == inverse.dtype == dtype
    assert inverse.shape == (5, 1)
    assert np.array_equal(x, before)
    for row in range(5):
        values = [float(v) for v in x[row]]
        mean = math.fsum(values) / 7
        variance = math.fsum((v - mean) ** 2 for v in values) / 7
        root = math.sqrt(variance + LAYER_NORM_EPS)
        want = [(v - mean) / root * g + b for v, g, b in zip(values, gain, bias, strict=True)]
        np.testing.assert_allclose(y[row], want, rtol=0, atol=50 * np.finfo(dtype).eps)


def test_a_row_of_equal_values():
    y, centred, inverse = cpu.layer_norm(np.full((1, 4), 3.0), np.ones(4), np.full(4, 0.5))
    assert y.tolist() == [[0.5] * 4]
    assert centred.tolist() == [[0.0] * 4]
    assert inverse.item() == pytest.approx(LAYER_NORM_EPS**-0.5)


def test_layer_norm_backward():
    x, gain, bias, weights = drawn(4, 5), drawn(5, seed=2), drawn(5, seed=3), drawn(4, 5, seed=4)
    _, centred, inverse = cpu.layer_norm(x, gain, bias)
    grad, gain_grad, bias_grad = weights.copy(), np.ones(5), np.ones(5)
    cpu.layer_norm_backward(grad, centred, inverse, gain, gain_grad, bias_grad)
    for got, want in (
        (grad, slopes(lambda v: cpu.layer_norm(v, gain, bias)[0], x, weights)),
        (gain_grad - 1, slopes(lambda v: cpu.layer_norm(x, v, bias)[0], gain, weights)),
        (bias_grad - 1, slopes(lambda v: cpu.layer_norm(x, gain, v)[0], bias, weights)),
    ):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-8)


# ---- causal softmax


def softmaxed(scores, scale):
    p = scores.copy()
    cpu.causal_softmax(p, scale)
    return p


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (2, 3, 5, 5)])
def test_causal_softmax_is_the_formula(shape, dtype):
    scores = drawn(*shape, dtype=dtype)
    p = softmaxed(scores, 0.5)
    assert p.dtype == dtype
    t = shape[-1]
    for at in np.ndindex(shape[:-1]):
        row = [math.exp(0.5 * float(s)) for s in scores[at][: at[-1] + 1]]
        want = [e / math.fsum(row) for e in row] + [0.0] * (t - len(row))
        np.testing.assert_allclose(p[at], want, rtol=20 * np.finfo(dtype).eps)


def test_what_comes_later_has_no_weight_and_no_effect():
    scores = drawn(6, 6)
    moved = scores + np.triu(np.full((6, 6), 1e30), 1)
    assert np.array_equal(softmaxed(moved, 1.0), softmaxed(scores, 1.0))


def test_scores_of_ten_thousand():
    p = softmaxed(np.array([[5.0, 0.0], [1e4, -1e4]], np.float32), 1.0)
    assert p.tolist() == [[1, 0], [1, 0]]


def test_causal_softmax_backward():
    scores, weights = drawn(2, 4, 4), drawn(2, 4, 4, seed=2)
    grad = weights.copy()
    cpu.causal_softmax_backward(grad, softmaxed(scores, 0.7), 0.7)
    want = slopes(lambda s: softmaxed(s, 0.7), scores, weights)
    np.testing.assert_allclose(grad, want, rtol=0, atol=1e-8)
    assert not np.triu(grad, 1).any()


@pytest.mark.parametrize("where", [(0, 0), (2, 1)])
def test_nan_stays_in_its_row(where):
    scores = np.zeros((3, 3))
    scores[where] = np.nan
    rows = np.isnan(softmaxed(scores, 1.0)).any(axis=1)
    assert np.flatnonzero(rows).tolist() == [where[0]]
