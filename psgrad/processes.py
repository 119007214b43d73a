"""Processes of ranks, as the kernel of their node sees them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

STATES: Final = MappingProxyType(
    {
        "R": "running (R)",
        "S": "asleep (S)",
        "D": "waiting for a disk or a network file system (D)",
        "T": "stopped (T), SIGCONT wakes it",
        "t": "held by a debugger (t)",
        "Z": "dead (Z)",
    }
)


class Process(NamedTuple):
    """A process; with its time of birth, a later one of the same number is told from it."""

    pid: int
    born: int  # in clock ticks since the machine was started


def myself() -> Process:
    """This process."""
    pid = os.getpid()
    return Process(pid, (_stat(pid) or ("", 0))[1])


def state(process: Process) -> str:
    """What the process is doing, in words; for one of this node."""
    found = _stat(process.pid)
    if found is None or found[1] != process.born:
        return "gone"
    return STATES.get(found[0], f"in state {found[0]}")


def _stat(pid: int) -> tuple[str, int] | None:
    """State and time of birth; None where there is no such process."""
    with suppress(OSError):
        # The name, in parentheses, may hold anything; the state comes after it.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[19])
    return None
