"""``topk`` and ``randk``: what is sent, what stays, what it costs, and hostile payloads."""

from __future__ import annotations

import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from psgrad.codecs import wire
from psgrad.codecs.base import BLOCK, Key, Workspace, write_into
from psgrad.codecs.randk import RandK
from psgrad.codecs.raw import raw_nbytes
from psgrad.codecs.sparse import BF16, INT8, LEVELS, SCALES, VALUES, read_values, write_values
from psgrad.codecs.topk import TopK
from psgrad.codecs.wire import HEADER_NBYTES, Flag
from psgrad.errors import ConfigError, WireError

KEY = Key(seed=1, worker=2, step=3, start=4096)
SIZES = [0, 1, 31, 32, 33, 4095, 4096, 4097, 10**6]
CODECS = [
    *(TopK(ratio, values) for ratio in (0.001, 0.01, 0.1) for values in VALUES),
    *(TopK(0.01, values, "threshold") for values in VALUES),
    TopK(1.0),
    TopK(0.01, warmup=10),
    RandK(0.001),
    RandK(0.1),
    RandK(1.0),
]


def name_of(codec):
    return "-".join(str(field) for field in (codec.name, *vars(codec).values()))


def gaussian(n, seed=0):
    return np.random.default_rng(seed).standard_normal(n, np.float32)


def sent(codec, x, residual=None, key=KEY, work=None):
    """The payload; nothing is written beyond ``nbytes_max``, and x stays as it is."""
    out = np.full(codec.nbytes_max(x.size) + 8, 0xA5, np.uint8)
    before = x.copy()
    nbytes = codec.encode(x, residual, out[:-8], key, work or Workspace())
    assert nbytes <= codec.nbytes_max(x.size)
    assert (out[-8:] == 0xA5).all()
    assert x.tobytes() == before.tobytes()
    return out[:nbytes].copy()


def received(codec, payload, n):
    out = np.full(n, np.nan, np.float32)
    write_into(codec.open(payload, n), out)
    return out


def largest(v, k):
    """The naive twin of exact top-k: v, and 0 where it is not among the k first of a full sort."""
    order = np.lexsort((np.arange(v.size), -np.abs(v.astype(np.float64))))
    kept = np.zeros_like(v)
    kept[order[:k]] = v[order[:k]]
    return kept


# What is sent and what stays


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("codec", CODECS, ids=name_of)
def test_what_is_not_sent_stays_in_the_residual(codec, n):
    x, residual = gaussian(n, 1), gaussian(n, 2)
    v = x + residual
    got = received(codec, sent(codec, x, residual), n)
    assert np.count_nonzero(got) > 0 or n == 0
    np.testing.assert_allclose(got + residual, v, rtol=1e-6, atol=0)
    if not isinstance(codec, RandK):
        np.testing.assert_array_equal(received(codec, sent(codec, v), n), got)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.1])
def test_top_k_sends_the_largest(n, ratio):
    v = np.round(gaussian(n) * 20) / 20  # with ties
    np.testing.assert_array_equal(
        received(TopK(ratio), sent(TopK(ratio), v), n),
        v if TopK(ratio).nbytes_max(n) == raw_nbytes(n) else largest(v, TopK(ratio).count(n, 0)),
    )


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("values", VALUES)
@given(v=arrays(np.float32, st.integers(60, 90), elements=FINITE))
def test_top_k_of_any_vector(values, v):
    codec = TopK(0.1, values)
    residual = np.zeros_like(v)
    got = received(codec, sent(codec, v, residual), v.size)
    kept = largest(v, codec.count(v.size, 0))
    assert np.isfinite(got).all()
    assert not got[kept == 0].any()
    np.testing.assert_array_equal(residual[kept == 0], v[kept == 0])
    rounding = {"float32": 0.0, "bf16": 2.0**-8, "int8": 0.0}[values]
    steps = np.abs(kept).max() / 253 + 1e-38 if values == "int8" else 1e-40
    np.testing.assert_allclose(got, kept, rtol=rounding, atol=steps)
    np.testing.assert_allclose(got + residual, v, rtol=1e-6, atol=1e-40)


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -1e-39, 3.0, -3.4e38])
def test_constants(codec, value):
    n = 1000
    x, residual = np.full(n, value, np.float32), np.zeros(n, np.float32)
    payload = sent(codec, x, residual)
    got = received(codec, payload, n)
    np.testing.assert_allclose(got + residual, x, rtol=1e-6, atol=0)
    if codec.nbytes_max(n) < raw_nbytes(n) and value == 0:
        assert payload.size == HEADER_NBYTES
        assert payload[5] == Flag.ZERO


def test_zeros_are_not_sent():
    v = np.zeros(10**4, np.float32)
    v[[17, 5000, 9999]] = -1, 2, 3
    payload = sent(TopK(0.01), v)
    assert wire.read_header(payload, TopK.code, v.size).k == 3
    np.testing.assert_array_equal(received(TopK(0.01), payload, v.size), v)


@pytest.mark.parametrize("n", SIZES[1:])
@pytest.mark.parametrize("codec", [c for c in CODECS if c.name == "topk"], ids=name_of)
def test_contraction(codec, n):
    v = gaussian(n).astype(np.float32)
    got = received(codec, sent(codec, v, key=Key(0, 0, 10**6, 0)), n)
    k = np.count_nonzero(got)
    loss = float(((v - got).astype(np.float64) ** 2).sum())
    rounding = {"float32": 1e-6, "bf16": 2.0**-16, "int8": k / 254**2}[codec.values]
    assert loss <= (1 - k / n + rounding) * float((v.astype(np.float64) ** 2).sum())
    if codec.select == "exact":
        assert k >= codec.count(n, 10**6)


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
def test_error_feedback_loses_nothing_in_1000_steps(codec):
    n, work = 700, Workspace()
    residual = np.zeros(n, np.float32)
    total, arrived = np.zeros(n), np.zeros(n)
    for step in range(1000):
        x = gaussian(n, step) * np.float32(1 + step % 7)
        total += x
        arrived += received(codec, sent(codec, x, residual, Key(1, 0, step, 0), work), n)
    assert np.linalg.norm(arrived + residual - total) <= 1e-6 * np.linalg.norm(total)


# What a payload costs


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
@pytest.mark.parametrize("n", [0, 1, 2, 10, 30, 100, 1000])
def test_a_chunk_is_raw_where_a_packed_one_could_be_larger(codec, n):
    raw = codec.nbytes_max(n) == raw_nbytes(n)
    for v in (gaussian(n), np.zeros(n, np.float32)):
        assert (sent(codec, v)[5] == Flag.RAW) == raw


@pytest.mark.parametrize(("n", "ratio"), [(1 << 20, 0.01), (1 << 22, 0.01), (1 << 22, 0.001)])
def test_int8_values_and_their_indices_cost_17_bits_at_1_percent(n, ratio):
    payload = sent(TopK(ratio, "int8"), gaussian(n))
    assert 8 * payload.size / (ratio * n) <= (17 if ratio == 0.01 else 20.5)


def test_exact_values_at_1_percent_take_under_a_twentieth():
    n = 1 << 20
    assert sent(TopK(0.01), gaussian(n)).size < 4 * n / 75
    assert sent(RandK(0.01), gaussian(n)).size < 4 * n / 99


SOME = [TopK(0.01), TopK(0.01, "int8"), TopK(0.01, "bf16", "threshold"), RandK(0.01)]


@pytest.mark.parametrize("codec", SOME, ids=name_of)
def test_a_second_call_allocates_nothing_of_the_size_of_the_chunk(codec):
    n, work = 1 << 20, Workspace()
    x, residual = gaussian(n, 1), gaussian(n, 2)
    out = np.zeros(codec.nbytes_max(n), np.uint8)
    codec.encode(x, residual, out, KEY, work)
    tracemalloc.start()
    codec.encode(x, residual, out, KEY, work)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.6 * n  # 60 bytes an index; the chunk has 4 n


# Adding up


@pytest.mark.parametrize("codec", SOME, ids=name_of)
def test_blocks_add_up_in_any_order(codec):
    n = 5 * BLOCK + 100
    opened = codec.open(sent(codec, gaussian(n)), n)
    whole = received(codec, sent(codec, gaussian(n)), n)
    out = np.full(n, 1.0, np.float32)
    for start in (2 * BLOCK, 0, 5 * BLOCK, BLOCK, 4 * BLOCK, 3 * BLOCK):
        opened.add_to(out[start : start + BLOCK], start, np.float32(0.5), first=False)
    np.testing.assert_array_equal(out, 1 + np.float32(0.5) * whole)


def test_indices_that_several_payloads_have_add_up():
    n, shares = 3000, np.array([0.25, 0.5, 0.125], np.float32)
    vectors = [np.round(gaussian(n, seed) * 8) for seed in range(3)]
    for v in vectors:
        v[100:110] = 100
    out = np.full(n, np.nan, np.float32)
    for i, (v, share) in enumerate(zip(vectors, shares, strict=True)):
        TopK(0.01).open(sent(TopK(0.01), v), n).add_to(out, 0, share, first=i == 0)
    expected = sum(share * largest(v, 30) for v, share in zip(vectors, shares, strict=True))
    np.testing.assert_array_equal(out, expected)
    assert (out[100:110] == 87.5).all()


# The threshold and the warm-up


@pytest.mark.parametrize("n", [10**5, 10**6])
def test_a_threshold_sends_about_k_of_the_largest(n):
    codec = TopK(0.01, select="threshold")
    v = gaussian(n)
    got = received(codec, sent(codec, v), n)
    k = np.count_nonzero(got)
    assert 0.7 * n / 100 < k < 1.3 * n / 100
    np.testing.assert_array_equal(got, largest(v, k))


def test_a_threshold_never_sends_more_than_twice_as_much():
    v = np.ones(10**5, np.float32)
    got = received(TopK(0.01, select="threshold"), sent(TopK(0.01, select="threshold"), v), v.size)
    np.testing.assert_array_equal(got.nonzero()[0], np.arange(2000))


def test_the_ratio_falls_exponentially_while_warming_up():
    codec = TopK(0.001, warmup=4)
    ratios = [codec.ratio_at(step) for step in range(6)]
    assert ratios[0] == 0.25
    assert ratios[4:] == [0.001, 0.001]
    np.testing.assert_allclose(np.array(ratios[1:5]) / ratios[:4], 0.004**0.25)
    for step, k in ((0, 1000), (2, round(4000 * ratios[2])), (9, 4)):
        payload = sent(codec, gaussian(4000), key=Key(1, 0, step, 0))
        assert np.count_nonzero(received(codec, payload, 4000)) == k


def test_no_warm_up_from_a_ratio_above_a_quarter():
    assert TopK(0.5, warmup=10).ratio_at(0) == 0.5


# Elements by chance


def test_rand_k_is_unbiased():
    n, steps, codec = 256, 4000, RandK(0.1)
    v = gaussian(n)
    outs = np.array(
        [received(codec, sent(codec, v, key=Key(7, 0, step, 0)), n) for step in range(steps)]
    )
    length = n / codec_count(codec, n)
    sigma = np.abs(v) * np.sqrt((np.ceil(length) - 1) / steps)
    assert (np.abs(outs.mean(axis=0, dtype=np.float64) - v) < 5 * sigma).all()
    loss = ((outs - v) ** 2).sum(axis=1).mean()
    np.testing.assert_allclose(loss / (v**2).sum(), length - 1, rtol=0.05)


def codec_count(codec, n):
    return np.count_nonzero(received(codec, sent(codec, np.ones(n, np.float32)), n))


def test_the_error_of_the_mean_over_16_workers_is_a_16th():
    n, codec = 4096, RandK(0.02)
    v = gaussian(n)
    one, mean = 0.0, 0.0
    for step in range(30):
        outs = [
            received(codec, sent(codec, v, key=Key(7, worker, step, 0)), n) for worker in range(16)
        ]
        one += float(np.mean([((out - v) ** 2).sum() for out in outs]))
        mean += float(((np.mean(outs, axis=0) - v) ** 2).sum())
    assert 0.9 / 16 < mean / one < 1.1 / 16


@pytest.mark.parametrize(
    "other", [Key(2, 2, 3, 4096), Key(1, 3, 3, 4096), Key(1, 2, 4, 4096), Key(1, 2, 3, 0)]
)
def test_each_part_of_the_key_counts(other):
    codec, n = RandK(0.01), 10**4
    drawn = [
        received(codec, sent(codec, np.ones(n, np.float32), key=key), n)
        for key in (KEY, KEY, other)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.count_nonzero(drawn[0] * drawn[2]) < 10


@pytest.mark.parametrize("n", [100, 4097, 10**6])
@pytest.mark.parametrize("ratio", [0.003, 0.1, 0.7])
def test_rand_k_sends_exactly_k_as_they_are_or_scaled(n, ratio):
    codec, v = RandK(ratio), np.ones(n, np.float32)
    k = max(1, round(ratio * n))
    scaled = received(codec, sent(codec, v), n)
    plain = received(codec, sent(codec, v, np.zeros(n, np.float32)), n)
    assert np.count_nonzero(scaled) == np.count_nonzero(plain) == k
    np.testing.assert_array_equal(scaled.nonzero(), plain.nonzero())
    assert set(plain[plain != 0]) == {1}
    assert set(scaled[scaled != 0]) <= {n // k, -(-n // k)}


def test_what_would_be_scaled_to_infinity_stays_finite():
    got = received(RandK(0.01), sent(RandK(0.01), np.full(1000, -3e38, np.float32)), 1000)
    assert got.min() == np.finfo(np.float32).min


# Values


@pytest.mark.parametrize("kind", [BF16, INT8])
@pytest.mark.parametrize("k", [1, 127, 128, 129, 40_000])
def test_values_are_read_as_the_writer_says(kind, k):
    values, work = gaussian(k) * np.float32(7), Workspace()
    out = np.zeros(8 * k + 8, np.uint8)
    told = write_values(values, kind, out, work).copy()
    nbytes = 2 * k if kind == BF16 else k + 4 * -(-k // 128)
    assert not out[nbytes:].any()
    np.testing.assert_array_equal(read_values(out[:nbytes], kind, k), told)
    scale = np.abs(values).max() / 127
    np.testing.assert_allclose(
        told, values, rtol=2.0**-8, atol=0 if kind == BF16 else 0.5001 * scale
    )


def test_scales_are_normal_and_their_multiples_finite():
    smallest, largest = np.array(SCALES, np.float32)
    assert smallest == np.finfo(np.float32).tiny
    assert np.isfinite(np.float32(LEVELS) * largest)
    with np.errstate(over="ignore"):
        assert np.isinf(np.float32(LEVELS) * np.nextafter(largest, np.float32(np.inf)))


@pytest.mark.parametrize("kind", [BF16, INT8])
def test_the_largest_numbers_stay_finite(kind):
    values = np.finfo(np.float32).max * np.array([1, -1, 0.999, -0.5], np.float32)
    out = np.zeros(100, np.uint8)
    told = write_values(values, kind, out, Workspace()).copy()
    np.testing.assert_allclose(told, values, rtol=0.01)
    np.testing.assert_array_equal(read_values(out[:8], kind, 4), told)


# The bytes of format 1

VECTOR = np.zeros(1000, np.float32)
VECTOR[[3, 47, 500, 999]] = 1.5, -2.0, 1.0000001, -0.25
GOLDEN = {
    "float32": (
        TopK(0.004),
        VECTOR,
        "50670108 01000100 e8030000 04000000 16000000 00000000"
        "0000c03f 000000c0 0100803f 000080be 8317fd0c 2304",
    ),
    "bf16": (
        TopK(0.004, "bf16"),
        VECTOR,
        "50670108 02000100 e8030000 04000000 0e000000 00000000 c03f00c0 803f80be 8317fd0c 2304",
    ),
    "int8": (
        TopK(0.004, "int8"),
        VECTOR,
        "50670108 03000107 e8030000 04000000 0e000000 00000000 0402813c 5f8140f0 8317fd0c 2304",
    ),
    "zero": (
        TopK(0.004),
        np.zeros(1000, np.float32),
        "50670108 00010000 e8030000 00000000 00000000 00000000",
    ),
    "raw": (
        TopK(0.5),
        np.array([-2.0], np.float32),
        "50670108 00020000 01000000 01000000 04000000 00000000 000000c0",
    ),
    "randk": (
        RandK(0.004),
        np.arange(1000, dtype=np.float32),
        "50670109 01000000 e8030000 04000000 24000000 00000000"
        "b362e3fd504773d0 0010000000000000 01000000 00aa3447 00c48647 00110f48 80b66648",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name):
    codec, v, text = GOLDEN[name]
    payload = np.frombuffer(bytes.fromhex(text), np.uint8)
    assert sent(codec, v).tobytes().hex(" ", 4) == payload.tobytes().hex(" ", 4)
    assert received(codec, payload, v.size).any() == v.any()


# Options


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: TopK(3), "top-k ratio must be in (0, 1], got 3; did you mean 0.03?"),
        (lambda: TopK(0), "top-k ratio must be in (0, 1], got 0"),
        (lambda: TopK(-0.5), "top-k ratio must be in (0, 1], got -0.5"),
        (lambda: TopK(float("nan")), "top-k ratio must be in (0, 1], got nan"),
        (lambda: TopK(1000), "top-k ratio must be in (0, 1], got 1000"),
        (lambda: RandK(25), "rand-k ratio must be in (0, 1], got 25; did you mean 0.25?"),
        (lambda: TopK(values="int9"), "unknown values of top-k 'int9'; did you mean 'int8'?"),
        (lambda: TopK(select="exakt"), "unknown selection of top-k 'exakt'; did you mean 'exact'?"),
        (lambda: TopK(warmup=-1), "top-k warmup must be at least 0 steps, got -1"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(make, text):
    with pytest.raises(ConfigError, match=f"^{re.escape(text)}( Known: .*)?$"):
        make()


# Hostile payloads


def clusters(n):
    v = gaussian(n) / 100
    v[n // 3 : n // 3 + 80] += 1
    return v


HOSTILE = [
    (TopK(0.1), gaussian(400)),
    (TopK(0.1, "bf16"), gaussian(400)),
    (TopK(0.1, "int8"), gaussian(400)),
    (TopK(0.5, "int8"), gaussian(400)),
    (TopK(0.05), clusters(2000)),
    (TopK(0.1), np.zeros(400, np.float32)),
    (TopK(0.9), gaussian(20)),
    (RandK(0.1), gaussian(400)),
]


@pytest.mark.parametrize("case", range(len(HOSTILE)))
def test_a_hostile_header_makes_nothing_large(case):
    codec, v = HOSTILE[case]
    payload = sent(codec, v)
    rng = np.random.default_rng(case)
    opened = 0
    tracemalloc.start()
    for _ in range(300):
        flipped = payload.copy()
        flipped[rng.integers(3, HEADER_NBYTES)] = rng.integers(0, 256)
        flipped[12:16] = np.frombuffer(np.uint32(rng.integers(0, v.size + 1)).tobytes(), np.uint8)
        flipped[20:24] = 0
        try:
            codec.open(flipped, v.size)
            opened += 1
        except WireError:
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * v.size + 100_000


@pytest.mark.parametrize(
    ("codec", "at", "byte", "text"),
    [
        (TopK(0.1), 4, 0, "values of type 0"),
        (TopK(0.1), 4, 4, "values of type 4"),
        (TopK(0.1), 12, 0, "has 0 values"),
        (TopK(0.1), 7, 3, r"blocks of 2\^3"),
        (TopK(0.1, "int8"), 7, 6, r"blocks of 2\^6"),
        (TopK(0.1), 6, 0, "unknown coding 0"),
        (TopK(0.1), 6, 9, "unknown coding 9"),
        (TopK(0.1), 27, 0x7F, None),  # a large value is one
        (TopK(0.1, "int8"), 27, 0xBF, "a scale is not in"),
        (TopK(0.1, "int8"), 28, 0x80, "below -127 scales"),
        (RandK(0.1), 4, 2, "not the header"),
        (RandK(0.1), 6, 1, "not the header"),
        (RandK(0.1), 7, 1, "not the header"),
        (RandK(0.1), 39, 0x80, "starts at"),
        (RandK(0.1), 40, 2, "with flag 2"),
    ],
)
def test_what_cannot_be_is_refused(codec, at, byte, text):
    v = np.full(400, 0.75, np.float32)
    payload = sent(codec, v)
    payload[at] = byte
    if text is None:
        codec.open(payload, 400)
        payload[24:28] = 0, 0, 0x80, 0x7F
        text = "not finite"
    with pytest.raises(WireError, match=text):
        codec.open(payload, 400)
