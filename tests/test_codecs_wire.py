"""The payload header, raw and all-zero payloads, the checksum and the zstd stage."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from psgrad.codecs import Key, Raw, Workspace, wire
from psgrad.codecs.base import write_into
from psgrad.codecs.raw import open_plain
from psgrad.codecs.wire import HEADER_NBYTES, Flag, PayloadHeader
from psgrad.codecs.zstd import TRY_EVERY, ZstdStage
from psgrad.errors import WireError

KEY = Key(1, 2, 3, 0)


def payload_of(x, residual=None):
    out = np.zeros(Raw().nbytes_max(x.size), np.uint8)
    return out[: Raw().encode(x, residual, out, KEY, Workspace())]


def with_body(body, **fields):
    """A payload of codec 0 with ``body`` behind a header."""
    out = np.zeros(HEADER_NBYTES + len(body), np.uint8)
    out[HEADER_NBYTES:] = np.frombuffer(body, np.uint8)
    wire.write_header(out, PayloadHeader(**{"codec": 0, "n": 4, "k": 4, "nbytes": 16, **fields}))
    return out


@pytest.mark.parametrize("n", [0, 1, 31, 4097])
def test_raw_is_exact(n):
    x = np.random.default_rng(n).standard_normal(n, dtype=np.float32)
    residual = np.full(n, 0.5, np.float32)
    payload = payload_of(x, residual)
    assert payload.size == HEADER_NBYTES + 4 * n
    out = np.full(n, np.nan, np.float32)
    write_into(Raw().open(payload, n), out)
    assert np.array_equal(out, x + np.float32(0.5))
    assert not residual.any()


def test_sums_of_raw_payloads():
    x, y = np.arange(5, dtype=np.float32), np.full(5, 10, np.float32)
    out = np.full(5, np.nan, np.float32)
    for i, part in enumerate((x, y)):
        Raw().open(payload_of(part), 5).add_to(out, 0, np.float32(0.5), first=i == 0)
    assert np.array_equal(out, (x + y) / 2)


def test_golden_header():
    header = PayloadHeader(7, n=0x01020304, k=0x00112233, nbytes=0x0A0B0C0D, values=3,
                           flags=4, indices=2, block=6)  # fmt: skip
    out = np.zeros(HEADER_NBYTES, np.uint8)
    wire.write_header(out, header)
    assert out.tobytes().hex(" ", 4) == ("50670107 03040206 04030201 33221100 0d0c0b0a 00000000")


@given(st.integers(0, 2**32 - 1), st.data())
def test_a_header_comes_back(n, data):
    header = PayloadHeader(
        codec=data.draw(st.integers(0, 255)), n=n, k=data.draw(st.integers(0, n)), nbytes=0,
        values=data.draw(st.integers(0, 255)), flags=data.draw(st.integers(0, 3)),
        indices=data.draw(st.integers(0, 255)), block=data.draw(st.integers(0, 255)),
    )  # fmt: skip
    out = np.zeros(HEADER_NBYTES, np.uint8)
    wire.write_header(out, header)
    assert wire.read_header(out, header.codec, n) == header


def test_the_checksum_sees_every_flipped_bit():
    payload = payload_of(np.arange(4, dtype=np.float32)).copy()
    wire.seal(payload)
    wire.read_header(payload, 0, 4)
    for bit in range(8 * payload.size):
        if bit // 8 in range(HEADER_NBYTES - 4, HEADER_NBYTES):
            continue  # a checksum that becomes 0 by one flip is the only one not checked
        payload[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            Raw().open(payload, 4)
        payload[bit // 8] ^= 1 << bit % 8


def test_every_truncation_is_refused():
    payload = payload_of(np.arange(4, dtype=np.float32))
    for size in range(payload.size):
        with pytest.raises(WireError):
            Raw().open(payload[:size], 4)


REFUSED = {
    "another codec": {"codec": 1},
    "another n": {"n": 5},
    "more stored than there are": {"k": 5},
    "unknown flags": {"flags": 8},
    "a body that zeros do not have": {"flags": Flag.ZERO},
    "raw and zero": {"flags": Flag.RAW | Flag.ZERO, "nbytes": 0},
    "raw of another size": {"flags": Flag.RAW, "nbytes": 12},
    "no flags of raw": {},
    "zstd and raw": {"flags": Flag.RAW | Flag.ZSTD},
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    with pytest.raises(WireError):
        Raw().open(with_body(bytes(16), **REFUSED[case]), 4)


def test_zeros_need_no_body():
    payload = with_body(b"", nbytes=0, k=0, flags=Flag.ZERO)
    out = np.full(4, np.nan, np.float32)
    opened = open_plain(payload, wire.read_header(payload, 0, 4))
    opened.add_to(out, 0, np.float32(1), first=True)
    assert not out.any()
    out.fill(3.0)
    opened.add_to(out, 0, np.float32(1), first=False)
    assert np.all(out == 3.0)


def squeezed(body, **fields):
    payload = with_body(body, nbytes=len(body), **fields)
    return payload[: wire.squeeze(payload, zstandard.ZstdCompressor(level=1))]


def test_zstd_comes_back():
    body = bytes(1000)
    payload = squeezed(body)
    assert payload.size < 100
    header = wire.read_header(payload, 0, 4)
    assert header.flags == Flag.ZSTD
    assert wire.body_of(payload, header, 1000).tobytes() == body


def test_zstd_leaves_alone_what_it_would_make_larger():
    body = np.random.default_rng(1).bytes(100)
    payload = squeezed(body)
    header = wire.read_header(payload, 0, 4)
    assert header.flags == 0
    assert wire.body_of(payload, header, 100).tobytes() == body


def test_zstd_leaves_raw_values_alone():
    """They are read where they lie, and no flag goes with theirs."""
    x = np.zeros(1000, np.float32)
    payload = np.zeros(Raw().nbytes_max(1000), np.uint8)
    nbytes = Raw().encode(x, None, payload, KEY, Workspace())
    assert wire.squeeze(payload[:nbytes], zstandard.ZstdCompressor()) == nbytes
    write_into(Raw().open(payload, 1000), out := np.ones(1000, np.float32))
    assert np.array_equal(out, x)


def test_a_frame_larger_than_it_may_be_is_refused_unread():
    payload = squeezed(bytes(100_000))
    header = wire.read_header(payload, 0, 4)
    with pytest.raises(WireError, match="declares 100000 bytes, the limit is 99999"):
        wire.body_of(payload, header, 99_999)
    with pytest.raises(WireError, match="zstd frame of 100000 bytes, header says 99"):
        wire.body_of(payload, header._replace(nbytes=99), 99_999)


def test_damaged_frames_are_refused_or_right():
    body = b"abcd" * 200
    good = squeezed(body)
    for bit in range(8 * HEADER_NBYTES, 8 * good.size):
        payload = good.copy()
        payload[bit // 8] ^= 1 << bit % 8
        try:
            header = wire.read_header(payload, 0, 4)
            assert wire.body_of(payload, header, 800).size == 800
        except WireError:
            pass


BOMBS = """
import resource, sys
import numpy as np
import zstandard
from psgrad.codecs import gaps, parse, wire
from psgrad.errors import WireError

N, HUGE = 4096, 1 << 28


def frame(declared, written=HUGE, **options):
    compress = zstandard.ZstdCompressor(level=1, **options).compressobj(declared)
    block = bytes(1 << 20)
    parts = [compress.compress(block) for _ in range(written >> 20)]
    return b"".join([*parts, compress.flush()])


def renamed(honest, declared):
    \"""The frame with another content size, in its field of 4 bytes.\"""
    at = honest.index((HUGE).to_bytes(4, "little"), 0, 18)
    return honest[:at] + declared.to_bytes(4, "little") + honest[at + 4 :]


honest = frame(HUGE)
assert zstandard.frame_content_size(honest) == HUGE
silent = frame(-1, write_content_size=False)
assert zstandard.frame_content_size(silent) == -1
lying = renamed(honest, 4 * N)
assert zstandard.frame_content_size(lying) == 4 * N
frames = {"honest": honest, "silent": silent, "lying": lying, "cut": lying[: len(lying) // 2],
          "skipped": b"\x50\x2a\x4d\x18" + (1 << 28).to_bytes(4, "little") + bytes(100)}


def payload(code, body, nbytes, **fields):
    out = np.append(np.zeros(wire.HEADER_NBYTES, np.uint8), np.frombuffer(body, np.uint8))
    wire.write_header(out, wire.PayloadHeader(code, N, N, nbytes, **fields))
    return out


def refused(read, *arguments):
    try:
        read(*arguments)
    except WireError:
        return
    raise AssertionError("it was not refused")


before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for body in frames.values():
    for declared in (4 * N, N, 0, HUGE, 2**32 - 1):
        for spec in ("int8", "sign", "topk:0.5", "randk:0.5", "qsgd"):
            codec = parse(spec)
            bomb = payload(codec.code, body, declared, flags=wire.Flag.ZSTD)
            refused(codec.open, bomb, N)
            fields = {"values": 1, "indices": 2, "flags": wire.Flag.ZSTD}
            squeezed = payload(codec.code, body, declared, **fields)
            refused(codec.open, squeezed, N)
        refused(wire.body_of, bomb, wire.read_header(bomb, bomb[3], N), 4 * N)
    inner = np.append(np.zeros(4, np.uint8), np.frombuffer(body, np.uint8))
    refused(gaps.read, inner, N, True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)  # KiB
"""


def test_a_bomb_is_refused_before_it_takes_memory():
    """Frames of 256 MiB: declared, not declared, declared as less, cut short, to be skipped.

    In a process of its own, because zstd's own memory is not Python's.
    """
    done = subprocess.run(
        [sys.executable, "-c", BOMBS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4096


class Clock:
    """Every reading is ``step_s`` after the one before."""

    def __init__(self, step_s):
        self.now, self.step_s = 0.0, step_s

    def __call__(self):
        self.now += self.step_s
        return self.now


@pytest.mark.parametrize(
    ("link_rate", "active"),
    [
        (1e6, True),  # 1 MB/s: about 1 ms saved for 10 us of work
        (1e9, False),  # 1 GB/s: 1 us saved
    ],
)
def test_auto_weighs_the_link_against_the_work(link_rate, active):
    stage = ZstdStage("auto", Clock(1e-5))
    for _ in range(TRY_EVERY):
        unknown = stage.apply(with_body(bytes(1000), nbytes=1000), 0.0)
        assert unknown == HEADER_NBYTES + 1000, "no rate is known"
    size = stage.apply(with_body(bytes(1000), nbytes=1000), link_rate)
    assert size < HEADER_NBYTES + 100, "the trial is sent as it came out"
    assert stage.active == active
    after = stage.apply(with_body(bytes(1000), nbytes=1000), link_rate)
    assert (after < HEADER_NBYTES + 100) == active


def test_on_and_off():
    for mode, small in (("on", True), ("off", False)):
        size = ZstdStage(mode, Clock(1.0)).apply(with_body(bytes(1000), nbytes=1000), 1e6)
        assert (size < HEADER_NBYTES + 100) == small
