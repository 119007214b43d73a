"""Real runs that stand still: the rank that is waited for is named, with what it was doing."""

from __future__ import annotations

import re
import signal

from elastic_jobs import Job

TRAIN = ["--mode", "sync", "--epochs", 10, "--set", "model.hidden=[16]", "--progress", "off"]


def test_a_worker_that_is_stopped_is_named_and_wakes(mpi, tmp_path):
    folder = tmp_path / "run"
    slow = ["--inject", "slow:rank=2,factor=20"]
    arguments = [*TRAIN, *slow, "--servers", 2, "--set", "stall=3", "--run-dir", folder]
    with Job(mpi, 5, arguments, options=()) as job:
        job.step(folder / "metrics.jsonl", 10)
        struck_s = job.send(3, signal.SIGSTOP)
        at_s, first = job.line("psgrad: warning: nothing has moved for ")
        job.line("  stack of rank")
        job.send(3, signal.SIGCONT)
        assert job.status() == 0, job.stderr
    found = re.fullmatch(
        r"psgrad: warning: nothing has moved for \d s: workers 0, 2 wait for worker 1 \(rank 3, "
        r"\S+, pid \d+\): silent for \d+\.\d s, its process is stopped \(T\), SIGCONT wakes it, "
        r"it was (computing|pushing) step (\d+)\n",
        first,
    )
    assert found, first
    step = int(found[2])
    assert step > 10
    assert 2.5 < at_s - struck_s < 20.0, "in the time that was set, or what the machine makes of it"
    assert (
        f": clock {step} is 1 ahead of worker 1 at clock {step - 1}; the staleness bound is 0"
        in (job.stderr)
    )
    assert "in main\n" in job.stderr, "the line of the program that waits"
    assert "nothing has moved" in (folder / "logs" / "coordinator-0.log").read_text()


def test_a_worker_that_does_something_else_ends_the_run_where_that_is_wanted(any_mpi, tmp_path):
    """Its stack is in its log: it sleeps where the fault is planted."""
    folder = tmp_path / "run"
    limits = ["--set", "stall=2", "--set", "stall_abort=5"]
    slow = ["--inject", "slow:rank=2,factor=1e6"]
    with Job(any_mpi, 4, [*TRAIN, *slow, *limits, "--run-dir", folder], options=()) as job:
        assert job.status() == 1, job.stderr
        assert not job.left()
    last = job.stderr.splitlines()[-1]
    assert re.match(
        r"psgrad: error: rank 0 \(coordinator, \S+\): StalledError: nothing has moved for \d+ s: "
        r"workers 0, 2 wait for worker 1 \(rank 2, ",
        last,
    )
    assert "its process is asleep (S), it was computing step 1" in last
    stack = (folder / "logs" / "worker-2.log").read_text()
    assert "Timeout (0:00:02)!" in stack
    assert "faults.py" in stack
