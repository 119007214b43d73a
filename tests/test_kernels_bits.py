"""Packed codes: against the table of the module, digit by digit, and round trips."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.kernels.bits import (
    BYTES,
    CRUMBS,
    GROUP,
    NIBBLES,
    SIGNS,
    TRITS,
    pack,
    pack_signs,
    packed_nbytes,
    unpack,
)

RANGES = {BYTES: (-128, 127), NIBBLES: (-8, 7), CRUMBS: (-2, 1), TRITS: (-1, 1), SIGNS: (-1, 1)}
NAMES = {BYTES: "bytes", NIBBLES: "nibbles", CRUMBS: "crumbs", TRITS: "trits", SIGNS: "signs"}
SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 31, 32, 33, 4095, 4096, 4097, GROUP - 1, GROUP]

every_coding = pytest.mark.parametrize("coding", RANGES, ids=NAMES.values())


def random_codes(coding, n, seed=0):
    low, high = RANGES[coding]
    codes = np.random.default_rng(seed).integers(low, high, n, np.int8, endpoint=True)
    return np.where(codes < 0, -1, 1).astype(np.int8) if coding == SIGNS else codes


def packed(codes, coding):
    out = np.full(packed_nbytes(codes.size, coding), 0xA5, np.uint8)
    if coding == SIGNS:
        pack_signs(codes.astype(np.float32), out, np.zeros(codes.size, np.bool_))
    else:
        pack(codes.astype(np.float32), coding, out)
    return out


def unpacked(data, coding, n):
    out = np.full(n, 99, np.int8)
    unpack(data, coding, out, np.full(2 * data.size, 0xA5, np.uint8))
    return out


def twin(codes, coding):
    """The table of the module in plain Python."""
    codes = codes.tolist()
    if coding == BYTES:
        return [code % 256 for code in codes]
    if coding == SIGNS:
        rows = [codes[i : i + 8] for i in range(0, len(codes), 8)]
        return [sum((code < 0) << i for i, code in enumerate(row)) for row in rows]
    radix, digits = coding
    p = -(-len(codes) // digits)
    codes += [0] * (p * digits - len(codes))
    return [
        sum((codes[j + d * p] + radix // 2) * radix**d for d in range(digits)) for j in range(p)
    ]


@every_coding
@pytest.mark.parametrize("n", SIZES)
def test_bytes_are_those_of_the_table_and_come_back(coding, n):
    codes = random_codes(coding, n)
    data = packed(codes, coding)
    assert data.tolist() == twin(codes, coding)
    np.testing.assert_array_equal(unpacked(data, coding, n), codes)


@settings(max_examples=40)
@given(st.sampled_from(list(RANGES)), st.integers(1, 70), st.integers(0, 2**32 - 1), st.booleans())
def test_round_trip(coding, n, seed, extremes):
    codes = random_codes(coding, n, seed)
    if extremes:
        codes = np.where(codes < 0, *RANGES[coding]).astype(np.int8)
    data = packed(codes, coding)
    assert data.tolist() == twin(codes, coding)
    np.testing.assert_array_equal(unpacked(data, coding, n), codes)


@every_coding
def test_sizes(coding):
    digits = coding.digits
    assert packed_nbytes(0, coding) == 0
    for n in (1, digits, digits + 1, 1000, GROUP):
        assert packed_nbytes(n, coding) == -(-n // digits)
    assert packed_nbytes(2 * GROUP + 1, coding) == 2 * -(-GROUP // digits) + 1
    assert packed_nbytes(GROUP, coding) * 8 / GROUP == pytest.approx(
        {BYTES: 8, NIBBLES: 4, CRUMBS: 2, TRITS: 1.6, SIGNS: 1}[coding], rel=1e-3
    )


def test_golden_bytes():
    """Worked out by hand: two nibbles, five trits, four crumbs and eight signs to a byte."""
    assert packed(np.array([1, -7, 7], np.int8), NIBBLES).tolist() == [0xF9, 0x81]
    # 2 + 3 * 0 + 9 * 1 + 27 * 2 + 81 * 0 = 65
    assert packed(np.array([1, -1, 0, 1, -1], np.int8), TRITS).tolist() == [65]
    assert packed(np.array([1, 0, -1, -2], np.int8), CRUMBS).tolist() == [0b00_01_10_11]
    signs = np.array([1, -1, 1, 1, 1, 1, 1, -1, -1], np.int8)
    assert packed(signs, SIGNS).tolist() == [0b1000_0010, 1]


def test_minus_zero_is_negative():
    out = np.zeros(1, np.uint8)
    pack_signs(np.array([0.0, -0.0], np.float32), out, np.zeros(2, np.bool_))
    assert out.tolist() == [2]


@every_coding
def test_any_byte_gives_codes_of_the_range(coding):
    """But for the last trit: whoever multiplies it has to allow for 2."""
    data = np.arange(256, dtype=np.uint8)
    codes = unpacked(data, coding, 256 * coding.digits)
    low, high = RANGES[coding]
    assert low <= codes.min() <= codes.max() <= high + (coding == TRITS)
    if coding == TRITS:
        assert codes[: 4 * 256].max() == 1
        assert (codes[4 * 256 :] == 2).tolist() == (data >= 243).tolist()


def test_a_code_is_always_at_the_same_place_of_its_plane():
    """Code i of a group of m lies in byte i mod p, as its digit i // p: what a GPU would write."""
    n, p = 1001, 501
    codes = np.zeros(n, np.int8)
    codes[p + 3] = 5
    data = packed(codes, NIBBLES)
    assert np.flatnonzero(data != 0x88).tolist() == [3]
    assert data[3] == 0xD8
