"""The processes of a run, as ``/proc`` shows them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from psgrad import jobs

# How a rank is told who it is: Open MPI, MPICH and Intel MPI.
RANKS: Final = (b"OMPI_COMM_WORLD_RANK=", b"PMI_RANK=")


def mpiexec(supervisor: int) -> int:
    """The mpiexec that ``psgrad run`` has started; 0 where there is none."""
    for pid in _words(f"/proc/{supervisor}/task/{supervisor}/children", None):
        # Before it becomes mpiexec, it has the arguments of its parent, and one that is asked for
        # its version has others. Ranks that have lost their mpiexec are children, too.
        words = _words(f"/proc/{int(pid)}/cmdline")
        rank = any(word.startswith(RANKS) for word in _words(f"/proc/{int(pid)}/environ"))
        if b"train" in words and b"run" not in words and not rank:
            return int(pid)
    return 0


def ranks(supervisor: int) -> dict[int, int]:
    """The processes of the ranks that have come up so far, by rank."""
    found = {}
    for pid in jobs.descendants(supervisor):
        for word in _words(f"/proc/{pid}/environ"):
            if word.startswith(RANKS) and b"train" in _words(f"/proc/{pid}/cmdline"):
                found[int(word.partition(b"=")[2])] = pid
    return found


def naming(path: Path) -> list[int]:
    """Those that have ``path`` among their arguments."""
    pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
    name = os.fsencode(path)
    return [pid for pid in pids if name in _words(f"/proc/{pid}/cmdline")]


def _words(path: str, separator: bytes | None = b"\0") -> list[bytes]:
    """A file of ``/proc``, split; empty for a process that is gone."""
    with suppress(OSError):
        return Path(path).read_bytes().split(separator)
    return []
