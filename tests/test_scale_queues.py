"""Queues in NumPy against a loop that serves one after the other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgrad.scale.queues import Lines, serve

SECONDS = st.integers(0, 50).map(lambda n: n / 8)  # exact in float64
JOBS = st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=12)


def one_by_one(jobs, free):
    departures = []
    for arrival, service in jobs:
        free = max(free, arrival) + service
        departures.append(free)
    return departures


@given(JOBS, SECONDS)
def test_serve(jobs, free):
    arrivals, service = (np.array([column]) for column in zip(*jobs, strict=True))
    assert serve(arrivals, service, np.array([free]))[0].tolist() == one_by_one(jobs, free)


def test_rows_are_queues_of_their_own():
    arrivals = np.array([[0.0, 1.0], [5.0, 5.0]])
    departures = serve(arrivals, np.array([2.0, 3.0]), np.array([0.0, 6.0]))
    assert departures.tolist() == [[2, 5], [8, 11]]


def test_what_never_arrives_holds_up_those_behind_it():
    arrivals = np.array([[1.0, math.inf, 2.0]])
    assert serve(arrivals, np.ones(3), np.zeros(1))[0].tolist() == [2, math.inf, math.inf]


@given(st.lists(st.tuples(st.integers(0, 4), SECONDS, SECONDS, SECONDS), min_size=1, max_size=30))
def test_lines(batch):
    """Each queue is served in the order of time, then of ``ties``, then of the batch."""
    queue, times, service, ties = (np.array(column) for column in zip(*batch, strict=True))
    lines = Lines.of(queue.astype(np.uint8), times, ties)
    free = np.arange(5) / 4
    expected, ends = {}, free.copy()
    for number in range(5):
        mine = [i for i in range(len(batch)) if queue[i] == number]
        mine.sort(key=lambda i: (times[i], ties[i]))
        departures = one_by_one([(times[i], service[i]) for i in mine], free[number])
        expected.update(zip(mine, departures, strict=True))
        ends[number] = departures[-1] if departures else free[number]
    order = lines.order
    passed = lines.pass_through(times[order], service[order], free)
    assert dict(zip(order.tolist(), passed.tolist(), strict=True)) == expected
    assert free.tolist() == ends.tolist()
    assert lines.queues.tolist() == sorted(set(queue.tolist()))


def test_times_that_differ_by_rounding_are_the_same_time():
    times = np.array([0.1 + 0.2, 0.3])
    assert times[0] > times[1]
    assert Lines.of(np.zeros(2, np.uint8), times).order.tolist() == [0, 1]
    assert Lines.of(np.zeros(2, np.uint8), times, np.array([2.0, 1.0])).order.tolist() == [1, 0]


@pytest.mark.parametrize("size", [1, 5])
def test_a_matrix_and_back(size):
    queue = np.arange(size) % 2
    lines = Lines.of(queue.astype(np.uint8), np.arange(size, dtype=float))
    values = np.arange(10.0, 10 + size)
    matrix = lines.matrix(values)
    assert lines.flat(matrix).tolist() == values.tolist()
    assert (matrix != 0).sum() == size
