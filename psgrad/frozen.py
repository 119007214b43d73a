"""Ranks that are stopped (SIGSTOP) when all others have ended: mpiexec would wait for ever.

In an elastic run such a rank was shut out long ago. It is killed when nothing but stopped processes
is left of what mpiexec has started, and something of that has ended.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

LOOK_S: Final = 1.0  # between two looks
PATIENCE_S: Final = 3.0  # that nothing else may be there
STOPPED: Final = frozenset(b"Tt")


@dataclass
class Frozen:
    """What has been seen of the processes below mpiexec."""

    most: int = 0  # processes at one time
    _next_s: float = field(default_factory=time.monotonic)
    _since_s: float | None = None

    @property
    def is_due(self) -> bool:
        """Whether it is time for another look."""
        return time.monotonic() >= self._next_s

    def look(self, pids: Collection[int]) -> bool:
        """Whether all of ``pids`` are to be killed."""
        now_s = time.monotonic()
        self._next_s = now_s + LOOK_S
        self.most = max(self.most, len(pids))
        if not pids or len(pids) == self.most or not all(is_stopped(pid) for pid in pids):
            self._since_s = None
            return False
        self._since_s = now_s if self._since_s is None else self._since_s
        return now_s - self._since_s >= PATIENCE_S


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped; False where there is none."""
    with suppress(OSError):
        # The name, in parentheses, may hold anything; the state comes after it.
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0][0] in STOPPED
    return False
