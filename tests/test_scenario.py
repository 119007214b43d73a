"""Thousands of seeded schedules through the real programs, and what the checks are worth."""

from __future__ import annotations

import math
import os
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from psgrad import consistency
from psgrad import shard as shard_module
from psgrad.errors import ConfigError, PsgradError
from psgrad.invariants import CheckedShard, InvariantError
from psgrad.rehearsal import run
from psgrad.scenario import CHECKPOINTS, CODECS, PULL_CODECS, Scenario
from psgrad.scenario_text import change, command
from psgrad.shard import Shard
from psgrad.transport.carrier import AliasingError
from psgrad.transport.clockwork import RankError, StallError

SEEDS = 4_000  # bin/soak --seeds 100000 runs the others
BLOCK = 250
# Seeds of runs in which a bug was found, with what it was; they stay.
NAMED = {
    "two answers of zstd on raw values": Scenario(2, codec="adaptive", zstd="on", bound=None),
    "parameters of the segment of another node": Scenario(
        716,
        workers=2,
        servers=2,
        steps=8,
        uneven=3,
        sizes=(40, 16),
        chunk_bytes=128,
        hosts=2,
        optimizer="adam",
        pace="exponential:mean=0.001",
        latency_s=1e-3,
        bandwidth=1e6,
        jitter=0.5,
        delays=0.1,
        duplicates=0.1,
        drops=0.05,
    ),
    "a worker leaves with a parked push": Scenario(
        126,
        workers=3,
        servers=2,
        bound=1,
        steps=5,
        sizes=(1, 1),
        chunk_bytes=128,
        window=1,
        codec="sign",
        pull_codec="fp16",
        hosts=2,
        pushes=0.3,
        pace="exponential:mean=0.001",
        bandwidth=1e6,
        jitter=0.5,
    ),
    "two cuts are complete at once": Scenario(
        2316,
        workers=6,
        servers=3,
        steps=5,
        uneven=3,
        sizes=(16,),
        window=1,
        codec="randk:0.2",
        pull_codec="sign",
        zstd="on",
        hosts=2,
        pushes=0.6,
        overlaps=0.5,
        pace="pareto:mean=0.001,alpha=1.2",
        latency_s=1e-05,
        delays=0.1,
        checkpoints="1",
        then_workers=2,
    ),
    "a cut through an open round": Scenario(
        381,
        servers=3,
        steps=8,
        sizes=(16,),
        chunk_bytes=128,
        codec="topk:0.2,select=threshold",
        zstd="on",
        hosts=2,
        optimizer="adam",
        pushes=0.3,
        pace="constant:seconds=0.001;slow:worker=0,factor=7",
        bandwidth=math.inf,
        jitter=20.0,
        checkpoints="0.002s",
        then_workers=3,
        then_servers=1,
    ),
    "rows of the next marker": Scenario(
        306,
        servers=2,
        steps=5,
        sizes=(5, 40, 40),
        pull_codec="sign",
        hosts=2,
        optimizer="momentum",
        skips=0.1,
        overlaps=1.0,
        pace="exponential:mean=0.001;slow:factor=10,start=2,stop=4",
        latency_s=0.0,
        bandwidth=1000000.0,
        jitter=0.5,
        duplicates=0.1,
        drops=0.05,
        checkpoints="1",
        then_servers=3,
    ),
    "rows that are of no cut": Scenario(
        185,
        workers=6,
        servers=3,
        steps=2,
        uneven=1,
        sizes=(16, 1),
        chunk_bytes=128,
        codec="randk:0.2",
        zstd="auto",
        optimizer="momentum",
        pushes=0.3,
        pace="exponential:mean=0.001",
        latency_s=0.0,
        jitter=0.5,
        checkpoints="1",
        then_workers=3,
    ),
    "a cut before the first step": Scenario(
        33,
        servers=2,
        bound=None,
        steps=2,
        uneven=1,
        sizes=(90, 1, 40),
        chunk_bytes=128,
        window=2,
        codec="adaptive",
        pull_codec="fp16",
        hosts=2,
        optimizer="momentum",
        pace="pareto:mean=0.001,alpha=1.2",
        jitter=20.0,
        delays=0.1,
        drops=0.05,
        checkpoints="0.01s",
    ),
    "a cut while a step is settled": Scenario(
        67,
        workers=1,
        servers=3,
        bound=None,
        steps=3,
        uneven=3,
        sizes=(40, 90),
        window=1,
        overlaps=1.0,
        pace="pareto:mean=0.001,alpha=1.2",
        latency_s=0.001,
        bandwidth=math.inf,
        partition=True,
        checkpoints="0.002s",
        then_workers=2,
        then_servers=3,
    ),
}


def failure(seed, shard=CheckedShard):
    """Why a seed does not pass; None if it does."""
    try:
        run(Scenario.of(seed), shard=shard)
    except PsgradError as error:
        return error
    return None


def failing(seeds):
    """The seeds of a block that do not pass, and what was said."""
    return [(seed, str(error)) for seed in seeds if (error := failure(seed)) is not None]


def test_thousands_of_seeds():
    """In two processes: each schedule is one thread's work."""
    blocks = [range(start, start + BLOCK) for start in range(0, SEEDS, BLOCK)]
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), get_context("spawn")) as pool:
        found = [each for block in pool.map(failing, blocks) for each in block]
    assert found == [], "replay one with: psgrad simulate --seed N --trace out.json"


def test_the_seeds_reach_everything():
    """Each mode and codec is drawn often, and each comparison at the end is made."""
    drawn = [Scenario.of(seed) for seed in range(2000)]
    for name, choices in {
        "bound": (0, 1, 3, None), "codec": CODECS, "pull_codec": PULL_CODECS, "window": (1, 2, 8),
        "servers": (1, 2, 3), "workers": (1, 2, 3, 4, 6), "partition": (False, True),
        "hosts": (0, 1, 2), "checkpoints": ("", *CHECKPOINTS), "then_workers": (0, 1, 2, 3, 5),
        "then_servers": (0, 1, 2, 3), "feedback": ("auto", "none", "dgc", "ef21", "ef"),
        "has_losses": (False, True), "lease_s": (0.0, 0.5), "replicas": (0, 1),
        "split_for_s": (0.0, 1e-3, 2e-2, 0.3, 2.0, 20.0),
    }.items():  # fmt: skip
        counts = {choice: sum(getattr(s, name) == choice for s in drawn) for choice in choices}
        assert min(counts.values()) >= 50, (name, counts)
    assert {len(s.deaths) for s in drawn} == {0, 1, 2, 3, 5}
    compared = [run(s).compared for s in drawn[:250]]
    going_on = " of a run that goes on"
    assert {what for done in compared for what in done} == {
        "workers", "twin", "mass", "no checkpoints", "resumed", "workers" + going_on,
        "mass" + going_on, "survivors", "rounds", "accepted", "deaths", "fenced",
        "cut off", "resumed after losses", "replicas", "failover", "undisturbed",
        "newcomers",
    }  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 1 << 20),
    workers=st.integers(1, 5),
    servers=st.integers(1, 3),
    bound=st.sampled_from([0, 1, 2, None]),
    steps=st.integers(1, 6),
    uneven=st.integers(0, 6),
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    chunk_bytes=st.sampled_from([4096, 128, 64]),
    window=st.integers(1, 8),
    codec=st.sampled_from(CODECS),
    hosts=st.integers(0, 2),
    pull_codec=st.sampled_from(PULL_CODECS),
    checkpoints=st.sampled_from(["", "1", "2", "0.002s"]),
    then_workers=st.integers(0, 4),
    then_servers=st.integers(0, 3),
    replicas=st.integers(0, 1),
    server_death=st.integers(0, 400),
    shares=st.tuples(*[st.sampled_from([0.0, 0.2])] * 5),
)
def test_any_schedule(seed, sizes, shares, **fields):
    names = ("skips", "pushes", "delays", "duplicates", "drops")
    if fields["servers"] == 1 or not fields["replicas"]:
        fields["replicas"] = fields["server_death"] = 0
    scenario = Scenario(seed, sizes=tuple(sizes), **fields, **dict(zip(names, shares, strict=True)))
    note(command(scenario))  # what a failure prints, after it was made as small as it gets
    run(scenario)


@pytest.mark.parametrize("seed", [3, 14, 159])
def test_the_same_seed_is_the_same_run(seed):
    traces = ([], [])
    one, other = (run(Scenario.of(seed), trace=trace.append) for trace in traces)
    first, second = ([event.text() for event in trace] for trace in traces)
    assert first
    assert first == second
    assert one.params.tobytes() == other.params.tobytes()
    assert one.seconds == other.seconds


@pytest.mark.parametrize("scenario", NAMED.values(), ids=NAMED.keys())
def test_what_once_failed(scenario):
    run(scenario)


# What the checks are worth: planted bugs


def loose(decide):
    return lambda clock, clocks, bound: decide(clock, clocks, None if bound is None else bound + 1)


class AppliesTwice(Shard):
    def _apply(self, state, pushes, position):
        super()._apply(state, pushes, position)
        super()._apply(state, pushes, position)


class LosesTheWakeUp(Shard):
    def _leave(self, state, header):
        state.clocks.pop(header.worker, None)
        return []


class SendsWhatMayChange(Shard):
    def _answer(self, state, request, kind, verdict, push):
        return super()._answer(state, request, kind, verdict, push)._replace(stable=True)


class KeepsMemory(Shard):
    def _answer(self, state, request, kind, verdict, push):
        reply = super()._answer(state, request, kind, verdict, push)
        return reply._replace(released=None) if request.clock == 2 else reply


class MixesWorkers(Shard):
    """Sums a round in another order than that of the workers."""

    def _apply(self, state, pushes, position):
        super()._apply(state, list(reversed(pushes)), position)


def caught(shard, seeds=range(80), base=CheckedShard):
    """The first failure that a planted bug leads to."""
    kind = type("Planted", (base, shard) if base is not Shard else (shard,), {})
    return next((error for seed in seeds if (error := failure(seed, kind)) is not None), None)


def reason(error):
    return error.__cause__ if isinstance(error, RankError) else error


@pytest.mark.parametrize(
    ("shard", "base", "kind", "text"),
    [
        (AppliesTwice, CheckedShard, InvariantError, "has had 2 updates, its pushes make 1"),
        (LosesTheWakeUp, CheckedShard, InvariantError, "is missing"),
        (LosesTheWakeUp, Shard, StallError, "ranks wait"),
        (SendsWhatMayChange, CheckedShard, AliasingError, "PARAMS"),
        (KeepsMemory, CheckedShard, PsgradError, "buffers still in use"),
        (MixesWorkers, CheckedShard, InvariantError, "sync differs from the plain loop"),
    ],
)
def test_a_planted_bug_is_caught(shard, base, kind, text):
    error = reason(caught(shard, base=base))
    assert isinstance(error, kind)
    assert text in str(error)


def test_a_bound_that_is_one_too_large_is_caught(monkeypatch):
    for name in ("may_answer", "may_accept"):
        monkeypatch.setattr(shard_module, name, loose(getattr(consistency, name)))
    error = reason(caught(Shard))
    assert isinstance(error, InvariantError)
    assert "too much" in str(error)


def test_without_a_bug_the_same_seeds_pass():
    assert caught(type("Same", (Shard,), {})) is None


# The command that repeats one


def test_the_command_names_what_differs_from_the_seed():
    scenario = Scenario.of(5)
    assert command(scenario) == "psgrad simulate --seed 5"
    changed = replace(scenario, workers=9, bound=None, sizes=(1, 2), codec="topk:0.1,scope=global")
    assert command(changed).startswith("psgrad simulate --seed 5 --set ")
    for part in ("workers=9", "bound=async", "sizes=1/2", "codec=topk:0.1,scope=global"):
        assert f"--set {part}" in command(changed)
        scenario = change(scenario, part)
    assert scenario == changed


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (
            "worker=3",
            "unknown field of a scenario 'worker'; did you mean 'workers' or 'then_workers'?",
        ),
        ("seed=3", "unknown field of a scenario 'seed'"),
        ("workers=many", "workers cannot be 'many'; now it is "),
        ("partition=1", "partition cannot be '1'; now it is False"),
    ],
)
def test_a_change_that_cannot_be(setting, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        change(Scenario(1), setting)
