"""How named arrays lie in one flat float32 vector, and how that vector is cut and dealt out.

::

    arrays      {"w": [784, 10], "b": [10], "mean": [784]}
    segments    |  w  b  |  mean  |         tensors with the same options lie side by side
    chunks      |--|--|--|----|---|         the unit of transfer and of update, inside one segment
    shards       0  1  0   1   0            the chunks that one server owns, balanced by bytes

The chunk grid is a pure function of (layout, chunk_bytes). It never depends on the number of
servers or workers, so neither do the results.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from psgrad.errors import ConfigError, LayoutError, unknown_name
from psgrad.segments import SegmentOptions as SegmentOptions

Float32 = NDArray[np.float32]

ITEMSIZE: Final = 4
ALIGNMENT: Final = 16  # elements: one cache line of float32
SMALLEST_CHUNK_BYTES: Final = 64
DEFAULT_CHUNK_LIMIT: Final = 4 << 20
DEFAULT_CHUNK_STEP: Final = 64 << 10
DEFAULT_CHUNKS: Final = 16
MOST_ELEMENTS: Final = 1 << 40  # of a layout that comes from elsewhere: 4 TiB
MOST_DIMENSIONS: Final = 64


@dataclass(frozen=True)
class Tensor:
    """One named array: elements ``start:stop`` of the flat vector, reshaped to ``shape``."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    segment: int


@dataclass(frozen=True)
class Segment:
    """Elements ``start:stop`` of the flat vector, which share one set of options."""

    index: int
    start: int
    stop: int
    options: SegmentOptions


@dataclass(frozen=True)
class Chunk:
    """Elements ``start:stop`` of the flat vector, inside one segment."""

    index: int
    segment: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Elements."""
        return self.stop - self.start

    @property
    def nbytes(self) -> int:
        """Bytes of the chunk as float32."""
        return self.size * ITEMSIZE


@dataclass(frozen=True)
class Layout:
    """The frozen map between named arrays and the flat vector ``float32[size]``."""

    tensors: tuple[Tensor, ...]
    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        """Elements of the flat vector."""
        return self.segments[-1].stop if self.segments else 0

    @cached_property
    def digest(self) -> int:
        """64 bits that differ when names, shapes, order, segments or options differ."""
        return int.from_bytes(hashlib.sha256(self.to_json().encode()).digest()[:8], "little")

    @classmethod
    def of(cls, arrays: Mapping[str, Any], options: Sequence[SegmentOptions] = ()) -> Layout:
        """Lays out ``arrays``; a tensor takes the first entry of ``options`` that matches its name.

        Raises ``LayoutError`` for an array that is not float32 and ``ConfigError`` for an entry
        that matches no tensor, which is how a misspelt pattern would otherwise stay unseen.
        """
        _check_arrays(arrays)
        for entry in options:
            if not any(fnmatchcase(name, entry.match) for name in arrays):
                raise ConfigError(unknown_name("parameter in segment match", entry.match, arrays))
        default = SegmentOptions()
        by_options: dict[SegmentOptions, list[str]] = {}
        for name in arrays:
            chosen = next((o for o in options if fnmatchcase(name, o.match)), default)
            by_options.setdefault(chosen, []).append(name)
        tensors: list[Tensor] = []
        segments: list[Segment] = []
        at = 0
        for index, (chosen, names) in enumerate(by_options.items()):
            start = at
            for name in names:
                shape = tuple(int(d) for d in arrays[name].shape)
                tensors.append(Tensor(name, shape, at, at + math.prod(shape), index))
                at += math.prod(shape)
            segments.append(Segment(index, start, at, chosen))
        if at == 0:
            raise LayoutError("register() needs at least one parameter element, got none")
        return cls(tuple(tensors), tuple(segments))

    def to_json(self) -> str:
        """A canonical text: equal layouts give equal texts."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """The inverse of ``to_json``; raises ``LayoutError`` when the text is not a layout."""
        try:
            return cls.from_record(json.loads(text))
        except ValueError as error:
            raise LayoutError(f"not a layout: {error}") from error

    @classmethod
    def from_record(cls, record: Any) -> Layout:
        """The layout whose ``to_json`` gives ``record`` when it is read as JSON.

        Raises ``LayoutError``, naming the entry, for a record that ``of`` cannot have made.
        """
        try:
            tensors = tuple(Tensor(**{**t, "shape": tuple(t["shape"])}) for t in record["tensors"])
            segments = tuple(_segment(entry) for entry in record["segments"])
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise LayoutError(f"not a layout: {error!r}") from error
        problem = _unsound(tensors, segments)
        if problem is not None:
            raise LayoutError(f"not a layout: {problem}")
        return cls(tensors, segments)

    def views(self, flat: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Each tensor as a view into ``flat[size]``; writing one writes the other."""
        if flat.shape != (self.size,):
            raise LayoutError(f"the flat vector must have shape ({self.size},), got {flat.shape}")
        return {t.name: flat[t.start : t.stop].reshape(t.shape) for t in self.tensors}

    def tensor_at(self, element: int) -> Tensor:
        """The tensor that holds one element of the flat vector."""
        return next(t for t in self.tensors if t.start <= element < t.stop)

    def chunks(self, chunk_bytes: int = 0) -> tuple[Chunk, ...]:
        """The chunk grid: each segment in pieces of nearly equal size, at most ``chunk_bytes``.

        0 means the default, min(4 MiB, total / 16 rounded up to a multiple of 64 KiB). Pieces end
        on cache lines, so a piece may be up to 60 bytes short of its share.
        """
        limit = chunk_bytes or default_chunk_bytes(self.size * ITEMSIZE)
        if limit < SMALLEST_CHUNK_BYTES:
            raise ConfigError(
                f"chunk_bytes must be at least {SMALLEST_CHUNK_BYTES} (or 0 for the default), "
                f"got {chunk_bytes}"
            )
        pieces = (
            (segment.index, start, stop)
            for segment in self.segments
            for start, stop in _cut(segment.start, segment.stop, limit // ITEMSIZE)
        )
        return tuple(
            Chunk(i, segment, start, stop) for i, (segment, start, stop) in enumerate(pieces)
        )


def default_chunk_bytes(total_nbytes: int) -> int:
    """min(4 MiB, ``total_nbytes`` / 16 rounded up to a multiple of 64 KiB)."""
    share = -(-total_nbytes // DEFAULT_CHUNKS)
    rounded = max(1, -(-share // DEFAULT_CHUNK_STEP)) * DEFAULT_CHUNK_STEP
    return min(DEFAULT_CHUNK_LIMIT, rounded)


def assign(chunks: Sequence[Chunk], servers: int) -> tuple[int, ...]:
    """The owner of each chunk: largest first, to the server that holds the fewest bytes.

    The fullest server is within one chunk of the mean (Graham 1969, longest processing time).
    """
    loads = [(0, server) for server in range(servers)]
    owner = [0] * len(chunks)
    for chunk in sorted(chunks, key=lambda c: (-c.size, c.index)):
        load, server = heapq.heappop(loads)
        owner[chunk.index] = server
        heapq.heappush(loads, (load + chunk.nbytes, server))
    return tuple(owner)


def balance(chunks: Sequence[Chunk], owner: Sequence[int], servers: int) -> float:
    """Bytes on the fullest server over the mean: 1.0 is perfect."""
    loads = [0] * servers
    for chunk in chunks:
        loads[owner[chunk.index]] += chunk.nbytes
    return max(loads) * servers / sum(loads)


def difference(reference: Layout, other: Layout) -> str | None:
    """The first thing in which two layouts differ, in words; None when they are equal."""
    for mine, theirs in zip(reference.tensors, other.tensors, strict=False):
        if mine.name != theirs.name:
            return f"has parameter {theirs.name!r} where {mine.name!r} is expected"
        if mine.shape != theirs.shape:
            return f"has parameter {mine.name!r} with shape {theirs.shape}, expected {mine.shape}"
    if len(reference.tensors) != len(other.tensors):
        return f"has {len(other.tensors)} parameters, expected {len(reference.tensors)}"
    for mine_s, theirs_s in zip(reference.segments, other.segments, strict=False):
        if mine_s != theirs_s:
            return f"has segment options {theirs_s.options}, expected {mine_s.options}"
    return None if reference == other else "has another layout"


def _check_arrays(arrays: Mapping[str, Any]) -> None:
    for name, array in arrays.items():
        if not isinstance(name, str):
            raise LayoutError(f"parameter names must be str, got {name!r}")
        if not isinstance(array, (np.ndarray, np.generic)):
            raise LayoutError(
                f"parameter {name!r} must be a NumPy array, got {type(array).__name__}; pass "
                f"numpy.asarray(value, dtype=numpy.float32), or tensor.detach().cpu().numpy()"
            )
        if array.dtype != np.float32:
            raise LayoutError(
                f"parameter {name!r} has dtype {array.dtype}, psgrad trains float32; "
                f"pass {name}.astype(numpy.float32)"
            )


def _unsound(tensors: Sequence[Tensor], segments: Sequence[Segment]) -> str | None:
    """Why these cannot be the parts of a layout, in words; None if they can."""
    at = 0
    for i, s in enumerate(segments):
        if not (_are_counts(s.index, s.start, s.stop) and isinstance(s.options.match, str)):
            return f"segments[{i}] has a field of another type"
        if s.index != i or s.start != at or not at <= s.stop <= MOST_ELEMENTS:
            return f"segments[{i}] has index {s.index} and elements {s.start} to {s.stop}"
        at = s.stop
    size, at = at, 0
    for i, t in enumerate(tensors):
        if not (_are_counts(*t.shape, t.start, t.stop, t.segment) and isinstance(t.name, str)):
            return f"tensors[{i}] has a field of another type"
        short = len(t.shape) <= MOST_DIMENSIONS
        if not short or t.start != at or math.prod(t.shape) != t.stop - at:
            return f"tensors[{i}] has elements {t.start} to {t.stop}, which does not fit its shape"
        if t.segment >= len(segments) or not (
            segments[t.segment].start <= at and t.stop <= segments[t.segment].stop
        ):
            return f"tensors[{i}] is not in segment {t.segment}"
        at = t.stop
    if len({t.name for t in tensors}) < len(tensors):
        return "two tensors have one name"
    return None if 0 < size == at else f"tensors have {at} elements, segments {size}"


def _are_counts(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _segment(record: dict[str, Any]) -> Segment:
    options = dict(record["options"])
    if options["members"] is not None:
        options["members"] = tuple(options["members"])
    return Segment(record["index"], record["start"], record["stop"], SegmentOptions(**options))


def _cut(start: int, stop: int, limit: int) -> Iterator[tuple[int, int]]:
    """``start:stop`` in equal pieces of at most ``limit`` elements, a multiple of a cache line."""
    size = stop - start
    if size == 0:
        return
    limit = max(ALIGNMENT, limit // ALIGNMENT * ALIGNMENT)
    share = -(-size // -(-size // limit))
    piece = min(limit, -(-share // ALIGNMENT) * ALIGNMENT)
    for at in range(start, stop, piece):
        yield at, min(stop, at + piece)
