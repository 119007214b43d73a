"""The stack of a process that has not called psgrad for long, whatever it is doing instead.

Who waits in psgrad can say so; who computes for ever, or waits in something else, cannot. Python's
own watchdog (``faulthandler``) writes such a process's stack down from beside it.
"""

from __future__ import annotations

import faulthandler
import time
from typing import IO, Final

REARMED: Final = 0.25  # of the time, between two calls that count


class Watchdog:
    """A context in which ``seconds`` without ``alive`` put this process's stack into ``file``.

    A process has one such watchdog: another one of ``faulthandler`` ends it.
    """

    def __init__(self, seconds: float, file: IO[str]) -> None:
        self._seconds = seconds
        self._file = file
        self._armed_s = 0.0

    def __enter__(self) -> Watchdog:
        self._arm()
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    def alive(self) -> None:
        """This process is in psgrad."""
        if time.monotonic() - self._armed_s >= REARMED * self._seconds:
            self._arm()

    def _arm(self) -> None:
        self._armed_s = time.monotonic()
        faulthandler.dump_traceback_later(self._seconds, file=self._file)
