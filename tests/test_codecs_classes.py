"""Numbers by class and by value against a reader in plain Python, and their Huffman codes."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgrad.codecs import classes, huffman
from psgrad.errors import WireError


def naive_code(lengths):
    """{code as text: symbol}, as the documentation says it."""
    code, number, before = {}, 0, 0
    for length, symbol in sorted((n, s) for s, n in enumerate(lengths) if n):
        number <<= length - before
        code[f"{number:0{length}b}"] = symbol
        number, before = number + 1, length
    return code or {"": len(lengths) - 1}


def naive_read(body, sizes):
    """The sequences, bit by bit."""
    body, tables = list(body), []

    def lengths(count):
        halves = [half for byte in body[: (count + 1) // 2] for half in (byte & 15, byte >> 4)]
        del body[: (count + 1) // 2]
        return halves[:count]

    for _ in sizes:
        values = 0
        if body[0] == 0:
            values, body = body[1] + 1, body[2:]
            ranks = naive_code(lengths(values))
        count = body.pop(0)
        tables.append((values, ranks if values else None, naive_code(lengths(count))))
    bits = [byte >> i & 1 for byte in body for i in range(8)]

    def symbols(size, code):
        found, read = [None] * size, [""] * size
        while None in found:
            for i in range(size):
                if found[i] is None and read[i] not in code:
                    read[i] += str(bits.pop(0))
            found = [code.get(text) for text in read]
        return found

    def numbers(size, code):
        of_class = symbols(size, code)
        result = [1 << c - 1 if c else 0 for c in of_class]
        order = sorted(range(size), key=lambda i: (of_class[i], i))
        for place in range(max(of_class) - 1):
            for i in order:
                if of_class[i] >= place + 2:
                    result[i] |= bits.pop(0) << place
        return result

    sequences = []
    for (values, ranks, code), size in zip(tables, sizes, strict=True):
        found = numbers(values or size, code)
        if values:
            found = [sum(found[: rank + 1]) for rank in symbols(size, ranks)]
        sequences.append(found)
    assert len(bits) < 8
    assert not any(bits)
    return sequences


sequence = st.one_of(
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30),
    st.lists(st.integers(0, 7), min_size=1, max_size=60),
    st.lists(st.sampled_from([0, 99, 2**32 - 1]), min_size=1, max_size=40),
    st.integers(0, 32).flatmap(
        lambda c: st.lists(st.integers(1 << c >> 1, (1 << c) - (c > 0)), min_size=1, max_size=40)
    ),
)


@given(st.lists(st.tuples(sequence, st.booleans()), min_size=1, max_size=3))
def test_numbers_come_back_also_from_the_bits_as_documented(case):
    numbers = [np.array(numbers, np.uint32) for numbers, _ in case]
    body = classes.write(numbers, [by_value for _, by_value in case])
    sizes = [each.size for each in numbers]
    expected = [each.tolist() for each in numbers]
    assert naive_read(body, sizes) == expected
    read = classes.read(np.frombuffer(body, np.uint8), sizes)
    assert [each.tolist() for each in read] == expected


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 1000])
def test_values_up_to_256_have_codes(count):
    rng = np.random.default_rng(count)
    numbers = rng.permutation(np.append(np.arange(count), rng.integers(0, count, 3000)) * 1000)
    body = classes.write([numbers.astype(np.uint32)], [True])
    assert (body[0] == 0) == (count <= 256)
    got = classes.read(np.frombuffer(body, np.uint8), [numbers.size])[0]
    np.testing.assert_array_equal(got, numbers)


@pytest.mark.parametrize("mean", [3, 30, 99, 300, 1000, 10**5])
def test_geometric_numbers_cost_a_seventh_of_a_bit_more_than_their_entropy(mean):
    p = 1 / (mean + 1)
    numbers = np.random.default_rng(0).geometric(p, 10**5) - 1
    ideal = -np.log2(p) - numbers.mean() * np.log2(1 - p)
    assert (
        ideal < 8 * len(classes.write([numbers.astype(np.uint32)], [False])) / 1e5 < ideal + 1 / 7
    )


def test_what_may_be_unpacked_is_limited_by_the_numbers():
    with pytest.raises(WireError, match="10 numbers have at most 1678 bytes, got 1679"):
        classes.read(np.zeros(1679, np.uint8), [10])


# Codes

counts = st.one_of(
    st.lists(st.integers(0, 50), min_size=1, max_size=256),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=40),
    st.tuples(st.floats(1, 3), st.integers(1, 40)).map(
        lambda it: [int(it[0] ** i) for i in range(it[1])]
    ),
).filter(any)


def fewest_bits(weights):
    """What Huffman's code takes: each merger costs its weight."""
    heap, bits = [w for w in weights if w], 0
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        heapq.heappush(heap, merged)
        bits += merged
    return bits


@given(counts)
def test_codes_are_complete_and_short(occurring):
    lengths = huffman.code_lengths(occurring)
    present = [(n, length) for n, length in zip(occurring, lengths, strict=True) if n]
    assert all(length == 0 for n, length in zip(occurring, lengths, strict=True) if not n)
    if len(present) == 1:
        assert lengths == [0] * len(lengths)
        return
    assert sum(2.0**-length for _, length in present) == 1
    assert all(1 <= length <= huffman.LONGEST for _, length in present)
    bits = sum(n * length for n, length in present)
    rare = min(n for n, _ in present) * 2**huffman.RAREST < sum(occurring)
    # Rare symbols that count as more push the others down by at most one bit, and that hardly ever.
    assert fewest_bits(occurring) <= bits <= fewest_bits(occurring) * (1.15 if rare else 1)


def test_the_deepest_codes_fit_the_table():
    fibonacci = [1, 1]
    while len(fibonacci) < 60:
        fibonacci.append(sum(fibonacci[-2:]))
    depths = {max(huffman.code_lengths(fibonacci[:n])) for n in range(2, 61)}
    assert 12 < max(depths) <= huffman.LONGEST
    crowd = [1] * 200 + [1 << i for i in range(8, 40)]
    assert max(huffman.code_lengths(crowd)) <= huffman.LONGEST


@pytest.mark.parametrize(
    ("lengths", "table", "codes"),
    [
        ([3, 2, 3, 2, 2], "232302", {"00": 1, "01": 3, "10": 4, "110": 0, "111": 2}),
        ([0, 0, 1, 1], "0011", {"0": 2, "1": 3}),
        ([0, 0, 0], "0000", {"": 2}),
    ],
)
def test_canonical_codes(lengths, table, codes):
    assert huffman.table(lengths).hex() == table
    assert naive_code(lengths) == codes
    code, rest = huffman.read_table(
        np.frombuffer(bytes.fromhex(table) + b"!", np.uint8), len(lengths)
    )
    assert rest.tobytes() == b"!"
    assert code.symbols.tolist() == list(codes.values())


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_symbols_come_back(size):
    rng = np.random.default_rng(size)
    symbols = np.minimum(rng.geometric(0.1, size), 255).astype(np.uint8)
    lengths = huffman.code_lengths((np.bincount(symbols, minlength=256) + 1).tolist())
    bits = np.concatenate(huffman.planes(symbols, lengths))
    expected = math.fsum(lengths[symbol] for symbol in symbols)
    assert bits.size == expected
    got, rest = huffman.read_planes(np.append(bits, np.uint8(1)), size, huffman.canonical(lengths))
    np.testing.assert_array_equal(got, symbols)
    assert rest.tolist() == [1]
