"""Preempted and started again, on real ranks: the end is that of a run that nobody stopped."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from elastic_jobs import ONE_THREAD, Job
from test_train import train

from psgrad.checkpoint import found

PROGRAM = Path(__file__).parent / "ranks" / "checkpoints.py"
SYNC = ["--mode", "sync", "--epochs", 10, "--set", "model.hidden=[16]", "--progress", "off"]
EVERY = ["--checkpoint-every", 1000]  # no other one than the last


def numbers(folder):
    return [int(path.name[5:]) for path in found(folder)]


def test_a_preempted_run_ends_with_the_bits_of_one_that_was_not(mpi, tmp_path):
    whole, _ = train(mpi, tmp_path / "whole", *SYNC, "--servers", 2, ranks=5)
    folder = tmp_path / "run"
    options = [*SYNC, *EVERY, "--servers", 2, "--run-dir", folder]
    slow = ["--inject", "slow:rank=3,factor=20"]
    with Job(mpi, 5, [*options, *slow], options=()) as job:
        job.step(folder / "metrics.jsonl", 20)
        job.interrupt(signal.SIGTERM)
        assert job.status() == 75, job.stderr
        assert not job.left()
    (number,) = numbers(folder / "checkpoints")
    assert 20 <= number < 150
    assert job.stderr.count("psgrad: stopping behind a checkpoint; a second signal aborts\n") == 1
    assert job.stderr.splitlines()[-1].endswith(
        f": checkpoint {number} is safe; go on with resume auto"
    )
    assert job.stderr.splitlines()[-1].startswith("psgrad: error: stopped by SIGUSR1 at rank ")
    assert "Traceback" not in job.stderr
    on, said = train(mpi, folder, *SYNC, *EVERY, "--servers", 2, "--resume", "auto", ranks=5)
    assert f"goes on from checkpoint {number}" in said
    assert on["params_sha256"] == whole["params_sha256"]
    assert (on["steps"], on["test_accuracy"]) == (whole["steps"], whole["test_accuracy"])


def test_a_second_signal_aborts(mpi, tmp_path):
    """The first one waits for a worker that takes its time."""
    slow = ["--inject", "slow:rank=2,factor=1e6"]
    with Job(mpi, 4, [*SYNC, *EVERY, *slow, "--run-dir", tmp_path / "run"], options=()) as job:
        job.line("psgrad 0.")
        job.interrupt(signal.SIGINT)
        job.line("psgrad: stopping behind a checkpoint")
        job.interrupt(signal.SIGINT)
        assert job.status() == 130, job.stderr
        assert not job.left()
    assert job.stderr.splitlines()[-1] == "psgrad: error: stopped by SIGINT"


def test_a_signal_at_a_rank_of_a_script_under_a_bare_launcher(mpi, tmp_path):
    """The script raises it in its own loop, and goes on where it was."""

    def script(case, **options):
        arguments = [PROGRAM, case, tmp_path, json.dumps(options)]
        return mpi.run(4, arguments, env=ONE_THREAD, timeout=60)

    whole = script("plain")
    assert whole.status == 0, whole.stderr
    options = {"checkpoint_dir": str(tmp_path), "checkpoint_every": "100"}
    status, _, stderr = script("signalled", **options)
    assert status == 75, stderr
    (number,) = numbers(tmp_path)
    assert number in (10, 11)
    said = [line for line in stderr.splitlines() if line.startswith("psgrad:")]
    assert said == [
        f"psgrad: error: stopped by SIGUSR1 at rank 2: checkpoint {number} is safe; go on with "
        "resume auto"
    ]
    on = script("plain", **options, resume="auto")
    assert on.status == 0, on.stderr
    assert json.loads(on.stdout)["sha256"] == json.loads(whole.stdout)["sha256"]
    assert json.loads(on.stdout)["resumed"] == number


def test_a_walltime_that_is_nearly_over_stops_a_run(any_mpi, tmp_path):
    end = {"SLURM_JOB_END_TIME": str(int(time.time()) + 300)}
    command = ["run", "--np", 3, "--", *SYNC, *EVERY, "--run-dir", tmp_path / "run"]
    status, _, stderr = any_mpi.psgrad(
        [*command, "--walltime-margin", 600], env={**ONE_THREAD, **end}
    )
    assert status == 75, stderr
    assert stderr.splitlines()[-1] == (
        "psgrad: error: stopped by the walltime, which ends in 600 s at rank 0: checkpoint 1 is "
        "safe; go on with resume auto"
    )
    status, _, stderr = any_mpi.psgrad([*command, "--resume", "auto"], env={**ONE_THREAD, **end})
    assert status == 0, stderr


def test_workers_of_an_elastic_run_stop_too(mpi, tmp_path):
    if mpi.name != "openmpi":
        pytest.skip(f"ranks may die on Open MPI 5, this is {mpi.name}")
    folder = tmp_path / "run"
    options = ["--mode", "ssp", *SYNC[2:], *EVERY, "--run-dir", folder]
    with Job(mpi, 4, [*options, "--inject", "slow:rank=3,factor=20"]) as job:
        job.step(folder / "metrics.jsonl", 20)
        job.interrupt(signal.SIGTERM)
        assert job.status() == 75, job.stderr
    assert len(numbers(folder / "checkpoints")) == 1
    assert "is safe; go on with resume auto" in job.stderr.splitlines()[-1]
