"""Compute-time models: golden values, distributions against their formulas, and what texts mean."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from psgrad.errors import ConfigError
from psgrad.pace import Constant, Exponential, Pareto, Slow, parse

MASK = 2**64 - 1


def mix64(z):
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def uniform(seed, worker, step):
    """The number in (0, 1] behind a time, by Python's integers."""

    def stream(a, b, c):
        return mix64(mix64(mix64(a) ^ b) ^ c)

    return ((stream(stream(seed, 0x70616365, 0), worker, step) >> 11) + 1) / 2**53


KEYS = [(0, 0, 1), (0, 1, 1), (0, 0, 2), (7, 3, 1000), (2**32 - 1, 4095, 10**6)]


@pytest.mark.parametrize(("seed", "worker", "step"), KEYS)
def test_times_are_those_of_the_formulas(seed, worker, step):
    u = uniform(seed, worker, step)
    assert Exponential(0.2, seed).seconds(worker, step) == pytest.approx(-0.2 * math.log(u))
    least = 0.2 * 1.5 / 2.5
    assert Pareto(0.2, 2.5, seed).seconds(worker, step) == pytest.approx(least / u ** (1 / 2.5))


def test_golden_times():
    """Seeds that tests and studies name must go on to mean what they meant."""
    exponential = [Exponential(1.0, seed).seconds(w, s) for seed, w, s in KEYS]
    pareto = [Pareto(1.0, 1.5, seed).seconds(w, s) for seed, w, s in KEYS]
    assert exponential == pytest.approx(
        [1.575773363, 0.570209181, 1.692871594, 1.738247142, 0.28192324]
    )
    assert pareto == pytest.approx(
        [0.953041611, 0.487496175, 1.030422358, 1.062069262, 0.402257253]
    )


def sample(pace, workers=50, steps=1000):
    return np.array([[pace.seconds(w, s) for s in range(1, steps + 1)] for w in range(workers)])


def test_exponential():
    times = sample(Exponential(0.5, seed=1))
    assert times.mean() == pytest.approx(0.5, rel=0.01)
    assert times.std() == pytest.approx(0.5, rel=0.02)
    assert (times > 1.0).mean() == pytest.approx(math.exp(-2), rel=0.03)
    harmonic = sum(1 / n for n in range(1, 51))
    assert times.max(axis=0).mean() == pytest.approx(0.5 * harmonic, rel=0.02)


@pytest.mark.parametrize("alpha", [1.5, 3.0])
def test_pareto(alpha):
    times = sample(Pareto(0.5, alpha, seed=1))
    least = 0.5 * (alpha - 1) / alpha
    assert times.min() == pytest.approx(least, rel=1e-3)
    for factor in (2, 4):
        assert (times > factor * least).mean() == pytest.approx(factor**-alpha, rel=0.05)
    assert np.median(times) == pytest.approx(least * 2 ** (1 / alpha), rel=0.01)
    if alpha > 2:
        assert times.mean() == pytest.approx(0.5, rel=0.02)


def test_workers_steps_and_seeds_do_not_share_times():
    keys = itertools.product(range(3), range(9), range(9))
    times = [Exponential(1.0, seed).seconds(worker, step) for seed, worker, step in keys]
    assert len(set(times)) == len(times)
    a, b = sample(Exponential(1.0, seed=1), 2, 4000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 0.05


def test_slow_is_of_one_worker_for_a_while():
    base = Exponential(1.0, seed=3)
    slow = Slow(base, 5.0, worker=2, start=10, stop=20)
    for worker in range(4):
        for step in (1, 9, 10, 19, 20, 100):
            factor = 5.0 if worker == 2 and 10 <= step < 20 else 1.0
            assert slow.seconds(worker, step) == factor * base.seconds(worker, step)


@pytest.mark.parametrize(
    ("text", "pace"),
    [
        ("constant:seconds=0.01", Constant(0.01)),
        ("constant:seconds=0", Constant(0.0)),
        ("exponential:mean=1e-3", Exponential(1e-3, 7)),
        ("pareto:mean=0.01,alpha=1.2", Pareto(0.01, 1.2, 7)),
        ("pareto:mean=0.01", Pareto(0.01, 1.5, 7)),
        ("constant:seconds=1;slow:worker=3,factor=5", Slow(Constant(1.0), 5.0, 3)),
        ("constant:seconds=1; slow: worker=0, factor=0.5", Slow(Constant(1.0), 0.5, 0)),
        (
            "pareto:mean=1;slow:factor=2,start=5,stop=9;slow:worker=1,factor=3",
            Slow(Slow(Pareto(1.0, 1.5, 7), 2.0, None, 5, 9), 3.0, 1),
        ),
    ],
)
def test_what_a_text_means(text, pace):
    assert parse(text, seed=7) == pace


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "unknown pace ''. Known: constant, exponential, pareto, slow"),
        ("parto:mean=1", "unknown pace 'parto'; did you mean 'pareto'?"),
        ("pareto", "unknown key of pareto ''"),
        ("pareto:alpha=1.5", "pareto needs mean"),
        ("pareto:mean=1,alpa=2", "unknown key of pareto 'alpa'; did you mean 'alpha'?"),
        ("exponential:mean=1s", "mean must be a number, got '1s'"),
        ("slow:factor=2", "one pace comes first, then slow"),
        ("constant:seconds=1;pareto:mean=1", "one pace comes first, then slow"),
        ("constant:seconds=1;", "unknown pace ''"),
        ("constant:seconds=1;slow:worker=1", "slow needs factor"),
        ("constant:seconds=1;slow:factor=2,worker=-1", "worker must be a whole number"),
        ("constant:seconds=1;slow:factor=2,worker=.5", "worker must be a whole number"),
        ("constant:seconds=1;slow:factor=2,start=0", "start must be a whole number of at least 1"),
        ("constant:seconds=1;slow:factor=2,stop=inf", "stop must be a whole number of at least 1"),
    ],
)  # fmt: skip
def test_what_makes_no_sense(text, problem):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"pace {text!r}: {problem}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("constant:seconds=-1", "constant: seconds must be a finite number of at least 0, got -1"),
        ("constant:seconds=nan", "constant: seconds must be a finite number of at least 0"),
        ("exponential:mean=0", "exponential: mean must be a finite number above 0, got 0"),
        ("pareto:mean=inf", "pareto: mean must be a finite number above 0, got inf"),
        ("pareto:mean=1,alpha=1", "pareto: alpha must be a finite number above 1, got 1;"),
        ("constant:seconds=1;slow:factor=0", "slow: factor must be a finite number above 0"),
        (
            "constant:seconds=1;slow:factor=2,start=5,stop=5",
            r"slow: stop must be above start \(5\), got 5",
        ),
    ],
)  # fmt: skip
def test_values_out_of_range(text, problem):
    with pytest.raises(ConfigError, match=f"^pace {problem}"):
        parse(text)
