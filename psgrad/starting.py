"""Ranks of an elastic job that are gone before all were up: the others would wait for ever.

Until MPI has started, no rank is told of another one's death, and where ranks may die mpiexec does
not end the job. So who started it looks. A rank that has come through MPI's start says so in its
name (``transport.mpi``), and none comes through before all have begun.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

UP: Final = b"psgrad rank "
RANK: Final = b"OMPI_COMM_WORLD_RANK="
PATIENCE_S: Final = 2.0  # for the next to begin, and for those that end well without MPI


@dataclass
class Starting:
    """What has been seen of ``size`` ranks, which are on this machine."""

    size: int
    over: bool = False  # all are up
    _seen: set[int] = field(default_factory=set)
    _since_s: float = 0.0

    def look(self, pids: Collection[int]) -> bool:
        """Whether the ranks among ``pids`` are to be killed, because another one has ended."""
        ranks = {pid: rank for pid in pids if (rank := rank_of(pid)) is not None}
        if self.over or any(name_of(pid).startswith(UP) for pid in ranks):
            self.over = True
            return False
        now_s = time.monotonic()
        if new := ranks.keys() - self._seen:
            self._seen |= new
            self._since_s = now_s
        here = len(set(ranks.values()))
        return 0 < here < self.size and now_s - self._since_s >= PATIENCE_S


def rank_of(pid: int) -> int | None:
    """Which rank of Open MPI a process is, or is part of; None for another one."""
    with suppress(OSError):
        for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if word.startswith(RANK):
                return int(word.partition(b"=")[2])
    return None


def name_of(pid: int) -> bytes:
    """The name of a process; empty where there is none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_bytes()
    return b""
