"""Indices come back as they were written, cost what they may, and hostile bytes are refused."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from psgrad.codecs import classes, gaps, indices
from psgrad.codecs.base import Workspace
from psgrad.codecs.indices import BITMAP, CLASSES, ELIAS_FANO, GAPS
from psgrad.errors import WireError
from psgrad.kernels import fields


def written(where, n):
    """(coding, bytes) of the indices; nothing is written behind them."""
    where = np.asarray(where, np.int64)
    out = np.full(indices.nbytes_max(n, where.size) + 8, 0xA5, np.uint8)
    coding, nbytes = indices.write(where, n, out[:-8], Workspace())
    assert (out[nbytes:] == 0xA5).all()
    return coding, out[:nbytes].copy()


def uniform(n, k, seed=0):
    return np.sort(np.random.default_rng(seed).choice(n, k, replace=False))


def runs(n, k, mean, seed=0):
    """About k indices in runs of neighbours, of random lengths and at random places."""
    rng = np.random.default_rng(seed)
    starts = 2 * mean * rng.choice(n // (2 * mean), k // mean, replace=False)
    lengths = np.minimum(rng.geometric(1 / mean, starts.size), 2 * mean)
    runs = zip(starts, lengths, strict=True)
    return np.sort(np.concatenate([np.arange(start, start + length) for start, length in runs]))


def layers(n, ratio, size, spread, seed=0):
    """As from layers of ``size`` elements whose gradients have different scales."""
    rng = np.random.default_rng(seed)
    density = np.repeat(np.exp(rng.normal(0, spread, n // size)), size)
    return np.flatnonzero(rng.random(density.size) < ratio * density / density.mean())


def rows_and_columns(shape, ratio, spread, seed=0):
    """Top-k of a matrix whose rows and columns have different scales."""
    rng = np.random.default_rng(seed)
    v = np.abs(rng.standard_normal(shape))
    v *= np.exp(rng.normal(0, spread, (shape[0], 1))) * np.exp(rng.normal(0, spread, shape[1]))
    return np.sort(np.argpartition(v.ravel(), -int(ratio * v.size))[-int(ratio * v.size) :])


def entropy(numbers):
    """Bits a number, of zero order."""
    counts = np.unique(numbers, return_counts=True)[1]
    return float(-(counts / numbers.size) @ np.log2(counts / numbers.size))


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 31, 32, 33, 255, 4095, 4096, 4097, 10**6])
@pytest.mark.parametrize("ratio", [0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_round_trip(n, ratio):
    where = uniform(n, round(ratio * n))
    coding, body = written(where, n)
    np.testing.assert_array_equal(indices.read(coding, body, n, where.size), where)


@given(
    st.integers(1, 3000).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1))))
)
def test_round_trip_of_any_set(case):
    n, where = case[0], sorted(case[1])
    coding, body = written(where, n)
    assert indices.read(coding, body, n, len(where)).tolist() == where


@given(st.integers(0, 2**32 - 1), st.integers(64, 400), st.floats(0.01, 8))
def test_round_trip_of_clusters(seed, k, scale):
    gaps = np.random.default_rng(seed).lognormal(0, scale, k).astype(np.int64) + 1
    where = np.cumsum(np.minimum(gaps, 10**7)) - 1
    n = int(where[-1]) + 1
    coding, body = written(where, n)
    np.testing.assert_array_equal(indices.read(coding, body, n, k), where)


# What they cost


@pytest.mark.parametrize("ratio", [0.001, 0.01])
@pytest.mark.parametrize("n", [1 << 20, 1 << 23])
def test_uniform_indices_cost_their_entropy_and_little_more(n, ratio):
    k = round(n * ratio)
    p = k / n
    bound = (-p * math.log2(p) - (1 - p) * math.log2(1 - p)) / p
    assert bound < 8 * written(uniform(n, k), n)[1].size / k <= bound + 0.6


CLUSTERS: dict[str, tuple[int, Callable[[int], np.ndarray]]] = {
    "runs of 4": (1 << 20, lambda n: runs(n, n // 100, 4)),
    "runs of 16": (1 << 20, lambda n: runs(n, n // 100, 16)),
    "runs of 64": (1 << 20, lambda n: runs(n, n // 100, 64)),
    "one run": (1 << 20, lambda n: np.arange(5000, 15000)),
    "small layers": (1 << 20, lambda n: layers(n, 0.01, 1 << 10, 2.0)),
    "layers": (1 << 20, lambda n: layers(n, 0.01, 1 << 14, 2.0)),
    "mild layers": (1 << 20, lambda n: layers(n, 0.01, 1 << 14, 1.0)),
    "large layers": (1 << 23, lambda n: layers(n, 0.01, 1 << 17, 2.0)),
    "sparse layers": (1 << 24, lambda n: layers(n, 0.001, 1 << 16, 2.0)),
    "dense layers": (1 << 20, lambda n: layers(n, 0.1, 1 << 14, 2.0)),
    "rows": (1 << 20, lambda n: rows_and_columns((n >> 14, 1 << 14), 0.01, 1.0)),
    "rows and columns": (1 << 20, lambda n: rows_and_columns((1 << 10, n >> 10), 0.01, 1.0)),
    "embedding rows": (
        1 << 20,
        lambda n: (64 * uniform(n >> 6, 160)[:, None] + np.arange(64)).ravel(),
    ),
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_clustered_indices_cost_the_entropy_of_their_gaps_and_little_more(name):
    n, make = CLUSTERS[name]
    where = make(n)
    coding, body = written(where, n)
    assert 8 * body.size / where.size <= entropy(np.diff(where, prepend=-1)) + 0.6
    np.testing.assert_array_equal(indices.read(coding, body, n, where.size), where)


# Few gaps have less entropy than what they are drawn from: of 1000 gaps that are all different it
# is 10 bits, whatever they are. So what they cost is held against a code that knows the source.


def test_the_entropy_of_few_gaps_is_no_bound():
    """Not even for uniform positions, of which no code can do with less than log2 of their number.

    For 1000 of a million that is 11.4 bits, where the entropy of their gaps is 9.5.
    """
    n, k = 1 << 20, 1 << 10
    possible = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    assert entropy(np.diff(uniform(n, k), prepend=-1)) + 0.6 < possible / math.log(2) / k


def geometric(mean, gap):
    return (mean / (1 + mean)) ** gap / (1 + mean)


def lognormal(mean, spread, gap):
    middle = math.log(mean + 1) - spread**2 / 2
    return np.exp(-((np.log(gap + 1) - middle) ** 2) / (2 * spread**2)) / (gap + 1)


SOURCES = {  # the probabilities of gaps, by their mean
    "uniform": geometric,
    "mild": lambda mean, gap: geometric(mean / 2, gap) + geometric(1.5 * mean, gap),
    "bursts": lambda mean, gap: 0.8 * geometric(mean / 20, gap) + 0.2 * geometric(4.8 * mean, gap),
    "long bursts": lambda mean, gap: 0.97 * geometric(2, gap) + 0.03 * geometric(33 * mean, gap),
    "log-normal": lambda mean, gap: lognormal(mean, 1.0, gap),
    "wide log-normal": lambda mean, gap: lognormal(mean, 2.0, gap),
    "pairs": lambda mean, gap: 0.5 * (gap == 0) + 0.5 * geometric(2 * mean, gap),
    "runs of 4": lambda mean, gap: 0.75 * (gap == 0) + 0.25 * geometric(4 * mean, gap),
    "runs of 20": lambda mean, gap: 0.95 * (gap == 0) + 0.05 * geometric(20 * mean, gap),
    "columns": lambda mean, gap: (gap % (mean // 4) == mean // 9) & (gap < 2 * mean),
}


def drawn(source, mean, k, seed):
    """(indices, n, bits an index for who knows the source) of k gaps with that mean."""
    gap = np.arange(60.0 * mean)
    chances = SOURCES[source](mean, gap) + np.zeros_like(gap)
    chances /= chances.sum()
    rng = np.random.default_rng(seed)
    sample = rng.choice(gap.size, k, p=chances)
    where = np.cumsum(sample + 1) - 1
    n = max(int(where[-1]) + 1, k * (mean + 1))
    return where, n, -float(np.log2(chances[sample]).mean())


@pytest.mark.parametrize("k", [500, 1000, 3000, 10_000, 30_000])
@pytest.mark.parametrize("mean", [99, 999])
@pytest.mark.parametrize("source", SOURCES)
def test_few_indices_too_cost_little_more_than_their_source_has(source, mean, k):
    seeds = range(10 if k < 2000 else 2)
    excess = []
    for where, n, least in (drawn(source, mean, k, seed) for seed in seeds):
        coding, body = written(where, n)
        np.testing.assert_array_equal(indices.read(coding, body, n, k), where)
        excess.append(8 * body.size / k - least)
    assert np.mean(excess) <= 0.6


@pytest.mark.parametrize(
    ("where", "n", "coding"),
    [
        (uniform(10**6, 10**4), 10**6, ELIAS_FANO),
        (uniform(1000, 10), 1000, ELIAS_FANO),
        (uniform(10**5, 100), 10**5, ELIAS_FANO),
        (runs(10**6, 10**4, 16), 10**6, CLASSES),
        (runs(10**5, 100, 16), 10**5, CLASSES),
        (layers(1 << 20, 0.001, 1 << 14, 2.0), 1 << 20, CLASSES),
        (layers(1 << 22, 0.01, 1 << 14, 2.0), 1 << 22, GAPS),
        (uniform(10**5, 50_000), 10**5, BITMAP),
        (np.arange(33), 33, BITMAP),
        (np.arange(0, 10**6, 100), 10**6, GAPS),
    ],
)
def test_the_coding_that_costs_least_is_taken(where, n, coding):
    assert written(where, n)[0] == coding


@pytest.mark.parametrize("mean", [3, 30, 99, 999])
def test_uniform_indices_are_not_taken_for_others(mean):
    """They would be a little shorter by classes, but not worth the time."""
    cases = [
        drawn("uniform", mean, k, seed)[:2] for k in (64, 256, 1000, 5000) for seed in range(20)
    ]
    codings = [written(*case)[0] for case in cases]
    assert codings.count(GAPS) + codings.count(CLASSES) <= 0.05 * len(cases)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 33, 100, 257])
def test_the_bound_holds_for_fewer_indices_too(n):
    sizes = [min(indices.elias_fano_nbytes(n, k), (n + 7) // 8) for k in range(n + 1)]
    for k in range(1, n + 1):
        assert max(sizes[: k + 1]) <= indices.nbytes_max(n, k) <= sizes[k] + 2


def test_a_second_call_allocates_only_for_the_indices():
    import tracemalloc

    n, k = 1 << 22, 1 << 12
    where, work = uniform(n, k), Workspace()
    out = np.zeros(indices.nbytes_max(n, k), np.uint8)
    indices.write(where, n, out, work)
    tracemalloc.start()
    indices.write(where, n, out, work)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * k


# The bytes of format 1


@pytest.mark.parametrize(
    ("where", "n", "coding", "text"),
    [
        # l = 7: fields 3, 47, 113, 127, 104; bits 0, 1, 2, 3 and 7 + 4 are set
        ([3, 47, 113, 127, 1000], 1024, ELIAS_FANO, "8357fc8f060f08"),
        # l = 9: fields 0x005, 0x0bc, 0x1dc, first their low bytes; bits 0, 1 + 1 and 2 + 2 are set
        ([5, 700, 1500], 2000, ELIAS_FANO, "05bcdc0415"),
        ([0, 1, 2, 4, 9], 10, BITMAP, "1702"),
    ],
)
def test_golden_bytes(where, n, coding, text):
    body = np.frombuffer(bytes.fromhex(text), np.uint8)
    assert (written(where, n)[0], written(where, n)[1].tolist()) == (coding, body.tolist())
    assert indices.read(coding, body, n, len(where)).tolist() == where


def gaps_of(where):
    """The number of runs, or 0, and the numbers that are written, as the documentation says it."""
    steps = np.diff(where, prepend=-2) - 1
    starts = np.flatnonzero(steps)
    if 2 * starts.size > len(where):
        return 0, [steps.astype(np.uint32)]
    lengths = np.diff(starts, append=len(where))
    return starts.size, [np.uint32(steps[starts] - 1), np.uint32(lengths - 1)]


def gaps_body(runs, planes):
    """Coding 2 around any bytes; zstd's own bytes differ from version to version."""
    frame = zstandard.ZstdCompressor().compress(bytes.fromhex(planes))
    return np.frombuffer(struct.pack("<I", runs) + frame, np.uint8)


def class_body(runs, text):
    return np.frombuffer(struct.pack("<I", runs) + bytes.fromhex(text), np.uint8)


@pytest.mark.parametrize(
    ("where", "runs", "planes"),
    [
        ([0, 2, 4], 0, "010101"),  # the first gap is one more
        ([4, 5, 305], 0, "0500ab 02"),
        ([5, 6, 7, 8, 9, 1000, 1001], 2, "05dd 07 04 01"),
        ([2, 3, 4, 5], 1, "02 03"),
    ],
)
def test_golden_gaps(where, runs, planes):
    body = gaps_body(runs, planes)
    assert indices.read(GAPS, body, 2000, len(where)).tolist() == where
    assert gaps_of(where)[0] == runs
    plain = zstandard.ZstdDecompressor().decompress(gaps._frame(gaps_of(where)[1]))
    assert plain == bytes.fromhex(planes)


@pytest.mark.parametrize(
    ("where", "runs", "text"),
    [
        # The gaps 5, 0, 1, 2, 9, 1 are of classes 3, 0, 1, 2, 4, 1. The classes' codes are 110, 00,
        # 111, 01, 10: first bits 010110, second ones 110100, third ones 01. By class, the numbers
        # are 0, 1, 1, 2, 5, 9: lowest bits 011 from 2 on, then 00, then 0.
        ([4, 5, 7, 10, 20, 22], 0, "05 232302 daa201"),
        # One class, whose code has no bits: 0110 and 0011 are those of 4, 5, 7, 6 below the leading
        # ones.
        ([3, 9, 17, 24], 0, "04 0000 c6"),
        # Two runs: 5 and 989 are skipped, codes 0 and 1, then 11, 00, and 1110111 of 989 alone; 4
        # and 1 more are in them, codes 1 and 0, then 0, 0 of 4.
        ([5, 6, 7, 8, 9, 1000, 1001], 2, "0b 001000000001 04 1010 ce3d00"),
    ],
)
def test_golden_classes(where, runs, text):
    body = struct.pack("<I", runs) + bytes.fromhex(text)
    assert indices.read(CLASSES, np.frombuffer(body, np.uint8), 2000, len(where)).tolist() == where
    sequences = gaps_of(where)[1]
    assert classes.write(sequences, [False] * len(sequences)).hex() == bytes.fromhex(text).hex()


def test_golden_values():
    """By value, gaps of 3, 40 and 41: codes 0, 10 and 11.

    First the steps 3, 37, 1 to the values, of classes 2, 6, 1: codes 11, 0, 10, so 101, 10; then,
    by class, 1, 3, 37: 11 of 3 and 37, and 0100 of 37. Then the gaps: 0001010, 10.
    """
    where, text = [2, 6, 10, 52, 56, 97, 101], "00 02 2102 07 20020001 6d4105"
    body = np.frombuffer(struct.pack("<I", 0) + bytes.fromhex(text), np.uint8)
    assert indices.read(CLASSES, body, 200, 7).tolist() == where
    sequences = gaps_of(where)[1]
    assert sequences[0].tolist() == [3, 3, 3, 41, 3, 40, 3]
    assert classes.write(sequences, [True]).hex() == bytes.fromhex(text).hex()


# Hostile bytes


@pytest.mark.parametrize(
    ("coding", "body", "n", "k", "text"),
    [
        (0, b"", 10, 1, "unknown coding 0"),
        (5, b"", 10, 1, "unknown coding 5"),
        (ELIAS_FANO, b"\0" * 4, 1000, 2, "have 3 bytes, got 4"),
        (ELIAS_FANO, b"\0" * 3, 1000, 2, "0 bits are set for 2"),
        (BITMAP, b"\0", 10, 1, "2 bytes, got 1"),
        (BITMAP, b"\3\0", 10, 1, "2 bits are set for 1"),
        (GAPS, b"", 10, 1, "at least 4 bytes"),
        (GAPS, struct.pack("<I", 3), 10, 5, "declared to have 3 runs"),
        (GAPS, struct.pack("<I", 0), 10, 5, "zstd"),
        (GAPS, gaps_body(0, "00" * 26), 10, 5, "26 bytes, the limit is 25"),
        (GAPS, gaps_body(0, "01"), 10, 2, "end early"),
        (GAPS, gaps_body(0, "0181"), 10, 2, "end early"),
        (GAPS, gaps_body(0, "01 81 81 81 81 81"), 10, 2, "more than 5 bytes"),
        (GAPS, gaps_body(0, "010000"), 10, 2, "1 bytes too many"),
        (GAPS, gaps_body(0, "0009"), 10, 2, "not strictly increasing"),
        (GAPS, gaps_body(0, "0a01"), 10, 2, "not strictly increasing below 10"),
        (GAPS, gaps_body(1, "0002"), 10, 4, "runs of 3 indices, expected 4"),
        (GAPS, gaps_body(1, "0009"), 10, 4, "runs of 10 indices, expected 4"),
        (CLASSES, b"\0\0\0", 10, 4, "at least 4 bytes"),
        (CLASSES, class_body(3, "0100 00"), 10, 5, "declared to have 3 runs"),
        (CLASSES, class_body(0, ""), 10, 4, "1 to 33 classes, got 0"),
        (CLASSES, class_body(0, "22"), 10, 4, "1 to 33 classes, got 34"),
        (CLASSES, class_body(0, "0501"), 10, 4, "ends early"),
        (CLASSES, class_body(0, "0201"), 10, 4, "no code of 2 symbols"),
        (CLASSES, class_body(0, "0311 01"), 10, 4, "no code of 3 symbols"),
        (CLASSES, class_body(0, "0110"), 10, 4, "no code of 1 symbols"),
        (CLASSES, class_body(0, "0211"), 10, 4, "end early"),
        (CLASSES, class_body(0, "0211 0e00"), 10, 4, "12 bits too many"),
        (CLASSES, class_body(0, "0211 1e"), 10, 4, "4 bits too many"),
        (CLASSES, class_body(0, "0300 00"), 10, 4, "bits too many|end early"),
        (CLASSES, class_body(0, "00"), 10, 4, "1 to 33 classes, got 0"),
        (CLASSES, class_body(0, "0001 11"), 10, 4, "1 to 33 classes, got 0"),
        (CLASSES, class_body(0, "00ff 11"), 10, 4, "ends early"),
        (CLASSES, class_body(0, "0000 00 00"), 10, 4, "1 to 33 classes, got 0"),
        (CLASSES, class_body(0, "0211 01"), 3, 4, "not strictly increasing below 3"),
        (CLASSES, class_body(1, "0100 030000 00"), 10, 4, "runs of 3 indices, expected 4"),
    ],
)
def test_what_cannot_be_is_refused(coding, body, n, k, text):
    with pytest.raises(WireError, match=text):
        indices.read(coding, np.frombuffer(bytes(body), np.uint8), n, k)


def test_the_largest_gaps_do_not_wrap():
    """Two numbers of 32 bits each, so that the second index is beyond n, and no more."""
    body = class_body(0, "21" + 17 * "00" + "ff" * 7 + "3f")
    with pytest.raises(WireError, match="not strictly increasing below 1000"):
        indices.read(CLASSES, body, 1000, 2)


def test_nothing_may_follow_the_frame():
    body = np.append(gaps_body(0, "0101"), np.uint8(0))
    assert indices.read(GAPS, body[:-1], 10, 2).tolist() == [0, 2]
    with pytest.raises(WireError, match="zstd"):
        indices.read(GAPS, body, 10, 2)


def test_a_frame_that_grows_is_not_unpacked():
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    with pytest.raises(WireError, match=r"67108864 bytes, the limit is 320"):
        indices.read(GAPS, np.frombuffer(struct.pack("<I", 0) + bomb, np.uint8), 1000, 64)


@pytest.mark.parametrize(
    ("where", "n"),
    [
        (uniform(5000, 70), 5000),
        (np.arange(0, 7000, 100), 7000),
        (uniform(300, 170), 300),
        (layers(8192, 0.05, 512, 2.0), 8192),
        (runs(5000, 100, 8), 5000),
        (drawn("columns", 99, 300, 0)[0], 32000),
    ],
    ids=["Elias-Fano", "gaps", "bitmap", "classes", "runs", "values"],
)
def test_flipped_bits_are_refused_or_give_indices(where, n):
    coding, body = written(where, n)
    rng = np.random.default_rng(1)
    accepted = 0
    for _ in range(3000):
        flipped = body.copy()
        for at in rng.integers(0, 8 * body.size, rng.integers(1, 4)):
            flipped[at // 8] ^= 1 << at % 8
        try:
            got = indices.read(coding, flipped, n, where.size)
        except WireError:
            continue
        accepted += 1
        assert got.size == where.size
        assert got[0] >= 0
        assert got[-1] < n
        assert (np.diff(got) > 0).all()
    assert accepted < 3000
    for size in range(body.size):
        with pytest.raises(WireError):
            indices.read(coding, body[:size], n, where.size)


# Bit fields


@pytest.mark.parametrize("width", [0, 1, 3, 6, 7, 8, 9, 12, 15, 16, 22, 31])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000, 1023, 1024, 1025, 5000])
def test_fields_come_back(n, width):
    numbers = np.random.default_rng(n).integers(0, 1 << 40, n)
    packed = np.zeros(fields.packed_nbytes(n, width), np.uint8)
    fields.pack(numbers, width, packed)
    np.testing.assert_array_equal(fields.unpack(packed, n, width), numbers & (1 << width) - 1)


@pytest.mark.parametrize("width", range(1, 8))
def test_fields_are_packed_from_the_lowest_bit(width):
    numbers = np.random.default_rng(width).integers(0, 1 << width, 3000)
    bits = (numbers[:, None] >> np.arange(width)) & 1
    expected = np.packbits(bits.astype(np.uint8).ravel(), bitorder="little")
    for n in (500, 3000):  # by bits, by words
        packed = np.zeros(fields.packed_nbytes(n, width), np.uint8)
        fields.pack(numbers[:n], width, packed)
        np.testing.assert_array_equal(packed[:-1], expected[: packed.size - 1])
