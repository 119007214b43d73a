"""Ranks that are no children of ours are found by their command and their job."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack

import pytest

from psgrad import scattered

WORDS = (sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", "--run-dir")


@pytest.fixture
def started():
    """Starts a process, and waits until it is there."""
    with ExitStack() as stack:

        def start(*argv, job):
            process = stack.enter_context(
                subprocess.Popen(
                    argv,
                    env={**os.environ, "SLURM_JOB_ID": job},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            process.stdout.read(1)
            return process.pid

        yield start


def test_ranks_of_this_job_with_this_command(started):
    """We are in no job here, so the processes of one look for themselves."""
    argv = ("srun", "--mpi=pmi2", *WORDS, "runs/7")
    ours = {started(*WORDS, "runs/7", job="7") for _ in range(2)}
    started(*WORDS, "runs/8", job="7")
    started(*WORDS, "runs/7", job="8")
    code = f"from psgrad import scattered; print(*scattered.ranks({argv!r}))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {int(word) for word in found.stdout.split()} == ours


def test_none_without_them():
    assert scattered.ranks(("srun", "no-such-program", "at-all")) == set()
