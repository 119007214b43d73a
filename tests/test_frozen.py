"""Ranks that are stopped when all others have ended."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from psgrad import frozen
from psgrad.frozen import Frozen, is_stopped


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


def stop(pid):
    os.kill(pid, signal.SIGSTOP)
    assert os.waitpid(pid, os.WUNTRACED)[0] == pid


def test_a_process_that_is_stopped(sleeper):
    assert not is_stopped(sleeper)
    stop(sleeper)
    assert is_stopped(sleeper)
    assert not is_stopped(0)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(frozen.time, "monotonic", lambda: now[0])
    return now


def test_only_when_another_has_ended_and_nothing_else_is_left_for_a_while(clock, monkeypatch):
    monkeypatch.setattr(frozen, "is_stopped", lambda pid: pid >= 10)
    look = Frozen()
    assert not look.look({10, 11}), "all that ever was there"
    assert not look.look({1, 10}), "one of them runs"
    assert not look.look({10})
    clock[0] += frozen.PATIENCE_S / 2
    assert not look.look({10})
    clock[0] += frozen.PATIENCE_S / 2
    assert look.look({10})


def test_who_wakes_begins_anew(clock, monkeypatch):
    stopped = {10}
    monkeypatch.setattr(frozen, "is_stopped", lambda pid: pid in stopped)
    look = Frozen()
    assert not look.look({10, 11})
    assert not look.look({10})
    stopped.clear()
    clock[0] += frozen.PATIENCE_S
    assert not look.look({10})
    stopped.add(10)
    assert not look.look({10})


def test_looks_are_rare(clock):
    look = Frozen()
    assert look.is_due
    look.look(set())
    assert not look.is_due
    clock[0] += frozen.LOOK_S
    assert look.is_due
