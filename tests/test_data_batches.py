"""Batches: every sample once an epoch, a new order each time, resumable anywhere."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.data import Batches
from psgrad.errors import ConfigError

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 50), st.integers(1, 4))


def batches(n=10, size=4, epochs=2, seed=1, worker=0):
    return Batches(np.arange(100, 100 + n), size, seed, worker, epochs)


def drawn(iterator):
    return [(epoch, indices.tolist()) for epoch, indices in iterator]


@settings(deadline=None)
@given(SHAPES)
def test_each_epoch_has_every_sample_once(shape):
    n, size, epochs = shape
    iterator = batches(n, size, epochs)
    seen = drawn(iterator)
    assert len(seen) == epochs * -(-n // size)
    assert [epoch for epoch, _ in seen] == sorted(epoch for epoch, _ in seen)
    for epoch in range(epochs):
        parts = [indices for e, indices in seen if e == epoch]
        assert sorted(i for part in parts for i in part) == list(range(100, 100 + n))
        assert {len(part) for part in parts[:-1]} <= {size}
        assert len(parts[-1]) == n - size * (len(parts) - 1)


@settings(deadline=None)
@given(SHAPES, st.integers(0, 200))
def test_interrupted_anywhere_equals_uninterrupted(shape, stop):
    n, size, epochs = shape
    whole = drawn(batches(n, size, epochs))
    stop = min(stop, len(whole))
    first = batches(n, size, epochs)
    before = drawn(next(first) for _ in range(stop))
    state = json.loads(json.dumps(first.state_dict()))
    second = batches(n, size, epochs)
    for _ in range(stop % 3):  # also from a place other than the start
        next(second, None)
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert before + drawn(second) == whole


def test_the_order_is_that_of_seed_worker_and_epoch():
    expected = [
        (epoch, (100 + np.random.default_rng([7, 2, epoch]).permutation(5)).tolist())
        for epoch in range(3)
    ]
    assert drawn(batches(5, 5, 3, seed=7, worker=2)) == expected
    assert expected[0][1] != expected[1][1]
    others = [batches(40, 40, 1, **key) for key in ({"seed": 2}, {"worker": 1}, {})]
    assert len({tuple(drawn(other)[0][1]) for other in others}) == 3


def test_the_cursor():
    iterator = batches(n=10, size=4, epochs=2)
    states = [iterator.state_dict()]
    states.extend(iterator.state_dict() for _ in iterator)
    cursor = [(s["epoch"], s["position"]) for s in states]
    assert cursor == [(0, 0), (0, 4), (0, 8), (1, 0), (1, 4), (1, 8), (2, 0)]
    assert next(iterator, None) is None
    iterator.load_state_dict(states[-1])
    assert next(iterator, None) is None


def test_a_worker_without_data_has_no_batches():
    iterator = batches(n=0)
    assert drawn(iterator) == []
    state = iterator.state_dict()
    iterator.load_state_dict(state)
    assert iterator.state_dict() == state == {"epoch": 0, "position": 0}


def test_batches_do_not_change_with_the_array_they_came_from():
    indices = np.arange(6)
    iterator = Batches(indices, 6, 0, 0, 1)
    indices[:] = 0
    assert sorted(next(iterator)[1]) == list(range(6))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"size": 0}, "batch_size must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"worker": -2}, "worker must be at least 0, got -2"),
    ],
)
def test_refused(change, text):
    with pytest.raises(ConfigError, match=text):
        batches(**change)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({}, "a data cursor has epoch and position, got "),
        (
            {"epoch": 0, "position": 0, "x": 0},
            "a data cursor has epoch and position, got {'epoch': 0, 'p",
        ),
        ({"epoch": 3, "position": 0}, "data cursor: epoch must be 0 to 2, got 3; resume with"),
        ({"epoch": -1, "position": 0}, "data cursor: epoch must be 0 to 2, got -1"),
        ({"epoch": 1.0, "position": 0}, "data cursor: epoch must be 0 to 2, got 1.0"),
        ({"epoch": 0, "position": 10}, "data cursor: position must be 0 to 9, got 10"),
        ({"epoch": 2, "position": 4}, "data cursor: position must be 0 to 0, got 4"),
        ({"epoch": 0, "position": None}, "data cursor: position must be 0 to 9, got None"),
    ],
)
def test_a_cursor_of_another_run_is_refused_and_changes_nothing(state, text):
    iterator = batches(n=10, size=4, epochs=2)
    next(iterator)
    with pytest.raises(ConfigError) as error:
        iterator.load_state_dict(state)
    assert str(error.value).startswith(text)
    assert iterator.state_dict() == {"epoch": 0, "position": 4}


# What is left, and who takes it over


@settings(deadline=None)
@given(SHAPES, st.integers(0, 200))
def test_what_was_given_and_the_rest_are_everything(shape, stop):
    n, size, epochs = shape
    iterator = batches(n, size, epochs)
    given_ = [next(iterator, None) for _ in range(stop)]
    for epoch in range(epochs):
        seen = [i for each in given_ if each is not None and each[0] == epoch for i in each[1]]
        rest = iterator.rest(epoch).tolist()
        assert sorted(seen + rest) == list(range(100, 100 + n))


def test_to_ask_for_the_rest_changes_nothing():
    iterator, other = batches(), batches()
    next(iterator), next(other)
    for epoch in (0, 1):
        iterator.rest(epoch)
    assert drawn(iterator) == drawn(other)


def test_what_was_taken_over_comes_first_and_then_whole_epochs():
    iterator = batches(n=4, size=3, epochs=4)
    iterator.take_over(1, {1: np.array([7, 8]), 2: np.array([], np.int64)})
    seen = drawn(iterator)
    assert [epoch for epoch, _ in seen] == [1, 3, 3]
    assert sorted(seen[0][1]) == [7, 8]
    assert sorted(seen[1][1] + seen[2][1]) == [100, 101, 102, 103]


def test_who_takes_over_nothing_begins_behind_it():
    iterator = batches(n=4, size=4, epochs=2)
    iterator.take_over(0, {0: np.array([], np.int64)})
    assert iterator.epoch == 1
    assert [epoch for epoch, _ in drawn(iterator)] == [1]
    iterator.take_over(0, {0: np.array([], np.int64), 1: np.array([], np.int64)})
    assert drawn(iterator) == []


def test_who_has_no_data_of_its_own_may_take_some_over():
    iterator = batches(n=0, epochs=3)
    iterator.take_over(0, {0: np.array([5]), 1: np.array([6, 7])})
    assert [(epoch, sorted(i)) for epoch, i in drawn(iterator)] == [(0, [5]), (1, [6, 7])]


def test_the_cursor_has_what_was_taken_over_and_not_given():
    iterator = batches(n=6, size=2, epochs=4)
    iterator.take_over(1, {1: np.array([1, 2, 3]), 2: np.array([4, 5])})
    states, rest = [iterator.state_dict()], []
    while (each := next(iterator, None)) is not None:
        states.append(iterator.state_dict())
        rest.append(each)
    assert sorted(states[0]["leftovers"]) == ["1", "2"]
    assert sorted(states[2]["leftovers"]) == ["2"]
    assert "leftovers" not in states[3]
    for i, state in enumerate(states):
        again = batches(n=6, size=2, epochs=4)
        again.load_state_dict(state)
        assert drawn(again) == drawn(rest[i:])
    assert [batch.last_begun for batch in (again, iterator)] == [4, 4]


def test_the_last_epoch_begun_is_one_that_others_have_begun():
    iterator = batches(epochs=5)
    assert iterator.last_begun == 0
    iterator.take_over(1, {1: np.array([3]), 2: np.array([], np.int64), 3: np.array([4])})
    assert (iterator.epoch, iterator.last_begun) == (1, 3)
    assert iterator.rest(3).tolist() == [4]
    assert iterator.rest(2).size == iterator.rest(0).size == 0
    assert iterator.rest(4).size == 10


@pytest.mark.parametrize(
    "leftovers",
    [[], {"x": np.array([1])}, {"0": [1]}, {"0": np.array([1.0])}, {"0": np.array([[1]])},
     {"-1": np.array([1])}, {"0": np.array([1], np.int32)}],
)  # fmt: skip
def test_leftovers_that_are_none_are_refused_and_change_nothing(leftovers):
    iterator = batches(n=10, size=4, epochs=2)
    next(iterator)
    with pytest.raises(ConfigError, match="data cursor: leftovers must be int64 arrays by epoch"):
        iterator.load_state_dict({"epoch": 0, "position": 0, "leftovers": leftovers})
    assert iterator.state_dict() == {"epoch": 0, "position": 4}
