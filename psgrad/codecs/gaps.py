"""Indices as gaps, or as gaps between runs of neighbours: what clustered positions cost less in.

Two codings of the same numbers: zstd, which knows each value by itself and finds what repeats, and
classes (``codecs.classes``), whose tables are so small that they pay for few numbers. Varints for
zstd are LEB128 with the bytes of equal significance together, because a Huffman table a plane is
0.1 to 0.5 bits an index better than one for interleaved bytes.
"""

from __future__ import annotations

import math
import struct
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from psgrad.codecs import classes, huffman
from psgrad.codecs.base import Bytes, Workspace
from psgrad.errors import WireError

LEVEL: Final = 1  # of zstd
PLANES: Final = 5  # a varint of a number below 2^32 has at most as many bytes
SAMPLE: Final = 4096  # gaps that an estimate looks at
_RUNS: Final = struct.Struct("<I")  # before the numbers: runs, or 0 for a gap an index

# What a coding takes beyond the entropy that a sample has, in bits, as measured.
PLANE: Final = 91  # of zstd: the headers of a block
BYTE: Final = 4  # of a plane: an entry of its table
MATCH: Final = 20  # where a byte does not repeat
WHOLE_BITS: Final = 1.01  # of Huffman's code for bytes
TABLE: Final = 12  # of classes or values
SYMBOL: Final = 4

FEW: Final = 256  # gaps that tell whether there could be few values

# zstd is four times as fast, but what it takes is less sure: it has to promise less than classes
# where there are few indices, and may take a little more where there are many.
MARGIN: Final = 0.2  # bits an index
MANY: Final = 1 << 14

# By classes, gaps of uniform positions have 0.057 bits more than their entropy, whatever it is.
UNIFORM: Final = 0.035  # more than it: what passes for uniform
CHANCE: Final = 20  # bits that a sample may be off by

Indices = NDArray[np.int64]
Numbers = NDArray[np.uint32]


def write(indices: Indices, limit: int, work: Workspace) -> tuple[bool, bytes]:
    """Whether zstd is in it, and the bytes; none where they will hardly be fewer than ``limit``.

    That is seen from a sample. Gaps that could be those of uniform positions are left alone, too:
    classes would take 0.4 bits an index less than Elias-Fano, but many times as long.
    """
    numbers = _gaps(indices, work)
    runs = int(np.count_nonzero(numbers))
    if 2 * runs <= numbers.size:
        starts = np.flatnonzero(numbers)
        lengths = np.diff(starts, append=numbers.size).astype(np.uint32)
        sequences = [numbers[starts] - np.uint32(1), lengths - np.uint32(1)]
    elif _may_be_uniform(_sample(numbers)):
        return False, b""
    else:
        runs, sequences = 0, [numbers]
    by_zstd = sum(_zstd_bits(numbers) for numbers in sequences)
    either = [(_class_bits(numbers), _value_bits(numbers)) for numbers in sequences]
    by_classes = sum(map(min, either))
    if min(by_zstd, by_classes) >= 8 * limit:
        return False, b""
    margin = MARGIN * indices.size
    zstd = by_zstd < by_classes + (margin if indices.size > MANY else -margin)
    if zstd:
        return zstd, _RUNS.pack(runs) + _frame(sequences)
    by_value = [values < by_class for by_class, values in either]
    return zstd, _RUNS.pack(runs) + classes.write(sequences, by_value)


def read(body: Bytes, k: int, zstd: bool) -> Indices:
    """The indices, k of them; they need not rise. Raises ``WireError``. Allocates O(k + bytes)."""
    if body.size < _RUNS.size:
        raise WireError(f"gaps have at least {_RUNS.size} bytes, got {body.size}")
    (runs,) = _RUNS.unpack_from(body.data)
    if 2 * runs > k:
        raise WireError(f"{k} indices are declared to have {runs} runs")
    sizes = [runs, runs] if runs else [k]
    body = body[_RUNS.size :]
    numbers = _read_frame(body, sizes) if zstd else classes.read(body, sizes)
    steps = _spread(numbers[0], numbers[1], k) if runs else numbers[0]
    steps += 1
    np.cumsum(steps, out=steps)
    steps -= 2
    return steps


def _gaps(indices: Indices, work: Workspace) -> Numbers:
    """How many indices are skipped before each one; the first one counts as if one was."""
    gaps = work.take("indices.gap", indices.size, np.uint32)
    np.subtract(indices[1:], indices[:-1], out=gaps[1:], casting="unsafe")
    gaps[1:] -= 1
    gaps[0] = indices[0] + 1  # so that the first index always starts a run
    return gaps


def _spread(skipped: Indices, lengths: Indices, k: int) -> Indices:
    """The gaps of k indices in runs of ``lengths`` + 1 that begin ``skipped`` + 1 apart."""
    lengths += 1
    if lengths.max() > k or lengths.sum() != k:  # at most k each: the sum cannot wrap
        raise WireError(f"runs of {lengths.sum()} indices, expected {k}")
    steps = np.zeros(k, np.int64)
    steps[np.cumsum(lengths) - lengths] = skipped + 1
    return steps


def _sample(numbers: Numbers) -> Numbers:
    return numbers[:: -(-numbers.size // SAMPLE)]


def _may_be_uniform(sample: Numbers) -> bool:
    """Whether classes take about as much as they would for a geometric distribution.

    It is a test of how well one fits the sample: both sides see the same numbers, so only what is
    beyond that counts.
    """
    mean = int(np.add.reduce(sample)) / sample.size
    entropy = (1 + mean) * math.log2(1 + mean) - mean * math.log2(mean or 1)
    return _class_entropy(sample) + CHANCE > sample.size * (entropy + UNIFORM)


def _class_entropy(sample: Numbers) -> float:
    """Bits: the entropy of the classes, and the bits below the leading ones."""
    counts = classes.histogram(sample)
    return _information(counts, sample.size) + int(counts[2:] @ np.arange(1, counts.size - 1))


def _class_bits(numbers: Numbers) -> float:
    """What coding 4 will take for a sequence."""
    sample = _sample(numbers)
    counts = classes.histogram(sample)
    bits = _code_bits(counts) + int(counts[2:] @ np.arange(1, counts.size - 1))
    return bits * (numbers.size / sample.size) + TABLE + SYMBOL * counts.size


def _value_bits(numbers: Numbers) -> float:
    """What coding 4 will take for a sequence of few values."""
    sample = _sample(numbers)
    if np.unique(sample[:FEW]).size > FEW // 2:  # cheap, and it hardly ever goes on
        return math.inf
    values, counts = np.unique(sample, return_counts=True)
    if 2 * values.size > classes.VALUES:
        return math.inf
    tables = 2 * TABLE + (SYMBOL + int(values[-1]).bit_length()) * values.size
    return _code_bits(counts) * (numbers.size / sample.size) + tables


def _code_bits(counts: NDArray[np.int64]) -> int:
    """The bits of symbols that occur so often, in a Huffman code."""
    return int(counts @ huffman.code_lengths(counts.tolist()))


def _zstd_bits(numbers: Numbers) -> float:
    """What coding 2 will take for a sequence, if no more than single bytes repeat.

    A plane is left as it is where Huffman's code would save less than a 64th. The entropy of a
    sample is below that of all, by Miller's formula.
    """
    sample = _sample(numbers)
    scale = numbers.size / sample.size
    bits = 0.0
    for plane in _planes(sample):
        counts = np.bincount(plane)
        bytes_used = int(np.count_nonzero(counts))
        coded = WHOLE_BITS * _information(counts, plane.size)
        coded = scale * max(coded, min(plane.size, MATCH * (plane.size - int(counts.max()))))
        coded += BYTE * bytes_used + (scale - 1) * bytes_used / (2 * math.log(2))
        raw = 8 * scale * plane.size
        bits += PLANE + (coded if coded < raw * 63 / 64 else raw)
    return bits


def _information(counts: NDArray[np.int64], total: int) -> float:
    """``total`` times the entropy of what occurs so often, in bits."""
    return total * math.log2(total) - float(counts @ np.log2(np.maximum(counts, 1)))


# zstd


def _frame(sequences: list[Numbers]) -> bytes:
    planes = [plane for sequence in sequences for plane in _planes(sequence)]
    stream = zstandard.ZstdCompressor(level=LEVEL).compressobj(sum(plane.size for plane in planes))
    parts = []
    for plane in planes:  # a block each: a block has a Huffman table of its own
        parts.append(stream.compress(plane.data))
        parts.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    parts.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH))
    return b"".join(parts)


def _read_frame(frame: Bytes, sizes: list[int]) -> list[Indices]:
    data = _unpacked(frame, PLANES * sum(sizes))
    sequences = []
    for size in sizes:
        numbers, data = _read_planes(data, size)
        sequences.append(numbers)
    if data.size:
        raise WireError(f"{data.size} bytes too many behind the gaps")
    return sequences


def _unpacked(frame: Bytes, limit: int) -> Bytes:
    """What is in a zstd frame that declares at most ``limit`` bytes."""
    try:
        declared = zstandard.frame_content_size(frame.data)
        if not 0 <= declared <= limit:
            raise WireError(f"zstd frame of {declared} bytes, the limit is {limit}")
        data = zstandard.ZstdDecompressor().decompress(
            frame.data, max_output_size=limit, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise WireError(f"zstd: {error}") from error
    return np.frombuffer(data, np.uint8)


def _planes(numbers: Numbers) -> list[Bytes]:
    """Planar LEB128: 7 bits a number and plane, bit 7 says that the number goes on."""
    planes = []
    while numbers.size:
        more = numbers > 127
        plane = numbers.astype(np.uint8)
        plane &= 127
        plane |= more.view(np.uint8) << 7
        planes.append(plane)
        numbers = numbers[more]
        numbers >>= 7
    return planes


def _read_planes(data: Bytes, count: int) -> tuple[Indices, Bytes]:
    """``count`` numbers, and the bytes behind them."""
    numbers = np.zeros(count, np.int64)
    going: slice | Indices = slice(None)  # the numbers that have a byte in this plane
    for shift in range(0, 7 * PLANES, 7):
        plane, data = data[:count], data[count:]
        if plane.size < count:
            raise WireError("the bytes of the gaps end early")
        numbers[going] |= (plane & 127).astype(np.int64) << shift
        more = np.flatnonzero(plane >> 7)
        count = more.size
        if not count:
            return numbers, data
        going = more if isinstance(going, slice) else going[more]
    raise WireError(f"a gap has more than {PLANES} bytes")
