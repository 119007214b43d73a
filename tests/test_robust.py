"""Robust aggregates where they are used: in a shard, in sessions, and in training under attack."""

from __future__ import annotations

import itertools
from statistics import NormalDist

import numpy as np
import pytest
from test_shard import Desk
from test_simulate import simulated

from psgrad.aggregate import parse
from psgrad.aggregator import Aggregator
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

SPECS = ("median", "trimmed-mean:2", "krum:2")


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


# Training under attack: least squares, a third of the workers


WORKERS, WRONG, FEATURES, STEPS = 11, 3, 24, 200
TRUTH = np.linspace(-1, 1, FEATURES, dtype=np.float32)


def gradient(params, worker, step):
    """Of least squares on 16 samples with noise."""
    rng = np.random.default_rng([worker, step])
    x = rng.standard_normal((16, FEATURES), dtype=np.float32)
    y = x @ TRUTH + rng.standard_normal(16, dtype=np.float32)
    return (x @ params - y) @ x / np.float32(16)


def sign_flip(honest):
    """What some workers would push, times -10."""
    return -10 * honest[:WRONG]


def little():
    """z of "A Little Is Enough" (Baruch et al., NeurIPS 2019): as far as the mean plus z standard
    deviations, so many honest workers are further away that with the wrong ones they are most."""
    supporters = WORKERS // 2 + 1 - WRONG
    return NormalDist().inv_cdf((WORKERS - WRONG - supporters) / (WORKERS - WRONG))


def a_little(honest):
    """The same from all wrong workers: the mean, moved by z standard deviations."""
    moved = honest.mean(axis=0) - np.float32(little()) * honest.std(axis=0)
    return np.repeat(moved[None], WRONG, axis=0)


def train(spec, attack, look=lambda *_: None):
    """The distance to the truth that is left; ``look(honest, wrong, aggregate)`` at each step."""
    rule = parse(spec)
    robust = rule and Aggregator(rule)
    params = np.zeros(FEATURES, np.float32)
    for step in range(STEPS):
        grads = np.array([gradient(params, w, step) for w in range(WORKERS)], np.float32)
        if attack is not None:
            grads[:WRONG] = attack(grads[WRONG:])
        mean = np.mean(grads, axis=0)
        found = robust.combine(list(grads), FEATURES) if robust else mean
        look(grads[WRONG:], grads[:WRONG], found)
        params = params - np.float32(0.05) * found
    return float(np.linalg.norm(params - TRUTH))


LEAST_SQUARES = ("median", "trimmed-mean:3", "krum:3")


def test_without_an_attack_they_cost_some_accuracy():
    """Krum most: its gradient is that of one worker."""
    mean = train("mean", None)
    median, trimmed, krum = (train(spec, None) for spec in LEAST_SQUARES)
    assert mean < trimmed < median < krum < 0.2


def test_a_sign_flip_breaks_the_mean_and_nothing_else():
    assert train("mean", sign_flip) > 1e6
    for spec in LEAST_SQUARES:
        assert train(spec, sign_flip) < 0.2


@pytest.mark.parametrize("spec", ["median", "trimmed-mean:3"])
def test_a_little_is_enough_moves_ranks_as_far_as_the_theory_lets_it(spec):
    """Each rank k stays between the honest ranks k - f and k. That is a bound, and it hurts: the
    aggregate goes the attack's way in almost every step, further than the mean would."""
    moved = {"mean": [], spec: []}
    ranks = parse(spec).ranks(WORKERS)

    def look(honest, wrong, found):
        x = np.sort(honest, axis=0)
        assert (x[[k - WRONG for k in ranks]].mean(axis=0) <= found + 1e-5).all()
        assert (found <= x[list(ranks)].mean(axis=0) + 1e-5).all()
        everyone = np.concatenate([wrong, honest]).mean(axis=0)
        for name, value in (("mean", everyone), (spec, found)):
            shift = (value - honest.mean(axis=0)) / honest.std(axis=0)
            moved[name].append(float(shift.mean()))

    error = train(spec, a_little, look)
    shifts = {name: np.mean(values) for name, values in moved.items()}
    assert -little() < shifts[spec] < shifts["mean"] < 0
    assert train(spec, None) < error < 0.5


def test_a_little_is_enough_is_what_krum_chooses():
    """The wrong gradients are equal to each other and nearer to all than honest ones are. So what
    is chosen is at most z standard deviations off, but it is theirs, in each step."""
    chosen = []

    def look(honest, wrong, found):
        chosen.append(np.array_equal(found, wrong[0]))
        off = np.abs(found - honest.mean(axis=0))
        assert (off <= little() * honest.std(axis=0) + 1e-5).all()

    error = train("krum:3", a_little, look)
    assert all(chosen)
    assert train("krum:3", None) < error < 0.5


# Training under attack: the digits, two of seven workers


TRAINER = [
    "--mode", "sync", "--set", "model.hidden=[]", "--optimizer", "sgd", "--learning-rate", 0.5,
    "--epochs", 20,
]  # fmt: skip
FLIPPED = ["--inject", "signflip:rank=2,factor=10", "--inject", "signflip:rank=5,factor=10"]


def accuracy(capsys, folder, *more):
    summary, seen = simulated(capsys, folder, "workers=7", *TRAINER, *more)
    assert summary["skipped_steps"] == 0
    return summary, seen


def test_the_digits_under_a_sign_flip(capsys, tmp_path):
    """Within 3 points of a mean that nobody attacks; the attacked mean knows nothing."""
    clean, seen = accuracy(capsys, tmp_path / "clean")
    assert "aggregate" not in clean
    broken, _ = accuracy(capsys, tmp_path / "broken", *FLIPPED)
    assert clean["test_accuracy"] > 0.92
    assert broken["test_accuracy"] < 0.3
    for spec in SPECS:
        summary, seen = accuracy(capsys, tmp_path / spec, "--aggregate", spec, *FLIPPED)
        assert summary["test_accuracy"] > clean["test_accuracy"] - 0.03
        assert summary["aggregate"] == spec
        assert f"7 workers, sync, {spec}\n" in seen


def test_the_trainer_says_what_is_too_few(capsys, tmp_path):
    from psgrad import cli

    status = cli.main(
        [
            "train", "--simulate", "workers=4", "--mode", "sync", "--aggregate", "krum:1",
            "--run-dir", str(tmp_path / "run"),
        ]
    )  # fmt: skip
    assert status == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "psgrad: error: aggregate krum:1 needs at least 5 workers (2f + 3), got 4; start more, or "
        "use aggregate mean"
    )


def test_layer_by_layer_the_attack_is_the_same(capsys, tmp_path):
    more = [*FLIPPED, "--aggregate", "median", "--epochs", 2]
    whole, _ = simulated(capsys, tmp_path / "whole", "workers=7", "--mode", "sync", *more)
    parts, _ = simulated(
        capsys, tmp_path / "parts", "workers=7", "--mode", "sync", *more, "--overlap", "on"
    )
    assert parts["params_sha256"] == whole["params_sha256"]
