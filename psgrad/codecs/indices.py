"""Four codings of k strictly increasing indices in 0..n-1; the sender takes what costs little.

==============  ==========================================================================
1 Elias-Fano    l = floor(log2(n/k)) low bits of each index as they are, the rest in unary:
                at most 0.56 bits an index above the entropy of uniform positions
2 gaps, zstd    the gaps between indices, or between runs of neighbours, as planar varints in
                one zstd frame: less where positions are clustered
3 bitmap        n bits
4 gaps, class   the same gaps by their bit lengths: less than 2 where there are few of them
==============  ==========================================================================

Elias (1974), Fano (1971); ``codecs.gaps`` has codings 2 and 4. ``docs/wire.rst`` has all of them
byte by byte.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from psgrad.codecs import gaps
from psgrad.codecs.base import Bytes, Workspace
from psgrad.errors import WireError
from psgrad.kernels.fields import pack, packed_nbytes, unpack

ELIAS_FANO: Final = 1
GAPS: Final = 2
BITMAP: Final = 3
CLASSES: Final = 4
CODINGS: Final = (ELIAS_FANO, GAPS, BITMAP, CLASSES)

SMALLEST_GAPS: Final = 64  # fewer indices do not pay for headers and tables

Indices = NDArray[np.int64]


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

    Elias-Fano and the bitmap have known sizes. The gaps are tried where they promise to be less,
    and taken where they are. Temporaries are O(k).
    """
    k = indices.size
    size = elias_fano_nbytes(n, k)
    bitmap = (n + 7) // 8
    best = min(size, bitmap)
    if k >= SMALLEST_GAPS:
        zstd, body = gaps.write(indices, best, work)
        if 0 < len(body) < best:
            out[: len(body)] = np.frombuffer(body, np.uint8)
            return GAPS if zstd else CLASSES, len(body)
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
    elif coding in (GAPS, CLASSES):
        indices = gaps.read(body, k, coding == GAPS)
    elif coding == BITMAP:
        indices = _read_bitmap(body, n, k)
    else:
        raise WireError(f"unknown coding {coding} of indices; known are 1 to 4")
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
