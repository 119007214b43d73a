"""Files that an MPI leaves behind when its ranks are killed, and how they are told from others'.

Shared memory in ``/dev/shm`` is ours to remove if it was not there before the job, belongs to this
user, and no process has it open or mapped any more. An MPI keeps such a file open or mapped from
the moment it makes it, so that of another job that runs is never taken. The order of the looks
matters: first the names, then open files, then what is mapped.

Open MPI's session folder has the process id of its mpiexec in its name.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SHARED_MEMORY: Final = Path("/dev/shm")
# Open MPI 5, Open MPI 4, MPICH.
PREFIXES: Final = ("sm_segment.", "vader_segment.", "mpich_shm_")
# Below the folder for temporary files, by the process id of mpiexec: Open MPI 5.0, PRRTE, 4.
SESSIONS: Final = ("ompi.{pid}", "prte.*.{uid}/dvm.{pid}", "ompi.*.{uid}/pid.{pid}")


@dataclass(frozen=True)
class Segment:
    """A file of shared memory: of two with one name, the second is another one."""

    path: Path
    device: int
    inode: int


def segments(folder: Path = SHARED_MEMORY) -> frozenset[Segment]:
    """This user's files in ``folder`` that an MPI has made."""
    found = set()
    with suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.startswith(PREFIXES):
                with suppress(OSError):  # gone meanwhile
                    about = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid():
                        found.add(Segment(Path(entry.path), about.st_dev, about.st_ino))
    return frozenset(found)


def orphans(found: Collection[Segment]) -> frozenset[Segment]:
    """Those that no process has open or mapped. Processes of other users do not count."""
    wanted = {(segment.device, segment.inode) for segment in found}
    used: set[tuple[int, int]] = set()
    if wanted:
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                used.update(wanted & set(_open(Path(entry.path))))
                used.update(wanted & set(mapped(int(entry.name))))
    return frozenset(s for s in found if (s.device, s.inode) not in used)


def _open(process: Path) -> Iterator[tuple[int, int]]:
    with suppress(OSError):
        for entry in os.scandir(process / "fd"):
            with suppress(OSError):
                about = os.stat(entry.path)
                yield about.st_dev, about.st_ino


def mapped(pid: int) -> Iterator[tuple[int, int]]:
    """Device and inode of the files that a process has mapped; none of one that is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_bytes().splitlines():
            _, _, _, device, inode, *_ = line.split(None, 5)
            if inode != b"0":
                major, minor = (int(part, 16) for part in device.split(b":"))
                yield os.makedev(major, minor), int(inode)


def sweep(before: Collection[Segment], folder: Path = SHARED_MEMORY) -> list[Path]:
    """Removes what a job has left that is over; ``before`` was there when it began.

    Returns what was removed.
    """
    removed = []
    for segment in orphans(segments(folder) - frozenset(before)):
        with suppress(OSError):
            segment.path.unlink()
            removed.append(segment.path)
    return removed


def sweep_session(pid: int, temporary: Path) -> list[Path]:
    """Removes the session folder of the mpiexec that was ``pid``; returns what was removed."""
    removed = []
    for pattern in SESSIONS:
        for path in temporary.glob(pattern.format(pid=pid, uid=os.geteuid())):
            with suppress(OSError):
                about = path.lstat()
                if stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid():
                    shutil.rmtree(path)
                    removed.append(path)
    return removed
