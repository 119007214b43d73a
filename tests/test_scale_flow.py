"""The cost model: by hand, against the event simulator, and against closed forms."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from scale_events import timelines

from psgrad.messages import HEADER_NBYTES
from psgrad.pace import Constant, Exponential, Pareto, Slow
from psgrad.scale.figures import Figures
from psgrad.scale.flow import play
from psgrad.scale.model import Case, Costs
from psgrad.scale.traffic import POLLING
from psgrad.transport.network import Network

FREE = Network(latency_s=0.0, bandwidth=math.inf)
NETWORKS = {
    "fast": Network(20e-6, 1.25e9),
    "slow": Network(1e-4, 2e7),
    "slow links": Network(5e-5, 2e7, nic_bandwidth=5e7),
}
PACES = {
    "equal": Constant(1e-3),
    "none": Constant(0.0),
    "exponential": Exponential(1e-3, seed=3),
    "pareto": Pareto(1e-3, 1.5, seed=3),
    "one slow": Slow(Exponential(1e-3, seed=3), 4.0, worker=0),
}
MODES = [0, 2, None]
N = 3000  # elements: 12 chunks of 1 KiB, 3 of 4 KiB, 1 of 16 KiB


def agreement():
    """(workers, servers, chunk_bytes, network, pace), so that each meets each sooner or later."""
    table = []
    for i, workers in enumerate((1, 2, 3, 8, 16)):
        for j, chunk_bytes in enumerate((1024, 4096, 16384)):
            network = list(NETWORKS)[(i + j) % len(NETWORKS)]
            pace = list(PACES)[(2 * i + j) % len(PACES)]
            table.append((workers, 1 + (i + 2 * j) % 4, chunk_bytes, network, pace))
    return table


@pytest.mark.parametrize(("workers", "servers", "chunk_bytes", "network", "pace"), agreement())
@pytest.mark.parametrize("bound", MODES)
def test_the_event_simulator_agrees(workers, servers, chunk_bytes, network, pace, bound):
    """2% in the time of a step would do; it is nearly always message for message the same."""
    case = Case(
        workers,
        servers,
        N,
        chunk_bytes,
        bound,
        window=3,
        steps=12,
        network=NETWORKS[network],
        pace=PACES[pace],
    )
    model, events = (Figures.of(timeline) for timeline in timelines(case))
    assert model.step_s == pytest.approx(events.step_s, rel=0.005)
    assert model.staleness_mean == pytest.approx(events.staleness_mean, rel=0.02, abs=0.2)
    assert bound is None or model.staleness_max <= bound


def test_a_step_by_hand():
    """Two chunks to two servers: links of 100 bytes a second, NICs of 200, 1 s of latency."""
    case = Case(
        1, 2, 192, 400, steps=2, pace=Constant(5.0), network=Network(1.0, 100.0, nic_bandwidth=200)
    )
    assert [chunk.size for chunk in case.chunks()] == [96, 96]
    timeline = play(case)
    size = HEADER_NBYTES + 96 * 4
    # The second chunk waits for the worker's NIC; then each has a link of its own.
    up = [5 + 1 + size / 100, 5 + size / 200 + 1 + size / 100]
    down = [t + 1 + size / 100 for t in up]
    assert timeline.pushed[0, 0] == 5
    assert timeline.answered[0, 0] == pytest.approx(max(down))
    assert timeline.start[0, 1] == timeline.answered[0, 0]
    assert timeline.answered[0, 1] == pytest.approx(2 * max(down))


@pytest.mark.parametrize(
    ("cost", "sync", "otherwise"),
    [
        ("worker_message_s", 1, 1),
        ("server_message_s", 1, 1),
        ("receive_s", 2 * (HEADER_NBYTES + 400), 2 * (HEADER_NBYTES + 400)),
        ("judge_s", 100, 100),
        ("encode_s", 100, 100),
        ("accumulate_s", 100, 100),
        ("apply_s", 100, 100),
        ("reply_s", 100, 100),
        ("decode_s", 100, 100),
    ],
)
def test_every_cost_of_a_lone_chunk(cost, sync, otherwise):
    for bound, expected in ((0, sync), (2, otherwise), (None, otherwise)):
        case = Case(1, 1, 100, 1 << 20, bound, steps=3, pace=Constant(1.0), network=FREE)
        timeline = play(replace(case, costs=Costs(**{cost: 0.001})))
        assert timeline.answered[0] == pytest.approx((1 + 0.001 * expected) * np.arange(1, 4))


def test_no_cost_is_forgotten():
    assert len(fields(Costs)) == 9, "then it belongs into the test above"


@pytest.mark.parametrize(("bound", "updates"), [(0, 1), (None, 8)])
def test_a_round_is_one_update_and_otherwise_every_push_is(bound, updates):
    costs = Costs(apply_s=1e-3, accumulate_s=1e-4, server_message_s=1e-6)
    case = Case(8, 1, 100, 1 << 20, bound, steps=40, pace=Constant(0), network=FREE, costs=costs)
    figures = Figures.of(play(case))
    assert figures.step_s == pytest.approx(100 * (updates * 1e-3 + 8e-4), rel=0.01)
    assert (figures.staleness_max == 0) == (bound == 0)
    assert figures.processor == pytest.approx(1.0, rel=0.01)


def test_the_window_limits_what_is_under_way():
    """Ten chunks, two at a time: five journeys there and back."""
    case = Case(
        1, 1, 160, 64, steps=1, window=2, pace=Constant(0.0), network=Network(1.0, math.inf)
    )
    assert play(case).answered[0, 0] == pytest.approx(10.0)
    assert play(replace(case, window=10)).answered[0, 0] == pytest.approx(2.0)


def test_ranks_of_one_machine_share_its_cores():
    pace = Constant(1.0)
    case = Case(4, 1, 100, steps=3, pace=pace, network=FREE, cores=2)
    assert Figures.of(play(case)).step_s == pytest.approx(4 / (2 - 5 * POLLING))
    assert Figures.of(play(replace(case, cores=None))).step_s == pytest.approx(1.0)


@pytest.mark.parametrize("workers", [2, 10, 50])
def test_exponential_times_in_closed_form(workers):
    """The mean of the maximum of W exponential times is the mean times 1 + 1/2 + ... + 1/W."""
    case = Case(workers, steps=2000, n=64, pace=Exponential(1.0, seed=1), network=FREE)
    harmonic = sum(1 / k for k in range(1, workers + 1))
    assert Figures.of(play(case)).step_s == pytest.approx(harmonic, rel=0.02)


def test_stragglers_make_sync_the_slowest_and_async_the_fastest():
    case = Case(32, 4, 10_000, 2048, steps=60, pace=Pareto(1e-2, 1.5, 1), network=NETWORKS["fast"])
    bounds = (0, 1, 2, 4, 8, 16, None)
    rates = [Figures.of(play(replace(case, staleness=bound))).throughput for bound in bounds]
    assert rates == sorted(rates)
    assert rates[-1] > 2 * rates[0]


def test_a_nic_is_never_busier_than_all_the_time():
    case = Case(32, 2, 10_000, 8192, None, steps=20, pace=Constant(0.0), network=NETWORKS["slow"])
    figures = Figures.of(play(case))
    assert figures.nic_in == pytest.approx(1, rel=0.02)
    assert figures.nic_out == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("bound", MODES)
def test_a_longer_least_window_changes_little(bound):
    """The one thing in which the order of service is not exact."""
    case = Case(
        32, 4, 6000, 1024, bound, window=3, steps=12, network=NETWORKS["fast"],
        pace=Exponential(1e-3, seed=2),
    )  # fmt: skip
    exact, coarse = (Figures.of(play(case, quantum)).step_s for quantum in (1e-6, 1 / 16))
    assert coarse == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("bound", [0, 3, None])
def test_the_largest_cluster(bound):
    case = Case(4096, 64, 1 << 16, 4096, bound, steps=3, pace=Exponential(0.1, seed=1))
    timeline = play(case)
    assert (timeline.answered > timeline.pushed).all()
    assert (np.diff(timeline.answered) > 0).all()
    assert (timeline.start[:, 1:] == timeline.answered[:, :-1]).all()


def test_the_same_case_is_the_same_timeline():
    case = Case(20, 2, 5000, 1024, 2, steps=10, pace=Pareto(1e-3, seed=4))
    one, two = play(case), play(case)
    assert (one.answered == two.answered).all()
    other = play(replace(case, pace=Pareto(1e-3, seed=5)))
    assert (one.answered != other.answered).any()
