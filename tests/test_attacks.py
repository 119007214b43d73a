"""Training under attack: what robust aggregates withstand, and what gets through."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from test_simulate import simulated

from psgrad import cli
from psgrad.aggregate import parse
from psgrad.aggregator import Aggregator

# Least squares, three of eleven workers


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


# The digits, two of seven workers


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
    for spec in ("median", "trimmed-mean:2", "krum:2"):
        summary, seen = accuracy(capsys, tmp_path / spec, "--aggregate", spec, *FLIPPED)
        assert summary["test_accuracy"] > clean["test_accuracy"] - 0.03
        assert summary["aggregate"] == spec
        assert f"7 workers, sync, {spec}\n" in seen


def test_the_trainer_says_what_is_too_few(capsys, tmp_path):
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
