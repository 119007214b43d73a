"""The stateless hash: golden numbers, an independent twin, and what makes numbers random enough."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.kernels.hashing import PIECE, dither, stream, uniform32

N = 1 << 16


def numbers(key, start, n):
    out = np.zeros(n, np.uint32)
    uniform32(key, start, out, np.zeros(min(n, PIECE), np.uint32))
    return out


def noise(key, start, n):
    out = np.zeros(n, np.float32)
    dither(key, start, out, np.zeros(n + 2, np.uint32))
    return out


# The formulas of the module's docstring in Python's integers, element by element


def mix64(z):
    z = (z + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def twin(seed, worker, step, element):
    key = mix64(mix64(mix64(mix64(seed) ^ worker) ^ step) + (element >> 32))
    k1, k0 = divmod(key, 2**32)
    x = (0x9E3779B9 * element + k0) % 2**32
    x = ((x ^ x >> 17) * 0xED5AD4BB + k1) % 2**32
    x = (x ^ x >> 11) * 0xAC4C1B51 % 2**32
    x = (x ^ x >> 15) * 0x31848BAB % 2**32
    return x ^ x >> 14


TOP = 2**64 - 1
GOLDEN = [
    ((0, 0, 0), 0, ["43421f26", "3f77cd43", "bb891812", "dbbee7da"]),
    ((1, 2, 3), 2**32 - 2, ["b1f96724", "1c7e2693", "1112eb27", "6d76e004"]),
    ((TOP, 2**32 - 1, TOP), 2**40, ["f98ec9e6", "180bd994", "47fd28ba", "de6ac9f7"]),
]


@pytest.mark.parametrize(("key", "start", "expected"), GOLDEN)
def test_golden_numbers(key, start, expected):
    assert [f"{x:08x}" for x in numbers(stream(*key), start, len(expected))] == expected


def test_golden_noise():
    x = noise(stream(1, 2, 3), 5, 6) * 65536
    assert x.tolist() == [10525, -503, -27001, -24691, -27797, -557]


keys = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
starts = st.one_of(
    st.integers(0, 2**40),
    st.integers(0, 2**8).map(lambda high: (high << 32) - 3),
    st.sampled_from([0, PIECE - 1, PIECE, 2**32 - 1, 2**33 - 1, 2**40]),
).filter(lambda start: start >= 0)


@given(keys, starts, st.integers(0, 9))
def test_each_number_is_that_of_the_formula(key, start, n):
    expected = [twin(*key, start + i) for i in range(n)]
    assert numbers(stream(*key), start, n).tolist() == expected


@given(keys, starts, st.integers(0, 9))
def test_each_noise_is_a_half_of_the_number_that_two_elements_share(key, start, n):
    halves = [twin(*key, e >> 1) >> 16 * (e & 1) & 0xFFFF for e in range(start, start + n)]
    signed = [(r | 1) - (65536 if r >= 32768 else 0) for r in halves]
    assert (noise(stream(*key), start, n) * 65536).tolist() == signed


@settings(max_examples=20)
@given(keys, starts, st.lists(st.integers(0, 2 * PIECE), min_size=1, max_size=3))
def test_pieces_are_the_whole(key, start, sizes):
    key, cuts = stream(*key), list(itertools.accumulate([start, *sizes]))
    whole = numbers(key, start, sum(sizes))
    pieces = [numbers(key, a, b - a) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))
    whole = noise(key, start, sum(sizes))
    pieces = [noise(key, a, b - a) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))


# Statistics. Every figure is compared with its expectation in units of its own sigma; all are
# drawn from fixed keys, so a test that passes once always passes.

STREAMS = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2**63, 999, 10**6), (12345, 7, 2**40)]
SIGMAS = 4.5


def bits_of(x):
    return np.unpackbits(x.view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")


def correlation(a, b):
    """Of uniform numbers, in sigma."""
    a, b = (x.astype(np.float64) / 2**32 - 0.5 for x in (a, b))
    return 12 * (a * b).sum() / np.sqrt(a.size)


@pytest.mark.parametrize("key", STREAMS)
def test_numbers_are_uniform(key):
    x = numbers(stream(*key), 0, N)
    assert abs(x.mean() / 2**32 - 0.5) < SIGMAS / np.sqrt(12 * N)
    assert abs(bits_of(x).mean(axis=0) - 0.5).max() < SIGMAS / np.sqrt(4 * N)
    for shift in (0, 8, 16, 24):
        counts = np.bincount(x >> shift & 0xFF, minlength=256)
        chi2 = ((counts - N / 256) ** 2).sum() / (N / 256)
        assert abs(chi2 - 255) < SIGMAS * np.sqrt(2 * 255)


@pytest.mark.parametrize("key", STREAMS)
def test_bits_of_a_number_do_not_depend_on_each_other(key):
    bits = bits_of(numbers(stream(*key), 0, N)) - 0.5
    pairs = bits.T @ bits * 4 / np.sqrt(N)
    np.fill_diagonal(pairs, 0)
    assert abs(pairs).max() < SIGMAS + 0.5  # the largest of 496


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 7, 8, 16, 64, 256, 1024, 4096, PIECE])
def test_neighbours_are_independent(lag):
    for key in STREAMS:
        x = numbers(stream(*key), 0, N + lag)
        assert abs(correlation(x[lag:], x[:-lag])) < SIGMAS
        bits = bits_of(x[lag:] ^ x[:-lag]).mean(axis=0)
        assert abs(bits - 0.5).max() < (SIGMAS + 0.5) / np.sqrt(4 * N)


@pytest.mark.parametrize(
    "others",
    [
        [stream(3, worker, 5) for worker in range(40)],
        [stream(3, 4, step) for step in range(40)],
        [stream(seed, 4, 5) for seed in range(40)],
        [stream(3, 1 << i, 5) for i in range(32)],
        [stream(3, i, i) for i in range(40)],
        [stream(i, 40 - i, 5) for i in range(40)],
    ],
    ids=["workers", "steps", "seeds", "bits", "diagonal", "antidiagonal"],
)
def test_streams_are_independent(others):
    """The sum of m independent uniform streams has m times their variance, at every element."""
    assert len(set(others)) == len(others)
    x = np.stack([numbers(key, 0, 1 << 14) for key in others]) / 2**32 - 0.5
    pairs = 12 * (x @ x.T) / np.sqrt(x.shape[1])
    np.fill_diagonal(pairs, 0)
    assert abs(pairs).max() < SIGMAS + 0.5
    variance = (x.sum(axis=0) ** 2).mean() / len(others) * 12
    assert abs(variance - 1) < SIGMAS * np.sqrt(2 / x.shape[1])


def test_no_stream_is_a_piece_of_another():
    """Nor a shifted one: of 32 streams of 2^12 numbers all are different, but for chance."""
    x = np.concatenate([numbers(stream(0, worker, 0), 0, 1 << 12) for worker in range(32)])
    repeated = x.size - np.unique(x).size
    expected = x.size**2 / 2 / 2**32
    assert repeated < expected + SIGMAS * np.sqrt(expected)


def test_the_high_word_of_the_element_is_in_the_key():
    key = stream(1, 2, 3)
    x = np.stack([numbers(key, high << 32, 1 << 14) for high in range(8)])
    assert max(abs(correlation(a, b)) for a, b in itertools.combinations(x, 2)) < SIGMAS


def test_each_bit_of_the_element_flips_each_bit_of_the_number_half_of_the_time():
    key, start = stream(1, 2, 3), 1 << 20
    x = numbers(key, start, 1 << 14)
    for bit in range(40):
        inside = bit < 14
        y = x[np.arange(x.size) ^ 1 << bit] if inside else numbers(key, start ^ 1 << bit, x.size)
        flips = bits_of(x ^ y).mean(axis=0)
        assert abs(flips - 0.5).max() < 6 / np.sqrt(4 * x.size), bit


@pytest.mark.parametrize("start", [0, 1])
def test_noise_is_uniform_between_minus_and_plus_a_half(start):
    x = noise(stream(1, 2, 3), start, 1 << 20)
    assert abs(x).max() <= 0.5 - 2**-16
    assert abs(x.mean()) < SIGMAS / np.sqrt(12 * x.size)
    assert abs(x.var() * 12 - 1) < SIGMAS * np.sqrt(0.8 / x.size)
    assert abs((x[1:] * x[:-1]).mean() * 12) < SIGMAS / np.sqrt(x.size)
    counts = np.bincount(((x + 0.5) * 1024).astype(int), minlength=1024)
    chi2 = ((counts - 1024) ** 2).sum() / 1024
    assert abs(chi2 - 1023) < SIGMAS * np.sqrt(2 * 1023)


def test_noise_is_evenly_spaced_and_of_mean_zero():
    """All 2^16 halves give each odd multiple of 2^-16 twice: the mean of round(t + noise) is t."""
    r = np.arange(-32768, 32768) | 1
    assert np.array_equal(np.unique(r), np.arange(-32767, 32768, 2))
    assert r.sum() == 0
