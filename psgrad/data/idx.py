"""IDX, the format of MNIST: an images file and, beside it, a labels file."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, Final, cast

import numpy as np
from numpy.typing import NDArray

from psgrad.data.dataset import ArrayDataset, bad_label
from psgrad.data.files import DEFLATE_RATIO, missing, reading
from psgrad.errors import DataError

_UNSIGNED_BYTE: Final = 0x08
MOST_DIMENSIONS: Final = 8


def read_idx(path: Path, *, classes: int = 0) -> ArrayDataset:
    """Reads images (uint8 [n, ...], flattened, divided by 255) and their labels (uint8 [n]).

    ``path`` is the images file. The labels are read from its neighbour of the same name with
    ``labels`` for ``images`` and ``idx1`` for ``idx3``, as MNIST names them. Either may be gzip,
    ending in ``.gz``. K is ``classes``, or 1 + the largest label if that is 0.

    Layout: two zero bytes, the element type, the number d of dimensions, d big-endian uint32
    sizes, the elements. Nothing is allocated before the size of the file allows it.

    Raises DataError naming the offset in the (unpacked) file.
    """
    labels_path = _labels_beside(path)
    images, pixels_at = _read(path)
    if images.ndim < 2:
        raise DataError(
            f"{path}: 1 dimension declared at offset 3; images have at least 2: "
            "give the images file, not the labels"
        )
    if images.size == 0:
        raise DataError(f"{path}: shape {images.shape} declared at offset 4 is empty")
    labels, labels_at = _read(labels_path)
    if labels.shape != images.shape[:1]:
        raise DataError(
            f"{labels_path}: shape {labels.shape} declared at offset 4, but {path.name} has "
            f"{images.shape[0]} images (pixels from offset {pixels_at}); the files must match"
        )
    if (bad := bad_label(labels, classes)) is not None:
        raise DataError(f"{labels_path}: row {bad[0]}, at offset {labels_at + bad[0]}: {bad[1]}")
    x = images.reshape(images.shape[0], -1).astype(np.float32)
    x /= np.float32(255)
    return ArrayDataset(path.name, x, labels.astype(np.int64), classes or int(labels.max()) + 1)


def _labels_beside(path: Path) -> Path:
    if "images" not in path.name:
        raise DataError(
            f"{path}: an IDX images file has 'images' in its name (train-images-idx3-ubyte), so "
            "that its labels can be found; rename it"
        )
    if not path.exists():
        raise missing(path)
    name = path.name.replace("images", "labels").replace("idx3", "idx1")
    other = name.removesuffix(".gz") if name.endswith(".gz") else f"{name}.gz"
    for candidate in (path.with_name(name), path.with_name(other)):
        if candidate.exists():
            return candidate
    raise DataError(f"{path}: its labels file {name} does not exist; put it into the same folder")


def _read(path: Path) -> tuple[NDArray[np.uint8], int]:
    """The array of one file, and the offset of its first element."""
    packed = path.suffix == ".gz"
    with reading(path), path.open("rb") as raw:
        at_most = path.stat().st_size * (DEFLATE_RATIO if packed else 1)
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
        try:
            return _read_array(file, path, at_most)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path} is not a sound gzip file ({error}); fetch it again") from error


def _read_array(file: BinaryIO, path: Path, at_most: int) -> tuple[NDArray[np.uint8], int]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise DataError(f"{path}: offset 0 is {magic!r}; an IDX file starts with two zero bytes")
    if magic[2] != _UNSIGNED_BYTE:
        raise DataError(
            f"{path}: element type 0x{magic[2]:02x} at offset 2; only unsigned bytes (0x08) are "
            "supported: write the data as npz"
        )
    if magic[3] > MOST_DIMENSIONS:
        raise DataError(
            f"{path}: {magic[3]} dimensions at offset 3, the limit is {MOST_DIMENSIONS}; "
            "fetch it again"
        )
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3] or not sizes:
        raise DataError(f"{path}: {magic[3]} dimensions at offset 3, but the file ends before them")
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    start, count = 4 + len(sizes), math.prod(shape)
    wanted = f"shape {shape} at offset 4 declares {count} bytes from offset {start}"
    if count > at_most:
        raise DataError(f"{path}: {wanted}, the file can hold {at_most} at most; fetch it again")
    data = file.read(count + 1)  # one more, to see that nothing follows
    if len(data) != count:
        found = f"only {len(data)}" if len(data) < count else "more"
        raise DataError(f"{path}: {wanted}, the file has {found}; fetch it again")
    return np.frombuffer(data, np.uint8).reshape(shape), start
