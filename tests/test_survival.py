"""Runs whose workers die: what is checked, and what the checks are worth."""

from __future__ import annotations

import math
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from psgrad.errors import PsgradError
from psgrad.invariants import CheckedShard, InvariantError
from psgrad.layout import Layout
from psgrad.messages import Verdict
from psgrad.rehearsal import run
from psgrad.scenario import Scenario
from psgrad.scenario_text import command
from psgrad.seats import Seat
from psgrad.server import Server
from psgrad.shard import Shard
from psgrad.survival import Books, Fates, check, kills
from psgrad.transport.clockwork import RankError

CALM = Scenario(3, workers=3, bound=2, sizes=(20,))
LOSING = Scenario(
    3, workers=4, servers=2, bound=1, steps=8, sizes=(24, 40), pushes=0.5, deaths=(60, 35)
)

# Runs in which a bug was found, with what it was; they stay.
NAMED = {
    "a marker that came to one of three servers": Scenario(
        784, servers=3, bound=2, steps=2, sizes=(5, 16, 16), window=2, pull_codec="int8",
        zstd="auto", hosts=1, optimizer="adam", skips=0.5, pushes=0.3, overlaps=1.0,
        pace="constant:seconds=0.001;slow:worker=0,factor=7", drops=0.05, checkpoints="1",
        then_workers=5, then_servers=1, deaths=(38, 10),
    ),
    "a cut holds back the round that it waits for": Scenario(
        913, steps=8, uneven=1, sizes=(90, 5), chunk_bytes=4096, window=1, pull_codec="topk:0.2",
        zstd="auto", skips=0.1, pushes=0.7, pace="constant:seconds=0", latency_s=0.001,
        bandwidth=1e6, drops=0.05, partition=True, checkpoints="0.002s", then_workers=2,
        deaths=(11,),
    ),
    "a push of the dead into a round that nobody commits": Scenario(
        2993, workers=6, servers=3, steps=2, uneven=3, sizes=(90, 1), window=2, zstd="on", hosts=2,
        overlaps=1.0, pace="pareto:mean=0.001,alpha=1.2", latency_s=0.0, bandwidth=math.inf,
        jitter=20.0, then_servers=3, deaths=(27, 3, 58, 39, 22),
    ),
    "a server without chunks": Scenario(
        11, servers=2, steps=3, uneven=1, sizes=(1, 16), chunk_bytes=128, hosts=2, pushes=0.3,
        overlaps=1.0, pace="pareto:mean=0.001,alpha=1.2", latency_s=0.0, bandwidth=1e6, jitter=0.5,
        deaths=(77, 17),
    ),
}  # fmt: skip


@pytest.mark.parametrize("scenario", NAMED.values(), ids=NAMED.keys())
def test_what_once_failed(scenario):
    run(scenario)


def test_fates_follow_from_the_seed():
    scenario = replace(CALM, workers=6, deaths=(9, 7), death_s=0.5, lease_s=1.0, freeze=2)
    fates = Fates.of(scenario)
    assert fates == Fates.of(scenario)
    named = [*fates.die, *fates.die_at_once, fates.freezes, fates.computes_long]
    assert sorted(named) == list(range(6))
    assert list(fates.die.values()) == [9, 7]
    assert fates.doomed == set(range(6)) - {fates.computes_long}
    assert {(k.rank, k.call, k.at_s) for k in kills(scenario)} == {
        *((1 + w, n, None) for w, n in fates.die.items()),
        *((1 + w, None, 0.5) for w in fates.die_at_once),
    }
    assert all(kill.tolerated for kill in kills(scenario))


def test_somebody_goes_on():
    fates = Fates.of(replace(CALM, workers=2, deaths=(5,), death_s=0.1, freeze=1))
    assert (len(fates.die), len(fates.doomed)) == (1, 1)
    fates = Fates.of(replace(CALM, workers=3, deaths=(5,), death_s=0.1, freeze=1))
    assert (len(fates.die_at_once), len(fates.doomed)) == (1, 2)
    assert fates.freezes is None


def test_without_losses_there_are_none():
    fates = Fates.of(CALM)
    assert (fates.doomed, kills(CALM), CALM.has_losses) == (set(), [], False)


# Books that are wrong


def updates(*applied):
    """Updates of pushes (worker, clock) or (worker, admission, clock)."""
    return [tuple((Seat(*seat), clock) for *seat, clock in update) for update in applied]


def by_seat(ends):
    return {Seat(worker): params for worker, params in ends.items()}


def books(applied=MappingProxyType({}), **changes):
    """Of two steps of two workers with one chunk, all of it applied; and the parameters."""
    scenario = Scenario(3, workers=2, bound=1, sizes=(20,), steps=2)
    kept = Books()
    [kept.chunks[0]] = Layout.of(scenario.arrays()).chunks(scenario.chunk_bytes * 4)
    for worker in (0, 1):
        for clock in (1, 2):
            kept.pushed[Seat(worker), clock] = np.full(20, 10.0 * worker + clock)
        kept.left[Seat(worker)] = kept.answered[Seat(worker)] = 2
        kept.began[Seat(worker)] = 0
    shard = object()
    kept.copies[0][shard] = updates(((0, 1),), ((1, 1),), ((0, 2),), ((1, 2),))
    for chunk, said in applied.items():
        kept.copies[chunk][shard] = said
    for name, value in changes.items():
        setattr(kept, name, value)
    start = scenario.arrays()["p0"]
    return scenario, kept, (start - np.float32(0.05 * 26)).astype(np.float32)


def test_books_that_are_right():
    scenario, kept, params = books()
    assert check(scenario, kept, by_seat({0: params, 1: params}), []) == ["survivors", "accepted"]


@pytest.mark.parametrize(
    ("applied", "text"),
    [
        (
            [((0, 1),), ((1, 1),), ((0, 2),), ((1, 2),), ((1, 2),)],
            r"clocks \[1, 2, 2\] of worker 1",
        ),
        (
            [((0, 1),), ((1, 1),), ((0, 2),), ((1, 2),), ((1, 4, 2),)],
            r"clocks \[2\] of worker 1, admission 4, which began at 2",
        ),
        ([((0, 2),), ((1, 1),), ((0, 1),), ((1, 2),)], r"clocks \[2, 1\] of worker 0"),
        ([((0, 1),), ((0, 2),), ((1, 1),)], "worker 1 up to clock 1, it has pushed up to 2"),
        ([((0, 1),), ((0, 2),)], "worker 1 up to clock 0, it has pushed up to 2"),
    ],
)
def test_applied_twice_or_not_at_all(applied, text):
    scenario, kept, params = books(applied={0: updates(*applied)})
    kept.began[Seat(1, 4)] = 2
    with pytest.raises(InvariantError, match=text):
        check(scenario, kept, by_seat({0: params, 1: params}), [])


@pytest.mark.parametrize(
    ("ends", "woken", "text"),
    [
        ([0], set(), r"workers \[1\] are gone and should not be"),
        ([0, 1], {Seat(1)}, "worker 1 was frozen and is not shut out"),
    ],
)
def test_who_is_gone_and_who_is_not(ends, woken, text):
    scenario, kept, params = books(woken=woken)
    with pytest.raises(InvariantError, match=text):
        check(scenario, kept, by_seat(dict.fromkeys(ends, params)), [])


def test_survivors_that_differ():
    scenario, kept, params = books()
    with pytest.raises(InvariantError, match="worker 1 and worker 0 end with different parameters"):
        check(scenario, kept, by_seat({0: params, 1: params + 1}), [])


def test_parameters_that_are_not_what_was_accepted():
    scenario, kept, params = books()
    with pytest.raises(InvariantError, match=r"differ from what was accepted by 0\.01"):
        check(scenario, kept, by_seat(dict.fromkeys((0, 1), params + np.float32(0.01))), [])


def test_rounds_with_other_workers_on_another_chunk():
    scenario, kept, params = books(
        applied={
            0: updates(((0, 1), (1, 1)), ((0, 2), (1, 2))),
            1: updates(((0, 1), (1, 1)), ((0, 2),)),
        }
    )
    with pytest.raises(InvariantError, match="a round was closed with other workers on one chunk"):
        check(replace(scenario, bound=0), kept, by_seat({0: params, 1: params}), [])


# Programs that are wrong


def test_a_run_that_loses_two_workers():
    compared = run(LOSING).compared
    assert compared == ["survivors", "accepted", "deaths"]


def test_in_sync_mode():
    assert run(replace(LOSING, bound=0)).compared == ["survivors", "rounds", "accepted", "deaths"]


def test_frozen_ranks_are_shut_out_and_slow_ones_are_not():
    frozen = replace(LOSING, deaths=(), lease_s=0.5, freeze=3)
    assert run(frozen).compared == ["survivors", "accepted", "deaths", "fenced"]


def test_a_checkpoint_of_a_run_that_loses_workers_can_be_gone_on_from():
    assert "resumed after losses" in run(replace(LOSING, checkpoints="2", bound=None)).compared


class KeepsItsClock(Shard):
    def drop(self, worker):
        clocks = {index: state.clocks.get(worker) for index, state in self.chunks.items()}
        replies = super().drop(worker)
        for index, clock in clocks.items():
            if clock is not None:
                self.chunks[index].clocks[worker] = clock
        return replies


class AppliesWhatIsParked(Shard):
    def drop(self, worker):
        for state in self.chunks.values():
            for push in state.parked.get(worker, ()):
                self._apply(state, [push], state.position)
        return super().drop(worker)


class KeepsMemory(Shard):
    def drop(self, worker):
        return [
            reply
            for reply in super().drop(worker)
            if reply.header.worker != worker or reply.header.verdict is not Verdict.APPLIED
        ]


def caught(shard, base=Shard, seeds=range(60)):
    """The first failure that a planted bug leads to; without the referee, if ``base`` has none."""
    kind = shard if base is Shard else type("Planted", (base, shard), {})
    for seed in seeds:
        pushes = 0.9 if seed % 2 else 0.2
        uneven = "exponential:mean=0.001;slow:worker=0,factor=9"
        scenario = replace(
            LOSING, seed=seed, deaths=(), death_s=3e-4 * (seed + 9), pace=uneven, pushes=pushes
        )
        try:
            run(scenario, shard=kind)
        except PsgradError as error:
            return error.__cause__ if isinstance(error, RankError) else error
    return None


@pytest.mark.parametrize(
    ("shard", "base", "text"),
    [
        (KeepsItsClock, Shard, "no end after"),
        (KeepsItsClock, CheckedShard, "is missing"),
        (AppliesWhatIsParked, CheckedShard, "its pushes make"),
        (KeepsMemory, Shard, "buffers still in use"),
        (KeepsMemory, CheckedShard, "is missing"),
    ],
)
def test_a_planted_bug_of_a_shard_is_caught(shard, base, text, monkeypatch):
    monkeypatch.setattr("psgrad.survival.EVENTS", 20_000)
    assert text in str(caught(shard, base))


@pytest.mark.parametrize(
    ("method", "result"),
    [("_end_together", None), ("_ask_for_first_values", None), ("_evict_silent", None)],
)
def test_a_planted_bug_of_a_server_is_caught(method, result, monkeypatch):
    monkeypatch.setattr(Server, method, lambda *_: result)
    monkeypatch.setattr("psgrad.survival.EVENTS", 20_000)
    failed = 0
    for seed in range(40):
        scenario = replace(LOSING, seed=seed, servers=3, deaths=(1 + seed // 4, 90), bound=1)
        if method == "_end_together":
            scenario = replace(scenario, deaths=(80 + seed, 100 + seed, 130))
        if method == "_evict_silent":
            scenario = replace(scenario, deaths=(), lease_s=0.5, freeze=2)
        try:
            run(scenario)
        except PsgradError:
            failed += 1
    assert failed


def test_without_a_bug_nothing_is_caught():
    assert caught(Shard) is None
    assert caught(CheckedShard) is None


def test_the_command_of_a_run_with_losses():
    assert " --set deaths=60/35" in command(LOSING)
