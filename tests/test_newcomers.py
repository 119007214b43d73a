"""Rehearsed runs in which others take the places of workers that are lost."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from psgrad.admission import Admission
from psgrad.commits import OpenRound
from psgrad.cuts import CutPlan
from psgrad.errors import PsgradError
from psgrad.intake import Intake
from psgrad.invariants import CheckedShard
from psgrad.links import ServerLinks
from psgrad.outbox import Outbox
from psgrad.rehearsal import run
from psgrad.rounds import Rounds
from psgrad.scenario import Scenario
from psgrad.seats import Seats
from psgrad.server import Server
from psgrad.shard import Shard

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


def forgets_admissions(monkeypatch):
    take = Rounds.take
    monkeypatch.setattr(Rounds, "take", lambda self, *said: take(self, *said[:2], math.inf))


def one_clock_late(monkeypatch):
    admit = Server._admit

    def wrong(self, admitted):
        late = self._transport.rank > 0
        admit(self, admitted._replace(clock=admitted.clock + late))

    monkeypatch.setattr(Server, "_admit", wrong)


def admits_at_once(monkeypatch):
    monkeypatch.setattr(Admission, "heard", lambda *_: False)


PLANTED = {
    "old messages count": lambda m: m.setattr(Seats, "is_past", lambda *_: False),
    "old answers count": lambda m: m.setattr(ServerLinks, "_incarnation", 0, raising=False),
    "another clock on another server": one_clock_late,
    "the open round is kept": lambda m: m.setattr(OpenRound, "admit", lambda _: None),
    "nobody comes in twice": admits_at_once,
    "what comes in after others have left": lambda m: m.setattr(Admission, "close", lambda _: []),
}
