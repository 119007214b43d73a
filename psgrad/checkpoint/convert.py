"""The parameters of a checkpoint by their names, as a file that other tools read."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from psgrad.checkpoint.files import write_tensors
from psgrad.checkpoint.opened import Checkpoint, verify
from psgrad.errors import CheckpointError, ConfigError, LayoutError, shown
from psgrad.layout import ITEMSIZE, Chunk, Float32, Layout

SUFFIXES: Final = (".safetensors", ".npz")


def convert(path: Path, out: Path) -> int:
    """Writes the parameters of the checkpoint ``path`` into the new file ``out``; returns how many.

    Every byte of the checkpoint is checked before. ``out`` is there whole or not at all. Raises
    ``CheckpointError`` for the checkpoint, ``ConfigError`` for ``out``: its suffix is none of
    ``SUFFIXES``, it is there already or cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise ConfigError(
            f"{out} must end with {' or '.join(SUFFIXES)}, which says what to write, "
            f"got {out.suffix!r}"
        )
    if out.exists():
        raise ConfigError(f"{out} is there already; remove it or choose another name")
    verify(path)
    named = parameters(Checkpoint.open(path))
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        if out.suffix == ".npz":
            _write_npz(temporary, named)
        else:
            write_tensors(temporary, named)
        os.rename(temporary, out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {out}: {error.strerror}") from error
    return len(named)


def parameters(checkpoint: Checkpoint) -> dict[str, Float32]:
    """The parameters as they were registered, views into one flat vector.

    Raises ``CheckpointError`` where the checkpoint does not hold all that its layout asks for.
    """
    try:
        layout = Layout.from_record(checkpoint.manifest.state["layout"])
        if layout.size * ITEMSIZE > checkpoint.manifest.nbytes:  # before there is a grid of them
            raise LayoutError(f"{layout.size} elements in {checkpoint.manifest.nbytes} bytes")
        grid = layout.chunks(checkpoint.manifest.state["chunk_bytes"])
        chunks = {chunk: _chunk(checkpoint, chunk) for chunk in grid}
        flat = np.empty(layout.size, np.float32)
        for chunk, params in chunks.items():
            flat[chunk.start : chunk.stop] = params
        return layout.views(flat)
    except (KeyError, TypeError, ValueError, OverflowError, LayoutError) as error:
        raise CheckpointError(
            f"{checkpoint.path} has no layout that fits its files: {shown(error, 200)}"
        ) from error


def _chunk(checkpoint: Checkpoint, chunk: Chunk) -> NDArray[Any]:
    params = checkpoint.tensor(f"chunk/{chunk.index}/params")
    if params.dtype != np.float32 or params.shape != (chunk.size,):
        raise CheckpointError(
            f"{checkpoint.path} has chunk {chunk.index} as {params.dtype}{list(params.shape)}, "
            f"expected float32[{chunk.size}]"
        )
    return params


def _write_npz(path: Path, named: Mapping[str, NDArray[Any]]) -> None:
    """``numpy.savez`` would take a parameter that is called ``file`` for an argument of its own."""
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
        for name, array in named.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # with no date: equal content, equal bytes
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
