"""Huffman codes of up to 256 symbols whose bits lie in planes, so that nothing is done one by one.

A sequence of symbols is written as the first bits of all its codes, then the second bits of those
codes that have one, and so on. A code is canonical: its lengths say everything. They have 4 bits
each, 0 for a symbol that does not occur; a code of one symbol has no bits at all, and its table is
all 0, but as long as it has to be to end with that symbol.

Huffman (1952); canonical codes are Schwartz and Kallick's (1964).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from psgrad.codecs.base import Bytes
from psgrad.errors import WireError

LONGEST: Final = 15  # bits of a code
RAREST: Final = 11  # a symbol counts as if it were 2^-11 of all

Symbols = NDArray[np.uint8]
Bits = NDArray[np.uint8]  # 0 or 1 each


class Code(NamedTuple):
    """Codes by length, then by symbol; the first one of a length follows the last one before."""

    symbols: Symbols  # in the order of their codes
    ends: tuple[int, ...]  # [length - 1]: the first number of that many bits that begins no code
    until: tuple[int, ...]  # [length - 1]: how many codes have at most that many bits


def code_lengths(counts: Sequence[int]) -> list[int]:
    """Huffman's lengths for symbols that occur so often; at most LONGEST.

    A code of 16 bits needs weights that add up to 2584 times the smallest one, a Fibonacci number;
    for 256 symbols they add up to at most 2^11 + 256 times as much as what each has at least.
    """
    least = -(-sum(counts) >> RAREST)
    heap = [(max(count, least), [symbol]) for symbol, count in enumerate(counts) if count]
    heapq.heapify(heap)
    lengths = [0] * len(counts)
    while len(heap) > 1:
        weight, symbols = heapq.heappop(heap)
        other, others = heapq.heappop(heap)
        symbols += others
        for symbol in symbols:
            lengths[symbol] += 1
        heapq.heappush(heap, (weight + other, symbols))
    return lengths


def canonical(lengths: Sequence[int]) -> Code:
    """The code that has these lengths."""
    present = sorted((length, symbol) for symbol, length in enumerate(lengths) if length)
    if not present:
        return Code(np.array([len(lengths) - 1], np.uint8), (), ())
    ends: list[int] = []
    until: list[int] = []
    for length in range(1, present[-1][0] + 1):
        here = lengths.count(length)
        ends.append(here + (2 * ends[-1] if ends else 0))
        until.append(here + (until[-1] if until else 0))
    return Code(np.array([symbol for _, symbol in present], np.uint8), tuple(ends), tuple(until))


def table(lengths: Sequence[int]) -> bytes:
    """Two lengths a byte, the first one in the lower half."""
    padded = [*lengths, 0]
    pairs = zip(padded[::2], padded[1::2], strict=False)
    return bytes(low | high << 4 for low, high in pairs)


def read_table(body: Bytes, count: int) -> tuple[Code, Bytes]:
    """The code of ``count`` symbols, and what follows its table. Raises ``WireError``.

    A code has to be complete: whatever the bits are, they give a symbol.
    """
    end = (count + 1) // 2
    if body.size < end:
        raise WireError(f"the table of a code of {count} symbols ends early")
    lengths = [half for pair in body[:end].tolist() for half in (pair & 15, pair >> 4)]
    space = sum(1 << (LONGEST - length) for length in lengths if length)
    if any(lengths[count:]) or (space and space != 1 << LONGEST):
        raise WireError(f"there is no code of {count} symbols with the lengths {lengths}")
    return canonical(lengths[:count]), body[end:]


def planes(symbols: Symbols, lengths: Sequence[int]) -> list[Bits]:
    """The bits of the symbols' codes."""
    code = canonical(lengths)
    codes = np.zeros(len(lengths), np.uint16)  # from the highest bit down
    at = 0
    for length, (end, until) in enumerate(zip(code.ends, code.until, strict=True), start=1):
        codes[code.symbols[at:until]] = np.arange(end - (until - at), end) << (16 - length)
        at = until
    words, sizes = codes[symbols], np.array(lengths, np.uint8)[symbols]
    found = []
    for length in range(1, len(code.ends) + 1):
        found.append((words >> (16 - length) & 1).astype(np.uint8))
        going = np.flatnonzero(sizes > length)
        words, sizes = words[going], sizes[going]
    return found


def read_planes(bits: Bits, size: int, code: Code) -> tuple[Symbols, Bits]:
    """``size`` symbols, and the bits behind them. Raises ``WireError``."""
    symbols = np.full(size, code.symbols[0])
    words, going = np.zeros(size, np.int64), np.arange(size)
    for end, until in zip(code.ends, code.until, strict=True):
        plane, bits = take(bits, going.size)
        words = words << 1 | plane
        done = words < end  # and not below the codes of this length: those are gone already
        here, rest = np.flatnonzero(done), np.flatnonzero(~done)
        symbols[going[here]] = code.symbols[words[here] + (until - end)]
        words, going = words[rest], going[rest]
    return symbols, bits


def take(bits: Bits, size: int) -> tuple[Bits, Bits]:
    """The first ``size`` bits, and the others."""
    if bits.size < size:
        raise WireError("the bits of the numbers end early")
    return bits[:size], bits[size:]
