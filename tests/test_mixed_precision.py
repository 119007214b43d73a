"""Whole trainings with fewer bits, in the simulator: overflows, what they leave, resumption."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from test_simulate import simulated

from psgrad import cli
from psgrad.checkpoint import Checkpoint, found

# 30 steps of each worker; the first scales are far too large.
DYNAMIC = ("--precision", "float16", "--loss-scale", "dynamic:first=33554432,every=4")
EVERY = ("--set", "metrics=all")
RANKS = "workers=3,jitter=2"


def scales(folder, worker):
    """The scale of each gradient of a worker."""
    name = f"metrics-{worker}.jsonl" if worker else "metrics.jsonl"
    records = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [record["loss_scale"] for record in records if record["kind"] == "step"]


def halvings(values):
    return sum(b == a / 2 for a, b in pairwise(values))


@pytest.mark.parametrize("mode", ["sync", "ssp", "async"])
def test_an_overflow_halves_the_scale_is_counted_and_training_goes_on(capsys, tmp_path, mode):
    options = ("--mode", mode, "--learning-rate", 0.01)
    run, seen = simulated(capsys, tmp_path / "run", RANKS, *options, *DYNAMIC, *EVERY)
    assert ", float16" in seen
    assert run["precision"] == "float16"
    each = [scales(tmp_path / "run", worker) for worker in range(3)]
    for values in each:
        assert values[:3] == [2.0**25, 2.0**24, 2.0**23]
        assert {b / a for a, b in pairwise(values)} == {0.5, 1.0, 2.0}, "down, and up again"
        assert min(values) <= 2.0**22
    down = sum(map(halvings, each))
    assert down <= run["skipped_steps"] <= down + 3, "of the last steps no scale is written down"
    assert run["steps"] == sum(map(len, each)), "skipped ones are steps"
    exact, _ = simulated(capsys, tmp_path / "exact", RANKS, *options)
    assert "precision" not in exact
    assert exact["skipped_steps"] == 0
    assert exact["test_loss"] < run["test_loss"] < 2.1, "it learns, if later; guessing has 2.30"


def test_nothing_of_an_overflow_is_applied_not_even_what_left_early(capsys, tmp_path):
    options = ("--mode", "sync", *DYNAMIC, "--accumulate", 2)
    whole, _ = simulated(capsys, tmp_path / "whole", RANKS, *options)
    parts, _ = simulated(capsys, tmp_path / "parts", RANKS, *options, "--overlap", "on")
    assert whole["skipped_steps"] == parts["skipped_steps"] > 3
    assert parts["params_sha256"] == whole["params_sha256"]


def test_a_worker_that_overflows_alone_has_a_scale_of_its_own(capsys, tmp_path):
    """The others' gradients of that step count, and a scale changes no bit of them."""
    options = ("--mode", "sync", "--inject", "nan:rank=2,step=5,steps=2", *EVERY)
    run, _ = simulated(
        capsys, tmp_path / "run", RANKS, *options, "--precision", "bfloat16",
        "--loss-scale", "dynamic:first=1024",
    )  # fmt: skip
    assert run["skipped_steps"] == 2
    first, second, third = (scales(tmp_path / "run", worker) for worker in range(3))
    assert set(first) == set(third) == {1024.0}
    assert second == [1024.0] * 5 + [512.0] + [256.0] * 24
    without, _ = simulated(
        capsys, tmp_path / "without", RANKS, *options[:4], "--precision", "bfloat16"
    )
    assert without["params_sha256"] == run["params_sha256"]


@pytest.mark.parametrize(
    "more",
    [(), ("--overlap", "on"), ("--set", "local_steps=3")],
    ids=["whole", "overlap", "local"],
)
def test_it_goes_on_with_its_scale_bit_for_bit(capsys, tmp_path, more):
    options = ("--mode", "sync", *DYNAMIC, *EVERY, *more)
    whole, _ = simulated(capsys, tmp_path / "whole", RANKS, *options)
    keep = ("--checkpoint-every", 4, "--keep", 100)
    simulated(capsys, tmp_path / "cut", RANKS, *options, *keep)
    straight = [scales(tmp_path / "whole", worker) for worker in range(3)]
    paths = found(tmp_path / "cut" / "checkpoints")
    assert len(paths) >= 2
    for number, path in enumerate(paths):
        folder = tmp_path / f"on{number}"
        on, _ = simulated(capsys, folder, RANKS, *options, "--resume", path)
        assert on["params_sha256"] == whole["params_sha256"], path.name
        assert on["skipped_steps"] == whole["skipped_steps"]
        for worker, values in enumerate(straight):
            rest = scales(folder, worker)
            assert rest == values[len(values) - len(rest) :]
    states = Checkpoint.open(paths[-1]).manifest.state["worker_states"].values()
    assert all(state["kept"]["loss_scale"]["value"] < 2.0**25 for state in states)


def test_a_scale_that_stays_too_large_ends_the_run(capsys, tmp_path):
    status = cli.main(
        ["train", "--simulate", "workers=1", "--mode", "sync", "--run-dir", str(tmp_path / "run"),
         "--precision", "float16", "--loss-scale", "fixed:scale=1099511627776", "--progress", "off"]
    )  # fmt: skip
    assert status == 1
    assert "was NaN or infinite for 10 steps in a row" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--precision", "fp16"), "unknown precision 'fp16'; did you mean 'float16'"),
        (("--loss-scale", "dynamic:first=1000"), "first must be a power of two from 1 to"),
    ],
)
def test_what_is_refused_before_the_start(capsys, tmp_path, arguments, text):
    status = cli.main(["train", "--simulate", "workers=1", *arguments])
    assert status == 2
    assert text in capsys.readouterr().err
