"""Ranks that daemons of a launcher have started: they are no children of the launcher, nor ours.

``srun``, and MPICH's ``mpiexec`` within Slurm, leave starting to daemons on every node, this one
too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

JOB: Final = b"SLURM_JOB_ID="


def ranks(argv: Sequence[str]) -> set[int]:
    """The processes here that run the command at the end of ``argv``, in our job of Slurm's."""
    end = [word.encode() for word in argv]
    ours = _job(Path("/proc/self"))
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            words = (place / "cmdline").read_bytes().split(b"\0")[:-1]
            if len(words) > 1 and words == end[-len(words) :] and _job(place) == ours:
                found.add(int(place.name))
    return found - {int(Path("/proc/self").resolve().name)}


def _job(process: Path) -> bytes:
    words = (process / "environ").read_bytes().split(b"\0")
    return next((word for word in words if word.startswith(JOB)), b"")
