"""One run of real ranks, and what is done to it while it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from psgrad import jobs, leftovers
from psgrad.chaos.judge import Outcome
from psgrad.chaos.trial import EVERY, RESTARTS, Kill, Trial
from psgrad.checkpoint import step_of

POLL_S: Final = 0.005
FREEZE_S: Final = 0.5
# How a rank is told who it is: Open MPI, MPICH and Intel MPI.
RANKS: Final = (b"OMPI_COMM_WORLD_RANK=", b"PMI_RANK=")


def command(trial: Trial, folder: Path, *, disturbed: bool) -> list[str]:
    """What starts the run of ``trial`` into ``folder``."""
    run = [sys.executable, "-m", "psgrad", "run", "--np", str(trial.ranks)]
    train = ["--", *trial.arguments, "--run-dir", str(folder)]
    if disturbed:
        run += ["--restarts", str(RESTARTS)]
        train += ["--checkpoint-every", str(EVERY)]
    return [*run, *train]


def carry_out(
    trial: Trial, folder: Path, environ: Mapping[str, str], limit_s: float, *, disturbed: bool
) -> Outcome:
    """Runs ``trial`` into ``folder``, which is not there yet, and kills what it says.

    A run that is not over after ``limit_s`` seconds is ended by force.
    """
    log = folder.with_name(folder.name + ".log")
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command(trial, folder, disturbed=disturbed),
            env=dict(environ), stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    watch = Watch(process, folder, start + limit_s)
    hung = False
    try:
        if disturbed:
            for kill in trial.kills:
                watch.strike(kill)
            watch.recovered()
        process.wait(max(0.0, start + limit_s - time.monotonic()))
    except (subprocess.TimeoutExpired, TimeoutError):
        hung = True
    finally:
        seconds = time.monotonic() - start
        if process.poll() is None:
            jobs.kill({*jobs.descendants(process.pid), process.pid})
        process.wait()
    return Outcome(
        seconds=seconds,
        status=process.returncode,
        hung=hung,
        summary=_summary(folder),
        left=[*_processes(folder), *watch.files_left()],
        killed=watch.killed,
        recoveries=tuple(watch.recoveries),
        stderr=log.read_text(errors="replace"),
    )


class Watch:
    """A run that goes on, as its metrics and its processes show it."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, end: float) -> None:
        self.killed = 0
        self.recoveries: list[float] = []
        self._process = process
        self._folder = folder
        self._end = end
        self._attempt = 0  # its mpiexec
        self._metrics = Tail(folder / "metrics.jsonl")
        self._struck: float | None = None  # when, until there is another step
        self._over = False  # the attempt was struck
        self._seen: set[leftovers.Segment] = set()  # shared memory of this run's own

    def strike(self, kill: Kill) -> None:
        """Waits for the moment of ``kill`` in an attempt that was not struck, and strikes.

        Does nothing where the run is over first. Raises ``TimeoutError``.
        """
        while self._goes_on():
            if not self._over and self._is_time(kill) and self._kill(kill):
                return

    def recovered(self) -> None:
        """Waits for the first step after the last kill, or for the end of the run."""
        while self._struck is not None and self._goes_on():
            pass

    def files_left(self) -> list[str]:
        """Shared memory that ranks of this run had mapped, and that is still there."""
        return [str(segment.path) for segment in self._seen & leftovers.segments()]

    def _goes_on(self) -> bool:
        """Looks again, a moment later."""
        if time.monotonic() > self._end:
            raise TimeoutError
        time.sleep(POLL_S)
        mpiexec = _mpiexec(self._process.pid)
        if mpiexec and mpiexec != self._attempt:
            # Its ranks need far longer than we do to come here: all that is there is older.
            self._attempt, self._over = mpiexec, False
            self._metrics.begin()
        self._metrics.read()
        if self._struck is not None and not self._over and self._metrics.step:
            self.recoveries.append(time.monotonic() - self._struck)
            self._struck = None
        return self._process.poll() is None

    def _is_time(self, kill: Kill) -> bool:
        if kill.moment == "start":
            ranks = _ranks(self._process.pid)
            return bool(ranks) if kill.rank < 0 else kill.rank in ranks
        if kill.moment == "step" or not self._metrics.step:
            return self._metrics.step >= kill.step
        # The moment may be shorter than ours: a checkpoint later, any moment will do.
        written = [p.name for p in self._folder.glob("checkpoints/*")]
        being = [int(n[6:14]) for n in written if n.startswith(".step-") and n.endswith(".tmp")]
        done = [step for n in written if (step := step_of(n)) is not None]
        return any(s >= kill.step for s in being) or any(s >= kill.step + EVERY for s in done)

    def _kill(self, kill: Kill) -> bool:
        ranks = _ranks(self._process.pid)
        victim = self._attempt if kill.rank < 0 else ranks.get(kill.rank)
        if victim is None:
            return False
        mapped = {place for rank in ranks.values() for place in leftovers.mapped(rank)}
        self._seen |= {s for s in leftovers.segments() if (s.device, s.inode) in mapped}
        with suppress(ProcessLookupError):
            if kill.frozen:
                os.kill(victim, signal.SIGSTOP)
                time.sleep(FREEZE_S)
            os.kill(victim, signal.SIGKILL)
            self._struck, self._over = time.monotonic(), True
            self.killed += 1
            return True
        return False


class Tail:
    """The steps of one attempt in ``metrics.jsonl``; earlier ones have left theirs before."""

    def __init__(self, path: Path) -> None:
        self.step = 0  # the last one of worker 0; 0 before the first
        self._path = path
        self._offset = 0

    def begin(self) -> None:
        """Another attempt begins."""
        self.step = 0
        with suppress(OSError):
            self._offset = self._path.stat().st_size

    def read(self) -> None:
        """Takes in what was written since."""
        with suppress(OSError), self._path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._offset:  # written from its start
                self._offset = 0
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")[0]
            for line in whole.splitlines():
                with suppress(ValueError, KeyError):  # another kind of record
                    self.step = json.loads(line)["step"]
            self._offset += len(whole) + bool(whole)


def _mpiexec(supervisor: int) -> int:
    """The mpiexec that ``psgrad run`` has started; 0 where there is none."""
    for pid in _words(f"/proc/{supervisor}/task/{supervisor}/children", None):
        # Before it becomes mpiexec, it has the arguments of its parent, and one that is asked for
        # its version has others. Ranks that have lost their mpiexec are children, too.
        words = _words(f"/proc/{int(pid)}/cmdline")
        rank = any(word.startswith(RANKS) for word in _words(f"/proc/{int(pid)}/environ"))
        if b"train" in words and b"run" not in words and not rank:
            return int(pid)
    return 0


def _ranks(supervisor: int) -> dict[int, int]:
    """The processes of the ranks that have come up so far, by rank."""
    found = {}
    for pid in jobs.descendants(supervisor):
        for word in _words(f"/proc/{pid}/environ"):
            if word.startswith(RANKS) and b"train" in _words(f"/proc/{pid}/cmdline"):
                found[int(word.partition(b"=")[2])] = pid
    return found


def _words(path: str, separator: bytes | None = b"\0") -> list[bytes]:
    """A file of ``/proc``, split; empty for a process that is gone."""
    with suppress(OSError):
        return Path(path).read_bytes().split(separator)
    return []


def _processes(folder: Path) -> list[str]:
    """Processes that have to do with a run, in words."""
    pids = [entry.name for entry in os.scandir("/proc") if entry.name.isdigit()]
    name = os.fsencode(folder)
    return [f"process {pid}" for pid in pids if name in _words(f"/proc/{pid}/cmdline")]


def _summary(folder: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        return found
    return None
