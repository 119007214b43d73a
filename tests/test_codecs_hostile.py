"""Damaged payloads of every kind: refused, or read as something that can do no harm.

100,000 payloads with flipped bits and every truncation, over all codecs, types of values, codings
of indices and flags. What is not refused must be finite (raw values, which nobody looks at, apart),
have its indices in order, and take no more memory than n elements may.
"""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import zstandard
from payloads import CASES, PLAIN, SQUEEZED, read, zstd_of

from psgrad import codecs
from psgrad.codecs import parse, wire
from psgrad.codecs.indices import CODINGS
from psgrad.codecs.sparse import VALUES
from psgrad.codecs.wire import HEADER_NBYTES, Flag

FLIPPED = 100_000  # payloads, over all cases
BATCH = 500
CHECKSUM = range(HEADER_NBYTES - 4, HEADER_NBYTES)


EACH = math.ceil(FLIPPED / len(CASES))
every_case = pytest.mark.parametrize("name", CASES)


def flipped(payload, count, rng, spare=CHECKSUM):
    """``count`` copies with 1 to 5 bits flipped, half of them in the header; not in ``spare``."""
    ends = (payload.size, HEADER_NBYTES + 8)
    places = [[8 * at + bit for at in range(min(end, payload.size)) if at not in spare
               for bit in range(8)] for end in ends]  # fmt: skip
    for done in range(0, count, BATCH):
        rows = min(BATCH, count - done)
        masks = np.zeros((rows, payload.size), np.uint8)
        bits = np.where(
            rng.random((rows, 1)) < 0.5, *(rng.choice(place, (rows, 5)) for place in places)
        )
        used = np.arange(5) < rng.choice((1, 1, 1, 2, 5), (rows, 1))
        row = np.nonzero(used)[0]
        np.bitwise_xor.at(masks, (row, bits[used] // 8), np.uint8(1) << (bits[used] % 8))
        yield from payload ^ masks


def test_all_there_is_is_among_the_cases():
    assert {codec.name for codec, _, _ in CASES.values()} == set(codecs.CODECS)
    for part in (PLAIN, SQUEEZED):
        sparse = [payload for _, _, payload in part.values() if payload[3] == 8 and payload[6]]
        assert {(p[4], p[6]) for p in sparse} == {(v, c) for v in VALUES.values() for c in CODINGS}
    assert {payload[5] for _, _, payload in CASES.values()} == {0, 1, 2, 4}
    for codec, n, payload in CASES.values():
        assert read(codec, payload, n)


@every_case
def test_flipped_bits(name):
    codec, n, payload = CASES[name]
    rng = np.random.default_rng(list(name.encode()))
    accepted = [read(codec, damaged, n) for damaged in flipped(payload, EACH, rng)]
    assert not all(accepted)
    assert len(accepted) * len(CASES) >= FLIPPED


def most_allocated(codec, payloads, n):
    """The most bytes that were there at a time while one of the payloads was read."""
    most = 0
    tracemalloc.start(1)
    try:
        for payload in payloads:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            read(codec, payload, n)
            most = max(most, tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    return most


@every_case
def test_what_flipped_bits_allocate(name):
    """Of a sample: to be told so makes it five times as slow."""
    codec, n, payload = CASES[name]
    damaged = flipped(payload, 100, np.random.default_rng(list(name.encode())))
    assert most_allocated(codec, damaged, n) <= 64 * n + 8192


BOMB = np.frombuffer(zstandard.ZstdCompressor().compress(bytes(1 << 24)), np.uint8)


@every_case
@pytest.mark.parametrize("k", [1, 1 << 24, 2**32 - 1])
def test_what_unpacks_to_much_more_is_not_unpacked(name, k):
    codec, n, payload = CASES[name]
    bomb = np.append(payload[:HEADER_NBYTES], BOMB)
    bomb[5] = Flag.ZSTD
    bomb[12:20].view(np.uint32)[:] = k, 1 << 24
    assert not read(codec, bomb, n)
    assert most_allocated(codec, [bomb], n) <= 64 * n + 8192


@pytest.mark.parametrize("values", [0, 4 * 96])
def test_gaps_that_unpack_to_much_more_are_not_unpacked(values):
    """The frame inside of a top-k payload; also where the payload is compressed once more."""
    n, codec = 20_000, parse("topk:0.01")
    for coding in CODINGS:
        body = np.concatenate([np.zeros(values + 4, np.uint8), BOMB])
        payload = np.append(np.zeros(HEADER_NBYTES, np.uint8), body)
        header = wire.PayloadHeader(codec.code, n, 96, body.size, 1, 0, coding)
        wire.write_header(payload, header)
        for forged in (payload, zstd_of(payload)):
            assert not read(codec, forged, n)
            assert most_allocated(codec, [forged], n) <= 64 * n + 8192


@every_case
def test_truncations_and_extensions(name):
    codec, n, payload = CASES[name]
    for size in range(payload.size):
        assert not read(codec, payload[:size], n), size
    for more in (1, 4, 1000):
        assert not read(codec, np.append(payload, np.zeros(more, np.uint8)), n), more
    for other in (0, 1, n - 1, n + 1, 2 * n, 2**32 - 1):
        assert other == n or not read(codec, payload, other), other


@every_case
def test_no_damage_of_a_few_bits_passes_the_checksum(name):
    codec, n, payload = CASES[name]
    sealed = payload.copy()
    wire.seal(sealed)
    assert read(codec, sealed, n)
    rng = np.random.default_rng(1)
    for damaged in flipped(sealed, 200, rng, spare=()):
        assert (
            (damaged == sealed).all() or not damaged[CHECKSUM].any() or not read(codec, damaged, n)
        )
