"""Bit fields: the low bits of integers, packed without gaps; the specification for a GPU twin.

A field of ``width`` bits is stored as its whole bytes, each as a plane of n bytes, and its top
``width % 8`` bits packed, least significant bit first: eight of them fill ``width % 8`` bytes. So
there is no work a bit: bytes are copied, and three shifts move the eight fields of a word together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

FEW: Final = 1024  # below it the calls cost more than a bit a byte does
_LANES: Final = (8, 16, 32)  # fields of so many bits are joined, two by two


def packed_nbytes(n: int, width: int) -> int:
    """The bytes of n fields."""
    return n * (width // 8) + (n * (width % 8) + 7) // 8


def pack(numbers: NDArray[np.int64], width: int, out: NDArray[np.uint8]) -> None:
    """Writes the low ``width`` bits (0 to 56) of int64[n] to ``out[packed_nbytes(n, width)]``."""
    n = numbers.size
    whole, bits = divmod(width, 8)
    as_bytes = numbers.view(np.uint8)
    for plane in range(whole):
        out[plane * n : (plane + 1) * n] = as_bytes[plane::8]
    if bits and n < FEW:
        fields = np.unpackbits(as_bytes[whole::8, None], axis=1, count=bits, bitorder="little")
        out[whole * n :] = np.packbits(fields.reshape(-1), bitorder="little")
    elif bits:
        words = np.zeros(-(-n // 8), np.uint64)
        np.bitwise_and(as_bytes[whole::8], (1 << bits) - 1, out=words.view(np.uint8)[:n])
        for stay, move, distance in _joints(bits):
            upper = words >> distance
            upper &= move
            words &= stay
            words |= upper
        rows = words.view(np.uint8).reshape(-1, 8)[:, :bits]
        out[whole * n :] = rows.reshape(-1)[: out.size - whole * n]


def unpack(packed: NDArray[np.uint8], n: int, width: int) -> NDArray[np.int64]:
    """The inverse of ``pack``: int64[n] from ``packed[packed_nbytes(n, width)]``."""
    whole, bits = divmod(width, 8)
    numbers = np.zeros(n, np.int64)
    as_bytes = numbers.view(np.uint8)
    for plane in range(whole):
        as_bytes[plane::8] = packed[plane * n : (plane + 1) * n]
    if bits:
        words = np.zeros(-(-n // 8), np.uint64)
        dense = np.zeros(words.size * bits, np.uint8)
        dense[: packed.size - whole * n] = packed[whole * n :]
        words.view(np.uint8).reshape(-1, 8)[:, :bits] = dense.reshape(-1, bits)
        for stay, move, distance in reversed(list(_joints(bits))):
            upper = words & move
            upper <<= distance
            words &= stay
            words |= upper
        as_bytes[whole::8] = words.view(np.uint8)[:n]
    return numbers


def _joints(bits: int) -> Iterator[tuple[np.uint64, np.uint64, np.uint64]]:
    """How the upper one of two lanes closes up: (lower mask, upper mask when joined, distance)."""
    for lane in _LANES:
        used = lane // 8 * bits
        stay = sum((1 << used) - 1 << place for place in range(0, 64, 2 * lane))
        yield np.uint64(stay), np.uint64(stay << used), np.uint64(lane - used)
