"""A run that goes on, as its files and its processes show it, and blows against it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psgrad import leftovers, runfolder
from psgrad.chaos import processes
from psgrad.chaos.tails import Lines, Tail, pause
from psgrad.chaos.trial import EVERY, FROZEN, HELD, KILLED, LEASE_S, STOPPED, WOKEN, Strike, Trial
from psgrad.checkpoint import step_of

POLL_S: Final = 0.005
FREEZE_S: Final = 0.5
HOLD_S: Final = LEASE_S / 4
WITHIN_S: Final = 0.5  # after the last step before a blow: a pause that begins later is not its


@dataclass
class Struck:
    """A strike that was carried out; times are in seconds, None where there was nothing to see.

    ``told_s``: until the run said that somebody is gone; ``pause_s``: the longest gap between a
    survivor's steps, less its usual one; ``resumed_s``: until the next step of anybody, of a run
    that goes on since it was told, of one that was started again since the blow.
    """

    strike: Strike
    attempt: int
    told_s: float | None = None
    pause_s: float | None = None
    resumed_s: float | None = None


@dataclass
class _Pending:
    """What is still to be seen of a blow."""

    struck: Struck
    at_s: float
    victim: int  # its process
    known: dict[int, int]  # survivor -> its steps at that moment
    told_at_s: float | None = None
    steps: int = 0  # of all survivors when the loss was told


class Watch:
    """One run. ``end``: when it has to be over, by the monotonic clock."""

    def __init__(
        self, trial: Trial, process: subprocess.Popen[bytes], folder: Path, end: float
    ) -> None:
        self.struck: list[Struck] = []
        self._process = process
        self._folder = folder
        self._servers = trial.servers
        self._end = end
        self._attempt = 0  # counted from 1
        self._mpiexec = 0
        files = {w: folder / runfolder.metrics(w) for w in range(trial.workers)}
        self._tails = {w: Tail(file, trial.steps) for w, file in files.items()}
        self._said = Lines(folder.with_name(folder.name + ".log"))
        self._ended: tuple[Struck, float] | None = None  # what the next attempt recovers from
        self._over = False  # the attempt was ended
        self._pending: list[_Pending] = []
        self._seen: set[leftovers.Segment] = set()  # shared memory of this run's own

    def strike(self, strike: Strike) -> None:
        """Waits for the moment of ``strike`` in an attempt that goes on, and strikes.

        Does nothing where the run is over first. Raises ``TimeoutError``.
        """
        while self._goes_on():
            if not self._over and self._is_time(strike) and self._hit(strike):
                return

    def settled(self) -> None:
        """Waits until all is seen of all blows, or for the end of the run."""
        while (self._ended is not None or self._pending) and self._goes_on():
            pass
        for pending in self._pending:
            self._close(pending)
        self._pending = []

    def files_left(self) -> list[str]:
        """Shared memory that ranks of this run had mapped, and that is still there."""
        return [str(segment.path) for segment in self._seen & leftovers.segments()]

    @property
    def _step(self) -> int:
        return max(tail.step for tail in self._tails.values())

    def _goes_on(self) -> bool:
        """Looks again, a moment later."""
        if time.monotonic() > self._end:
            raise TimeoutError
        time.sleep(POLL_S)
        mpiexec = processes.mpiexec(self._process.pid)
        if mpiexec and mpiexec != self._mpiexec:
            # Its ranks need far longer than we do to come here: all that is there is older.
            self._mpiexec, self._over, self._attempt = mpiexec, False, self._attempt + 1
            for pending in self._pending:
                self._close(pending)
            self._pending = []
            for tail in self._tails.values():
                tail.begin()
        for tail in self._tails.values():
            tail.read()
        lines = self._said.read()
        now_s = time.monotonic()
        if self._ended is not None and not self._over and self._step:
            self._ended[0].resumed_s = now_s - self._ended[1]
            self._ended = None
        self._pending = [p for p in self._pending if not self._look(p, lines, now_s)]
        return self._process.poll() is None

    def _look(self, pending: _Pending, lines: list[bytes], now_s: float) -> bool:
        """Whether all is seen of a worker's loss."""
        mark = f"psgrad: warning: rank {pending.struck.strike.rank} (".encode()
        steps = sum(self._tails[w].step for w in pending.known)
        if pending.told_at_s is None:
            if not any(line.startswith(mark) for line in lines):
                return False
            pending.told_at_s, pending.steps = now_s, steps
            pending.struck.told_s = now_s - pending.at_s
            if pending.struck.strike.blow == WOKEN:
                with suppress(ProcessLookupError):
                    os.kill(pending.victim, signal.SIGCONT)
        if steps == pending.steps:
            return False
        if pending.struck.resumed_s is None:
            pending.struck.resumed_s = now_s - pending.told_at_s
        if now_s < pending.told_at_s + WITHIN_S:
            return False
        self._close(pending)
        return True

    def _close(self, pending: _Pending) -> None:
        seen = [pause(self._tails[w].seconds, n, WITHIN_S) for w, n in pending.known.items()]
        pending.struck.pause_s = max((s for s in seen if s is not None), default=None)

    def _is_time(self, strike: Strike) -> bool:
        if strike.moment == "start":
            ranks = processes.ranks(self._process.pid)
            return bool(ranks) if strike.rank < 0 else strike.rank in ranks
        if strike.moment == "step" or not self._step:
            return self._step >= strike.step
        # The moment may be shorter than ours: a checkpoint later, any moment will do.
        written = [p.name for p in self._folder.glob("checkpoints/*")]
        being = [int(n[6:14]) for n in written if n.startswith(".step-") and n.endswith(".tmp")]
        done = [step for n in written if (step := step_of(n)) is not None]
        return any(s >= strike.step for s in being) or any(s >= strike.step + EVERY for s in done)

    def _hit(self, strike: Strike) -> bool:
        ranks = processes.ranks(self._process.pid)
        victim = self._mpiexec if strike.rank < 0 else ranks.get(strike.rank)
        if victim is None:
            return False
        mapped = {place for rank in ranks.values() for place in leftovers.mapped(rank)}
        self._seen |= {s for s in leftovers.segments() if (s.device, s.inode) in mapped}
        # Those that were struck before are no survivors.
        gone = {strike.rank, *(s.strike.rank for s in self.struck if s.strike.loses)}
        others = [w for w in self._tails if self._servers + w not in gone]
        known = {w: len(self._tails[w].seconds) for w in others}
        try:
            _blow(victim, strike.blow)
        except ProcessLookupError:
            return False
        now_s = time.monotonic()
        struck = Struck(strike, self._attempt)
        self.struck.append(struck)
        if not strike.survived:
            self._ended, self._over = (struck, now_s), True
        elif strike.blow != HELD:
            self._pending.append(_Pending(struck, now_s, victim, known))
        return True


def _blow(victim: int, blow: str) -> None:
    """Raises ``ProcessLookupError`` where there is no victim any more."""
    if blow == KILLED:
        os.kill(victim, signal.SIGKILL)
        return
    os.kill(victim, signal.SIGSTOP)
    if blow in (STOPPED, WOKEN):
        return
    time.sleep({FROZEN: FREEZE_S, HELD: HOLD_S}[blow])
    os.kill(victim, signal.SIGKILL if blow == FROZEN else signal.SIGCONT)
