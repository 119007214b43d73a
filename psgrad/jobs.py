"""Runs a plan of :mod:`psgrad.launch` with everything it starts: nothing is left behind.

The command is a group of processes of its own, and not only that: ranks leave the group of their
mpiexec (Open MPI), or the whole session (Hydra), so that a signal to the group does not reach
them. This process therefore adopts what loses its parent (Linux, "child subreaper") and finds all
of it in ``/proc``.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from psgrad import leftovers, scattered
from psgrad.causes import Causes
from psgrad.errors import CAUSE, LaunchError
from psgrad.frozen import Frozen
from psgrad.launch import Plan
from psgrad.preemption import MARK
from psgrad.starting import Starting
from psgrad.stops import Stops

if TYPE_CHECKING:
    import ctypes

STDERR: Final = 2

TICK_S: Final = 0.1
TIDY_S: Final = 1.0  # for mpiexec to remove its files when its ranks are dead
GONE_S: Final = 5.0  # for a killed process to disappear
DIED_EARLY: Final = "a rank has ended before all ranks were up: the others cannot start without it"

REQUEUE: Final = os.EX_TEMPFAIL  # 75, of a rank: what there is is safe, start me again
FATAL: Final = (
    signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGKILL, signal.SIGSEGV,
    signal.SIGPIPE, signal.SIGTERM,
)  # fmt: skip

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36


@dataclass
class Child:
    """The running command, and what is done to it when a signal asks us to stop."""

    strangers: frozenset[int]  # children of ours that are no part of it
    stops: Sequence[int]  # signals that have come: the first is passed on, the second kills
    stoppable: bool = False  # its ranks will take SIGUSR1, though they may not be there yet
    process: subprocess.Popen[bytes] | None = None
    frozen: Frozen | None = None  # where ranks may be stopped, and left behind
    scattered: Sequence[str] = ()  # the command, where its ranks are not below mpiexec
    starting: Starting | None = None  # where mpiexec does not end the job of one that has died
    cause: bytes = b""  # why its ranks were killed by us
    _kill_at: float | None = None
    _asked: bool = False

    def obey(self) -> None:
        """Does what the last signal asks for, as soon as there is a process to do it to.

        SIGUSR1 asks for a stop and never kills, however often it comes: batch systems repeat it.
        """
        if self.process is None or not self.stops:
            return
        hard = [signum for signum in self.stops if signum != signal.SIGUSR1]
        if len(hard) <= 1:
            self._ask(self.process)
        elif len(hard) == 2:
            # Without its ranks mpiexec ends by itself, and removes its files.
            self._kill_at = time.monotonic() + TIDY_S
            kill(self._family() - {self.process.pid})
        else:
            kill(self._family())

    def _ask(self, process: subprocess.Popen[bytes]) -> None:
        """Has ranks that can stop behind a checkpoint; of others mpiexec is to end."""
        if self._asked:
            return
        self._asked = True  # the next signal may come while this one is dealt with
        there = self._family() - {process.pid}
        if self.scattered:
            there |= scattered.ranks(self.scattered)
        if ranks := [pid for pid in there if stops_behind_checkpoint(pid)]:
            for pid in ranks:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR1)
            write(b"psgrad: stopping behind a checkpoint; a second signal aborts\n")
        elif self.stoppable:
            self._asked = False  # they are not up yet
        else:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)

    def tick(self) -> None:
        """Kills what was given time to end and did not, and what nobody will wake."""
        if self.stops and self.process is not None:
            self._ask(self.process)
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            kill(self._family())
        if self.frozen is not None and self.process is not None and self.frozen.is_due:
            ranks = self._family() - {self.process.pid}
            if self.frozen.look(ranks):
                kill(ranks)
        if self.starting is not None and self.process is not None and not self.starting.over:
            ranks = self._family() - {self.process.pid}
            if self.starting.look(ranks):
                self.starting, self.cause = None, f"{CAUSE}{DIED_EARLY}".encode()
                kill(ranks)

    def end(self) -> None:
        """Leaves nothing: no process and no zombie, whatever state the command is in."""
        if self.process is None:
            return
        if self.process.returncode is None:
            kill(self._family() - {self.process.pid})
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(TIDY_S)
        # Ranks end with an mpiexec that ends; one that was killed has told them nothing.
        told = self.process.returncode is None or self.process.returncode >= 0
        patience = time.monotonic() + (TIDY_S if told else 0.0)
        while (left := self._family()) and time.monotonic() < patience + GONE_S:
            if self.process.poll() is None or time.monotonic() > patience:
                kill(left)
            for pid in left - {self.process.pid}:
                with suppress(ChildProcessError):  # its own parent is still there
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.01)

    def _family(self) -> set[int]:
        return descendants(os.getpid(), apart_from=self.strangers)


@dataclass(frozen=True)
class Ended:
    """How a job ended: mpiexec's exit status, 128 + n if signal n ended it, and the line that says
    why, without its newline; empty if there is nothing to say."""

    status: int
    cause: bytes


def run(plan: Plan, environ: Mapping[str, str]) -> int:
    """Runs ``plan`` to its end, writes down why it ended as the last line, returns its status."""
    with Stops() as stops:
        ended = attempt(plan, environ, stops)
    if ended.cause:
        write(ended.cause + b"\n")
    return ended.status


def attempt(plan: Plan, environ: Mapping[str, str], stops: Stops) -> Ended:
    """Runs ``plan`` to its end.

    Standard output is inherited. Standard error is passed on as it comes, except for lines that
    begin with ``errors.CAUSE``: the first of them is the cause that is returned, and the others are
    dropped. Where there is none and the status is not 0, a line of ours says so.

    SIGINT, SIGTERM, SIGHUP and SIGUSR1 (unless ignored) are passed on once: as SIGUSR1 to ranks
    that take it, which stop behind a checkpoint and end with 75, otherwise as SIGTERM to mpiexec. A
    second one kills, if it is not SIGUSR1. The status is then 128 + n of the first, unless the
    command ended well or asks to be started again (75). If this process is killed, mpiexec ends its
    ranks. Call it from the main thread.

    What an MPI leaves of its shared memory and its session (:mod:`psgrad.leftovers`) is removed.
    """
    there = leftovers.segments()
    strangers = frozenset(_children().get(os.getpid(), ()))
    child = Child(strangers, stops.signums, plan.stoppable)
    child.scattered = plan.argv if plan.scattered else ()
    if plan.elastic:
        child.frozen, child.starting = Frozen(), Starting(plan.ranks)
    causes = Causes()
    stops.told = child.obey
    with _adopting() as libc:
        try:
            child.process = _start(plan, environ, libc)
            child.obey()
            status = _relay(child, child.process, causes)
        finally:
            child.end()
            stops.told = None
            if child.process is not None:
                temporary = plan.environment(environ).get("TMPDIR") or "/tmp"
                leftovers.sweep_session(child.process.pid, Path(temporary))
                leftovers.sweep(there)
    status = 128 - status if status < 0 else status
    if status not in (0, REQUEUE) and stops.signums:
        status = 128 + stops.signums[0]
    said = causes.first or child.cause
    if plan.elastic and said and not status:
        status = 1  # mpiexec does not count ranks that were killed, and one said why the job ends
    cause = said or _closing(plan.argv[0], status, stops.signums).encode()
    return Ended(status, cause)


def _start(plan: Plan, environ: Mapping[str, str], libc: ctypes.CDLL) -> subprocess.Popen[bytes]:
    ours = os.getpid()
    # What the kernel sends to mpiexec when we are no more. Open MPI's leaves its ranks behind if it
    # is killed; a Hydra waits for deaf ones if it is not.
    last_wish = signal.SIGTERM if plan.vendor == "openmpi" else signal.SIGKILL

    def leave_with_us() -> None:
        libc.prctl(PR_SET_PDEATHSIG, int(last_wish), 0, 0, 0)
        if os.getppid() != ours:  # too late: we are gone already
            os._exit(1)

    try:
        return subprocess.Popen(
            plan.argv,
            env=plan.environment(environ),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=leave_with_us,
        )
    except OSError as error:
        raise LaunchError(f"cannot start {plan.argv[0]}: {error.strerror}") from error


def _relay(child: Child, process: subprocess.Popen[bytes], causes: Causes) -> int:
    """Passes standard error on until the command has ended; returns its status."""
    assert process.stderr is not None
    source = process.stderr.fileno()
    last = b"\n"
    with process.stderr:
        poll = select.poll()
        poll.register(source, select.POLLIN)
        while True:
            # Asked before the pipe is looked at: what it wrote before it ended is in there now.
            ended = process.poll() is not None
            if poll.poll(TICK_S * 1000):
                data = os.read(source, 1 << 16)
                if not data:
                    break
                shown = causes.feed(data)
                write(shown)
                last = shown[-1:] or last
            elif ended:  # a process that outlives the command holds the pipe open
                break
            child.tick()
    shown = causes.close()
    write(shown)
    if (shown[-1:] or last) != b"\n":
        write(b"\n")
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(TICK_S)
        child.tick()


def _closing(program: str, status: int, stops: Sequence[int]) -> str:
    """The last line where no rank wrote one; empty if there is nothing to say."""
    if not status:
        return ""
    if status == REQUEUE:
        return f"{CAUSE}status {REQUEUE}: the ranks ask to be started again, with --resume auto"
    if stops:
        return f"{CAUSE}stopped by {signal.Signals(stops[0]).name}"
    fatal = {int(s): s.name for s in FATAL}
    name = f" ({fatal[status - 128]})" if status - 128 in fatal else ""
    if status in fatal:  # Hydra reports the signal that ended a rank in this way
        name = f" ({fatal[status]}, if a signal ended a rank)"
    return f"{CAUSE}{os.path.basename(program)} ended with status {status}{name}"


@contextmanager
def _adopting() -> Iterator[ctypes.CDLL]:
    """Processes below us that lose their parent become our children. Yields the C library."""
    import ctypes

    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield libc
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def descendants(root: int, *, apart_from: Collection[int] = ()) -> set[int]:
    """The processes below ``root``, zombies among them, but for some of its children and theirs."""
    tree = _children()
    found = [pid for pid in tree.get(root, ()) if pid not in apart_from]
    for pid in found:  # it grows while it is walked
        found += tree.get(pid, ())
    return set(found)


def _children() -> dict[int, list[int]]:
    tree: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                # The name, in parentheses, may hold anything; after it: the state, the parent.
                fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
                tree.setdefault(int(fields[1]), []).append(int(entry.name))
    return tree


def stops_behind_checkpoint(pid: int) -> bool:
    """Whether a process is a rank that SIGUSR1 makes do that (``preemption.MARK``)."""
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # closed meanwhile
                if os.readlink(entry.path).startswith(f"/memfd:{MARK} "):
                    return True
    return False


def kill(pids: Iterable[int]) -> None:
    """SIGKILL for each of ``pids`` that is there and ours."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def write(data: bytes) -> None:
    """``data`` to standard error, whole and at once."""
    while data:
        # A terminal may have been left in non-blocking mode by another program.
        select.select([], [STDERR], [])
        with suppress(BlockingIOError):
            data = data[os.write(STDERR, data) :]
