"""The update in one pass: the weighted mean, independence of blocks, buffers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad import update
from psgrad.codecs import Key, Workspace, parse
from psgrad.kernels import plain
from psgrad.kernels.chunks import fastest
from psgrad.kernels.crew import PIECE, Crew
from psgrad.optimizers import FTRL, OPTIMIZERS, SGD, Adam
from psgrad.update import BLOCK, Hyperparameters, Updater

HYPER = Hyperparameters(step=1, rate=1.0, decay=0.0)


def normal(seed, n):
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def step(updater, n, workers=3, weights=(1.0, 2.5, 7.0), steps=2):
    """Parameters and slots after some steps from seeded values."""
    params, slots = normal(0, n), updater.optimizer.init(n)
    for t in range(1, steps + 1):
        payloads = [normal((t, w), n) for w in range(workers)]
        updater.step(params, slots, payloads, weights[:workers], Hyperparameters(t, 0.1, 0.01))
    return params, slots


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=9),
    st.integers(1, 50),
    st.integers(0, 2**32 - 1),
)
def test_a_step_follows_the_weighted_mean(weights, n, seed):
    payloads = [normal((seed, w), n) for w in range(len(weights))]
    params = np.zeros(n, np.float32)
    Updater.of(SGD(1.0)).step(params, {}, payloads, weights, HYPER)
    exact = sum(w * g.astype(np.float64) for w, g in zip(weights, payloads, strict=True))
    exact /= sum(weights)
    # A few roundings of each term; the terms may cancel, so the error is relative to their size.
    size = sum(w * abs(g) for w, g in zip(weights, payloads, strict=True)) / sum(weights)
    assert (abs(-params - exact) <= 1e-6 * size + 1e-30).all()


def test_one_worker_moves_by_its_gradient_to_the_bit():
    grad, params = normal(1, 1000), np.zeros(1000, np.float32)
    Updater.of(SGD(1.0)).step(params, {}, [grad], [0.3], HYPER)
    np.testing.assert_array_equal(params, -grad)


def test_equal_weights_of_any_size_are_the_same_step():
    results = []
    for weight in (1e-3, 1.0, 64.0, 1e9):
        params = np.zeros(100, np.float32)
        payloads = [normal(1, 100), normal(2, 100)]
        Updater.of(SGD(1.0)).step(params, {}, payloads, [weight, weight], HYPER)
        results.append(params.tobytes())
    assert len(set(results)) == 1


def test_payloads_are_read_only():
    payloads = [normal(w, BLOCK + 7) for w in range(3)]
    for payload in payloads:
        payload.setflags(write=False)
    params = np.zeros(BLOCK + 7, np.float32)
    updater = Updater.of(FTRL(l1=0.1))
    updater.step(params, updater.optimizer.init(params.size), payloads, [1.0, 2.0, 3.0], HYPER)
    updater.average(params, payloads, [1.0, 2.0, 3.0], 0.5)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_blocks_do_not_show(name, monkeypatch):
    n = 3 * 64 + 5
    whole, slots = step(Updater.of(OPTIMIZERS[name]()), n)
    for block in (1, 64, 100):
        monkeypatch.setattr(update, "BLOCK", block)
        parts, part_slots = step(Updater.of(OPTIMIZERS[name]()), n)
        np.testing.assert_array_equal(parts, whole)
        for slot, values in slots.items():
            np.testing.assert_array_equal(part_slots[slot], values)


def test_real_blocks_do_not_show_either():
    n = 2 * BLOCK + 3
    whole, _ = step(Updater.of(Adam()), n)
    updater = Updater.of(Adam())
    for cut in (slice(0, BLOCK + 1), slice(BLOCK + 1, n)):
        params = normal(0, n)[cut]
        slots = updater.optimizer.init(params.size)
        for t in (1, 2):
            payloads = [normal((t, w), n)[cut] for w in range(3)]
            updater.step(params, slots, payloads, (1.0, 2.5, 7.0), Hyperparameters(t, 0.1, 0.01))
        np.testing.assert_array_equal(params, whole[cut])


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_threads_do_not_show(name):
    n = 2 * PIECE + 5
    results = []
    for crew in (Crew(), Crew(2), Crew(3)):
        params, slots = step(Updater.of(OPTIMIZERS[name](), fastest(), crew), n)
        results.append((params.tobytes(), {k: v.tobytes() for k, v in slots.items()}))
    assert results[0] == results[1] == results[2]


def test_the_order_of_the_workers_is_the_order_of_the_sum():
    a, b, c = (np.full(1, value, np.float32) for value in (1e8, 1.0, -1e8))
    sums = []
    for payloads in ([a, b, c], [a, c, b]):
        params = np.zeros(1, np.float32)
        Updater.of(SGD(1.0)).step(params, {}, payloads, [1.0, 1.0, 1.0], HYPER)
        sums.append(float(params[0]))
    assert sums[0] != sums[1]


@pytest.mark.parametrize("share", [1.0, 0.25])
@pytest.mark.parametrize("n", [5, BLOCK + 5])
def test_buffers_move_by_their_share_to_the_mean(share, n):
    payloads, weights = [normal(1, n), normal(2, n)], [1.0, 3.0]
    before = normal(0, n)
    params = before.copy()
    Updater.of(Adam()).average(params, payloads, weights, share)
    mean = (payloads[0].astype(np.float64) + 3 * payloads[1]) / 4
    np.testing.assert_allclose(params, before + share * (mean - before), rtol=1e-5, atol=1e-6)


def test_a_whole_share_is_the_mean_itself_even_from_a_value_that_is_not_finite():
    params = np.full(4, np.nan, np.float32)
    Updater.of(SGD()).average(params, [np.ones(4, np.float32)], [2.0], 1.0)
    np.testing.assert_array_equal(params, np.ones(4, np.float32))


def test_as_many_weights_as_payloads():
    with pytest.raises(ValueError, match="zip"):
        Updater.of(SGD()).step(np.zeros(2, np.float32), {}, [normal(0, 2)], [1.0, 2.0], HYPER)


# The pass that does all at once


class Counting:
    """NumPy's kernels with a pass for SGD that says how often it was asked."""

    def __init__(self):
        self.asked = []

    def sgd(self, params, grads, shares, rate):
        self.asked.append((len(grads), [float(s) for s in shares], float(rate)))
        params -= rate * sum(s * g for s, g in zip(shares, grads, strict=True))
        return True


@pytest.mark.parametrize(
    ("optimizer", "decay", "once"),
    [(SGD(0.1), 0.0, True), (SGD(0.1), 0.01, False), (Adam(), 0.0, False)],
)
def test_only_plain_sgd_goes_at_once(optimizer, decay, once):
    kernels = Counting()
    params = np.zeros(10, np.float32)
    payloads = [normal(w, 10) for w in range(2)]
    Updater.of(optimizer, kernels).step(
        params, optimizer.init(10), payloads, [1.0, 3.0], Hyperparameters(1, 0.5, decay)
    )
    assert kernels.asked == ([(2, [0.25, 0.75], 0.5)] if once else [])
    assert params.any()


def test_payloads_of_codecs_do_not_go_at_once():
    kernels, codec = Counting(), parse("int8")
    out = np.zeros(codec.nbytes_max(300), np.uint8)
    nbytes = codec.encode(normal(1, 300), None, out, Key(0, 0, 1, 0), Workspace())
    opened, params = codec.open(out[:nbytes], 300), np.zeros(300, np.float32)
    Updater.of(SGD(0.1), kernels).step(params, {}, [opened, normal(2, 300)], [1.0, 1.0], HYPER)
    assert kernels.asked == []
    assert params.any()


@pytest.mark.parametrize("n", [0, 1, 31, 4097, BLOCK, 2 * BLOCK + 5])
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5])
def test_compiled_and_numpy_give_the_same_bits(n, workers):
    compiled = pytest.importorskip("psgrad.kernels.compiled")
    results = []
    for kernels in (plain, compiled):
        params = normal(9, n)
        for t in range(3):
            payloads = [normal((t, w), n) * np.float32(1e-3**w) for w in range(workers)]
            for grad in payloads:
                grad.flags.writeable = False
            weights = [1.0 + 0.7 * w for w in range(workers)]
            hyper = Hyperparameters(t + 1, 0.37, 0.0)
            Updater.of(SGD(0.1), kernels).step(params, {}, payloads, weights, hyper)
        results.append(params.tobytes())
    assert results[0] == results[1]
