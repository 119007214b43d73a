"""Signals that ask this process to stop: taken once for a whole job, whatever is just going on."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Stops:
    """A context in which such signals are noted in ``signums`` instead of ending this process.

    Those that we were told to ignore stay ignored (nohup). ``told``, where there is one, is called
    after each. Enter it in the main thread.
    """

    def __init__(self) -> None:
        self.signums: list[int] = []
        self.told: Callable[[], None] | None = None
        self._before: dict[int, object] = {}
        self._pipe = (-1, -1)
        self._wakeup = -1

    def __enter__(self) -> Stops:
        self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # A library's thread may be the one that the kernel interrupts: a wait would not notice.
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        before = {signum: signal.getsignal(signum) for signum in STOPS}
        self._before = {s: handler for s, handler in before.items() if handler != signal.SIG_IGN}
        for signum in self._before:
            signal.signal(signum, self._came)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]  # from getsignal
        signal.set_wakeup_fd(self._wakeup)
        for end in self._pipe:
            os.close(end)

    def _came(self, signum: int, _frame: FrameType | None) -> None:
        self.signums.append(signum)
        if self.told is not None:
            self.told()

    def wait(self, seconds: float) -> bool:
        """Waits so long, or until a signal comes; returns whether one has come, now or before."""
        end = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._pipe[0], select.POLLIN)
        while not self.signums and (left := end - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                os.read(self._pipe[0], 1 << 12)
        return bool(self.signums)
