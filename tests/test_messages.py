"""The wire: golden bytes of format 1, round trips, and everything that is refused."""

from __future__ import annotations

import math
import re
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgrad import messages
from psgrad.errors import WireError
from psgrad.messages import (
    CONTROL_LIMIT,
    HEADER_NBYTES,
    Header,
    Kind,
    Verdict,
    decode_json,
    encode_json,
)

u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
numbers = st.floats(allow_nan=False)
headers = st.builds(
    Header,
    kind=st.sampled_from(Kind),
    verdict=st.sampled_from(Verdict),
    run=u64,
    layout=u64,
    worker=u32,
    incarnation=u32,
    taken=u32,
    segment=u32,
    chunk=u32,
    clock=u64,
    slowest=u64,
    version=u64,
    weight=numbers,
    rate=numbers,
    nbytes=u64,
    sequence=u32,
    flags=st.integers(0, 255),
    number=u32,
)
SAMPLE = Header(
    Kind.PARAMS,
    Verdict.SKIPPED,
    run=0x0102030405060708,
    layout=0x1112131415161718,
    worker=0x21222324,
    incarnation=0x31323334,
    taken=0x41424344,
    segment=0x51525354,
    chunk=0x61626364,
    clock=0x7172737475767778,
    slowest=0x8182838485868788,
    version=0x9192939495969798,
    weight=1.5,
    rate=-1.0,
    nbytes=0xA1A2A3A4A5A6A7A8,
    sequence=0xB1B2B3B4,
    number=0xC1C2C3C4,
)
# Written by hand from the table in the module: other builds of format 1 must read these bytes.
GOLDEN = bytes.fromhex(
    "50534731 01 08 03 00"
    "0807060504030201 1817161514131211"
    "24232221 34333231 44434241 54535251 64636261 c4c3c2c1"
    "7877767574737271 8887868584838281 9897969594939291"
    "000000000000f83f 000000000000f0bf"
    "a8a7a6a5a4a3a2a1 b4b3b2b1"
    "21919206"
)


def sealed(body: bytes) -> bytes:
    """A header with these bytes and a checksum that is right."""
    return body + struct.pack("<I", zlib.crc32(body))


def test_golden_bytes_of_format_1():
    assert SAMPLE.encode().hex(" ") == GOLDEN.hex(" ")
    assert Header.decode(GOLDEN) == SAMPLE


def test_numbers_on_the_wire_never_change():
    assert {kind.name: int(kind) for kind in Kind} == {
        "REGISTER": 1,
        "REGISTERED": 2,
        "INIT": 3,
        "PUSH": 4,
        "PULL": 5,
        "STEP": 6,
        "ACK": 7,
        "PARAMS": 8,
        "LEAVE": 9,
        "LEFT": 10,
        "MEET": 11,
        "MET": 12,
        "STATS": 13,
        "STATS_ARE": 14,
        "FINISH": 15,
        "SHARE": 16,
        "SHARED": 17,
        "SETTLE": 18,
        "RECEIVED": 19,
        "CUT": 20,
        "STATE": 21,
        "MARK": 22,
        "WRITTEN": 23,
        "LOST": 24,
        "EVICTED": 25,
        "FENCED": 26,
        "ALIVE": 27,
        "COMPLETE": 28,
        "COMMIT": 29,
        "JOIN": 30,
        "PLACE": 31,
        "ADMIT": 32,
        "ENDED": 34,
        "REPLICATE": 35,
        "PAYLOAD": 36,
        "REPLICATED": 37,
        "STANDIN": 38,
        "MOVED": 39,
        "STOP": 40,
        "STOPPED": 41,
        "ASK": 42,
        "DOING": 43,
    }
    assert [int(verdict) for verdict in Verdict] == [0, 1, 2, 3, 4, 5]


@given(headers)
def test_a_header_comes_back_as_it_was(header):
    data = header.encode()
    assert len(data) == HEADER_NBYTES == 104
    again = Header.decode(data)
    assert again == header
    assert (type(again.kind), type(again.verdict)) == (Kind, Verdict)


@given(headers, st.binary(max_size=50))
def test_what_follows_a_header_is_not_looked_at(header, payload):
    assert Header.decode(bytearray(header.encode() + payload)) == header
    assert Header.decode(memoryview(header.encode() + payload)) == header


def test_a_weight_that_is_not_finite_travels_too():
    header = Header.decode(Header(Kind.PUSH, weight=math.nan, rate=math.inf).encode())
    assert math.isnan(header.weight)
    assert header.rate == math.inf


@pytest.mark.parametrize("bit", range(8 * HEADER_NBYTES))
def test_every_flipped_bit_is_seen(bit):
    damaged = bytearray(GOLDEN)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WireError, match="checksum does not match"):
        Header.decode(damaged)


@pytest.mark.parametrize("length", range(HEADER_NBYTES))
def test_every_truncation_is_seen(length):
    with pytest.raises(WireError, match=f"a header has 104 bytes, got {length}"):
        Header.decode(GOLDEN[:length])


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data):
    with pytest.raises(WireError):
        Header.decode(data)


@pytest.mark.parametrize(
    ("at", "value", "text"),
    [
        (0, 0x51, "expected b'PSG1' format 1, got b'QSG1' format 1"),
        (4, 2, "expected b'PSG1' format 1, got b'PSG1' format 2"),
        (5, 0, "unknown kind 0 or verdict 3"),
        (5, max(Kind) + 1, f"unknown kind {max(Kind) + 1} or verdict 3"),
        (6, max(Verdict) + 1, f"unknown kind 8 or verdict {max(Verdict) + 1}"),
    ],
)
def test_a_header_of_another_kind_or_format(at, value, text):
    body = bytearray(GOLDEN[:-4])
    body[at] = value
    with pytest.raises(WireError, match=re.escape(text)):
        Header.decode(sealed(bytes(body)))


records = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(records)
def test_control_payloads_come_back_as_they_were(record):
    assert decode_json(encode_json(record)) == record
    assert decode_json(memoryview(encode_json(record))) == record


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff\xfe\xfd", b"{'a': 1}", b"[" * 100_000])
def test_a_payload_that_is_not_json(payload):
    with pytest.raises(WireError, match="control payload is not JSON"):
        decode_json(payload)


def test_the_limit_of_control_payloads(monkeypatch):
    assert CONTROL_LIMIT == 64 << 20
    monkeypatch.setattr(messages, "CONTROL_LIMIT", 10)
    assert encode_json("x" * 8) == b'"xxxxxxxx"'
    with pytest.raises(WireError, match="may have 10 bytes, got 11"):
        encode_json("x" * 9)
