"""Synchronous rounds that survive a death: the decisions, and seeded deaths under a referee."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import psgrad
from psgrad.commits import Commits, OpenRound, Round
from psgrad.errors import ProtocolError
from psgrad.invariants import CheckedShard
from psgrad.session import Session
from psgrad.transport.faults import Kill
from psgrad.transport.network import Network
from psgrad.transport.simulated import Simulation

ALL = (0, 1, 2)


def test_a_round_is_committed_when_all_servers_have_said_the_same():
    commits = Commits(frozenset({0, 2}))
    assert commits.report(0, Round(1, ALL)) is None
    assert commits.report(2, Round(1, ALL)) == Round(1, ALL)
    assert commits.report(2, Round(2, ALL)) is None
    assert commits.report(0, Round(2, ALL)) == Round(2, ALL)


def test_servers_that_learn_of_a_death_at_different_times():
    commits = Commits(frozenset({0, 1}))
    assert commits.report(0, Round(1, ALL)) is None
    assert commits.report(1, Round(1, (0, 2))) is None, "of worker 1 not all has come there"
    assert commits.report(0, Round(1, (0, 2))) == Round(1, (0, 2))


def test_what_is_said_after_the_commit_changes_nothing():
    commits = Commits(frozenset({0}), clock=7)
    assert commits.report(0, Round(8, ALL)) == Round(8, ALL)
    assert commits.report(0, Round(8, (0, 2))) is None
    assert commits.clock == 8


@pytest.mark.parametrize(
    ("server", "clock", "text"),
    [(0, 3, "server 0 reports round 3, the next one is 1"), (5, 1, "server 5 reports round 1")],
)
def test_a_report_that_cannot_be(server, clock, text):
    with pytest.raises(ProtocolError, match=text):
        Commits(frozenset({0})).report(server, Round(clock, ALL))


def test_an_open_round_is_told_once_for_each_set_of_workers():
    rounds = OpenRound(frozenset({3, 4}))
    rounds.complete(3, ALL)
    assert rounds.news(()) is None, "chunk 4 has not all of it"
    rounds.complete(4, ALL)
    assert rounds.news(()) == Round(1, ALL)
    assert rounds.news(()) is None
    assert rounds.news({1}) == Round(1, (0, 2))
    rounds.commit(1)
    assert rounds.news(()) is None


def test_who_died_on_the_way_through_the_chunks_is_in_none_of_them():
    rounds = OpenRound(frozenset({3, 4}))
    rounds.complete(3, ALL)
    rounds.complete(4, (0, 2))
    assert rounds.news({1}) == Round(1, (0, 2))


def test_rounds_are_committed_in_order():
    with pytest.raises(ProtocolError, match="round 3 is committed after round 0"):
        OpenRound(frozenset({0})).commit(3)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 4), st.integers(1, 5))
def test_in_any_order_all_servers_close_a_round_alike(data, servers, workers):
    """Each server says what it has, then again without those that have died."""
    dead = data.draw(st.sets(st.integers(0, workers - 1), max_size=workers - 1))
    everyone, living = set(range(workers)), set(range(workers)) - dead
    commits = Commits(frozenset(range(servers)))
    said = []
    for server in range(servers):
        before = data.draw(st.sets(st.sampled_from(sorted(dead)))) if dead else set()
        said += [(server, everyone - before), (server, living)]
    order = data.draw(st.permutations(range(len(said))))
    # What one server says comes in the order in which it is said.
    queues = {server: [w for s, w in said if s == server] for server in range(servers)}
    done = []
    for i in order:
        server = said[i][0]
        have = queues[server].pop(0)
        if committed := commits.report(server, Round(1, tuple(sorted(have)))):
            done.append(committed)
    assert len(done) == 1
    assert living <= set(done[0].workers)


def train(seed: int) -> tuple[int, list[np.ndarray]]:
    """A training in which workers die; how many, and the parameters of those that do not."""
    draw = random.Random(seed)
    workers, servers, steps = draw.randint(2, 4), draw.randint(1, 3), draw.randint(3, 8)
    victims = draw.sample(range(workers), draw.randint(0, workers - 1))
    kills = [Kill(servers + w, call=draw.randint(1, 80), tolerated=True) for w in victims]
    window = draw.choice([1, 2, 8])
    simulation = Simulation(
        workers + servers, Network(20e-6, 1e8, 0.5), kills, seed, event_limit=60_000
    )

    def main(worker):
        mine = random.Random(100 * seed + worker.rank)
        shapes = {"a": np.zeros(40, np.float32), "b": np.ones(24, np.float32)}
        params = worker.register(shapes)
        for step in range(steps):
            worker.sleep(1e-3 * mine.random())
            # The same for all elements: so are all updates, if a death is in all chunks or in none.
            value = 1.0 + worker.rank + 0.1 * step
            grads = {k: np.full(v.shape, value, np.float32) for k, v in params.items()}
            (worker.push if mine.random() < 0.2 else worker.step)(grads)
        worker.leave()
        worker.barrier()
        worker.pull(dense=True)
        worker.barrier()
        return np.concatenate([params["a"], params["b"]])

    def program(transport):
        with Session(
            transport=transport, shard=CheckedShard, report=lambda _: None, warn=lambda _: None
        ) as session:
            return session.run(
                main,
                servers=servers,
                staleness=0,
                optimizer=psgrad.SGD(0.1),
                chunk_bytes=64,
                window=window,
                fault_tolerant=True,
                lease=100.0,
            )

    ends = [value for value in simulation.run(program) if value is not None]
    return len(simulation.killed), ends


def test_deaths_in_synchronous_rounds():
    """No stall, equal parameters, and a dead worker's last push in all chunks or in none."""
    killed = 0
    for seed in range(120):
        dead, ends = train(seed)
        killed += dead
        assert ends
        for end in ends:
            assert end.tobytes() == ends[0].tobytes(), f"seed {seed}"
        for part in (ends[0][:40], ends[0][40:]):
            assert (part == part[0]).all(), f"seed {seed}: a death is in some chunks only"
    assert killed > 60


# Workers that come in


def test_what_was_said_before_an_admission_counts_no_more():
    commits = Commits(frozenset({0, 1}))
    commits.report(0, Round(1, (0, 1)))
    commits.admit()
    assert commits.report(1, Round(1, (0, 1))) is None
    assert commits.report(0, Round(1, (0, 1))) == Round(1, (0, 1))


def test_a_shard_says_the_open_round_again():
    open_round = OpenRound(frozenset({0}))
    open_round.complete(0, (0, 1))
    assert open_round.news(()) == Round(1, (0, 1))
    open_round.admit()
    assert open_round.news(()) is None
    open_round.complete(0, (0, 1, 2))
    assert open_round.news(()) == Round(1, (0, 1, 2))
