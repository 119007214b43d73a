"""Who wants this rank's job to stop from outside: a signal, or the end of the walltime.

A handler only notes that its signal has come. The programs look at it wherever they wait and
between steps; they ask the coordinator, which has all workers stop behind a last checkpoint.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from types import FrameType
from typing import Final

from psgrad.errors import ConfigError, unknown_name

WATCH_S: Final = 0.2  # who waits looks up this often
DEFAULT: Final = ("USR1",)
MARK: Final = "psgrad-takes-usr1"
"""What the memory is called that a rank has open while SIGUSR1 makes it stop. A launcher looks for
it, because an MPI may have a handler of its own for the same signal."""
KNOWN: Final = ("USR1", "USR2", "TERM", "INT", "HUP")
"""Signals that may ask for a stop, without their SIG."""


def check(names: Sequence[str]) -> tuple[str, ...]:
    """``names`` of signals; raises ``ConfigError`` for one that cannot ask for a stop."""
    if isinstance(names, str):
        raise ConfigError(f"stop_signals must be a list such as ['USR1'], got {names!r}")
    for name in names:
        if name not in KNOWN:
            raise ConfigError(unknown_name("signal in stop_signals", name, KNOWN))
    return tuple(names)


class Preemption:
    """A context in which signals are noted in ``reason`` instead of ending this process.

    ``names`` are of ``KNOWN``; a signal that is ignored, or that somebody else handles, stays as
    it is. SIGTERM, SIGINT and SIGHUP do it once: a second one ends the process. ``ends_at`` is the
    unix time at which the job is ended, 0 where nobody knows; ``margin_s`` seconds before, that is
    a reason too. Off the main thread, where Python lets nobody take signals, there is only that.
    """

    def __init__(
        self, names: Sequence[str] = DEFAULT, ends_at: float = 0.0, margin_s: float = 0.0
    ) -> None:
        self._signums = [signal.Signals[f"SIG{name}"] for name in names]
        self._came = ""
        self._before: dict[signal.Signals, object] = {}
        self._mark: int | None = None
        self._margin_s = margin_s
        self._due_s: float | None = None  # on the monotonic clock
        if ends_at and margin_s:
            self._due_s = time.monotonic() + (ends_at - margin_s - time.time())

    @property
    def reason(self) -> str:
        """Why this job is to stop; empty as long as it is not."""
        if not self._came and self._due_s is not None and time.monotonic() >= self._due_s:
            self._came = f"the walltime, which ends in {self._margin_s:g} s"
        return self._came

    def __enter__(self) -> Preemption:
        try:
            for signum in self._signums:
                if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[signum] = signal.signal(signum, self._note)
        except ValueError:  # this is not the main thread
            self._before.clear()
        if signal.SIGUSR1 in self._before:
            self._mark = os.memfd_create(MARK)
        return self

    def __exit__(self, *_: object) -> None:
        if self._mark is not None:
            os.close(self._mark)
        for signum, handler in self._before.items():
            if self._came and signum in (signal.SIGUSR1, signal.SIGUSR2):
                # Launchers pass one on more than once; what comes late must not undo a clean end.
                handler = signal.SIG_IGN
            signal.signal(signum, handler)  # type: ignore[arg-type]  # what signal() returned

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self._came = self._came or signal.Signals(signum).name
        if signum not in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(signum, self._before[signal.Signals(signum)])  # type: ignore[arg-type]
