"""NumPy archives: ``x`` [n, ...] and ``y`` [n], as ``np.savez(path, x=..., y=...)`` writes them."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from psgrad.data.dataset import ArrayDataset, bad_label, first_not_finite, to_float32
from psgrad.data.files import DEFLATE_RATIO, reading, shown
from psgrad.errors import DataError

_BROKEN: Final = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    RuntimeError,  # encrypted members; NotImplementedError: compressed in another way
    tokenize.TokenError,  # these and below: an npy header that is no dictionary of its three keys
    SyntaxError,
    TypeError,
    struct.error,
    OverflowError,
    UserWarning,  # of NumPy, where it mends a header
)
NAMES: Final = 8  # of arrays that an error lists
_CURE: Final = "write it with np.savez(path, x=..., y=...)"


def read_npz(path: Path, *, classes: int = 0, divisor: float = 1.0) -> ArrayDataset:
    """Reads dense samples; rows of more than one dimension are flattened.

    ``x`` is bool, integer or float and becomes float32, divided by ``divisor``. ``y`` holds whole
    numbers 0..K-1 (a float 1.0 counts as one); K is ``classes``, or 1 + the largest label if that
    is 0. Other arrays are ignored. Pickled (object) arrays are refused, and no declared size is
    believed before the size of the file allows it.

    Raises DataError.
    """
    with reading(path):
        try:
            with warnings.catch_warnings(), zipfile.ZipFile(path) as archive:
                warnings.simplefilter("error", UserWarning)
                x, y = (_read_array(archive, path, name) for name in ("x", "y"))
        except DataError:
            raise
        except _BROKEN as error:
            reason = str(error).partition("\n")[0][:200]
            raise DataError(f"{path} is not a sound npz file ({reason}); {_CURE}") from error
    _check_shapes(path, x, y)
    samples = to_float32(x.reshape(x.shape[0], -1))
    if divisor != 1.0:
        samples /= np.float32(divisor)
    if (place := first_not_finite(samples)) is not None:
        row, column = place
        value = x.reshape(x.shape[0], -1)[row, column]
        raise DataError(
            f"{path}: x[{row}, {column}] is {value}: row {row}, column {column} (from 0) is not "
            "a finite float32; remove or fill in the row"
        )
    if (bad := bad_label(y, classes)) is not None:
        raise DataError(f"{path}: y[{bad[0]}]: {bad[1]}")
    labels = y.astype(np.int64)
    return ArrayDataset(path.name, samples, labels, classes or int(labels.max()) + 1)


def _read_array(archive: zipfile.ZipFile, path: Path, name: str) -> NDArray[Any]:
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        names = [n.removesuffix(".npy") for n in archive.namelist()[:NAMES]]
        found = ", ".join(n if n.isidentifier() else shown(n) for n in names) or "none"
        raise DataError(f"{path} has no array {name!r} (found: {found}); {_CURE}") from None
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(member)
        else:  # (3, 0) exists only for structured arrays with names beyond Latin-1
            raise DataError(f"{path}: array {name!r} has npy version {version}; {_CURE}")
        if dtype.kind not in "buif":
            raise DataError(
                f"{path}: array {name!r} has dtype {dtype}; it must be bool, integer or float"
            )
        declared, actual = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
    largest = path.stat().st_size * DEFLATE_RATIO
    if declared != actual or actual > largest:
        raise DataError(
            f"{path}: array {name!r} declares {declared} bytes {shape}, but the file holds "
            f"{min(actual, largest)} at most; it is damaged: {_CURE}"
        )
    with archive.open(info) as member:
        array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return array


def _check_shapes(path: Path, x: NDArray[Any], y: NDArray[Any]) -> None:
    if x.ndim < 2:
        raise DataError(f"{path}: x must be [rows, features], got shape {x.shape}")
    if y.ndim != 1:
        raise DataError(f"{path}: y must be [rows], got shape {y.shape}; try y.ravel()")
    if x.shape[0] != y.shape[0]:
        raise DataError(
            f"{path}: x has {x.shape[0]} rows but y has {y.shape[0]}; both must have the same"
        )
    if x.size == 0:
        raise DataError(f"{path}: x is empty, shape {x.shape}; at least 1 row and 1 feature needed")
