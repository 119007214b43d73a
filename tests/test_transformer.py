"""The transformer: what it is beside the contract of models, and its gradients by other means."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
from test_models import problem, views

from psgrad.errors import ConfigError
from psgrad.kernels import cpu
from psgrad.models import Hooks, Transformer

SMALL = Transformer(layers=2, heads=2, width=8, context=5)
CLASSES = 3
STEP = 1e-5


# ---- the gradients


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "model",
    [SMALL, Transformer(1, 1, 3, 5), Transformer(3, 4, 8, 5)],
    ids=str,
)
def test_every_tensor_against_finite_differences(model, seed):
    """Along a random direction in each tensor: no element can be wrong by itself, nor a tensor."""
    _, params, x, y, _, grads = problem(model, seed=seed)
    model.loss_and_grad(params, x, y, grads, cpu)
    random = np.random.default_rng(100 + seed)
    for name, gradient in grads.items():
        start, direction = params[name].copy(), random.standard_normal(gradient.shape)
        at = {}
        for steps in (-2, -1, 1, 2):
            params[name][...] = start + steps * STEP * direction
            at[steps] = model.evaluate(params, x, y, cpu)[0] / y.size
        params[name][...] = start
        # Four points: the embeddings are small, so that the layer norm above them bends a lot.
        slope = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * STEP)
        # The bias of k moves all scores of a row alike, so its part of the gradient is 0.
        assert np.vdot(gradient, direction) == pytest.approx(slope, rel=1e-6, abs=1e-9), name
    keys = grads["block0.qkv.bias"].reshape(3, -1)[1]
    assert np.abs(keys).max() < 1e-14


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    ("model", "seed"), [(SMALL, 0), (SMALL, 1), (Transformer(3, 4, 8, 5), 2)], ids=str
)
def test_gradients_are_those_of_autograd(model, seed, accumulate):
    torch = pytest.importorskip("torch")
    _, params, x, y, flat, grads = problem(model, seed=seed)
    flat[...] = 0.25
    loss, correct = model.loss_and_grad(params, x, y, grads, cpu, scale=1.5, accumulate=accumulate)
    theirs = {name: torch.tensor(p, requires_grad=True) for name, p in params.items()}
    logits = _torch_logits(torch, model, theirs, torch.tensor(x))
    their_loss = torch.nn.functional.cross_entropy(logits, torch.tensor(y.ravel()))
    (1.5 * their_loss).backward()
    assert loss == pytest.approx(their_loss.item(), rel=1e-12)
    assert correct == int((logits.argmax(dim=1).numpy() == y.ravel()).sum())
    before = 0.25 if accumulate else 0.0
    for name, grad in grads.items():
        want = theirs[name].grad.numpy()
        np.testing.assert_allclose(grad - before, want, rtol=1e-9, atol=1e-13, err_msg=name)


def _torch_logits(torch, model, params, x):
    """The same model as PyTorch's own functions make it."""
    functional = torch.nn.functional

    def norm(h, name):
        gain, bias = params[f"{name}.gain"], params[f"{name}.bias"]
        return functional.layer_norm(h, (model.width,), gain, bias, eps=1e-5)

    def dense(h, name):
        return functional.linear(h, params[f"{name}.weight"].T, params[f"{name}.bias"])

    b, t = x.shape
    h = functional.embedding(x, params["embed.token"]) + params["embed.position"]
    for i in range(model.layers):
        qkv = dense(norm(h, f"block{i}.norm1"), f"block{i}.qkv")
        q, k, v = (
            part.reshape(b, t, model.heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1)
        )
        o = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + dense(o.transpose(1, 2).reshape(b, t, -1), f"block{i}.project")
        inner = dense(norm(h, f"block{i}.norm2"), f"block{i}.expand")
        h = h + dense(functional.gelu(inner, approximate="tanh"), f"block{i}.contract")
    return dense(norm(h, "norm"), "head").reshape(b * t, -1)


# ---- what makes it one


def test_a_token_sees_nothing_of_what_follows():
    _, params, x, y, _, _ = problem(SMALL, rows=1)
    losses = []
    for last in range(CLASSES):
        x[0, -1] = last
        # All but the last token: their labels alone.
        per_token = []
        for t in range(5):
            moved = y.copy()
            moved[0, t] = (y[0, t] + 1) % CLASSES
            per_token.append(SMALL.evaluate(params, x, moved, cpu)[0])
        whole = SMALL.evaluate(params, x, y, cpu)[0]
        losses.append([one - whole for one in per_token])
    early, late = np.array(losses)[:, :-1], np.array(losses)[:, -1]
    np.testing.assert_allclose(early, np.broadcast_to(early[0], early.shape), atol=1e-12)
    assert np.ptp(late) > 1e-6


def test_the_place_of_a_token_matters():
    _, params, x, y, _, _ = problem(SMALL, rows=1)
    x[...], y[...] = 0, 1
    y[0, 2] = 2
    same = SMALL.evaluate(params, x, y, cpu)[0]
    y[0, 2], y[0, 3] = 1, 2
    assert SMALL.evaluate(params, x, y, cpu)[0] != pytest.approx(same, rel=1e-9)


def test_it_repeats_bit_for_bit():
    _, params, x, y, flat, grads = problem(SMALL, np.float32, rows=40)
    SMALL.loss_and_grad(params, x, y, grads, cpu)
    first = flat.copy()
    flat[...] = np.nan
    SMALL.loss_and_grad(params, x, y, grads, cpu)
    assert flat.tobytes() == first.tobytes()


def test_hooks_layer_by_layer_up_and_down():
    _, params, x, y, flat, grads = problem(SMALL)
    SMALL.loss_and_grad(params, x, y, grads, cpu)
    final = {name: grad.copy() for name, grad in grads.items()}
    flat[...] = np.nan
    needed, done = [], []

    def is_done(names):
        for name in names:
            assert np.array_equal(grads[name], final[name]), f"{name} is not final"
        assert np.isnan(flat).any() == (len(done) + len(names) < len(grads))
        done.extend(names)

    SMALL.loss_and_grad(params, x, y, grads, cpu, hooks=Hooks(needed.extend, is_done))
    assert needed == list(params), "each once, in the order of the parameters"
    assert sorted(done) == sorted(params)
    layers = [name.rpartition(".")[0] for name in done]
    want = ["head", "norm"]
    for block in ("block1", "block0"):
        parts = ("contract", "expand", "norm2", "project", "qkv", "norm1")
        want += [f"{block}.{part}" for part in parts]
    assert list(dict.fromkeys(layers)) == [*want, "embed"]


# ---- starting values and options


def test_init():
    model = Transformer(layers=2, heads=2, width=64, context=32)
    params = model.init(32, 50, seed=9)
    shapes = {"embed.token": (50, 64), "embed.position": (32, 64)}
    for i in range(2):
        for part, shape in [
            ("norm1", None), ("qkv", (64, 192)), ("project", (64, 64)), ("norm2", None),
            ("expand", (64, 256)), ("contract", (256, 64)),
        ]:  # fmt: skip
            name = f"block{i}.{part}"
            shapes[f"{name}.weight" if shape else f"{name}.gain"] = shape or (64,)
            shapes[f"{name}.bias"] = shape[1:] if shape else (64,)
    shapes |= {"norm.gain": (64,), "norm.bias": (64,), "head.weight": (64, 50), "head.bias": (50,)}
    assert {name: p.shape for name, p in params.items()} == shapes
    assert list(params) == list(shapes)
    assert all(p.dtype == np.float32 and p.flags.c_contiguous for p in params.values())
    for name, p in params.items():
        if name.endswith(".gain"):
            assert (p == 1).all()
        elif name.endswith(".bias"):
            assert not p.any()
        elif name.startswith("embed"):
            assert p.std() == pytest.approx(0.02, rel=0.05)
        else:
            written = 4 if "project" in name or "contract" in name else 1  # 2 layers of 2 branches
            assert p.std() ** 2 == pytest.approx(2 / sum(p.shape) / written, rel=0.1), name
    drawn = [p.tobytes() for name, p in params.items() if name.endswith((".weight", "embed.token"))]
    assert len(set(drawn)) == len(drawn)


def test_init_repeats_and_depends_on_the_seed():
    first, again, other = (SMALL.init(5, 3, seed) for seed in (9, 9, 10))
    for name, p in first.items():
        assert np.array_equal(p, again[name])
        if not name.endswith((".bias", ".gain")):
            assert not np.array_equal(p, other[name]), name


def test_a_fresh_model_expects_every_token_alike():
    model = Transformer()
    x, y = np.random.default_rng(0).integers(0, 65, (2, 4, 64))
    loss = model.evaluate(model.init(64, 65, seed=1), x, y, cpu)[0] / y.size
    assert math.log(65) - 0.1 < loss < math.log(65) + 1.5


def test_it_learns_to_copy_from_earlier_in_the_window():
    """What no model of single tokens can: the second half of a window repeats the first."""
    model = Transformer(layers=2, heads=2, width=16, context=7)
    random = np.random.default_rng(0)
    params = model.init(7, 4, seed=1)
    _, grads = views({name: p.shape for name, p in params.items()}, np.float32)
    slots = {name: np.zeros_like(p) for name, p in params.items()}
    for _ in range(300):
        half = random.integers(0, 4, (64, 4))
        tokens = np.concatenate([half, half], axis=1)
        model.loss_and_grad(params, tokens[:, :-1], tokens[:, 1:], grads, cpu)
        for name, p in params.items():
            slots[name] *= 0.99
            slots[name] += 0.01 * grads[name] ** 2
            p -= 0.01 * grads[name] / (np.sqrt(slots[name]) + np.float32(1e-4))
    half = random.integers(0, 4, (200, 4))
    tokens = np.concatenate([half, half], axis=1)
    _, correct = model.evaluate(params, tokens[:, :-1], tokens[:, 1:], cpu)
    assert correct / (200 * 7) > 0.6  # 4 of 7 labels are certain, 3 cannot be known: 0.68


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layers": 0}, "layers must be an integer of at least 1, got 0"),
        ({"heads": 1.5}, "heads must be an integer of at least 1, got 1.5"),
        ({"width": True}, "width must be an integer of at least 1, got True"),
        ({"context": -1}, "context must be an integer of at least 1, got -1"),
        ({"heads": 3, "width": 128}, "width must be a multiple of heads, 3, got 128; 129 is the"),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(ConfigError, match=text):
        Transformer(**options)


def test_options_are_those_of_the_command_line():
    assert [f.name for f in fields(Transformer)] == ["layers", "heads", "width", "context"]
    assert Transformer(context=9).window == 9


@pytest.mark.parametrize(
    ("sizes", "text"),
    [((0, 3, 0), "features must be at least 1, got 0"), ((5, 3, -1), "seed must be at least 0")],
)
def test_init_refuses(sizes, text):
    with pytest.raises(ConfigError, match=text):
        SMALL.init(*sizes)
