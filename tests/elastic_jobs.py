"""Jobs on real ranks, to which something is done while they go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

from installed_mpi import environment

from psgrad import jobs
from psgrad.chaos.tails import Tail

POLL_S = 0.005
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


# What a rank's own process is told; the launcher's other processes are not.
RANKS = {"openmpi": "OMPI_COMM_WORLD_RANK", "mpich": "PMI_RANK"}


class Job:
    """``psgrad run``, with ``--elastic`` unless ``options`` are others, as it goes on.

    ``lines`` are those on stderr, with their times.

    Whatever it waits for comes within ``limit_s`` seconds of its start, or ``TimeoutError`` is
    raised. As a context manager it leaves no process behind.
    """

    def __init__(
        self, mpi, ranks, arguments, *, limit_s=90.0, stdout=None, options=("--elastic",), env=None
    ):
        self._variable = RANKS[mpi.name]
        self.lines: list[tuple[float, str]] = []
        self.start_s = time.monotonic()
        self._end_s = self.start_s + limit_s
        command = [mpi.python, "-m", "psgrad", "run", "--np", ranks, *options, "--", *arguments]
        self._process = subprocess.Popen(
            [str(word) for word in command],
            env={**environment(), **ONE_THREAD, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._process.poll() is None:
            jobs.kill({*jobs.descendants(self._process.pid), self._process.pid})
            self._process.wait()
        self._reader.join()
        self._process.stderr.close()

    @property
    def stderr(self):
        """What was written so far."""
        return "".join(line for _, line in list(self.lines))

    def until(self, condition, what):
        """Waits for ``condition()``, and returns it."""
        while not (value := condition()):
            over = self._process.poll() is not None
            if over and not (value := condition()):
                raise AssertionError(f"the job is over without {what}:\n{self.stderr}")
            if time.monotonic() > self._end_s:
                raise TimeoutError(f"no {what} in time:\n{self.stderr}")
            if not value:
                time.sleep(POLL_S)
        return value

    def line(self, text):
        """Waits for a line with ``text``; (its time, the line)."""

        def find():
            return next(((at, line) for at, line in list(self.lines) if text in line), None)

        return self.until(find, f"line {text!r}")

    def step(self, metrics: Path, number):
        """Waits until worker 0 has come to step ``number``."""
        tail = Tail(metrics)

        def is_there():
            tail.read()
            return tail.step >= number

        self.until(is_there, f"step {number}")

    def send(self, rank, signum):
        """A signal to a rank; the time."""
        pid = self.until(lambda: self._pid(rank), f"rank {rank}")
        struck_s = time.monotonic()
        os.kill(pid, signum)
        return struck_s

    def interrupt(self, signum):
        """A signal to ``psgrad run`` itself."""
        self._process.send_signal(signum)

    def left(self):
        """Processes that are there of the job, zombies among them."""
        return jobs.descendants(self._process.pid)

    def kill(self, rank):
        """SIGKILL to a rank; the time."""
        return self.send(rank, signal.SIGKILL)

    def status(self):
        """Waits for the end of the job; its status."""
        self.until(lambda: self._process.poll() is not None, "end")
        self._reader.join()
        return self._process.returncode

    def _pid(self, rank):
        mark = f"{self._variable}={rank}".encode()
        for pid in jobs.descendants(self._process.pid):
            with suppress(OSError):
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    return pid
        return None

    def _read(self):
        for line in self._process.stderr:
            self.lines.append((time.monotonic(), line))


def records(metrics: Path, kind="step"):
    """The records of a run that is over."""
    found = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [record for record in found if record["kind"] == kind]
