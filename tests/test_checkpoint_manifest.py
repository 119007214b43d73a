"""The manifest: a round trip, and everything that it did not write is refused."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.checkpoint import FileRecord, Manifest
from psgrad.errors import CheckpointError
from psgrad.version import __version__

RECORD = FileRecord("server-0.safetensors", 4096, "crc32:89abcdef")
STATE = {"clocks": {"0": 100}, "rate": 0.1, "mode": "ssp", "name": "ü", "none": None}
MANIFEST = Manifest(100, (RECORD, FileRecord("server-1.safetensors", 0, "crc32:00000000")), STATE)
FILE = {"name": "a", "nbytes": 1, "checksum": "crc32:00000000"}
CONTENT = {"files": [FILE], "format": 1, "psgrad": "0.1.0", "state": {}, "step": 1}


def sealed(rest):
    """``rest`` under a checksum that is right."""
    return b'{"checksum": "crc32:%08x",\n' % zlib.crc32(rest) + rest


def written(content):
    return sealed(json.dumps(content).encode()[1:])


def test_what_is_written_is_read():
    assert Manifest.from_bytes(MANIFEST.to_bytes()) == MANIFEST
    assert MANIFEST.psgrad == __version__
    assert MANIFEST.nbytes == 4096


def test_it_is_json_and_its_bytes_are_settled():
    content = json.loads(MANIFEST.to_bytes())
    assert (content["step"], content["format"], content["state"]) == (100, 1, STATE)
    backwards = Manifest(100, MANIFEST.files, dict(reversed(STATE.items())))
    assert backwards.to_bytes() == MANIFEST.to_bytes()


def test_one_that_another_version_wrote_keeps_its_version():
    other = Manifest(1, (), {}, psgrad="9.9.9")
    assert Manifest.from_bytes(other.to_bytes()).psgrad == "9.9.9"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None, derandomize=True)
@given(st.integers(0), st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_any_state(step, state):
    manifest = Manifest(step, (RECORD,), state)
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@pytest.mark.parametrize("state", [{"a": float("nan")}, {"a": np.float32(1)}, {"a": b"bytes"}])
def test_a_state_that_is_not_json(state):
    with pytest.raises((ValueError, TypeError)):
        Manifest(1, (), state).to_bytes()


BAD = [
    ([1], "not JSON"),
    ({}, "it has no format"),
    ({**CONTENT, "format": 2}, "it has format 2, this psgrad reads 1; use the version that wrote"),
    ({**CONTENT, "format": True}, "it has format True"),
    ({**CONTENT, "format": "1"}, "it has format '1'"),
    ({**CONTENT, "more": 1}, r"lacks keys or has others: \['more'\]"),
    ({k: v for k, v in CONTENT.items() if k != "step"}, r"lacks keys or has others: \['step'\]"),
    ({**CONTENT, "step": -1}, "the step must be a whole number from 0 up, got -1"),
    ({**CONTENT, "step": 1.0}, "the step must be"),
    ({**CONTENT, "step": True}, "the step must be"),
    ({**CONTENT, "step": "1"}, "the step must be"),
    ({**CONTENT, "step": None}, "the step must be"),
    ({**CONTENT, "state": []}, "its state must be an object"),
    ({**CONTENT, "psgrad": 1}, "its version a text"),
    ({**CONTENT, "files": {}}, "its files must be a list"),
    ({**CONTENT, "files": ["a"]}, "its files must be a list"),
    ({**CONTENT, "files": [{}]}, "its files must be a list"),
    ({**CONTENT, "files": [{**FILE, "mode": 1}]}, "its files must be a list"),
    ({**CONTENT, "files": [FILE, FILE]}, r"a file is there twice: \['a', 'a'\]"),
    *(
        ({**CONTENT, "files": [{**FILE, "name": name}]}, "is not the name of a file inside")
        for name in ("", ".", "..", "../a", "/a", "a/b", "a\0", "\ud800", ".a", "a b", "a\n", "-a",
                     "manifest.json", 1, None, ["a"])
    ),
    *(
        ({**CONTENT, "files": [{**FILE, "nbytes": nbytes}]}, "must be at least 0 bytes")
        for nbytes in (-1, 1.0, True, "1", None, [1])
    ),
    *(
        ({**CONTENT, "files": [{**FILE, "checksum": checksum}]}, "must be like crc32:89abcdef")
        for checksum in ("", "00000000", "crc32:", "crc32:0000000", "crc32:000000000", "xxh3:0",
                         "crc32:0000000A", "crc32:00000000\n", 0, None)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("content", "text"), BAD)
def test_a_manifest_that_cannot_be(content, text):
    with pytest.raises(CheckpointError, match=text):
        Manifest.from_bytes(written(content))


def test_the_table_above_starts_from_one_that_can_be():
    assert Manifest.from_bytes(written(CONTENT)).files == (FileRecord(**FILE),)


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"}",
        b'"format": 1',
        b'"format": 1, "format": 1}',
        b'"format": NaN}',
        b'"format": ' + b"[" * 100_000,
        b'"format": ' + b"1" * 5000 + b"}",
        b'"format": "\xff"}',
        json.dumps(CONTENT).encode()[1:] + b"{}",
    ],
    ids=lambda rest: str(rest[:30]),
)
def test_a_checksum_makes_no_manifest(rest):
    with pytest.raises(CheckpointError):
        Manifest.from_bytes(sealed(rest))


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b'{"checksum": "crc32:0000000"}'])
def test_what_has_no_checksum(data):
    with pytest.raises(CheckpointError, match="does not begin with a checksum"):
        Manifest.from_bytes(data)


def test_every_truncation_and_every_flipped_bit_is_noticed():
    data = MANIFEST.to_bytes()
    for size in range(len(data)):
        with pytest.raises(CheckpointError):
            Manifest.from_bytes(data[:size])
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CheckpointError):
            Manifest.from_bytes(bytes(damaged))
    with pytest.raises(CheckpointError):
        Manifest.from_bytes(data + b"\n")


@pytest.mark.parametrize(
    ("step", "files", "text"),
    [
        (-1, (), "the step must be a whole number from 0 up, got -1"),
        (1, (FileRecord("a/b", 1, "crc32:00000000"),), "not the name of a file"),
        (1, (RECORD, RECORD), "a file is there twice"),
    ],
)
def test_one_that_cannot_be_is_not_made(step, files, text):
    with pytest.raises(CheckpointError, match=text):
        Manifest(step, files, {})
