"""Every optimizer goes through one table: published formula in float64, PyTorch, blocks, errors."""

from __future__ import annotations

import dataclasses
import itertools
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.errors import ConfigError
from psgrad.optimizers import (
    FTRL,
    OPTIMIZERS,
    SGD,
    AdaGrad,
    Adam,
    AdamW,
    Momentum,
    Nesterov,
    Optimizer,
    RMSProp,
)

# A reference is a generator of float64 parameters: send (gradient, rate, decay), get the next ones.
Reference = Callable[..., Iterator[np.ndarray]]


def sgd(o, w):
    while True:
        g, rate, decay = yield w
        w = w - rate * (g + decay * w)


def momentum(o, w):
    v = np.zeros_like(w)
    while True:
        g, rate, decay = yield w
        v = o.momentum * v + (g + decay * w)
        w = w - rate * v


def nesterov(o, w):
    v = np.zeros_like(w)
    while True:
        g, rate, decay = yield w
        g = g + decay * w
        v = o.momentum * v + g
        w = w - rate * (g + o.momentum * v)


def adam(o, w, decoupled=False):
    m, v, t = np.zeros_like(w), np.zeros_like(w), 0
    while True:
        g, rate, decay = yield w
        t += 1
        if decoupled:
            w = w - rate * decay * w
        else:
            g = g + decay * w
        m = o.beta1 * m + (1 - o.beta1) * g
        v = o.beta2 * v + (1 - o.beta2) * g**2
        m_hat, v_hat = m / (1 - o.beta1**t), v / (1 - o.beta2**t)
        w = w - rate * m_hat / (np.sqrt(v_hat) + o.eps)


def adamw(o, w):
    return adam(o, w, decoupled=True)


def adagrad(o, w):
    n = np.full_like(w, o.initial_accumulator)
    while True:
        g, rate, decay = yield w
        g = g + decay * w
        n = n + g**2
        w = w - rate * g / (np.sqrt(n) + o.eps)


def rmsprop(o, w):
    v = np.zeros_like(w)
    while True:
        g, rate, decay = yield w
        g = g + decay * w
        v = o.alpha * v + (1 - o.alpha) * g**2
        w = w - rate * g / (np.sqrt(v) + o.eps)


def ftrl(o, w):
    """With z and n as in the paper; sigma makes the proximal terms sum to 1 / (learning rate)."""
    n, z, before = np.zeros_like(w), None, None
    while True:
        g, rate, decay = yield w
        g = g + decay * w
        if z is None:  # as though w were the solution of a round 0
            before = o.beta / rate
            z = -(before + o.l2) * w
        n = n + g**2
        now = (o.beta + np.sqrt(n)) / rate
        z = z + g - (now - before) * w
        before = now
        w = np.where(np.abs(z) <= o.l1, 0.0, -(z - np.sign(z) * o.l1) / (now + o.l2))


TABLE: list[tuple[Optimizer, Reference]] = [
    (SGD(0.1), sgd),
    (Momentum(0.05), momentum),
    (Momentum(0.05, momentum=0.5), momentum),
    (Nesterov(0.05), nesterov),
    (Adam(0.01), adam),
    (Adam(0.01, beta1=0.5, beta2=0.9, eps=1e-3), adam),
    (AdamW(0.01), adamw),
    (AdaGrad(0.1), adagrad),
    (AdaGrad(0.1, initial_accumulator=0.5, eps=1e-2), adagrad),
    (RMSProp(0.01), rmsprop),
    (RMSProp(0.01, alpha=0.5, eps=1e-2), rmsprop),
    (FTRL(0.1), ftrl),
    (FTRL(0.1, beta=0.5, l1=0.3, l2=0.2), ftrl),
]
NAMES = [repr(o) for o, _ in TABLE]
every_optimizer = pytest.mark.parametrize("optimizer", [o for o, _ in TABLE], ids=NAMES)


def start(n, seed=0):
    return np.random.default_rng((seed, n)).standard_normal(n).astype(np.float32)


def gradients(n, steps, seed=0):
    """Sizes from 1e-3 to 10, and some exact zeros."""
    rng = np.random.default_rng((seed, n, steps))
    size = 10.0 ** rng.uniform(-3, 1, n) * (rng.random((steps, n)) < 0.8)
    return (size * rng.standard_normal((steps, n))).astype(np.float32)


def scratch_of(optimizer, n):
    return np.full((optimizer.scratch_rows, n), np.nan, np.float32)  # its content must not matter


def rates_of(optimizer, steps):
    """A rate that rises, falls, jumps and falls again."""
    return [optimizer.learning_rate * (1.2 + np.sin(t)) / (1 + t / 20) for t in range(steps)]


def run(optimizer, w, grads, rates, decay, first=1):
    w, slots = w.copy(), optimizer.init(w.size)
    for t, (g, rate) in enumerate(zip(grads, rates, strict=True), start=first):
        optimizer.apply(w, g.copy(), slots, t, rate, decay, scratch_of(optimizer, w.size))
    return w, slots


def test_the_table_of_names_and_this_one_hold_the_same_optimizers():
    assert set(OPTIMIZERS.values()) == {type(o) for o, _ in TABLE}
    assert list(OPTIMIZERS) == [cls.__name__.lower() for cls in OPTIMIZERS.values()]


@pytest.mark.parametrize("cls", OPTIMIZERS.values())
def test_learning_rate_is_the_first_field_and_has_a_default(cls):
    assert next(f.name for f in dataclasses.fields(cls)) == "learning_rate"
    assert cls(0.25) == cls(learning_rate=0.25) != cls()


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("optimizer", "reference"), TABLE, ids=NAMES)
def test_fifty_steps_follow_the_published_formula(optimizer, reference, decay):
    n, steps = 257, 50
    w, grads, rates = start(n), gradients(n, steps), rates_of(optimizer, steps)
    got, _ = run(optimizer, w, grads, rates, decay)

    expected = reference(optimizer, w.astype(np.float64))
    next(expected)
    for g, rate in zip(grads, rates, strict=True):
        want = expected.send((g.astype(np.float64), rate, decay))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=5e-6)
    assert np.abs(want - w).max() > 0.05  # something moved


@every_optimizer
def test_decay_pulls_towards_zero_without_a_gradient(optimizer):
    w = start(64)
    got, _ = run(optimizer, w, np.zeros((5, 64), np.float32), [1e-3] * 5, 0.5)
    assert np.all(np.abs(got) < np.abs(w))


@every_optimizer
def test_zero_gradients_of_a_fresh_state_change_nothing(optimizer):
    if isinstance(optimizer, FTRL):
        optimizer = dataclasses.replace(optimizer, l1=0.0)  # l1 pulls from the first step on
    w = start(64)
    got, slots = run(optimizer, w, np.zeros((3, 64), np.float32), [0.1] * 3, 0.0)
    assert got.tobytes() == w.tobytes()
    assert all(np.isfinite(slot).all() for slot in slots.values())


@every_optimizer
def test_a_rate_of_zero_keeps_the_parameters(optimizer):
    w = start(64)
    got, _ = run(optimizer, w, gradients(64, 3), [0.0] * 3, 0.1)
    assert got.tobytes() == w.tobytes()


@every_optimizer
def test_init_gives_one_float32_vector_a_slot(optimizer):
    slots = optimizer.init(7)
    assert tuple(slots) == optimizer.slots
    assert {(s.shape, s.dtype) for s in slots.values()} <= {((7,), np.dtype(np.float32))}
    assert optimizer.init(0).keys() == slots.keys()


def test_init_starts_adagrad_at_its_accumulator_and_the_others_at_zero():
    assert AdaGrad(initial_accumulator=0.25).init(3)["square_sum"].tolist() == [0.25] * 3
    for optimizer in (cls() for cls in OPTIMIZERS.values()):
        assert all(not slot.any() for slot in optimizer.init(3).values())


@every_optimizer
@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 150), max_size=6), seed=st.integers(0, 9), decay=st.booleans())
def test_the_result_does_not_depend_on_the_blocks(optimizer, cuts, seed, decay):
    n, steps, decay = 150, 3, 0.1 * decay
    w, grads, rates = start(n, seed), gradients(n, steps, seed), rates_of(optimizer, steps)
    whole, whole_slots = run(optimizer, w, grads, rates, decay)

    parts, slots = w.copy(), optimizer.init(n)
    scratch = scratch_of(optimizer, n)
    edges = [0, *sorted(cuts), n]
    for t, (g, rate) in enumerate(zip(grads.copy(), rates, strict=True), start=1):
        for low, high in itertools.pairwise(edges):
            block = slice(low, high)
            views = {name: slot[block] for name, slot in slots.items()}
            room = scratch[:, : high - low]
            optimizer.apply(parts[block], g[block], views, t, rate, decay, room)
    assert parts.tobytes() == whole.tobytes()
    assert {k: v.tobytes() for k, v in slots.items()} == {
        k: v.tobytes() for k, v in whole_slots.items()
    }


@every_optimizer
def test_apply_allocates_no_block(optimizer):
    n = 32768
    w, slots, scratch = start(n), optimizer.init(n), scratch_of(optimizer, n)
    grads = gradients(n, 3)
    optimizer.apply(w, grads[0], slots, 1, 0.01, 0.1, scratch)
    tracemalloc.start()
    try:
        for t in (2, 3):
            optimizer.apply(w, grads[t - 1], slots, t, 0.01, 0.1, scratch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4096  # bytes: views and scalars; a block is 131,072, a mask of it 32,768


def test_ftrl_is_algorithm_1_of_the_paper_when_weights_start_at_zero():
    o, n, steps = FTRL(0.2, beta=1.0, l1=0.5, l2=0.1), 257, 50
    grads = gradients(n, steps)
    got, _ = run(o, np.zeros(n, np.float32), grads, [o.learning_rate] * steps, 0.0)

    z, squares = np.zeros(n), np.zeros(n)
    for t in range(steps + 1):
        w = -(z - np.sign(z) * o.l1) / ((o.beta + np.sqrt(squares)) / o.learning_rate + o.l2)
        w[np.abs(z) <= o.l1] = 0.0
        if t < steps:
            g = grads[t].astype(np.float64)
            sigma = (np.sqrt(squares + g**2) - np.sqrt(squares)) / o.learning_rate
            z, squares = z + g - sigma * w, squares + g**2
    np.testing.assert_allclose(got, w, rtol=1e-5, atol=5e-6)
    zero = np.abs(z) <= o.l1 * (1 - 1e-4)  # those that rounding leaves on their side of l1
    assert 20 < zero.sum() < n - 20
    assert not got[zero].any()
    assert got[np.abs(z) > o.l1 * (1 + 1e-4)].all()


def test_ftrl_keeps_a_weight_bit_for_bit_that_has_no_gradient():
    o, n = FTRL(l1=0.01, l2=0.1), 100
    w, slots, scratch = start(n), o.init(n), scratch_of(FTRL(), n)
    grads = gradients(n, 5)
    for t, g in enumerate(grads, start=1):
        o.apply(w, g, slots, t, 0.1, 0.0, scratch)
    before = w.copy()
    for t in range(6, 9):
        o.apply(w, np.zeros(n, np.float32), slots, t, 0.1 / t, 0.0, scratch)
    assert before.any()
    assert w.tobytes() == before.tobytes()


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("optimizer", "name", "options"),
    [
        (SGD(0.1), "SGD", {}),
        (Momentum(0.05, momentum=0.8), "SGD", {"momentum": 0.8}),
        (Nesterov(0.05, momentum=0.8), "SGD", {"momentum": 0.8, "nesterov": True}),
        (Adam(0.01, beta2=0.99), "Adam", {"betas": (0.9, 0.99), "foreach": False}),
        (AdamW(0.01, beta2=0.99), "AdamW", {"betas": (0.9, 0.99), "foreach": False}),
        (AdaGrad(0.1, initial_accumulator=0.1), "Adagrad", {"initial_accumulator_value": 0.1}),
        (RMSProp(0.01, alpha=0.9), "RMSprop", {"alpha": 0.9}),
    ],
    ids=repr,
)
def test_fifty_steps_agree_with_pytorch(optimizer, name, options, decay):
    torch = pytest.importorskip("torch")
    n, steps = 257, 50
    w, grads, rates = start(n), gradients(n, steps), rates_of(optimizer, steps)
    got, _ = run(optimizer, w, grads, rates, decay)

    p = torch.nn.Parameter(torch.from_numpy(w.copy()))
    theirs = getattr(torch.optim, name)([p], lr=0.1, weight_decay=decay, **options)
    for g, rate in zip(grads, rates, strict=True):
        p.grad = torch.from_numpy(g.copy())
        theirs.param_groups[0]["lr"] = float(rate)
        theirs.step()
    np.testing.assert_allclose(got, p.detach().numpy(), rtol=1e-5, atol=5e-6)


FRACTION = "must be in [0, 1), got"
NOT_NEGATIVE = "must be at least 0 and finite, got"
POSITIVE = "must be at least 1e-30 and finite, got"


@pytest.mark.parametrize(
    ("cls", "option", "value", "text"),
    [
        *((cls, "learning_rate", -0.1, NOT_NEGATIVE) for cls in OPTIMIZERS.values()),
        *((cls, "weight_decay", -1e-9, NOT_NEGATIVE) for cls in OPTIMIZERS.values()),
        (SGD, "learning_rate", float("nan"), NOT_NEGATIVE),
        (SGD, "learning_rate", float("inf"), NOT_NEGATIVE),
        (SGD, "learning_rate", "0.1", "must be a number at least 0 and finite, got"),
        (SGD, "learning_rate", True, "must be a number at least 0 and finite, got"),
        (SGD, "learning_rate", None, "must be a number at least 0 and finite, got"),
        (Momentum, "momentum", 1.0, FRACTION),
        (Momentum, "momentum", -0.1, FRACTION),
        (Nesterov, "momentum", 1.5, FRACTION),
        (Adam, "beta1", 1.0, FRACTION),
        (Adam, "beta2", 1.0, FRACTION),
        (Adam, "eps", 0.0, POSITIVE),
        (AdamW, "beta1", -0.5, FRACTION),
        (AdamW, "beta2", 2, FRACTION),
        (AdamW, "eps", 1e-40, POSITIVE),
        (AdaGrad, "eps", 0.0, POSITIVE),
        (AdaGrad, "initial_accumulator", -1.0, NOT_NEGATIVE),
        (RMSProp, "alpha", 1.0, FRACTION),
        (RMSProp, "eps", -1e-8, POSITIVE),
        (FTRL, "beta", 0.0, POSITIVE),
        (FTRL, "l1", -1.0, NOT_NEGATIVE),
        (FTRL, "l2", -1.0, NOT_NEGATIVE),
    ],
)
def test_a_bad_option_is_named_with_its_limit_and_its_default(cls, option, value, text):
    default = getattr(cls(), option)
    with pytest.raises(ConfigError) as raised:
        cls(**{option: value})
    want = f"{cls.__name__}: {option} {text} {value!r}; the default is {default}"
    assert str(raised.value) == want


@pytest.mark.parametrize("cls", OPTIMIZERS.values())
def test_every_option_but_the_rate_goes_by_name(cls):
    # SGD(0.1, 0.9) is a rate and a momentum elsewhere: it must not become a weight decay here.
    with pytest.raises(TypeError, match="positional"):
        cls(0.1, 0.9)


@pytest.mark.parametrize("value", [1, np.float32(1.0), np.int64(1)])
def test_numbers_become_python_floats_so_that_records_compare(value):
    assert type(SGD(value).learning_rate) is float
    assert repr(SGD(value)) == repr(SGD(1.0))
