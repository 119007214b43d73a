"""One file of tensors: safetensors, written in one pass and read with every number checked.

::

    8 bytes     length of the header, little-endian
    header      JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...},
                padded with spaces to a multiple of 8
    data        the tensors without a gap; offsets count from here

Tensors of wider elements come first, so each lies at a multiple of its element's size.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from psgrad.checkpoint.strict_json import is_count, parse
from psgrad.errors import CheckpointError, shown

MANIFEST: Final = "manifest.json"  # beside the files of tensors
METADATA: Final = "__metadata__"  # of a safetensors file: no tensor can have this name
BLOCK: Final = 1 << 20  # bytes: written while they are still in the cache of the checksum
ALIGNMENT: Final = 8
LONGEST_HEADER: Final = 100_000_000  # bytes, as the safetensors library has it
MOST_DIMENSIONS: Final = 32
DTYPES: Final[Mapping[str, str]] = MappingProxyType(
    {"F64": "<f8", "I64": "<i8", "F32": "<f4", "U8": "|u1"}
)
_LENGTH: Final = struct.Struct("<Q")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_CHECKSUM: Final = re.compile(r"crc32:[0-9a-f]{8}")


@dataclass(frozen=True)
class FileRecord:
    """What a manifest says of a file: ``checksum`` is of all its bytes, such as crc32:89abcdef."""

    name: str
    nbytes: int
    checksum: str


def checksum_text(crc: int) -> str:
    """How a CRC-32 is written down: with the algorithm's name, so that there can be another."""
    return f"crc32:{crc:08x}"


def check_record(record: FileRecord) -> None:
    """Raises ``CheckpointError`` for a name that leaves the folder, a size or a checksum."""
    name = record.name
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == MANIFEST:
        raise CheckpointError(
            f"{shown(name)} is not the name of a file inside a checkpoint; use letters, digits, "
            f"dots, underscores and dashes"
        )
    if not is_count(record.nbytes):
        raise CheckpointError(
            f"the size of {shown(name)} must be at least 0 bytes, got {shown(record.nbytes)}"
        )
    if not isinstance(record.checksum, str) or not _CHECKSUM.fullmatch(record.checksum):
        raise CheckpointError(
            f"the checksum of {shown(name)} must be like crc32:89abcdef, got "
            f"{shown(record.checksum)}; "
            f"another algorithm needs a newer psgrad"
        )


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> FileRecord:
    """Writes a new file and has it reach the disk; returns its record.

    The tensors are float64, int64, float32 or uint8 and are written where they lie, those that are
    not C-contiguous from a copy of one at a time. Raises ``CheckpointError`` for another dtype
    before there is a file, and ``OSError`` as it comes; then there may be a part of the file.
    ``FileExistsError`` leaves the other file as it is.
    """
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)  # stable
    header = _header({name: tensors[name] for name in order})
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        crc = _write(descriptor, memoryview(header), 0)
        nbytes = len(header)
        for name in order:
            if tensors[name].size:
                content = np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8)
                crc = _write(descriptor, content.data, crc)
                nbytes += content.size
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileRecord(path.name, nbytes, checksum_text(crc))


def check_file(folder: Path, record: FileRecord) -> None:
    """Reads the whole file; raises ``CheckpointError`` with its name and what is wrong with it."""
    check_size(folder, record)
    crc = 0
    block = memoryview(bytearray(BLOCK))
    path = folder / record.name
    with _reading(path), path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            crc = zlib.crc32(block[:count], crc)
    if checksum_text(crc) != record.checksum:
        raise CheckpointError(
            f"{path} is damaged: its checksum is {checksum_text(crc)} instead of {record.checksum}"
        )


def check_size(folder: Path, record: FileRecord) -> None:
    """Raises ``CheckpointError`` where the file is missing or not as long as it should be."""
    check_record(record)
    path = folder / record.name
    with _reading(path):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a file")
    nbytes = status.st_size
    if nbytes != record.nbytes:
        raise CheckpointError(f"{path} has {nbytes} bytes instead of {record.nbytes}")


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: bytes ``start:stop`` of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile:
    """The tensors of a file, each read when it is asked for. Holds no open file."""

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        self.path = path
        self._entries = entries

    @property
    def names(self) -> Collection[str]:
        """The tensors' names, in the order of the header."""
        return self._entries.keys()

    def tensor(self, name: str) -> NDArray[Any]:
        """A copy of a tensor, of the shape and dtype that it was written with.

        Raises ``CheckpointError`` for a name that is not there or a file that has become shorter.
        The content is not checked here; ``check_file`` does that.
        """
        if name not in self._entries:
            raise CheckpointError(f"{self.path} has no tensor {name!r}")
        entry = self._entries[name]
        made = np.empty(entry.shape, DTYPES[entry.dtype])
        if not made.size:
            return made
        left = made.reshape(-1).view(np.uint8).data
        with _reading(self.path), self.path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            while left:
                count = file.readinto(left)
                if not count:
                    raise CheckpointError(f"{self.path} ends inside of tensor {name!r}")
                left = left[count:]
        return made


def open_tensors(path: Path) -> TensorFile:
    """Reads the header; raises ``CheckpointError`` for a file that is not sound.

    Each tensor lies inside the file and has the bytes of its shape, and there is nothing between
    or behind them. So no tensor takes more memory than the file has bytes.
    """
    with _reading(path), path.open("rb") as file:
        nbytes = os.fstat(file.fileno()).st_size
        prefix = file.read(_LENGTH.size)
        length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else nbytes
        if length > min(nbytes - _LENGTH.size, LONGEST_HEADER):
            raise CheckpointError(f"{path} is not a safetensors file: its header does not fit in")
        header = file.read(length)
    try:
        return TensorFile(path, _entries(parse(header), _LENGTH.size + length, nbytes))
    except ValueError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error


def _header(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    names = {np.dtype(text): name for name, text in DTYPES.items()}
    entries = {}
    at = 0
    for name, tensor in tensors.items():
        if name == METADATA:
            raise CheckpointError(f"a tensor cannot be called {name}; safetensors has that name")
        if tensor.dtype not in names:
            raise CheckpointError(
                f"tensor {name!r} has dtype {tensor.dtype}; a checkpoint holds float64, int64, "
                f"float32 and uint8"
            )
        entries[name] = {
            "dtype": names[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (at, at + tensor.nbytes),
        }
        at += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return _LENGTH.pack(len(text)) + text


def _write(descriptor: int, data: memoryview, crc: int) -> int:
    """Writes ``data``; returns the checksum of everything up to here."""
    for at in range(0, len(data), BLOCK):
        left = data[at : at + BLOCK]
        crc = zlib.crc32(left, crc)
        while left:
            left = left[os.write(descriptor, left) :]
    return crc


def _entries(header: Any, start: int, nbytes: int) -> dict[str, Entry]:
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    found = {n: _entry(n, e, start) for n, e in header.items() if n != METADATA}
    at = start
    for name, entry in sorted(found.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != at:
            raise ValueError(f"tensor {shown(name)} begins at byte {entry.start} instead of {at}")
        at = entry.stop
    if at != nbytes:
        raise ValueError(f"it has {nbytes} bytes, its tensors end at {at}")
    return found


def _entry(name: str, entry: Any, start: int) -> Entry:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {shown(name)} has no dtype, shape and data_offsets alone")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(
            f"tensor {shown(name)} has dtype {shown(dtype)}; known are {', '.join(DTYPES)}"
        )
    if not _counts(shape) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"tensor {shown(name)} has a shape that is none")
    if not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {shown(name)} has data_offsets that are none")
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    # Where one dimension is 0, the others still have to be ones that an array can have.
    if math.prod(d for d in shape if d) > (1 << 62) // itemsize:
        raise ValueError(f"tensor {shown(name)} has a shape beyond all memory")
    if offsets[1] - offsets[0] != math.prod(shape) * itemsize:
        raise ValueError(f"tensor {shown(name)} does not have the bytes of its shape")
    return Entry(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(is_count(number) for number in value)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever the system says while a file is read is an error of the checkpoint."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
