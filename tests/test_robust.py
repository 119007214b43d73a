"""Robust aggregates where they are used: in a shard, and in sessions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from test_shard import Desk

from psgrad.aggregate import parse
from psgrad.chunk_state import Rules
from psgrad.errors import ConfigError
from psgrad.invariants import CheckedShard
from psgrad.layout import SegmentOptions
from psgrad.messages import Kind
from psgrad.optimizers import SGD, Adam
from psgrad.schedules import Constant
from psgrad.session import Session
from psgrad.transport.clockwork import RankError
from psgrad.transport.network import Network
from psgrad.transport.simulated import Simulation

# In a shard


def desk_of(spec, workers, optimizer=None, options=()):
    rules = Rules(optimizer or SGD(1.0), Constant(), 0, aggregate=parse(spec))
    return Desk(workers=workers, bound=0, initial=0.0, rules=rules, options=options)


ROUNDS = [
    ("mean", (1.0, 2.0, 9.0), 4.0),
    ("median", (1.0, 2.0, 9.0), 2.0),
    ("median", (1.0, 2.0, 4.0, 9.0), 3.0),
    ("trimmed-mean:1", (-50.0, 1.0, 2.0, 9.0), 1.5),
    ("krum:1", (9.0, 1.0, 5.0, 2.0, 1.5), 1.5),
]


@pytest.mark.parametrize(("spec", "pushed", "moved"), ROUNDS)
@pytest.mark.parametrize("buffer", [False, True])
def test_a_round_is_one_update_with_the_aggregate(spec, pushed, moved, buffer):
    """In whatever order the pushes come. A buffer becomes the aggregate of the values pushed."""
    orders = list(itertools.permutations(range(len(pushed))))[::7]
    for order in orders:
        options = [SegmentOptions("a", buffer=True)] if buffer else ()
        desk = desk_of(spec, len(pushed), options=options)
        for worker in order:
            desk.send(Kind.PUSH, worker, pushed[worker])
        np.testing.assert_array_equal(desk.state.params, desk.full(moved if buffer else -moved))
        assert desk.state.version == 1


@pytest.mark.parametrize(("spec", "pushed", "moved"), ROUNDS[1:])
def test_weights_do_not_count(spec, pushed, moved):
    desk = desk_of(spec, len(pushed))
    for worker, value in enumerate(pushed):
        desk.send(Kind.PUSH, worker, value, weight=10.0**worker)
    np.testing.assert_array_equal(desk.state.params, desk.full(-moved))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_is_outvoted(value):
    """A correct worker pushes nothing that is not finite; who knows of the others."""
    for spec in ("median", "trimmed-mean:1", "krum:1"):
        desk = desk_of(spec, 5, Adam(0.5))
        for worker in range(5):
            desk.send(Kind.PUSH, worker, value if worker == 2 else 1.0)
        np.testing.assert_allclose(desk.state.params, -0.5, rtol=1e-6)


def test_too_few_are_left():
    desk = desk_of("trimmed-mean:1", 4)
    for clock in (1, 2):
        for worker in range(4 if clock == 1 else 3):
            desk.send(Kind.PUSH, worker, 1.0)
        if clock == 1:
            desk.send(Kind.LEAVE, 3)
    assert desk.state.version == 2, "three are enough"
    desk.send(Kind.LEAVE, 2)
    desk.send(Kind.PUSH, 0, 1.0)
    with pytest.raises(ConfigError) as caught:
        desk.send(Kind.PUSH, 1, 1.0)
    assert str(caught.value) == (
        "aggregate trimmed-mean:1 needs 3 gradients in every round, round 3 has 2: a worker has "
        "left, or its step was empty; give all workers the same number of steps, start more, or "
        "use aggregate mean"
    )


def test_empty_pushes_leave_too_few_as_well():
    desk = desk_of("median", 3)
    for worker in range(3):
        desk.send(Kind.PUSH, worker, weight=0.0)
    assert desk.state.version == 0, "an empty round is no update, and no error"
    desk.send(Kind.PUSH, 0, 1.0)
    desk.send(Kind.PUSH, 1, weight=0.0)
    with pytest.raises(ConfigError, match=r"aggregate median needs 3 gradients .* round 2 has 2"):
        desk.send(Kind.PUSH, 2, 1.0)


# In sessions


SIZES = {"w": (40, 5), "b": (7,)}


def session_of(spec, seed, workers=5, steps=4, pushes=4, **options):
    """The final parameters of a simulated session with one worker that is out of its mind."""

    def main(worker):
        params = worker.register({k: np.zeros(s, np.float32) for k, s in SIZES.items()})
        for step in range(steps):
            rng = np.random.default_rng([worker.rank, step])
            grads = {k: rng.standard_normal(s, dtype=np.float32) + 1 for k, s in SIZES.items()}
            if worker.rank == 1:
                grads = {k: np.full(s, -1e6, np.float32) for k, s in SIZES.items()}
            worker.step(grads, weight=worker.rank + 1)
        worker.leave()
        assert worker.clock == pushes
        worker.barrier()
        worker.pull(dense=True)
        return np.concatenate([params[name].ravel() for name in SIZES])

    def program(transport):
        with Session(transport=transport, shard=CheckedShard, report=lambda _: None) as ranks:
            return ranks.run(main, optimizer=SGD(0.1), aggregate=spec, **options)

    servers = options.get("servers", 1)
    simulation = Simulation(servers + workers, Network(jitter=5.0), seed=seed)
    return simulation.run(program)[-1]


@pytest.mark.parametrize("spec", ["median", "trimmed-mean:1"])
def test_neither_grid_nor_servers_nor_time_show(spec):
    whole = session_of(spec, 1)
    assert (np.abs(whole + 0.4) < 0.5).all(), "four steps of about 1 at a rate of 0.1"
    for seed, grid in enumerate([{"chunk_bytes": 64}, {"servers": 2, "chunk_bytes": 128}]):
        np.testing.assert_array_equal(session_of(spec, seed, **grid), whole)


def test_krum_is_that_of_each_chunk():
    """So the grid shows, and nothing else."""
    one = session_of("krum:1", 1, chunk_bytes=64)
    assert (np.abs(one + 0.4) < 1.0).all()
    np.testing.assert_array_equal(session_of("krum:1", 2, chunk_bytes=64, servers=3), one)
    assert not np.array_equal(session_of("krum:1", 1, chunk_bytes=1024), one)


@pytest.mark.parametrize("spec", ["median", "trimmed-mean:1", "krum:1"])
@pytest.mark.parametrize("codec", ["int8", "fp16", "topk:0.5"])
def test_codecs_with_error_feedback(spec, codec):
    """What is kept back when a worker leaves is lost: it may be that of a few workers."""
    final = session_of(spec, 1, codec=codec, chunk_bytes=128)
    assert (np.abs(final + 0.4) < 1.5).all()


def test_the_mean_is_steered():
    assert (session_of("mean", 1) > 1e4).all()
    assert (session_of("mean", 1, pushes=5, codec="topk:0.5") > 1e4).all(), "with what was kept"


def test_a_session_refuses_too_few_workers():
    with pytest.raises(RankError, match=r"trimmed-mean:3 needs at least 7 workers .*, got 5"):
        session_of("trimmed-mean:3", 1)
