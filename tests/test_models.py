"""Every model: hand-derived gradients against finite differences, and the contract of `Model`."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from itertools import pairwise
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.errors import ConfigError, DataError
from psgrad.kernels import ACTIVATIONS, cpu
from psgrad.models import MLP, MODELS, Softmax, Transformer

FEATURES, CLASSES, ROWS = 5, 3, 12
HIDDEN = [(), (6,), (7, 4), (6, 5, 4)]
EVERY = [
    Softmax(),
    *(MLP(hidden, kind) for kind in ACTIVATIONS for hidden in HIDDEN),
    Transformer(layers=1, heads=1, width=4, context=FEATURES),
    Transformer(layers=2, heads=2, width=6, context=FEATURES),
]
every_model = pytest.mark.parametrize("model", EVERY, ids=str)


def views(shapes, dtype=np.float64, fill=np.nan):
    """One flat vector, and its pieces by name behind a mapping that cannot be rebound."""
    flat = np.full(sum(int(np.prod(s)) for s in shapes.values()), fill, dtype)
    pieces, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        pieces[name] = flat[start : start + size].reshape(shape)
        start += size
    return flat, MappingProxyType(pieces)


def problem(model, dtype=np.float64, rows=ROWS, seed=3):
    """Parameters (biases not zero, so that they matter), a batch, and room for gradients."""
    start = model.init(FEATURES, CLASSES, seed)
    shapes = {name: array.shape for name, array in start.items()}
    vector, params = views(shapes, dtype)
    random = np.random.default_rng(seed)
    for name, array in start.items():
        params[name][...] = array + 0.1 * random.standard_normal(array.shape)
    if model.window:
        x, y = random.integers(0, CLASSES, (2, rows, FEATURES))
    else:
        x = random.standard_normal((rows, FEATURES)).astype(dtype)
        y = random.integers(0, CLASSES, rows)
    return vector, params, x, y, *views(shapes, dtype)


# ---- the gradients


@every_model
def test_gradients_match_finite_differences(model):
    vector, params, x, y, flat, grads = problem(model)
    model.loss_and_grad(params, x, y, grads, cpu)
    step = 1e-5
    slopes = np.empty_like(vector)
    for i, value in enumerate(vector.tolist()):
        sides = []
        for moved in (value + step, value - step):
            vector[i] = moved
            sides.append(model.evaluate(params, x, y, cpu)[0] / y.size)
        vector[i] = value
        slopes[i] = (sides[0] - sides[1]) / (2 * step)
    assert np.linalg.norm(flat) > 1e-2
    assert np.linalg.norm(slopes - flat) <= 1e-6 * np.linalg.norm(flat)


@every_model
def test_a_direction_in_each_tensor(model):
    # The norm above could hide a small tensor behind a large one; this one cannot.
    _, params, x, y, _, grads = problem(model, seed=5)
    model.loss_and_grad(params, x, y, grads, cpu)
    step = 1e-5
    for name, gradient in grads.items():
        start, length = params[name].copy(), np.linalg.norm(gradient)
        sides = []
        for sign in (step, -step):
            params[name][...] = start + sign * gradient / length
            sides.append(model.evaluate(params, x, y, cpu)[0] / y.size)
        params[name][...] = start
        assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(length, rel=1e-6), name


@every_model
@settings(deadline=None, max_examples=15)
@given(cuts=st.sets(st.integers(1, ROWS - 1)))
def test_weighted_micro_batches_are_the_whole_batch(model, cuts):
    _, params, x, y, whole, grads = problem(model)
    loss, correct = model.loss_and_grad(params, x, y, grads, cpu)
    flat, pieces = views({name: g.shape for name, g in grads.items()})

    edges = [0, *sorted(cuts), ROWS]
    loss_sum, correct_sum = 0.0, 0
    for begin, end in pairwise(edges):
        rows = end - begin
        part, hits = model.loss_and_grad(
            params,
            x[begin:end],
            y[begin:end],
            pieces,
            cpu,
            scale=rows / ROWS,
            accumulate=begin > 0,
        )
        loss_sum += part * rows
        correct_sum += hits

    assert np.linalg.norm(flat - whole) <= 1e-12 * np.linalg.norm(whole)
    assert loss_sum / ROWS == pytest.approx(loss, rel=1e-12)
    assert correct_sum == correct


@every_model
def test_scale_and_accumulate(model):
    _, params, x, y, flat, grads = problem(model)
    loss, _ = model.loss_and_grad(params, x, y, grads, cpu)
    once = flat.copy()
    scaled_loss, _ = model.loss_and_grad(params, x, y, grads, cpu, scale=-2.5)
    assert scaled_loss == loss
    np.testing.assert_allclose(flat, -2.5 * once, rtol=1e-12, atol=1e-15)
    model.loss_and_grad(params, x, y, grads, cpu, scale=3.5, accumulate=True)
    np.testing.assert_allclose(flat, once, rtol=1e-11, atol=1e-14)


# ---- the contract


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_model
def test_writes_only_the_gradients(model, dtype):
    vector, params, x, y, flat, grads = problem(model, dtype)
    before = vector.copy(), x.copy(), y.copy()
    loss, correct = model.loss_and_grad(params, x, y, grads, cpu)
    assert np.isfinite(flat).all()  # it started as NaN: every element was written, through views
    for array, copy in zip((vector, x, y), before, strict=True):
        assert np.array_equal(array, copy)
    total, hits = model.evaluate(params, x, y, cpu)
    assert (type(loss), type(correct), type(total), type(hits)) == (float, int, float, int)
    assert total == pytest.approx(loss * y.size, rel=1e-6)
    assert hits == correct
    assert 0 <= correct <= y.size


@every_model
def test_float32_follows_float64(model):
    _, params, x, y, flat, grads = problem(model)
    model.loss_and_grad(params, x, y, grads, cpu)
    shapes = {name: g.shape for name, g in grads.items()}
    single, single_grads = views(shapes, np.float32)
    model.loss_and_grad(
        {name: p.astype(np.float32) for name, p in params.items()},
        x.astype(np.int32 if model.window else np.float32),
        y.astype(np.int32),
        single_grads,
        cpu,
    )
    assert np.linalg.norm(single - flat) <= 1e-5 * np.linalg.norm(flat)


@every_model
def test_logits_of_ten_thousand(model):
    vector, params, x, y, flat, grads = problem(model)
    vector *= 1e4
    loss, _ = model.loss_and_grad(params, x, y, grads, cpu)
    assert np.isfinite(flat).all()
    assert 1 < loss < np.inf


@every_model
def test_a_diverged_model_gives_nan_without_warnings(model):
    vector, params, x, y, flat, grads = problem(model, np.float32)
    vector[...] = 3e38
    loss, _ = model.loss_and_grad(params, x, y, grads, cpu)
    assert not np.isfinite(loss)
    assert not np.isfinite(flat).all()
    assert not np.isfinite(model.evaluate(params, x, y, cpu)[0])


@every_model
def test_no_rows(model):
    _, params, x, y, _, grads = problem(model)
    with pytest.raises(DataError, match="at least 1 row, got 0"):
        model.loss_and_grad(params, x[:0], y[:0], grads, cpu)
    assert model.evaluate(params, x[:0], y[:0], cpu) == (0.0, 0)


@pytest.mark.parametrize("model", [Softmax(), *(MLP((), kind) for kind in ACTIVATIONS)], ids=str)
def test_without_hidden_layers_it_is_softmax_regression(model):
    """As its formulas are usually written, and from the same first values."""
    _, params, x, y, _, grads = problem(model)
    w, b = params["layer0.weight"], params["layer0.bias"]
    p = np.exp(x @ w + b)
    p /= p.sum(axis=1, keepdims=True)
    loss, correct = model.loss_and_grad(params, x, y, grads, cpu)
    assert loss == pytest.approx(-np.log(p[np.arange(ROWS), y]).mean(), rel=1e-12)
    assert correct == (p.argmax(axis=1) == y).sum()
    dz = (p - np.eye(CLASSES)[y]) / ROWS
    np.testing.assert_allclose(grads["layer0.weight"], x.T @ dz, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(grads["layer0.bias"], dz.sum(axis=0), rtol=1e-10, atol=1e-14)

    unit = np.random.default_rng([9, 0]).random((FEATURES, CLASSES), dtype=np.float32)
    limit = np.float32(np.sqrt(6 / (FEATURES + CLASSES)))
    first = model.init(FEATURES, CLASSES, seed=9)["layer0.weight"]
    assert first.tobytes() == (limit * (2 * unit - 1)).tobytes()


@pytest.mark.parametrize("model", [Softmax(), *(MLP((16,), kind) for kind in ACTIVATIONS)], ids=str)
def test_plain_descent_learns(model):
    random = np.random.default_rng(0)
    centres = 4 * random.standard_normal((CLASSES, FEATURES))
    y = np.arange(90) % CLASSES
    x = (centres[y] + random.standard_normal((90, FEATURES))).astype(np.float32)
    params = model.init(FEATURES, CLASSES, seed=1)
    grads = {name: np.empty_like(p) for name, p in params.items()}
    for _ in range(60):
        model.loss_and_grad(params, x, y, grads, cpu)
        for name, p in params.items():
            p -= np.float32(0.1) * grads[name]
    assert model.evaluate(params, x, y, cpu)[1] >= 87


# ---- starting values


@pytest.mark.parametrize("model", [model for model in EVERY if not model.window], ids=str)
def test_init_shapes_and_repeats(model):
    params = model.init(FEATURES, CLASSES, seed=9)
    widths = [FEATURES, *getattr(model, "hidden", ()), CLASSES]
    names = [f"layer{i}.{part}" for i in range(len(widths) - 1) for part in ("weight", "bias")]
    assert list(params) == names
    for i, shape in enumerate(pairwise(widths)):
        assert params[f"layer{i}.weight"].shape == shape
        assert params[f"layer{i}.bias"].tolist() == [0.0] * shape[1]
    assert all(p.dtype == np.float32 and p.flags.c_contiguous for p in params.values())
    again = model.init(FEATURES, CLASSES, seed=9)
    assert all(np.array_equal(params[name], again[name]) for name in names)
    other = model.init(FEATURES, CLASSES, seed=10)
    assert not any(np.array_equal(params[n], other[n]) for n in names if n.endswith("weight"))


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_a_tensor_does_not_depend_on_the_others(kind):
    short, long = MLP((8, 8), kind).init(8, 4, 0), MLP((8, 8, 8), kind).init(8, 4, 0)
    for name in ("layer0.weight", "layer1.weight"):
        assert np.array_equal(short[name], long[name])
    assert not np.array_equal(long["layer0.weight"], long["layer1.weight"])


@pytest.mark.parametrize(
    ("model", "layer", "variance"),
    [
        (MLP((400, 300), "relu"), 1, 2 / 400),
        (MLP((400, 300), "gelu"), 1, 2 / 400),
        (MLP((400, 300), "tanh"), 1, 2 / 700),
        (MLP((400, 300), "relu"), 2, 2 / 500),
        (Softmax(), 0, 2 / 300),
    ],
    ids=str,
)
def test_the_variance_of_he_and_glorot(model, layer, variance):
    weight = model.init(100, 200, seed=4)[f"layer{layer}.weight"].astype(np.float64)
    assert weight.var() == pytest.approx(variance, rel=0.05)
    assert abs(weight.mean()) < 4 * np.sqrt(variance / weight.size)


@pytest.mark.parametrize("model", [Softmax(), MLP()], ids=str)
@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((0, 3, 0), "features must be at least 1, got 0"),
        ((5, 0, 0), "classes must be at least 1, got 0"),
        ((5, 3, -1), "seed must be at least 0, got -1"),
    ],
)
def test_init_refuses(model, sizes, text):
    with pytest.raises(ConfigError, match=text):
        model.init(*sizes)


# ---- options


def test_the_table_of_models():
    assert dict(MODELS) == {"mlp": MLP, "softmax": Softmax, "transformer": Transformer}
    assert [f.name for f in fields(MODELS["mlp"])] == ["hidden", "activation"]
    assert fields(MODELS["softmax"]) == ()
    with pytest.raises(TypeError, match="does not support item assignment"):
        MODELS["mine"] = MLP


def test_options_are_values():
    assert MLP([64, 32]) == MLP((64, 32))
    assert MLP([64, 32]).hidden == (64, 32)
    assert hash(MLP([64])) == hash(MLP((64,)))
    with pytest.raises(FrozenInstanceError):
        MLP().hidden = (1,)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"hidden": 64}, r"hidden must be a list of widths, \[256, 128\], got 64"),
        ({"hidden": "64"}, "hidden must be a list of widths.*got '64'"),
        ({"hidden": [64, 0]}, "hidden widths must be integers of at least 1, got 0"),
        ({"hidden": [64, -3]}, "got -3"),
        ({"hidden": [1.5]}, "got 1.5"),
        ({"hidden": [True]}, "got True"),
        ({"activation": "rely"}, "unknown activation 'rely'; did you mean 'relu'"),
        ({"activation": "identity"}, "unknown activation 'identity'"),
        ({"activation": 3}, "unknown activation 3"),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(ConfigError, match=text):
        MLP(**options)
