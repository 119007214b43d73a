"""Writing checkpoints so that there is a whole one at every moment.

The order is what makes it safe. Files are written and synced inside a folder with a temporary name.
The manifest comes last, then the folder gets its name by one ``rename``. Only when that has reached
the disk are older ones removed. A process, or the machine, may stop at any point in between.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from psgrad.checkpoint.files import MANIFEST, FileRecord, check_record, write_tensors
from psgrad.checkpoint.manifest import Manifest
from psgrad.checkpoint.opened import ASIDE, folder_name, found, verify
from psgrad.errors import CheckpointError, ConfigError

PROBE: Final = ".probe"
SMALLEST_SPACE: Final = 1 << 20  # bytes
_TEMPORARY: Final = re.compile(r"\.step-[0-9]{8,}\.(tmp|removed)")


class Store:
    """The folder of all checkpoints of a run, of which the newest ``keep`` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        if keep < 1:
            raise ConfigError(f"the number of checkpoints to keep must be at least 1, got {keep}")
        self.folder = folder
        self.keep = keep

    def prepare(self, nbytes: int = 0) -> None:
        """Makes the folder, tidies what a run before has left, and tries whether it can be written.

        ``nbytes`` is what a checkpoint is expected to take. Raises ``ConfigError`` where the folder
        cannot be written or has less space than that. Called by one rank, before the first write.
        """
        try:
            missing = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            for made in missing:
                _sync(made.parent)
            self._tidy()
            probe = self.folder / PROBE
            probe.write_bytes(b"psgrad")
            probe.unlink()
            space = os.statvfs(self.folder)
        except OSError as error:
            raise ConfigError(
                f"cannot write checkpoints into {self.folder}: {error.strerror}; choose another "
                f"folder or mend this one"
            ) from error
        needed = max(nbytes, SMALLEST_SPACE)
        free = space.f_bavail * space.f_frsize
        # Some file systems do not say how large they are.
        if space.f_blocks and free < needed:
            raise ConfigError(
                f"{free} bytes are left for checkpoints in {self.folder}, one needs {needed}; make "
                f"room or choose another folder"
            )

    def write(self, step: int, name: str, tensors: Mapping[str, NDArray[Any]]) -> FileRecord:
        """Writes the file of one server, synced; several servers may do this at once.

        Raises ``OSError`` as it comes; ``abandon`` then removes what is there.
        """
        check_record(FileRecord(name, 0, "crc32:00000000"))
        temporary = self._temporary(step)
        with contextlib.suppress(FileExistsError):
            os.mkdir(temporary)
        if (temporary / name).exists():  # who began it has died, and another one writes it
            os.unlink(temporary / name)
        return write_tensors(temporary / name, tensors)

    def commit(self, step: int, files: Sequence[FileRecord], state: Mapping[str, Any]) -> Path:
        """Makes a checkpoint of what was written for ``step``; returns its folder.

        When this returns, it has reached the disk, and only then are the oldest beyond ``keep``
        removed. One of the same step is replaced. Raises ``OSError`` as it comes, also where a
        file of ``files`` cannot be seen from here; what was there before is then still valid, and
        only where the last sync has failed the new one may be there as well. What cannot be
        removed is left for the next time.
        """
        temporary, target = self._temporary(step), self.folder / folder_name(step)
        content = Manifest(step, tuple(files), state).to_bytes()
        if not temporary.exists() and _has(target / MANIFEST, content):
            return target  # who committed it has died before it could say so
        for record in files:
            _see(temporary / record.name, record.nbytes)
        _write_synced(temporary / (MANIFEST + ".tmp"), content)
        os.rename(temporary / (MANIFEST + ".tmp"), temporary / MANIFEST)
        _sync(temporary)
        aside = target.with_name(target.name + ASIDE)
        if target.exists():
            if aside.exists():  # an older one still
                self._remove(aside)
            # No system call that is everywhere swaps two folders: the old one stays where ``found``
            # sees it until the new one has its name.
            os.rename(target, aside)
        os.rename(temporary, target)
        _sync(self.folder)
        # It is there: whatever fails from here on is no error of this checkpoint.
        with contextlib.suppress(OSError, CheckpointError):
            if aside.exists():
                self._remove(aside)
            self._prune(target)
        return target

    def abandon(self, step: int) -> None:
        """Removes what was written for ``step`` and not committed; never raises."""
        _erase(self._temporary(step))

    def _temporary(self, step: int) -> Path:
        return self.folder / f".{folder_name(step)}.tmp"

    def _prune(self, committed: Path) -> None:
        whole = [path for path in found(self.folder) if (path / MANIFEST).is_file()]
        for path in whole[self.keep :]:
            if path != committed:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        """Takes the name away first: nothing that looks like a checkpoint is ever half there."""
        removed = self.folder / f".{path.name.removesuffix(ASIDE)}.removed"
        _erase(removed)
        with contextlib.suppress(OSError):
            os.rename(path, removed)
        _erase(removed)

    def _tidy(self) -> None:
        """Sweeps temporary folders; settles what was being replaced when a run ended.

        What ``newest`` finds stays where it is: a run may be about to go on from it.
        """
        for path in self.folder.iterdir():
            if _TEMPORARY.fullmatch(path.name):
                shutil.rmtree(path)
        for aside in found(self.folder):
            if aside.name.endswith(ASIDE):
                target = aside.with_name(aside.name.removesuffix(ASIDE))
                if target.exists():
                    self._remove(aside if _whole(target) else target)


def _has(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def _see(path: Path, nbytes: int) -> None:
    """Raises ``OSError`` where a server has written to a folder that is not this one."""
    cure = "all servers must share the folder of checkpoints"
    try:
        seen = path.stat().st_size
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, f"{path} is not there; {cure}") from error
    if seen != nbytes:
        raise OSError(errno.EIO, f"{path} has {seen} bytes instead of {nbytes}; {cure}")


def _whole(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError:
        return False
    return True


def _erase(folder: Path) -> None:
    """Removes what can be removed; never raises."""
    # ``ignore_errors`` does not ignore those of ``close``.
    with contextlib.suppress(OSError):
        shutil.rmtree(folder, ignore_errors=True)


def _write_synced(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    """Has the names in ``folder`` reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
