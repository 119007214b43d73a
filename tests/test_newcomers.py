"""Rehearsed runs in which others take the places of workers that are lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from psgrad.admission import Admission
from psgrad.errors import PsgradError
from psgrad.rehearsal import run
from psgrad.scenario import Scenario
from psgrad.seats import Seats
from psgrad.server import Server

SPARES = Scenario(
    3, workers=3, servers=2, bound=1, steps=14, sizes=(24, 40), pushes=0.3, deaths=(70,), spares=2
)
FROZEN = Scenario(
    3, workers=3, servers=2, bound=1, steps=24, sizes=(24, 40), pace="constant:seconds=0.05",
    lease_s=0.5, freeze=3, freeze_s=0.7,
)  # fmt: skip

# Runs in which a bug was found, with what it was; they stay.
NAMED = {
    "a JOIN that comes twice": replace(FROZEN, seed=1188, servers=3, duplicates=0.1),
    "a server without chunks cuts before others": Scenario(
        2131, servers=2, steps=12, sizes=(5,), chunk_bytes=128, window=2, pushes=0.3, hosts=2,
        codec="topk:0.2,select=threshold", feedback="none", overlaps=1.0,
        pace="constant:seconds=0.001;slow:worker=0,factor=7", bandwidth=1e6, jitter=20.0,
        delays=0.1, partition=True, checkpoints="1", then_servers=2, deaths=(8,), death_s=0.17,
        spares=1,
    ),
    "two get ready, and the second is ready first": Scenario(
        6098, servers=2, bound=3, steps=12, sizes=(90,), chunk_bytes=4096, skips=0.1, pushes=0.3,
        codec="int8:rounding=stochastic", zstd="auto", pace="constant:seconds=0.001",
        latency_s=0.001, bandwidth=1e6, jitter=20.0, delays=0.1, partition=True, then_servers=1,
        deaths=(4, 1), spares=3,
    ),
    "what a cut held back completes a round, and what comes behind it": Scenario(
        7350, workers=2, steps=20, uneven=3, sizes=(40,), codec="int8:rounding=stochastic", hosts=1,
        pushes=0.3, pace="exponential:mean=0.001;slow:factor=10,start=2,stop=4", latency_s=0.0,
        jitter=20.0, duplicates=0.1, checkpoints="0.002s", then_workers=3, then_servers=2,
        deaths=(10,), spares=1,
    ),
    "a round that is complete by the end of a cut": Scenario(
        18977, workers=4, servers=2, steps=20, uneven=1, sizes=(16, 90), pull_codec="sign",
        optimizer="adam", skips=0.1, pushes=0.3, overlaps=1.0, pace="constant:seconds=0.05",
        checkpoints="0.002s", then_workers=2, then_servers=2, deaths=(60, 18), lease_s=0.5,
        freeze=2, freeze_s=0.6, spares=1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("scenario", NAMED.values(), ids=NAMED.keys())
def test_what_once_failed(scenario):
    run(scenario)


@pytest.mark.parametrize("bound", [0, 1, None])
def test_spares(bound):
    compared = run(replace(SPARES, bound=bound)).compared
    assert {"deaths", "newcomers", "accepted"} <= set(compared)


@pytest.mark.parametrize("bound", [0, 1, None])
def test_who_was_frozen_comes_back(bound):
    compared = run(replace(FROZEN, bound=bound)).compared
    assert {"fenced", "newcomers", "accepted"} <= set(compared)


def test_a_spare_of_the_only_worker():
    scenario = replace(SPARES, workers=2, deaths=(50, 90), servers=3, bound=0)
    assert "newcomers" in run(scenario).compared


def test_with_checkpoints():
    compared = run(replace(SPARES, checkpoints="3", codec="topk:0.2")).compared
    assert {"newcomers", "resumed after losses"} <= set(compared)
    compared = run(replace(SPARES, bound=0, checkpoints="3")).compared
    assert {"newcomers", "resumed after losses"} <= set(compared)


def test_without_a_place_a_spare_ends_with_the_run():
    calm = replace(SPARES, deaths=(100_000,))
    assert run(calm).compared == ["survivors", "accepted"]


# Programs that are wrong


def one_clock_late(monkeypatch):
    admit = Server._admit

    def wrong(self, admitted):
        late = self._transport.rank > 0
        admit(self, admitted._replace(clock=admitted.clock + late))

    monkeypatch.setattr(Server, "_admit", wrong)


def old_messages_count(monkeypatch):
    monkeypatch.setattr(Seats, "is_past", lambda *_: False)


def who_comes_too_late_comes_in(monkeypatch):
    monkeypatch.setattr(Admission, "close", lambda _: [])


@pytest.mark.parametrize(
    ("plant", "scenario"),
    [
        (old_messages_count, replace(FROZEN, seed=1, servers=2, latency_s=1e-3)),
        (old_messages_count, replace(FROZEN, seed=0, bound=0, servers=1)),
        (one_clock_late, replace(SPARES, seed=2, servers=3, jitter=20.0, deaths=(34, 70))),
        (
            who_comes_too_late_comes_in,
            replace(SPARES, seed=1, latency_s=1e-3, checkpoints="0.002s", deaths=(27, 65)),
        ),
    ],
)
def test_a_planted_bug_is_caught(plant, scenario, monkeypatch):
    run(scenario)
    monkeypatch.setattr("psgrad.survival.EVENTS", 20_000)
    plant(monkeypatch)
    with pytest.raises(PsgradError):
        run(scenario)
