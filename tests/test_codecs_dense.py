"""Every dense codec goes through one table: formulas, bytes, randomness, hostile payloads."""

from __future__ import annotations

import dataclasses
import itertools
import random
import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.codecs.base import BLOCK, Key, Workspace, write_into
from psgrad.codecs.blocks import Int4, Int8
from psgrad.codecs.halves import BF16, FP16
from psgrad.codecs.qsgd import QSGD
from psgrad.codecs.raw import raw_nbytes
from psgrad.codecs.sign import Sign
from psgrad.codecs.ternary import Ternary
from psgrad.codecs.wire import HEADER_NBYTES, Flag, seal, squeeze
from psgrad.errors import ConfigError, WireError
from psgrad.kernels.bits import GROUP

F4 = np.float32
MAX, TINY = np.finfo(F4).max, np.finfo(F4).tiny
KEY = Key(seed=1, worker=2, step=3, start=4)

CODECS = {
    "fp16": FP16(),
    "bf16": BF16(),
    "int8": Int8(),
    "int8:16": Int8(block=16),
    "int8:stochastic": Int8(rounding="stochastic"),
    "int4": Int4(),
    "int4:32768": Int4(block=32768),
    "int4:stochastic": Int4(rounding="stochastic"),
    "qsgd": QSGD(),
    "qsgd:1": QSGD(levels=1, block=16),
    "qsgd:127": QSGD(levels=127, block=512),
    "ternary": Ternary(),
    "ternary:32": Ternary(block=32),
    "sign": Sign(),
    "sign:32": Sign(block=32),
}
STOCHASTIC = [name for name, c in CODECS.items() if c.unbiased]
SCALED = [name for name in CODECS if name not in ("fp16", "bf16")]
BITS = {
    "fp16": 16,
    "bf16": 16,
    "int8": 8,
    "int4": 4,
    "qsgd": 4,
    "qsgd:1": 2,
    "qsgd:127": 8,
    "ternary": 1.6,
    "sign": 1,
}
SIZES = [0, 1, 31, 32, 33, 4095, 4096, 4097]
LARGE = 10**6

every_codec = pytest.mark.parametrize("name", CODECS)
every_scaled = pytest.mark.parametrize("name", SCALED)
every_stochastic = pytest.mark.parametrize("name", STOCHASTIC)


def family(name):
    return name if name in BITS else name.partition(":")[0]


def packed_nbytes(name, n):
    """The size of a payload that is not raw, from the documentation."""
    codec, bits = CODECS[name], BITS[family(name)]
    if name in ("fp16", "bf16"):
        return HEADER_NBYTES + 2 * n
    groups = [GROUP] * (n // GROUP) + [n % GROUP]
    codes = sum(-(-m // 5) if bits == 1.6 else -(-m * bits // 8) for m in groups)
    return HEADER_NBYTES + 4 * -(-n // codec.block) + codes


def encode(codec, x, residual=None, key=KEY, work=None):
    out = np.full(codec.nbytes_max(x.size), 0xA5, np.uint8)
    return out[: codec.encode(x, residual, out, key, work or Workspace())]


def decode(codec, payload, n):
    out = np.full(n, np.nan, F4)
    write_into(codec.open(payload, n), out)
    return out


def through(codec, x, key=KEY, work=None):
    """C(x)."""
    return decode(codec, encode(codec, x, key=key, work=work), x.size)


def gaussian(n, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(F4)


def ties(n, seed=0):
    """Halves of the steps that int8 and int4 have where a block has a 127 (or 7) times 2."""
    x = np.random.default_rng(seed).integers(-13, 14, n).astype(F4)
    x[::16] = 14 if seed % 2 else 254
    return x


KINDS = {
    "gaussian": gaussian,
    "zero": lambda n, seed: np.zeros(n, F4),
    "minus zero": lambda n, seed: np.full(n, -0.0, F4),
    "constant": lambda n, seed: np.full(n, -3.7, F4),
    "small": lambda n, seed: gaussian(n, seed, 1e-7),
    "denormal": lambda n, seed: gaussian(n, seed, 1e-43),
    "tiny": lambda n, seed: gaussian(n, seed, 1e-37),
    "huge": lambda n, seed: np.clip(gaussian(n, seed), -3, 3) * F4(1e38),
    "largest": lambda n, seed: np.where(gaussian(n, seed) > 0, MAX, -MAX).astype(F4),
    "ties": ties,
    "sparse": lambda n, seed: gaussian(n, seed) * (np.arange(n) % 37 == seed % 37),
    "wide": lambda n, seed: gaussian(n, seed) * 10 ** np.linspace(-44, 37, n),
}
vectors = st.builds(
    lambda kind, n, seed: KINDS[kind](n, seed).astype(F4),
    st.sampled_from(list(KINDS)),
    st.sampled_from(SIZES),
    st.integers(0, 1000),
)


# What they are called on the wire


def test_names_and_codes_never_change():
    classes = {type(codec) for codec in CODECS.values()}
    assert {c.name: c.code for c in classes} == {
        "fp16": 1,
        "bf16": 2,
        "int8": 3,
        "int4": 4,
        "qsgd": 5,
        "ternary": 6,
        "sign": 7,
    }
    assert all(c.summary and "\n" not in c.summary for c in classes)


def test_blocks_of_add_to_are_groups_of_codes():
    assert BLOCK == GROUP


def test_codecs_are_values():
    assert Int8() == Int8(block=256, rounding="nearest") != Int8(block=128)
    assert len({FP16(), FP16(), QSGD(), QSGD(levels=7)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Int8().block = 3


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Int8(block=100), "int8: block must be a power of two from 16 to 32768, got 100"),
        (lambda: Int4(block=8), "int4: block must be a power of two from 16 to 32768, got 8"),
        (lambda: Sign(block=65536), "sign: block must be a power of two from 16 to 32768, got 65"),
        (lambda: Ternary(block=0), "ternary: block must be a power of two from 16 to 32768, got 0"),
        (lambda: QSGD(block=-64), "qsgd: block must be a power of two from 16 to 32768, got -64"),
        (lambda: QSGD(levels=0), "qsgd: levels must be from 1 to 127, got 0; 7 fill 4 bits"),
        (lambda: QSGD(levels=128), "qsgd: levels must be from 1 to 127, got 128; 7 fill 4 bits"),
        (lambda: Int8(rounding="up"), "unknown rounding of int8 'up'. Known: nearest, stochastic"),
        (lambda: Int4(rounding="nearst"), "'nearst'; did you mean 'nearest'?"),
    ],
)
def test_options_that_cannot_be(make, text):
    with pytest.raises(ConfigError) as error:
        make()
    assert text in str(error.value)
    assert "\n" not in str(error.value)


# Sizes


@every_codec
@pytest.mark.parametrize("n", [*range(40), 63, 64, 65, 4095, 4096, 4097, GROUP, GROUP + 1, 100_000])
def test_raw_where_packing_is_not_smaller(name, n):
    codec, x = CODECS[name], np.full(n, 1.5, F4)
    packed, raw = packed_nbytes(name, n), raw_nbytes(n)
    payload = encode(codec, x)
    assert payload.size == codec.nbytes_max(n) == min(packed, raw)
    assert (payload[5] == Flag.RAW) == (packed >= raw)
    if packed >= raw:
        np.testing.assert_array_equal(decode(codec, payload, n), x)


@every_codec
def test_bits_of_an_element(name):
    codec = CODECS[name]
    bits = BITS[family(name)] + (32 / codec.block if name in SCALED else 0)
    assert 8 * encode(codec, gaussian(LARGE)).size / LARGE == pytest.approx(bits, rel=2e-3)


@every_codec
@pytest.mark.parametrize("x", [np.zeros(5000, F4), np.full(5000, -0.0, F4)], ids=["+0", "-0"])
def test_zeros_have_no_body(name, x):
    codec, residual = CODECS[name], np.zeros_like(x)
    for payload in (encode(codec, x), encode(codec, x, residual)):
        assert payload.size == HEADER_NBYTES
        assert payload[5] == Flag.ZERO
        assert not decode(codec, payload, x.size).any()
    assert not residual.any()


@every_codec
@pytest.mark.parametrize("zeros", [slice(0, GROUP), slice(GROUP, None)], ids=["first", "last"])
def test_zeros_in_a_part_of_a_chunk(name, zeros):
    x = np.full(GROUP + 100, 2.0, F4)
    x[zeros] = 0
    sent = through(CODECS[name], x)
    assert not sent[zeros].any()
    assert sent[x != 0].any()


@every_scaled
def test_a_block_of_zeros_has_step_zero(name):
    codec = CODECS[name]
    x = gaussian(3 * codec.block + 1)
    x[codec.block : 2 * codec.block] = 0
    payload = encode(codec, x)
    step = payload[HEADER_NBYTES:][:16].view(F4)
    assert (step == 0).tolist() == [False, True, False, False]
    assert not decode(codec, payload, x.size)[codec.block : 2 * codec.block].any()


# C(v) and the residual


def check_feedback(codec, x):
    """C(v) + residual = v, up to the rounding of their difference; x stays; all is finite."""
    before, n = x.copy(), x.size
    top = float(abs(x).max(initial=0))
    residual = gaussian(n, 99, 0 if top > 1e38 else top / 8)
    v = x + residual
    payload = encode(codec, x, residual)
    np.testing.assert_array_equal(x.view(np.uint32), before.view(np.uint32))
    sent = decode(codec, payload, n)
    assert np.isfinite(sent).all()
    lost = v.astype(np.float64) - sent
    assert (abs(residual - lost) <= 2**-24 * abs(lost)).all()
    # Feedback is an addition before, and nothing more.
    np.testing.assert_array_equal(encode(codec, v), payload)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(list(CODECS)), vectors)
def test_what_is_not_sent_is_kept(name, x):
    check_feedback(CODECS[name], x)


@every_codec
def test_what_is_not_sent_is_kept_of_a_million(name):
    check_feedback(CODECS[name], gaussian(LARGE, 3))


def steps_of(codec, payload, n):
    scales = payload[HEADER_NBYTES : HEADER_NBYTES + 4 * -(-n // codec.block)].view(F4)
    return np.repeat(scales, codec.block)[:n].astype(np.float64)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SCALED), vectors)
def test_errors_are_within_the_formula(name, x):
    codec, n = CODECS[name], x.size
    payload = encode(codec, x)
    if payload[5] & Flag.RAW:
        return
    v, sent = x.astype(np.float64), decode(codec, payload, n).astype(np.float64)
    if payload[5] & Flag.ZERO:
        assert abs(v).max() <= TINY  # half a step of the smallest block that is
        return
    error, step = abs(v - sent), steps_of(codec, payload, n)
    blocks = [slice(i, i + codec.block) for i in range(0, n, codec.block)]
    if codec.name == "sign":
        for b in blocks:
            formula = (v[b] ** 2).sum() - abs(v[b]).sum() ** 2 / v[b].size
            got = (error[b] ** 2).sum()
            slack = 1e-5 * (v[b] ** 2).sum() + v[b].size * 1e-90  # of a mean that is denormal
            assert got == pytest.approx(formula, rel=1e-4, abs=slack)
        return
    levels = {"int8": 127, "int4": 7, "ternary": 1}.get(codec.name) or codec.levels
    assert (abs(sent) <= levels * step * (1 + 2**-23)).all()
    nearest = getattr(codec, "rounding", "stochastic") == "nearest"
    assert (error <= step * ((0.5 if nearest else 1.0) + 1e-4)).all()
    for b in blocks:
        measure = np.linalg.norm(v[b]) if codec.name == "qsgd" else abs(v[b]).max()
        expected = max(measure / levels, TINY) if measure else 0.0
        limit = MAX / levels
        assert step[b][0] == pytest.approx(min(expected, limit), rel=2e-5)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["fp16", "bf16"]), vectors)
def test_errors_of_sixteen_bits(name, x):
    """Half a unit in the last place; every number of 16 bits is tried in test_kernels_quantize."""
    digits, smallest, largest = (
        (11, 2.0**-24, 65504.0) if name == "fp16" else (8, 2.0**-133, 3.3895314e38)
    )
    v, sent = x.astype(np.float64), through(CODECS[name], x).astype(np.float64)
    clipped = np.clip(v, -largest, largest)
    assert (abs(sent - clipped) <= np.maximum(2.0**-digits * abs(clipped), smallest / 2)).all()
    assert (abs(sent) <= largest * (1 + 1e-7)).all()


def test_ternary_sends_the_sign_or_nothing():
    x = gaussian(GROUP + 77)
    sent = through(CODECS["ternary"], x)
    where = sent != 0
    assert 0.2 < where.mean() < 0.5
    assert (np.sign(sent[where]) == np.sign(x[where])).all()
    tops = np.maximum.reduceat(abs(x), np.arange(0, x.size, 128))
    np.testing.assert_array_equal(abs(sent[where]), np.repeat(tops, 128)[: x.size][where])


def test_the_scale_of_a_short_block_is_over_its_own_elements():
    x = np.full(600, 2.0, F4)
    x[512:] = -3.0
    np.testing.assert_array_equal(through(Sign(block=512), x), x)
    np.testing.assert_array_equal(through(Ternary(block=512), x), x)


def test_multiples_of_the_step_are_sent_exactly():
    """Whatever the rounding: a stochastic one leaves whole numbers alone."""
    rng = np.random.default_rng(0)
    for codec, levels in ((Int8(), 127), (Int4(), 7)):
        x = rng.integers(-levels, levels, 5000, endpoint=True).astype(F4) / 4
        x[:: codec.block] = levels / 4
        for rounding in ("nearest", "stochastic"):
            np.testing.assert_array_equal(
                through(dataclasses.replace(codec, rounding=rounding), x), x
            )


# Randomness


@every_stochastic
def test_the_error_of_a_mean_over_16_workers_is_a_16th(name):
    codec, x = CODECS[name], gaussian(GROUP + 1000, 2)
    sent = np.stack([through(codec, x, Key(seed=5, worker=i, step=0, start=0)) for i in range(16)])
    errors = sent - x.astype(np.float64)
    ratio = (errors.mean(axis=0) ** 2).sum() / ((errors**2).sum() / 16)
    assert ratio == pytest.approx(1 / 16, rel=0.05)


@every_stochastic
@pytest.mark.parametrize("field", ["seed", "worker", "step", "start"])
def test_what_the_noise_depends_on(name, field):
    codec, x = CODECS[name], gaussian(5000)
    payload = encode(codec, x)
    np.testing.assert_array_equal(encode(codec, x), payload)
    other = dataclasses.replace(KEY, **{field: getattr(KEY, field) + 2})
    assert (encode(codec, x, key=other) != payload).any()


@every_codec
def test_what_is_drawn_does_not_depend_on_the_chunk_grid(name):
    """Element e of the flat vector is sent alike from any chunk that begins at a block."""
    codec, n = CODECS[name], 3 * GROUP + 500
    x, cut = gaussian(n), 2 * GROUP
    whole = through(codec, x)
    halves = [
        through(codec, x[:cut]),
        through(codec, x[cut:], dataclasses.replace(KEY, start=KEY.start + cut)),
    ]
    np.testing.assert_array_equal(np.concatenate(halves), whole)


@every_stochastic
def test_chunks_far_beyond_four_billion_elements(name):
    codec, x = CODECS[name], gaussian(5000)
    key = dataclasses.replace(KEY, start=2**33 - 1001)  # the high word changes on the way
    whole = through(codec, x, key)
    assert np.isfinite(whole).all()
    assert (through(codec, x, dataclasses.replace(key, start=key.start + 2**40)) != whole).any()


# Over many steps


# With one level the error of qsgd is larger than v: feedback would make it grow.
@pytest.mark.parametrize("name", [name for name in CODECS if name != "qsgd:1"])
def test_what_was_sent_and_what_is_kept_is_the_sum_of_the_gradients(name):
    codec, n, work = CODECS[name], 1000, Workspace()
    residual, total, sent = np.zeros(n, F4), np.zeros(n), np.zeros(n)
    for step in range(1000):
        x = gaussian(n, step)
        total += x
        sent += decode(codec, encode(codec, x, residual, Key(1, 2, step, 0), work), n)
    assert abs(residual).max() < 20  # feedback is stable
    assert abs(sent + residual - total).max() <= 1e-6 * abs(total).max()


# Adding up


@every_codec
@pytest.mark.parametrize("n", [GROUP, 2 * GROUP + 1000, 3 * GROUP + 1])
def test_blocks_add_up_in_any_order(name, n):
    codec, x = CODECS[name], gaussian(n, 7)
    opened, whole = codec.open(encode(codec, x), n), through(codec, x)
    starts = list(range(0, n, BLOCK))
    random.Random(1).shuffle(starts)
    out, base = gaussian(n, 8), gaussian(n, 8)
    for start in starts:
        opened.add_to(out[start : start + BLOCK], start, F4(0.375), first=False)
    np.testing.assert_allclose(out, base + 0.375 * whole.astype(np.float64), rtol=1e-6, atol=1e-6)
    for start in starts:
        opened.add_to(out[start : start + BLOCK], start, F4(1), first=True)
    np.testing.assert_array_equal(out, whole)


@every_codec
def test_a_part_of_a_block_and_many_blocks_at_once(name):
    codec, n = CODECS[name], 2 * GROUP + 1000
    x = gaussian(n, 7)
    opened, whole = codec.open(encode(codec, x), n), through(codec, x)
    for start, size in ((0, n), (GROUP, 1), (GROUP, 777), (2 * GROUP, 999), (GROUP, GROUP + 5)):
        out = np.full(size, np.nan, F4)
        opened.add_to(out, start, F4(1), first=True)
        np.testing.assert_array_equal(out, whole[start : start + size])


@every_codec
def test_eight_payloads_in_rank_order_are_the_same_every_time(name):
    codec, n = CODECS[name], GROUP + 100
    payloads = [encode(codec, gaussian(n, i), key=Key(0, i, 0, 0)) for i in range(8)]

    def total():
        out, opened = np.full(n, np.nan, F4), [codec.open(p, n) for p in payloads]
        for start, (i, o) in itertools.product(range(0, n, BLOCK), enumerate(opened)):
            o.add_to(out[start : start + BLOCK], start, F4(0.125), first=i == 0)
        return out

    np.testing.assert_array_equal(total(), total())
    mean = np.mean([decode(codec, p, n).astype(np.float64) for p in payloads], axis=0)
    np.testing.assert_allclose(total(), mean, rtol=1e-5, atol=1e-6)


@every_codec
def test_payloads_may_lie_anywhere(name):
    codec, x = CODECS[name], gaussian(5000)
    memory = np.zeros(codec.nbytes_max(5000) + 1, np.uint8)
    n = codec.encode(x, None, memory[1:], KEY, Workspace())
    np.testing.assert_array_equal(memory[1 : n + 1], encode(codec, x))
    np.testing.assert_array_equal(decode(codec, memory[1 : n + 1], 5000), through(codec, x))


@every_codec
def test_scratch_may_have_served_other_sizes_and_codecs(name):
    codec, work = CODECS[name], Workspace()
    for n, other in itertools.product((100_000, 40, 5000, GROUP), CODECS.values()):
        encode(other, gaussian(n), work=work)
        if n == 5000:
            x = gaussian(n, 1)
            np.testing.assert_array_equal(encode(codec, x, work=work), encode(codec, x))


# Memory

BLOCKS_OF_BYTES = 16 * BLOCK  # what a few arrays of one block take: not O(n)


def peak(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@every_codec
def test_the_second_encode_allocates_nothing_large(name):
    codec, x, work = CODECS[name], gaussian(LARGE), Workspace()
    residual, out = np.zeros(LARGE, F4), np.zeros(codec.nbytes_max(LARGE), np.uint8)
    codec.encode(x, residual, out, KEY, work)
    assert peak(lambda: codec.encode(x, residual, out, KEY, work)) < BLOCKS_OF_BYTES / 4


@every_codec
def test_opening_and_adding_up_allocate_nothing_large(name):
    codec, x = CODECS[name], gaussian(LARGE)
    payload, out = encode(codec, x), np.zeros(BLOCK, F4)

    def work():
        opened = codec.open(payload, LARGE)
        for start in range(0, LARGE, BLOCK):
            opened.add_to(out[: LARGE - start], start, F4(0.5), first=False)

    assert peak(work) < BLOCKS_OF_BYTES


# The bytes


def by_hand(payload, codec, n):
    """C(v) of a payload, as the tables of the documentation say it, in plain Python."""
    magic, version, code, values, flags, indices, log2, count, k, nbytes, _ = struct.unpack(
        "<2sBBBBBBIIII", payload[:24]
    )
    assert (magic, version, code, values, indices, count, k) == (b"Pg", 1, codec.code, 0, 0, n, n)
    assert (nbytes, flags) == (len(payload) - 24, 0)
    if codec.name in ("fp16", "bf16"):
        assert log2 == 0
        words = struct.unpack(f"<{n}H", payload[24:])
        if codec.name == "fp16":
            return [struct.unpack("<e", struct.pack("<H", word))[0] for word in words]
        return [struct.unpack("<f", struct.pack("<I", word << 16))[0] for word in words]
    block = 1 << log2
    assert block == codec.block
    blocks = -(-n // block)
    steps = struct.unpack(f"<{blocks}f", payload[24 : 24 + 4 * blocks])
    body = payload[24 + 4 * blocks :]
    if codec.name == "sign":
        codes = [-1 if body[i // 8] >> i % 8 & 1 else 1 for i in range(n)]
    else:
        radix, digits = {8: (256, 1), 4: (16, 2), 2: (4, 4), 1.6: (3, 5)}[BITS[codec_bits(codec)]]
        codes = []
        for start in range(0, n, 32768):
            m = min(32768, n - start)
            p = -(-m // digits)
            group, body = body[:p], body[p:]
            codes += [group[i % p] // radix ** (i // p) % radix - radix // 2 for i in range(m)]
        if radix == 256:
            codes = [(code + 128 + 128) % 256 - 128 for code in codes]
    return [steps[i // block] * code for i, code in enumerate(codes)]


def codec_bits(codec):
    if codec.name != "qsgd":
        return codec.name
    return "qsgd:1" if codec.levels == 1 else "qsgd" if codec.levels <= 7 else "qsgd:127"


@every_codec
@pytest.mark.parametrize("n", [64, 1001, GROUP + 33])
def test_payloads_are_what_the_documentation_says(name, n):
    codec, x = CODECS[name], gaussian(n)
    payload = encode(codec, x)
    expected = np.array(by_hand(payload.tobytes(), codec, n), np.float64)
    np.testing.assert_array_equal(decode(codec, payload, n), expected.astype(F4))


# Format 1: whoever changes these bytes has to make it format 2. All numbers are exact in any order
# of summation, so they are the same on every machine.
SAMPLE = np.array([*range(-20, 20), 0, 0, -127, 64, 0.5, -0.25], F4)
GOLDEN = {
    "fp16": (
        "5067 01 01 00 00 00 00 2e000000 2e000000 5c000000 00000000"
        " 00cdc0cc80cc40cc00cc80cb00cb80ca00ca80c900c980c800c800c700c600c5"
        " 00c400c200c000bc0000003c0040"
        " 004200440045004600470048804800498049004a804a004b804b004c404c804c"
        " c04c00000000f0d70054003800b4"
    ),
    "bf16": (
        "5067 01 02 00 00 00 00 2e000000 2e000000 5c000000 00000000"
        " a0c198c190c188c180c170c160c150c140c130c120c110c100c1e0c0c0c0a0c0"
        " 80c040c000c080bf0000803f0040"
        " 40408040a040c040e04000411041204130414041504160417041804188419041"
        " 984100000000fec28042003f80be"
    ),
    "int8": (
        "5067 01 03 00 00 00 08 2e000000 2e000000 32000000 00000000"
        " 0000803f"
        " ecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff000102030405060708090a0b"
        " 0c0d0e0f10111213000081400000"
    ),
    "int8:16": (
        "5067 01 03 00 00 00 04 2e000000 2e000000 3a000000 00000000"
        " 8542213e c662b13d 0000803f"
        " 81878e949aa1a7adb4bac0c7cdd4dae0d2dde9f4000c17232e3a45515c68737f"
        " 0c0d0e0f10111213000081400000"
    ),
    "int8:stochastic": (
        "5067 01 03 00 00 00 08 2e000000 2e000000 32000000 00000000"
        " 0000803f"
        " ecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff000102030405060708090a0b"
        " 0c0d0e0f101112130000814001ff"
    ),
    "int4": (
        "5067 01 04 00 00 00 06 2e000000 2e000000 1b000000 00000000"
        " 92249141"
        " 8787878787878797979797989898989898888818c88888"
    ),
    "int4:32768": (
        "5067 01 04 00 00 00 0f 2e000000 2e000000 1b000000 00000000"
        " 92249141"
        " 8787878787878797979797989898989898888818c88888"
    ),
    "int4:stochastic": (
        "5067 01 04 00 00 00 06 2e000000 2e000000 1b000000 00000000"
        " 92249141"
        " 8787878797978798979797989798989897888818b88889"
    ),
    "qsgd": (
        "5067 01 05 00 00 00 06 2e000000 2e000000 1b000000 00000000"
        " 6bbcb641"
        " 8787878797978798979797988798888897888828a88889"
    ),
    "qsgd:1": (
        "5067 01 05 00 00 00 04 2e000000 2e000000 18000000 00000000"
        " 7b2b5542 5a37b941 8af61443"
        " a9aaaab9b5a97abaaab9adaa"
    ),
    "qsgd:127": (
        "5067 01 05 00 00 00 09 2e000000 2e000000 32000000 00000000"
        " 2c27a13f"
        " f0f1f2f2f3f4f5f6f6f7f8f9f9fafbfcfcfefeff000002020303040607070809"
        " 0a0b0b0c0d0d0e0f00009b3201ff"
    ),
    "ternary": (
        "5067 01 06 00 00 00 07 2e000000 2e000000 0e000000 00000000 0000fe42 79792893787879797979"
    ),
    "ternary:32": (
        "5067 01 06 00 00 00 05 2e000000 2e000000 12000000 00000000"
        " 0000a041 0000fe42"
        " 90932d93787875828178"
    ),
    "sign": ("5067 01 07 00 00 00 09 2e000000 2e000000 0a000000 00000000 7ad34d41 ffff0f000024"),
    "sign:32": (
        "5067 01 07 00 00 00 05 2e000000 2e000000 0e000000 00000000 00000a41 b76db441 ffff0f000024"
    ),
}


@every_codec
def test_golden_bytes_of_format_1(name):
    payload = bytes.fromhex(GOLDEN[name])
    assert encode(CODECS[name], SAMPLE).tobytes() == payload
    expected = np.array(by_hand(payload, CODECS[name], SAMPLE.size), F4)
    np.testing.assert_array_equal(through(CODECS[name], SAMPLE), expected)


# Hostile payloads

SMALL = 77


@every_codec
@pytest.mark.parametrize("n", [0, 1, SMALL - 1, SMALL + 1, 2**32 - 1])
def test_another_number_of_elements_is_refused(name, n):
    with pytest.raises(WireError):
        CODECS[name].open(encode(CODECS[name], gaussian(SMALL)), n)


@every_codec
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_packed_payload_is_refused_where_raw_is_due(name, n):
    codec = CODECS[name]
    nbytes = packed_nbytes(name, n) - HEADER_NBYTES
    log2 = codec.block.bit_length() - 1 if name in SCALED else 0
    head = struct.pack("<2sBBBBBBIIII", b"Pg", 1, codec.code, 0, 0, 0, log2, n, n, nbytes, 0)
    payload = np.frombuffer(head + bytes(nbytes), np.uint8)
    assert survives(codec, payload, n) == (packed_nbytes(name, n) < raw_nbytes(n))


def survives(codec, payload, n):
    """Whether a payload is opened; then it adds up to something finite."""
    try:
        opened = codec.open(payload, n)
    except WireError:
        return False
    out = np.zeros(n, F4)
    for start in range(0, n, BLOCK):
        opened.add_to(out[start : start + BLOCK], start, F4(1), first=False)
    assert np.isfinite(out).all()
    return True


@every_codec
def test_random_bodies_are_refused_or_finite(name):
    codec, rng = CODECS[name], np.random.default_rng(0)
    payload = encode(codec, gaussian(SMALL))
    for _ in range(200):
        payload[HEADER_NBYTES:] = rng.integers(0, 256, payload.size - HEADER_NBYTES, np.uint8)
        survives(codec, payload, SMALL)


@every_codec
@pytest.mark.parametrize("at", range(HEADER_NBYTES - 4))
def test_every_value_of_every_byte_of_the_header(name, at):
    codec = CODECS[name]
    payload = encode(codec, gaussian(SMALL))
    right = int(payload[at])
    for value in set(range(256)) - {right}:
        payload[at] = value
        assert not survives(codec, payload, SMALL), value


@every_codec
def test_a_checksum_sees_damage(name):
    codec = CODECS[name]
    payload = encode(codec, gaussian(SMALL))
    seal(payload)
    assert survives(codec, payload, SMALL)
    payload[-1] ^= 1
    with pytest.raises(WireError, match="checksum"):
        codec.open(payload, SMALL)


@every_codec
def test_a_zstd_frame_is_opened(name):
    codec, n = CODECS[name], 5000
    x = np.where(np.arange(n) % 100 == 0, gaussian(n), F4(1))
    payload = encode(codec, x)
    expected = decode(codec, payload, n)
    small = payload[: squeeze(payload, zstandard.ZstdCompressor(level=1))].copy()
    assert small.size < codec.nbytes_max(n)
    np.testing.assert_array_equal(decode(codec, small, n), expected)
    for size in range(0, small.size, 7):
        with pytest.raises(WireError):
            codec.open(small[:size], n)


@every_scaled
@pytest.mark.parametrize(
    "step", [np.nan, -np.nan, np.inf, -np.inf, -1.0, -1e-45, -0.0, MAX * 0.999]
)
def test_a_step_that_cannot_be(name, step):
    codec = CODECS[name]
    payload = encode(codec, gaussian(SMALL))
    payload[HEADER_NBYTES : HEADER_NBYTES + 4].view(F4)[0] = step
    fine = step == MAX * 0.999 and (codec.name in ("sign", "ternary") or name == "qsgd:1")
    assert survives(codec, payload, SMALL) == fine


@pytest.mark.parametrize(
    ("name", "levels", "byte"),
    [
        ("int8", 127, 0x80),
        ("int4", 7, 0x08),
        ("qsgd", 7, 0x08),
        ("qsgd:1", 1, 0x00),
        ("ternary", 1, 0xFF),
    ],
)
def test_a_code_out_of_range_is_refused_where_it_would_be_infinite(name, levels, byte):
    codec, largest = CODECS[name], np.nextafter(F4(MAX / levels), F4(0))
    payload = encode(codec, gaussian(SMALL))
    step, code = payload[HEADER_NBYTES : HEADER_NBYTES + 4].view(F4), payload[-5:]
    payload[HEADER_NBYTES : HEADER_NBYTES + 4 * -(-SMALL // codec.block)].view(F4)[:] = largest
    assert survives(codec, payload, SMALL)
    code[:] = byte
    assert not survives(codec, payload, SMALL)
    payload[HEADER_NBYTES : HEADER_NBYTES + 4 * -(-SMALL // codec.block)].view(F4)[:] = 1
    assert survives(codec, payload, SMALL)
    assert step[0] == 1


@pytest.mark.parametrize(("name", "infinity"), [("fp16", 0x7C00), ("bf16", 0x7F80)])
def test_infinity_and_nan_in_sixteen_bits_are_refused(name, infinity):
    codec = CODECS[name]
    payload = encode(codec, gaussian(SMALL))
    for code in (infinity, infinity + 1, 0x7FFF, infinity | 0x8000, 0xFFFF):
        payload[HEADER_NBYTES:].view(np.uint16)[5] = code
        with pytest.raises(WireError, match="finite"):
            codec.open(payload, SMALL)
    payload[HEADER_NBYTES:].view(np.uint16)[5] = infinity - 1
    codec.open(payload, SMALL)
