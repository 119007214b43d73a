"""Checkpoints that are there: found, opened, verified."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from psgrad.checkpoint.files import MANIFEST, TensorFile, check_file, check_size, open_tensors
from psgrad.checkpoint.manifest import Manifest
from psgrad.errors import CheckpointError, shown

ASIDE: Final = ".old"
_NAME: Final = re.compile(r"step-([0-9]{8,})(\.old)?")


def folder_name(step: int) -> str:
    """The name of a checkpoint of ``step``."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step that a folder's name says; None where it is not the name of a checkpoint.

    ``step-00000100.old`` is one as well: it was moved aside to be replaced.
    """
    match = _NAME.fullmatch(name)
    if match is None or folder_name(int(match[1])) != name.removesuffix(ASIDE):
        return None
    return int(match[1])


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a manifest and its files; ``open`` makes one."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Reads the manifest and looks at the sizes of the files.

        Raises ``CheckpointError`` with what is wrong. The content of the files is checked by
        ``verify``. A folder with another name than that of a checkpoint is one all the same.
        """
        file = path / MANIFEST
        try:
            manifest = Manifest.from_bytes(file.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CheckpointError(f"{path} is not a checkpoint: it has no {MANIFEST}") from error
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
        except CheckpointError as error:
            raise CheckpointError(f"{file} is damaged: {error}") from error
        if step_of(path.name) not in (None, manifest.step):
            raise CheckpointError(
                f"{path} has another step in its manifest: {shown(manifest.step)}"
            )
        for record in manifest.files:
            check_size(path, record)
        return cls(path, manifest)

    def names(self) -> Collection[str]:
        """The names of the tensors of all files."""
        return self._places.keys()

    def tensor(self, name: str) -> NDArray[Any]:
        """A copy of a tensor, whichever file it is in; raises ``CheckpointError``."""
        if name not in self._places:
            raise CheckpointError(f"{self.path} has no tensor {shown(name)}")
        return self._places[name].tensor(name)

    @cached_property
    def _places(self) -> Mapping[str, TensorFile]:
        places: dict[str, TensorFile] = {}
        for record in self.manifest.files:
            file = open_tensors(self.path / record.name)
            for name in file.names:
                if name in places:
                    raise CheckpointError(
                        f"{self.path} has tensor {shown(name)} twice, in "
                        f"{places[name].path.name} and {file.path.name}"
                    )
                places[name] = file
        return places


def found(folder: Path) -> list[Path]:
    """The checkpoints in ``folder`` by their names, newest first; none where there is no folder.

    What was moved aside to be replaced comes right behind what replaces it.
    """
    try:
        names = [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from error
    steps = {name: step for name in names if (step := step_of(name)) is not None}
    # Of one step, the shorter name is the newer one.
    return [folder / name for name in sorted(steps, key=lambda n: (-steps[n], len(n)))]


def verify(path: Path) -> None:
    """Reads every byte of a checkpoint; raises ``CheckpointError`` for the first thing wrong."""
    _verified(path)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and a line with the reason for each that was skipped.

    Every byte of it has been read and checked.
    """
    skipped: list[str] = []
    for path in found(folder):
        checkpoint, fault = _examined(path)
        if checkpoint is not None:
            return checkpoint, skipped
        skipped.append(fault)
    return None, skipped


def _examined(path: Path) -> tuple[Checkpoint | None, str]:
    try:
        return _verified(path), ""
    except CheckpointError as error:
        return None, str(error)


def _verified(path: Path) -> Checkpoint:
    checkpoint = Checkpoint.open(path)
    for record in checkpoint.manifest.files:
        check_file(path, record)
    checkpoint.names()
    return checkpoint
