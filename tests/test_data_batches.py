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
