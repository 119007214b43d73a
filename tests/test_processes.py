"""What the kernel says of a process, and the stack of one that is elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from psgrad import processes, watchdog
from psgrad.processes import Process, myself, state
from psgrad.watchdog import Watchdog


def test_this_process_runs():
    assert myself().pid == os.getpid()
    assert state(myself()) == "running (R)"


@pytest.fixture
def child():
    """A process that waits until its input ends."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield Process(process.pid, processes._stat(process.pid)[1]), process
    process.kill()
    process.wait()
    process.stdin.close()


def test_a_process_that_is_stopped(child):
    known, process = child
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert state(known) == "stopped (T), SIGCONT wakes it"
    process.send_signal(signal.SIGCONT)


def test_a_process_that_has_ended(child):
    known, process = child
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert state(known) == "dead (Z)"
    process.wait()
    assert state(known) == "gone"


def test_another_one_with_its_number_is_not_it():
    assert state(myself()._replace(born=1)) == "gone"


# The watchdog: the module that it hands its work to is another one here


class Handler:
    def __init__(self, patch):
        self.calls, self.now_s = [], 100.0
        patch.setattr(watchdog.time, "monotonic", lambda: self.now_s)
        patch.setattr(watchdog, "faulthandler", self)

    def dump_traceback_later(self, seconds, file):
        self.calls.append((self.now_s, seconds, file))

    def cancel_dump_traceback_later(self):
        self.calls.append("cancelled")


def test_it_is_put_off_by_who_is_alive_but_not_each_time(monkeypatch):
    handler = Handler(monkeypatch)
    with Watchdog(60.0, "file") as dog:
        for at_s in (101.0, 114.9, 115.0, 116.0, 131.0):
            handler.now_s = at_s
            dog.alive()
    assert handler.calls == [
        (100.0, 60.0, "file"), (115.0, 60.0, "file"), (131.0, 60.0, "file"), "cancelled",
    ]  # fmt: skip


def test_the_stack_of_who_is_elsewhere_is_written(tmp_path):
    code = (
        "import sys\n"
        "from psgrad.watchdog import Watchdog\n"
        "def elsewhere(source):\n"
        "    source.readline()\n"
        "with open(sys.argv[1], 'w') as file, Watchdog(0.05, file):\n"
        "    print('ready', flush=True)\n"
        "    elsewhere(sys.stdin)\n"
    )
    path = tmp_path / "log"
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        while "in elsewhere" not in path.read_text():
            assert process.poll() is None
        process.communicate(b"\n", timeout=30)
    assert path.read_text().startswith("Timeout (0:00:00.05")
