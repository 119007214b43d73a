"""Whole numbers by their bit length, or by value where they have few: for short sequences.

The class of a number is its bit length, 0 for 0. A class c has 2^(c-1) numbers, which c - 1 bits
tell apart, all but the leading one; the classes have a Huffman code of their own for each sequence.
It is Elias' gamma code (1975) with lengths in a code that suits them instead of in unary: 0.1 bits
a number above the entropy of geometric gaps, whatever their mean. Its table has 4 bits a class,
where one for bytes has up to 256 entries, for which a few thousand numbers do not pay.

Of up to 256 values each may instead have a code of its own, in a table that lists them: 2 bits a
number for columns of a matrix whose gaps have 10 bits.

Like the codes, the other bits lie in planes: the lowest bits of all numbers of class 2 and above,
the second lowest ones from class 3 on, and so on, with the numbers in the order of their classes.
``docs/wire.rst`` has it bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from psgrad.codecs import huffman
from psgrad.codecs.base import Bytes
from psgrad.codecs.huffman import Bits
from psgrad.errors import WireError

CLASSES: Final = 33  # of numbers below 2^32
VALUES: Final = 256  # that may have codes of their own
_NUMBER_BITS: Final = huffman.LONGEST + CLASSES - 2  # what one takes at most
_FORM_BYTES: Final = 3 + VALUES // 2 + (CLASSES + 1) // 2 + VALUES * _NUMBER_BITS // 8

Numbers = NDArray[np.uint32]


def histogram(numbers: Numbers) -> NDArray[np.int64]:
    """How many there are of each class, up to the highest one."""
    return np.bincount(np.frexp(numbers)[1])


def write(sequences: Sequence[Numbers], by_value: Sequence[bool]) -> bytes:
    """The tables of all sequences, none of them empty, then the bits of all.

    ``by_value`` says which ones have few values; where there are too many, classes it is.
    """
    tables: list[bytes] = []
    planes: list[Bits] = []
    for numbers, few in zip(sequences, by_value, strict=True):
        values = np.unique(numbers) if few else numbers
        if few and values.size <= VALUES:
            ranks = np.searchsorted(values, numbers).astype(np.uint8)
            lengths = huffman.code_lengths(np.bincount(ranks).tolist())
            tables += [bytes([0, values.size - 1]), huffman.table(lengths)]
            _write_numbers(np.diff(values, prepend=np.uint32(0)), tables, planes)
            planes += huffman.planes(ranks, lengths)
        else:
            _write_numbers(numbers, tables, planes)
    bits = np.packbits(np.concatenate(planes), bitorder="little") if planes else b""
    return b"".join([*tables, bytes(bits)])


def read(body: Bytes, sizes: Sequence[int]) -> list[NDArray[np.int64]]:
    """The sequences, of ``sizes`` numbers below 2^40. Raises ``WireError``. Allocates O(sizes)."""
    most = sum(sizes) * _NUMBER_BITS // 8 + 1 + _FORM_BYTES * len(sizes)
    if body.size > most:
        raise WireError(f"{sum(sizes)} numbers have at most {most} bytes, got {body.size}")
    forms = []
    for _ in sizes:
        form, body = _read_form(body)
        forms.append(form)
    bits = np.unpackbits(body, bitorder="little")
    sequences = []
    for (values, ranks, code), size in zip(forms, sizes, strict=True):
        numbers, bits = _read_numbers(bits, values or size, code)
        if ranks is not None:
            symbols, bits = huffman.read_planes(bits, size, ranks)
            numbers = np.cumsum(numbers)[symbols]
        sequences.append(numbers)
    if bits.size > 7 or bits.any():
        raise WireError(f"{bits.size} bits too many behind the numbers")
    return sequences


class _Form(NamedTuple):
    values: int  # 0: all numbers by class
    ranks: huffman.Code | None  # of the values, from the smallest one
    classes: huffman.Code  # of the numbers, or of the steps from value to value


def _read_form(body: Bytes) -> tuple[_Form, Bytes]:
    values, ranks = 0, None
    if body.size > 1 and not body[0]:
        values = int(body[1]) + 1
        ranks, body = huffman.read_table(body[2:], values)
    count = int(body[0]) if body.size else 0
    if not 1 <= count <= CLASSES:
        raise WireError(f"numbers have 1 to {CLASSES} classes, got {count}")
    code, body = huffman.read_table(body[1:], count)
    return _Form(values, ranks, code), body


def _write_numbers(numbers: Numbers, tables: list[bytes], planes: list[Bits]) -> None:
    classes = np.frexp(numbers)[1].astype(np.uint8)
    counts = np.bincount(classes)
    lengths = huffman.code_lengths(counts.tolist())
    tables += [bytes([len(lengths)]), huffman.table(lengths)]
    planes += huffman.planes(classes, lengths)
    numbers = numbers[np.argsort(classes, kind="stable")]
    for place, below in _places(counts):
        planes.append((numbers[below:] >> place & 1).astype(np.uint8))


def _read_numbers(bits: Bits, size: int, code: huffman.Code) -> tuple[NDArray[np.int64], Bits]:
    classes, bits = huffman.read_planes(bits, size, code)
    order = np.argsort(classes, kind="stable")
    numbers = np.left_shift(1, classes[order], dtype=np.int64) >> 1
    for place, below in _places(np.bincount(classes)):
        plane, bits = huffman.take(bits, size - below)
        numbers[below:] |= plane.astype(np.int64) << place
    sequence = np.empty_like(numbers)
    sequence[order] = numbers
    return sequence, bits


def _places(counts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(b, how many numbers have no bit b below their leading one) for each b from 0."""
    return list(enumerate(np.cumsum(counts)[1:-1].tolist()))
