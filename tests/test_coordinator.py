"""The coordinator: rendezvous in any order of arrival, means, workers that are done."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.control import Part
from psgrad.coordinator import Coordinator, Outcome, combine
from psgrad.errors import ProtocolError


def part(weight=1.0, **values):
    return Part(values, weight)


def test_a_rendezvous_is_complete_when_all_have_come():
    coordinator = Coordinator.of(range(3))
    assert coordinator.meet(2, 1, part(x=6.0)) == []
    assert coordinator.meet(0, 1, part(x=0.0)) == []
    result = {"mean": {"x": 3.0}, "running": [0, 1, 2], "lost": {}}
    assert coordinator.meet(1, 1, part(x=3.0)) == [Outcome(w, 1, result) for w in (0, 1, 2)]


def test_the_mean_is_weighted():
    coordinator = Coordinator.of(range(2))
    coordinator.meet(0, 1, part(3.0, loss=1.0, accuracy=0.5))
    (first, _) = coordinator.meet(1, 1, part(1.0, accuracy=1.0, loss=5.0))
    assert first.result == {"mean": {"loss": 2.0, "accuracy": 0.625}, "running": [0, 1], "lost": {}}


def test_parts_of_weight_zero_count_for_nothing():
    assert math.isnan(combine({0: part(0.0, x=5.0), 1: part(0.0, x=7.0)})["mean"]["x"])
    assert combine({0: part(0.0, x=math.nan), 1: part(2.0, x=7.0)})["mean"] == {"x": 7.0}
    assert combine({0: part(0.0, x=5.0), 1: part(2.0, x=7.0)})["mean"] == {"x": 7.0}


def test_a_barrier_is_a_mean_of_nothing():
    assert combine({0: part(), 1: part()}) == {"mean": {}}


def test_the_sum_runs_in_worker_order_whatever_the_order_of_arrival():
    values = [1e16, 1.0, -1e16, 1.0]
    results = set()
    for seed in range(10):
        coordinator = Coordinator.of(range(4))
        for worker in random.Random(seed).sample(range(4), 4):
            outcomes = coordinator.meet(worker, 1, part(x=values[worker]))
        results.add(outcomes[0].result["mean"]["x"])
    assert results == {(((1e16 + 1.0) - 1e16) + 1.0) / 4}


def test_different_names_are_an_error_for_everyone():
    coordinator = Coordinator.of((0, 1, 2))
    coordinator.meet(0, 1, part(loss=1.0, acc=1.0))
    coordinator.meet(1, 1, part(acc=1.0, loss=1.0))
    outcomes = coordinator.meet(2, 1, part(loss=1.0))
    assert [o.worker for o in outcomes] == [0, 1, 2]
    assert {o.result["error"] for o in outcomes} == {
        "worker 2 brought ['loss'] to mean(), worker 0 brought ['acc', 'loss']; "
        "all must bring the same names"
    }


def test_who_is_done_is_not_waited_for():
    coordinator = Coordinator.of(range(3))
    coordinator.meet(0, 1, part(x=1.0))
    assert coordinator.finish(2) == []
    assert [o.worker for o in coordinator.meet(1, 1, part(x=3.0))] == [0, 1]


def test_the_last_one_to_finish_completes_a_rendezvous():
    coordinator = Coordinator.of(range(2))
    coordinator.meet(0, 1, part(x=1.0))
    assert coordinator.finish(1) == [
        Outcome(0, 1, {"mean": {"x": 1.0}, "running": [0], "lost": {}})
    ]
    assert coordinator.finish(0) == []


@pytest.mark.parametrize("worker", [0, 5])
def test_who_is_not_expected(worker):
    coordinator = Coordinator.of(range(2))
    coordinator.meet(0, 1, part())
    with pytest.raises(ProtocolError, match=f"worker {worker} is not expected at rendezvous 1"):
        coordinator.meet(worker, 1, part())


@pytest.mark.parametrize("sequence", [0, 1, 3, 2**32 - 1])
def test_only_a_workers_next_rendezvous_is_taken(sequence):
    """A wrong worker would open one after the other, and each would be kept."""
    coordinator = Coordinator.of(range(2))
    coordinator.meet(0, 1, part())
    coordinator.meet(1, 1, part())
    with pytest.raises(ProtocolError, match=f"at rendezvous {sequence}, its next is 2"):
        coordinator.meet(0, sequence, part())
    assert coordinator.meet(0, 2, part()) == []


def test_an_unexpected_worker_leaves_no_trace():
    coordinator = Coordinator.of(range(1))
    coordinator.finish(0)
    with pytest.raises(ProtocolError):
        coordinator.meet(0, 1, part())
    assert coordinator.finish(0) == []


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_everyone_gets_each_of_its_rendezvous_once_and_nobody_waits_for_ever(meetings, seed):
    """Worker w comes to ``meetings[w]`` rendezvous and is then done; each waits for its answer."""
    rng, coordinator = random.Random(seed), Coordinator.of(range(len(meetings)))
    asked = dict.fromkeys(range(len(meetings)), 0)
    answered: dict[int, list[int]] = {w: [] for w in asked}
    done: set[int] = set()
    while len(done) < len(meetings):
        able = [w for w in asked if w not in done and asked[w] == len(answered[w])]
        assert able, "all wait"
        worker = rng.choice(able)
        if asked[worker] == meetings[worker]:
            done.add(worker)
            outcomes = coordinator.finish(worker)
        else:
            asked[worker] += 1
            outcomes = coordinator.meet(worker, asked[worker], part(n=1.0))
        for outcome in outcomes:
            answered[outcome.worker].append(outcome.sequence)
    assert answered == {w: list(range(1, n + 1)) for w, n in enumerate(meetings)}
