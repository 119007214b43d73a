"""Three codings of k strictly increasing indices in 0..n-1; the sender takes what costs least.

==============  ==========================================================================
1 Elias-Fano    l = floor(log2(n/k)) low bits of each index as they are, the rest in unary:
                at most 0.56 bits an index above the entropy of uniform positions
2 gaps + zstd   the gaps between indices, or between runs of neighbours, as planar varints in
                one zstd frame: less where positions are clustered
3 bitmap        n bits
==============  ==========================================================================

Elias (1974), Fano (1971); the varints are LEB128 with the bytes of equal significance together,
because a Huffman table a plane is 0.1 to 0.5 bits an index better than one for interleaved bytes.
``docs/wire.rst`` has all of them byte by byte.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from psgrad.codecs.base import Bytes, Workspace
from psgrad.errors import WireError
from psgrad.kernels.fields import pack, packed_nbytes, unpack

ELIAS_FANO: Final = 1
GAPS: Final = 2
BITMAP: Final = 3

LEVEL: Final = 1  # of zstd
PLANES: Final = 5  # a varint of a number below 2^32 has at most as many bytes
SMALLEST_GAPS: Final = 64  # fewer indices do not pay for a frame's headers
SAMPLE: Final = 4096  # gaps that the estimate looks at
PROMISING: Final = 0.925  # frames are 2 to 7% above the estimate, and take twice the time
_RUNS: Final = struct.Struct("<I")  # before the frame: runs, or 0 for a gap an index

Indices = NDArray[np.int64]
Gaps = NDArray[np.uint32]


def elias_fano_nbytes(n: int, k: int) -> int:
    """The size of coding 1: a pure function, so that a reader knows it beforehand."""
    low = _low_bits(n, k)
    return packed_nbytes(k, low) + (_unary_bits(n, k, low) + 7) // 8


def nbytes_max(n: int, k: int) -> int:
    """The most bytes that ``write`` needs for up to k indices below n."""
    low = _low_bits(n, k)
    return min((k * (low + 1) + (n >> low) + 15) // 8, (n + 7) // 8)


def write(indices: Indices, n: int, out: Bytes, work: Workspace) -> tuple[int, int]:
    """Writes int64[k], strictly increasing in 0..n-1, to ``out``; returns (coding, bytes).

    Elias-Fano and the bitmap have known sizes. The gaps are tried where half of the indices have
    a neighbour or the entropies of the gaps' bytes in a sample promise to be less, and taken where
    they are. Temporaries are O(k).
    """
    k = indices.size
    size = elias_fano_nbytes(n, k)
    bitmap = (n + 7) // 8
    best = min(size, bitmap)
    if k >= SMALLEST_GAPS:
        gaps = _gaps_of(indices, work)
        runs = int(np.count_nonzero(gaps))
        if 2 * runs <= k or _estimated_nbytes(gaps) < PROMISING * best:
            frame = _frame(gaps, runs)
            if len(frame) < best:
                out[: len(frame)] = np.frombuffer(frame, np.uint8)
                return GAPS, len(frame)
    if bitmap < size:
        flags = _flags(indices, n, work)
        out[:bitmap] = np.packbits(flags, bitorder="little")
        return BITMAP, bitmap
    _write_elias_fano(indices, n, out, work)
    return ELIAS_FANO, size


def read(coding: int, body: Bytes, n: int, k: int) -> Indices:
    """The k indices, checked: strictly increasing and below n. Raises ``WireError``.

    Allocates O(k), for a bitmap O(n), whatever the bytes are.
    """
    if coding == ELIAS_FANO:
        indices = _read_elias_fano(body, n, k)
    elif coding == GAPS:
        indices = _read_gaps(body, n, k)
    elif coding == BITMAP:
        indices = _read_bitmap(body, n, k)
    else:
        raise WireError(f"unknown coding {coding} of indices; known are 1, 2 and 3")
    if k and (indices[0] < 0 or indices[-1] >= n or not (indices[1:] > indices[:-1]).all()):
        raise WireError(f"indices are not strictly increasing below {n}")
    return indices


# Coding 1


def _low_bits(n: int, k: int) -> int:
    return max(0, (n // k).bit_length() - 1) if k else 0


def _unary_bits(n: int, k: int, low: int) -> int:
    """Index i sets bit (index >> low) + i; the highest possible one is the last."""
    return k + ((n - 1) >> low) if k else 0


def _write_elias_fano(indices: Indices, n: int, out: Bytes, work: Workspace) -> None:
    k = indices.size
    low = _low_bits(n, k)
    split = packed_nbytes(k, low)
    pack(indices, low, out[:split])
    unary = work.take("indices.position", k, np.int64)
    np.right_shift(indices, low, out=unary)
    unary += np.arange(k)
    flags = _flags(unary, _unary_bits(n, k, low), work)
    out[split : split + (flags.size + 7) // 8] = np.packbits(flags, bitorder="little")


def _read_elias_fano(body: Bytes, n: int, k: int) -> Indices:
    if body.size != elias_fano_nbytes(n, k):
        raise WireError(f"{k} of {n} indices have {elias_fano_nbytes(n, k)} bytes, got {body.size}")
    low = _low_bits(n, k)
    split = packed_nbytes(k, low)
    indices = _set_bits(body[split:], _unary_bits(n, k, low), k)
    indices -= np.arange(k)
    indices <<= low
    indices |= unpack(body[:split], k, low)
    return indices


# Coding 2


def _gaps_of(indices: Indices, work: Workspace) -> Gaps:
    """How many indices are skipped before each one; the first one counts as if one was."""
    gaps = work.take("indices.gap", indices.size, np.uint32)
    np.subtract(indices[1:], indices[:-1], out=gaps[1:], casting="unsafe")
    gaps[1:] -= 1
    gaps[0] = indices[0] + 1  # so that the first index always starts a run
    return gaps


def _estimated_nbytes(gaps: Gaps) -> float:
    """The zero-order entropy of the bytes of a sample, a plane at a time: Huffman's bound."""
    step = -(-gaps.size // SAMPLE)
    bits = 0.0
    for plane in _planes(gaps[::step]):
        counts = np.bincount(plane)
        counts = counts[counts > 0]
        bits += float(counts @ np.log2(plane.size / counts))
    return bits * step / 8


def _frame(gaps: Gaps, runs: int) -> bytes:
    """One frame of either all gaps, or the gaps before runs and then the lengths of runs."""
    if 2 * runs > gaps.size:
        runs, sequences = 0, [gaps]
    else:
        starts = np.flatnonzero(gaps)
        lengths = np.diff(starts, append=gaps.size).astype(np.uint32)
        sequences = [gaps[starts] - np.uint32(1), lengths - np.uint32(1)]
    planes = [plane for sequence in sequences for plane in _planes(sequence)]
    stream = zstandard.ZstdCompressor(level=LEVEL).compressobj(sum(plane.size for plane in planes))
    parts = [_RUNS.pack(runs)]
    for plane in planes:  # a block each: a block has a Huffman table of its own
        parts.append(stream.compress(plane.data))
        parts.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    parts.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH))
    return b"".join(parts)


def _read_gaps(body: Bytes, n: int, k: int) -> Indices:
    if body.size < _RUNS.size:
        raise WireError(f"coding 2 has at least {_RUNS.size} bytes, got {body.size}")
    (runs,) = _RUNS.unpack_from(body.data)
    if 2 * runs > k:
        raise WireError(f"{k} indices are declared to have {runs} runs")
    if not runs:
        data = _unpacked(body[_RUNS.size :], k * PLANES)
        steps, rest = _read_planes(data, k)
    else:
        data = _unpacked(body[_RUNS.size :], 2 * runs * PLANES)
        skipped, rest = _read_planes(data, runs)
        lengths, rest = _read_planes(rest, runs)
        lengths += 1
        if lengths.max() > k or lengths.sum() != k:  # at most k each: the sum cannot wrap
            raise WireError(f"runs of {lengths.sum()} indices, expected {k}")
        steps = np.zeros(k, np.int64)
        steps[np.cumsum(lengths) - lengths] = skipped + 1
    if rest.size:
        raise WireError(f"{rest.size} bytes too many behind the gaps")
    steps += 1
    np.cumsum(steps, out=steps)
    steps -= 2
    return steps


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


def _planes(numbers: NDArray[np.uint32]) -> list[Bytes]:
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


# Coding 3, and bits that coding 1 shares with it


def _read_bitmap(body: Bytes, n: int, k: int) -> Indices:
    if body.size != (n + 7) // 8:
        raise WireError(f"a bitmap of {n} has {(n + 7) // 8} bytes, got {body.size}")
    return _set_bits(body, n, k)


def _flags(positions: Indices, n: int, work: Workspace) -> NDArray[np.bool_]:
    """bool[n], set at the positions."""
    flags = work.take("indices.flag", n, np.bool_)
    flags.fill(False)
    flags[positions] = True
    return flags


def _set_bits(body: Bytes, n: int, k: int) -> Indices:
    """Where the first n bits are set; that must be k places."""
    flags = np.unpackbits(body, count=n, bitorder="little").view(np.bool_)
    positions = np.flatnonzero(flags)
    if positions.size != k:
        raise WireError(f"{positions.size} bits are set for {k} indices")
    return positions
