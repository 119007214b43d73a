"""Servers with replicas, in the simulator: whichever dies, whenever it does, nothing is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from psgrad import hosting, replicas, survival
from psgrad.errors import ProtocolError, PsgradError
from psgrad.invariants import InvariantError
from psgrad.messages import Kind
from psgrad.rehearsal import run
from psgrad.scenario import Scenario
from psgrad.shard import Shard
from psgrad.toy import play
from psgrad.transport import rerouted
from psgrad.transport.carrier import AliasingError
from psgrad.transport.clockwork import RankError, StallError

CALM = Scenario(11, workers=3, servers=2, sizes=(40, 16), steps=4, replicas=1)
MODES = {"sync": 0, "ssp": 1, "async": None}


def victims(scenario):
    """A seed for each server, with which it is the one that dies."""
    seeds = range(1000)
    return [
        next(seed for seed in seeds if replace(scenario, seed=seed).victim == server)
        for server in range(scenario.servers)
    ]


@pytest.mark.parametrize("servers", [2, 3])
@pytest.mark.parametrize("bound", MODES.values(), ids=MODES.keys())
def test_any_server_at_any_moment(servers, bound):
    """Each as it makes its 1st, 39th, ... call; what it is at depends on that alone."""
    scenario, failovers = replace(CALM, servers=servers, bound=bound), 0
    for seed in victims(scenario):
        for call in range(1, 420, 38):
            compared = run(replace(scenario, seed=seed, server_death=call)).compared
            failovers += "failover" in compared
            assert ("undisturbed" in compared) == (bound == 0)
    assert failovers >= 5 * servers


@pytest.mark.parametrize("seed", victims(CALM))
def test_checkpoints_go_on(seed, tmp_path):
    """Those that a server has begun are ended by its stand-in, and later ones are made."""
    scenario = replace(CALM, seed=seed, steps=8, checkpoints="2", server_death=120)
    played = play(scenario, Shard, checkpoints=tmp_path)
    assert played.servers_died == 1
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        f"step-{number:08}" for number in (2, 4, 6, 8)
    ]


def failure(scenario):
    try:
        run(scenario)
    except PsgradError as error:
        return error.__cause__ if isinstance(error, RankError) else error
    return None


def first_failure(scenario, calls=range(90, 300, 15)):
    """Of all servers and calls."""
    return next(
        (
            error
            for seed in victims(scenario)
            for call in calls
            if (error := failure(replace(scenario, seed=seed, server_death=call))) is not None
        ),
        None,
    )


# What the checks are worth: planted bugs


def takes_turns_at_once(monkeypatch):
    """A server does not wait until its replica has the turn."""

    def submit(self, hosted, what, peer=0, header=hosting.NOTHING, payload=None):
        real(self, hosted, what, peer, header, payload)
        while self._pending:
            self._do(self._own, self._pending.popleft())

    real = hosting.Host._submit
    monkeypatch.setattr(hosting.Host, "_submit", submit)


def sends_nothing_again(monkeypatch):
    """A stand-in does not say what its server may not have said."""
    monkeypatch.setattr(hosting.Host, "_send_again", lambda *_: None)


def worker_forgets(monkeypatch):
    """A worker does not send again what its server may not have had."""
    monkeypatch.setattr(rerouted.Outgoing, "__iter__", lambda _: iter(()))


def replica_hears_less(monkeypatch):
    """A replica does not get what servers say to each other."""

    def take(self, turn):
        if self.end.live or turn.header.kind is not Kind.COMMIT:
            real(self, turn)

    real = replicas.Hosted._take
    monkeypatch.setattr(replicas.Hosted, "_take", take)


@pytest.mark.parametrize(
    ("plant", "bound"),
    [
        (takes_turns_at_once, None),
        (sends_nothing_again, 1),
        (worker_forgets, None),
        (replica_hears_less, 0),
    ],
)
def test_a_planted_bug_is_caught(monkeypatch, plant, bound):
    plant(monkeypatch)
    monkeypatch.setattr(survival, "EVENTS", 20_000)  # who waits for ever says that it lives
    error = first_failure(replace(CALM, bound=bound, latency_s=1e-3))
    assert isinstance(error, (InvariantError, StallError, AliasingError, ProtocolError))


def test_without_a_bug_the_same_runs_pass():
    assert first_failure(replace(CALM, bound=None, latency_s=1e-3)) is None
