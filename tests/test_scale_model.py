"""What the cost model is told, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from psgrad.errors import ConfigError
from psgrad.layout import Layout, assign
from psgrad.pace import Constant, Pareto
from psgrad.scale.model import Case, Costs, Grid
from psgrad.scale.traffic import compute_times, crowding
from psgrad.transport.network import Link, Network

REFUSED = [
    ({"workers": 0}, "workers must be from 1 to 4096, got 0"),
    ({"workers": 4097}, "workers must be from 1 to 4096, got 4097"),
    ({"servers": 65}, "servers must be from 1 to 64, got 65"),
    ({"n": 0}, "n must be from 1"),
    ({"steps": 0}, "steps must be from 1"),
    ({"window": 0}, "window must be from 1"),
    ({"staleness": -1}, "staleness must be at least 0, or None for async, got -1"),
    ({"cores": 0}, "cores must be at least 1, or None, got 0"),
    ({"push_bytes": -1.0}, "push_bytes must be at least 0, got -1.0"),
    ({"pull_bytes": math.nan}, "pull_bytes must be at least 0, got nan"),
    ({"network": Network(jitter=0.1)}, "knows neither jitter nor links of their own"),
    ({"network": Network(links=(Link(1.0, 1.0),))}, "knows neither jitter nor links"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_cases_that_cannot_be(change, message):
    with pytest.raises(ConfigError, match=message):
        Case(**{"workers": 1, **change})


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_costs_that_cannot_be(value):
    with pytest.raises(ConfigError, match="cost apply_s must be a finite number of at least 0"):
        Costs(apply_s=value)


@pytest.mark.parametrize(("bound", "mode"), [(0, "sync"), (3, "ssp(3)"), (None, "async")])
def test_modes(bound, mode):
    assert Case(1, staleness=bound).mode == mode


@pytest.mark.parametrize("chunk_bytes", [0, 64, 1000])
def test_chunks_are_those_of_a_session(chunk_bytes):
    case = Case(1, 3, 5000, chunk_bytes, push_bytes=1.0, pull_bytes=0.5)
    chunks = Layout.of({"p": np.zeros(5000, np.float32)}).chunks(chunk_bytes)
    assert case.chunks() == chunks
    grid = Grid.of(case)
    assert grid.size.tolist() == [chunk.size for chunk in chunks]
    assert grid.owner.tolist() == list(assign(chunks, 3))
    assert grid.push.tolist() == [104 + size for size in grid.size]
    assert grid.pull.tolist() == [104 + size / 2 for size in grid.size]


def test_the_window_holds_chunks_back():
    grid = Grid.of(Case(1, 2, 160, 64, window=2))
    assert grid.chunks == 10
    assert grid.limited
    for chunk, earlier in enumerate(grid.back):
        mine = np.flatnonzero(grid.owner == grid.owner[chunk]).tolist()
        place = mine.index(chunk)
        assert earlier == (mine[place - 2] if place >= 2 else -1)
    assert not Grid.of(Case(1, 2, 160, 64, window=5)).limited


def test_times_are_those_of_the_pace():
    pace = Pareto(0.1, 1.5, seed=2)
    times = compute_times(Case(3, steps=4, pace=pace))
    assert times.tolist() == [[pace.seconds(w, s) for s in range(1, 5)] for w in range(3)]
    assert (compute_times(Case(3, steps=4, pace=Constant(2.0))) == np.full((3, 4), 2.0)).all()


@pytest.mark.parametrize(
    ("workers", "servers", "cores", "expected"),
    [
        (3, 1, None, (1, 1, 1)),
        (1, 1, 2, (1, 1, 1)),
        # The server has a core; the workers share the other, of which waiting takes a little.
        (2, 1, 2, (2 / 1.85, 2 / 0.85, 1)),
        (3, 1, 2, (3 / 1.8, 3 / 0.8, 1)),
        (8, 2, 6, (8 / 5.5, 8 / 3.5, 1)),
        (1, 1, 1, (1 / 0.9, 2 / 0.9, 2 / 0.9)),  # nobody has a core
        (4, 2, 2, (4 / 1.7, 6 / 1.7, 6 / 1.7)),
        (64, 1, 2, (64, 65, 65)),
        (3, 1, 64, (1, 1, 1)),
    ],
)
def test_cores_are_shared(workers, servers, cores, expected):
    case = replace(Case(workers, servers), cores=cores)
    assert crowding(case) == pytest.approx(expected)
