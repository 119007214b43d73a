"""Ranks that are gone before all were up: when the others are given up, and when not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from psgrad import starting
from psgrad.starting import PATIENCE_S, Starting, name_of, rank_of


@pytest.fixture
def world(monkeypatch):
    """A clock, and names by process; processes below 10 are ranks, of two processes each."""
    now, names = [100.0], {}
    monkeypatch.setattr(starting.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(starting, "name_of", lambda pid: names.get(pid, b"python\n"))
    monkeypatch.setattr(starting, "rank_of", lambda pid: pid // 2 if pid < 10 else None)
    return now, names


def test_one_that_is_gone_ends_the_others_a_moment_later(world):
    now, _ = world
    ranks = Starting(3)
    assert not ranks.look({0, 2, 10})
    now[0] += PATIENCE_S - 0.01
    assert not ranks.look({0, 2, 4, 10})
    assert not ranks.look({0, 4, 10})
    now[0] += PATIENCE_S - 0.01
    assert not ranks.look({0, 4, 10})
    now[0] += 0.02
    assert ranks.look({0, 4, 10})


def test_one_that_nobody_has_seen_ends_them_too(world):
    now, _ = world
    ranks = Starting(3)
    assert not ranks.look({0, 1, 4})
    now[0] += PATIENCE_S
    assert ranks.look({0, 1, 4})


@pytest.mark.parametrize("pids", [{0, 1, 2}, {10, 11}, set()], ids=["all", "not yet", "no more"])
def test_nobody_is_missing(world, pids):
    now, _ = world
    ranks = Starting(2)
    for _ in range(3):
        assert not ranks.look(pids)
        now[0] += 2 * PATIENCE_S


def test_those_that_are_up_may_die(world):
    now, names = world
    ranks = Starting(2)
    assert not ranks.look({0, 2})
    names[2] = b"psgrad rank 1\n"
    assert not ranks.look({0, 2})
    assert ranks.over
    del names[2]
    for _ in range(3):
        assert not ranks.look({0})
        now[0] += 2 * PATIENCE_S


def test_what_is_no_process_has_no_name_and_no_rank():
    assert name_of(1 << 30) == b""
    assert name_of(os.getpid()).endswith(b"\n")
    assert rank_of(1 << 30) is None


def test_a_rank_is_known_by_its_environment():
    program = [sys.executable, "-c", "print(flush=True); input()"]
    pipe = subprocess.PIPE
    environ = {**os.environ, "OMPI_COMM_WORLD_RANK": "7"}
    with subprocess.Popen(program, env=environ, stdin=pipe, stdout=pipe) as process:
        process.stdout.readline()  # it is more than a copy of ourselves
        try:
            assert rank_of(process.pid) == 7
        finally:
            process.communicate(b"\n")
