"""What a rank has to write down so that its run can be repeated, and how.

The programs are deterministic but for two things: in which order messages of different ranks
come, and what is decided by a clock. So a record has, for each rank, every message that it took, in
order, and every codec that was chosen by measurement. What a server answered is there too: a replay
must come to the same.

A record is a line of JSON, about the run, then entries of 40 bytes:

=======  =====  ===================================================================================
field    bytes  meaning
=======  =====  ===================================================================================
what         1  1 took, 2 answered, 3 chose
kind         1  the message's kind; of a choice, the codec's code
verdict      1  the message's verdict
flags        1  the message's flags
peer         4  the rank at the other end; of a choice, 0
chunk        4
nbytes       4  of the payload
clock        8
version      8  updates of the chunk; of a request, as the header has it
rate         8  float64: the learning rate that a push sets (-1: none), that an answer announces
=======  =====  ===================================================================================

Unsigned, little-endian. A file that ends in the middle of an entry is one of a rank that was
killed: what is whole counts.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from psgrad.errors import DataError
from psgrad.messages import Flag, Header, Kind

MAGIC: Final = "psgrad record"
FORMAT: Final = 1
TOOK: Final = 1
ANSWERED: Final = 2
CHOSE: Final = 3
WHATS: Final = (TOOK, ANSWERED, CHOSE)
KINDS: Final = frozenset(map(int, Kind))
_ENTRY: Final = struct.Struct("<BBBBIIIQQd")


class Entry(NamedTuple):
    """One line of a record, see the table above."""

    what: int
    kind: int
    verdict: int
    flags: int
    peer: int
    chunk: int
    nbytes: int
    clock: int
    version: int
    rate: float

    def describe(self) -> str:
        """In words."""
        if self.what == CHOSE:
            return f"chose codec {self.kind} for chunk {self.chunk}"
        verb = "took" if self.what == TOOK else "answered"
        return (
            f"{verb} {Kind(self.kind).name} of chunk {self.chunk} at clock {self.clock}, version "
            f"{self.version}, rank {self.peer}"
        )


class Recorder:
    """Writes the record of one rank to ``file``; ``choices`` are codes to be played back."""

    def __init__(
        self, file: BinaryIO, about: Mapping[str, Any], choices: Iterable[int] | None = None
    ) -> None:
        self._file = file
        self._choices = None if choices is None else iter(choices)
        line = {"magic": MAGIC, "format": FORMAT, **about}
        file.write(json.dumps(line, sort_keys=True).encode() + b"\n")

    def took(self, peer: int, header: Header) -> None:
        """A message was received, and is handled next."""
        self._write(TOOK, peer, header)

    def answered(self, peer: int, header: Header) -> None:
        """A server has answered a request about a chunk."""
        self._write(ANSWERED, peer, header)

    def chose(self, chunk: int, code: int) -> int:
        """A codec was chosen for a chunk; returns the one to use: the recorded one, in a replay."""
        if self._choices is not None:
            code = next(self._choices, code)
        self._file.write(_ENTRY.pack(CHOSE, code, 0, 0, 0, chunk, 0, 0, 0, 0.0))
        return code

    def _write(self, what: int, peer: int, header: Header) -> None:
        self._file.write(
            _ENTRY.pack(
                what, header.kind, header.verdict, header.flags, peer, header.chunk,
                min(header.nbytes, 0xFFFFFFFF), header.clock, header.version, header.rate,
            )
        )  # fmt: skip


class Record(NamedTuple):
    """The record of one rank."""

    about: dict[str, Any]
    entries: list[Entry]

    @property
    def order(self) -> list[int]:
        """The ranks whose messages it took, one after the other."""
        return [entry.peer for entry in self.entries if entry.what == TOOK]

    @property
    def choices(self) -> list[int]:
        """The codes of the codecs that it chose."""
        return [entry.kind for entry in self.entries if entry.what == CHOSE]


def by_message(record: Record) -> Record:
    """The record as it would be if nothing had been read from shared memory.

    What was read there is a header in any case; in a replay the payload comes with it.
    """
    entries = [
        entry._replace(flags=entry.flags & ~Flag.SHARED)
        for entry in record.entries
        if entry.what == CHOSE or entry.kind not in (Kind.SHARE, Kind.SHARED)
    ]
    return record._replace(entries=entries)


def read(data: bytes, name: str) -> Record:
    """The record in ``data``, the content of the file ``name``; raises ``DataError``."""
    line, _, rest = data.partition(b"\n")
    try:
        about = json.loads(line)
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or about.get("magic") != MAGIC:
        raise DataError(f"{name} is not a record of a run; psgrad train --record writes one")
    if about.get("format") != FORMAT:
        raise DataError(f"{name} has format {about.get('format')}, this psgrad reads {FORMAT}")
    for key in ("rank", "size"):
        if type(about.get(key)) is not int or about[key] < 0:
            raise DataError(f"{name}: {key} must be a whole number, got {str(about.get(key))[:40]}")
    if about["rank"] >= about["size"]:
        raise DataError(f"{name} is of rank {about['rank']}, its run had {about['size']} ranks")
    whole = len(rest) - len(rest) % _ENTRY.size
    entries = [Entry(*fields) for fields in _ENTRY.iter_unpack(rest[:whole])]
    for i, entry in enumerate(entries):
        if entry.what not in WHATS or (entry.what != CHOSE and entry.kind not in KINDS):
            raise DataError(f"{name}: entry {i} is damaged: what {entry.what}, kind {entry.kind}")
        if entry.what != CHOSE and entry.peer >= about["size"]:
            raise DataError(
                f"{name}: entry {i} is damaged: rank {entry.peer}, ranks go from 0 to "
                f"{about['size'] - 1}"
            )
    return Record(about, entries)


def read_all(folder: Path) -> list[Record]:
    """The records of all ranks of a run, by rank; raises ``DataError`` where one is missing."""
    paths = sorted(folder.glob("rank-*.record"))
    if not paths:
        raise DataError(f"there is no record in {folder}; psgrad train --record writes one")
    try:
        records = [read(path.read_bytes(), str(path)) for path in paths]
    except OSError as error:
        raise DataError(f"cannot read a record in {folder}: {error.strerror}") from error
    records.sort(key=lambda record: record.about["rank"])
    ranks = [record.about["rank"] for record in records]
    if ranks != list(range(records[0].about["size"])):
        raise DataError(
            f"{folder} should have ranks 0 to {records[0].about['size'] - 1}, has {ranks}"
        )
    return records


def differences(recorded: Record, repeated: Record) -> Iterator[str]:
    """Where a replay was not what was recorded, in words."""
    pairs = zip_longest(recorded.entries, repeated.entries)
    for i, (one, other) in enumerate(pairs):
        # Sizes depend on the zstd stage, which measures; what is in the payload does not.
        if one is None or other is None or one._replace(nbytes=other.nbytes) != other:
            said = "nothing" if one is None else one.describe()
            now = "nothing" if other is None else other.describe()
            yield f"entry {i}: recorded: {said}; repeated: {now}"
