"""Figures of timelines that were made by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from psgrad.errors import ConfigError
from psgrad.messages import HEADER_NBYTES
from psgrad.pace import Constant
from psgrad.scale.figures import Figures, exchange_s, progress, span
from psgrad.scale.flow import play
from psgrad.scale.model import Case, Costs
from psgrad.scale.rows import HEAD, Row, line
from psgrad.transport.network import Network

FREE = Network(latency_s=0.0, bandwidth=math.inf)


def timeline(answered, bound=None, **more):
    """Workers that compute for half of the time."""
    answered = np.array(answered, dtype=float)
    case = Case(*answered.shape[:1], steps=answered.shape[1], staleness=bound, network=FREE, **more)
    start = np.concatenate([np.zeros((len(answered), 1)), answered[:, :-1]], axis=1)
    played = play(case)
    service = replace(played.service, compute=(answered - start) / 2)
    return replace(
        played,
        service=service,
        start=start,
        answered=answered,
        staleness=np.arange(answered.size).reshape(answered.shape) % 3,
    )


def test_a_timeline_counts_until_the_first_worker_is_done():
    line = timeline([[1, 2, 3, 4], [2, 4, 6, 8]])
    assert span(line) == (0, 4)
    assert progress(line, 4.0).tolist() == [4 + 2, 2 + 2]
    assert progress(line, 3.0).tolist() == [3 + 1.5, 1.5 + 1.5]
    figures = Figures.of(line)
    assert figures.throughput == pytest.approx(6 / 4)
    assert figures.step_s == pytest.approx(4 / 3)
    # Alone the six steps would take the 4 seconds of computation that are in them.
    assert figures.efficiency == pytest.approx((4 / 6) * (6 / 4) / 2)
    # Staleness of the answers until then: 0 1 2 0 of the first, 1 2 of the second.
    assert figures.staleness == pytest.approx([2 / 6, 2 / 6, 2 / 6])
    assert (figures.staleness_mean, figures.staleness_max) == (pytest.approx(1.0), 2)


def test_the_first_tenth_does_not_count():
    slow_start = [100.0, *range(101, 120)]
    assert span(timeline([slow_start]))[0] == 101.0
    assert Figures.of(timeline([slow_start])).throughput == pytest.approx(1.0)


def test_a_lone_worker_is_efficient():
    network = Network(1e-3, 1e6)
    for pace in (Constant(0.0), Constant(0.1)):
        for bound in (0, None):
            case = Case(1, 2, 1000, 1024, bound, steps=20, pace=pace, network=network)
            assert Figures.of(play(case)).efficiency == pytest.approx(1.0)


def test_an_exchange_is_a_step_without_computation():
    network = Network(1.0, 100.0)
    case = Case(9, 1, 100, pace=Constant(5.0), network=network, costs=Costs(judge_s=1.0))
    assert exchange_s(case) == pytest.approx(2 * (1 + (HEADER_NBYTES + 400) / 100))


def test_loads_are_those_of_the_busiest_server():
    """Three equal chunks on two servers: one has two of them."""
    costs = Costs(apply_s=1e-6)
    network = Network(0.0, 1e6)
    case = Case(1, 2, 48, 64, None, steps=10, pace=Constant(1.0), network=network, costs=costs)
    figures = Figures.of(play(case))
    seconds = 2 * (HEADER_NBYTES + 64) / 1e6
    assert figures.nic_in == pytest.approx(seconds * figures.throughput)
    assert figures.nic_out == pytest.approx(seconds * figures.throughput)
    assert figures.processor == pytest.approx(2 * 16e-6 * figures.throughput)
    assert figures.load == figures.nic_in


def test_nothing_takes_any_time():
    timeline = play(Case(2, n=16, steps=3, pace=Constant(0.0), network=FREE))
    with pytest.raises(ConfigError, match="a step takes no time at all; give a pace"):
        Figures.of(timeline)


def test_a_line_of_the_table():
    figures = Figures.of(timeline([[1, 2, 3, 4], [2, 4, 6, 8]]))
    row = Row("topk:0.01, int8", None, 32 * figures.throughput, figures)
    text = line(row)
    assert len(text) == len(HEAD)
    assert text.split() == [
        "2", "async", "topk:0.01,", "int8", "1.5", "48", "50.0%", "1.00", "2", "0%", "0%", "0%",
    ]  # fmt: skip
    record = row.record()
    assert (record["mode"], record["bound"], record["samples"]) == ("async", None, 48.0)
    assert record["staleness_mean"] == pytest.approx(1.0)
