"""A file of tensors: what is written is read, by us and by others, and nothing damaged is."""

from __future__ import annotations

import json
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from psgrad.checkpoint import FileRecord, check_file, files, open_tensors, write_tensors
from psgrad.errors import CheckpointError

TENSORS = {
    "bytes": np.arange(7, dtype=np.uint8),
    "params": np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5),
    "clock": np.array(-(1 << 62), np.int64),
    "wide": np.array([np.pi, np.nan, -np.inf]),
    "none": np.zeros((0, 4), np.float32),
    "ü/ \U0001f600": np.ones((1, 1, 2), np.float32),
}


def assert_same(tensors, others):
    assert set(tensors) == set(others)
    for name, tensor in tensors.items():
        assert others[name].dtype == tensor.dtype
        assert others[name].shape == tensor.shape
        assert others[name].tobytes() == tensor.tobytes()


def all_of(file):
    return {name: file.tensor(name) for name in file.names}


def file_of(path, header, data=b"", length=None):
    """A file with a header as it is given: bytes, or what JSON makes of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


# What is written is read


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    record = write_tensors(path, TENSORS)
    content = path.read_bytes()
    assert record == FileRecord(path.name, len(content), f"crc32:{zlib.crc32(content):08x}")
    check_file(tmp_path, record)
    assert_same(TENSORS, all_of(open_tensors(path)))


def test_others_read_what_is_written(tmp_path):
    write_tensors(tmp_path / "a", TENSORS)
    assert_same(TENSORS, load_file(tmp_path / "a"))


def test_what_others_write_is_read(tmp_path):
    save_file(TENSORS, tmp_path / "a", metadata={"by": "somebody else"})
    assert_same(TENSORS, all_of(open_tensors(tmp_path / "a")))


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name.isprintable()),
        st.tuples(
            st.sampled_from(("f8", "i8", "f4", "u1")),
            st.lists(st.integers(0, 4), max_size=4),
        ),
        max_size=6,
    )
)
def test_any_shapes(tmp_path_factory, kinds):
    path = tmp_path_factory.mktemp("any") / "a"
    rng = np.random.default_rng(1)
    tensors = {n: rng.integers(0, 99, shape).astype(kind) for n, (kind, shape) in kinds.items()}
    write_tensors(path, tensors)
    assert_same(tensors, all_of(open_tensors(path)))
    assert_same(tensors, load_file(path))


def test_each_tensor_lies_where_its_elements_are_aligned(tmp_path):
    write_tensors(tmp_path / "a", TENSORS)
    content = (tmp_path / "a").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    assert length % 8 == 0
    for name, entry in json.loads(content[8 : 8 + length]).items():
        assert entry["data_offsets"][0] % TENSORS[name].itemsize == 0


def test_more_than_a_block(tmp_path):
    big = np.arange(files.BLOCK // 4 + 3, dtype=np.float32)
    record = write_tensors(tmp_path / "a", {"big": big, "small": np.zeros(1, np.uint8)})
    check_file(tmp_path, record)
    np.testing.assert_array_equal(open_tensors(tmp_path / "a").tensor("big"), big)


def test_the_system_may_write_less_than_it_was_given(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:5]))
    check_file(tmp_path, write_tensors(tmp_path / "a", TENSORS))
    assert_same(TENSORS, load_file(tmp_path / "a"))


def test_tensors_that_are_not_contiguous(tmp_path):
    square = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensors = {"turned": square.T, "column": square[:, 1], "back": square[::-1]}
    write_tensors(tmp_path / "a", tensors)
    assert_same(tensors, load_file(tmp_path / "a"))


def test_tensors_are_not_changed_by_who_has_read_them(tmp_path):
    write_tensors(tmp_path / "a", TENSORS)
    file = open_tensors(tmp_path / "a")
    file.tensor("params")[:] = 7
    assert_same(TENSORS, all_of(file))


# What cannot be written


@pytest.mark.parametrize(
    "tensor", [np.zeros(2, np.float16), np.zeros(2, ">f4"), np.zeros(2, bool), np.array(["a"])]
)
def test_a_dtype_that_a_checkpoint_does_not_hold(tmp_path, tensor):
    with pytest.raises(CheckpointError, match=r"'x' has dtype .*; a checkpoint holds float64"):
        write_tensors(tmp_path / "a", {"x": tensor})
    assert not list(tmp_path.iterdir())


def test_the_name_that_safetensors_keeps_for_itself(tmp_path):
    with pytest.raises(CheckpointError, match="a tensor cannot be called __metadata__"):
        write_tensors(tmp_path / "a", {"__metadata__": np.zeros(2, np.uint8)})


def test_a_file_is_not_overwritten(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "a", TENSORS)
    assert (tmp_path / "a").read_text() == "mine"


# What is damaged


def test_a_file_that_is_not_what_its_record_says(tmp_path):
    record = write_tensors(tmp_path / "a", TENSORS)
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=rf"a has {record.nbytes - 1} bytes instead of"):
        check_file(tmp_path, record)
    (tmp_path / "a").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="a is damaged: its checksum is crc32:"):
        check_file(tmp_path, record)
    (tmp_path / "a").unlink()
    with pytest.raises(CheckpointError, match="a is missing"):
        check_file(tmp_path, record)
    (tmp_path / "a").mkdir()
    with pytest.raises(CheckpointError, match="a is not a file"):
        check_file(tmp_path, record)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (FileRecord("../a", 1, "crc32:00000000"), "not the name of a file inside"),
        (FileRecord("a", -1, "crc32:00000000"), "must be at least 0 bytes, got -1"),
        (FileRecord("a", 1, "md5:00000000"), "another algorithm needs a newer psgrad"),
        (FileRecord("a", 1, "00000000"), "must be like crc32:89abcdef"),
    ],
)
def test_a_record_that_cannot_be(tmp_path, record, text):
    with pytest.raises(CheckpointError, match=text):
        check_file(tmp_path, record)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BAD_HEADERS = [
    ([], "not an object"),
    (b"{", "not a safetensors file"),
    (b"\xff\xff", "not a safetensors file"),
    (b'{"a": NaN}', "NaN is not a JSON number"),
    (b"[" * 100_000, "nested too deep"),
    (b'{"a":1,"a":1}', "a key is there twice"),
    (b'{"a":' + b"9" * 5000 + b"}", "not a safetensors file"),
    ({"a": 1}, "no dtype, shape and data_offsets alone"),
    ({"a": {**entry(), "more": 1}}, "no dtype, shape and data_offsets alone"),
    ({"a": entry("F16")}, "has dtype 'F16'"),
    ({"a": entry(["F32"])}, "has dtype"),
    ({"a": entry(shape=2)}, "has a shape that is none"),
    ({"a": entry(shape=[-2])}, "has a shape that is none"),
    ({"a": entry(shape=[2.0])}, "has a shape that is none"),
    ({"a": entry(shape=[True, 2])}, "has a shape that is none"),
    ({"a": entry(shape=[1] * 40)}, "has a shape that is none"),
    ({"a": entry(shape=[1 << 40, 1 << 40], offsets=[0, 1 << 82])}, "beyond all memory"),
    ({"a": entry(shape=[0, 1 << 63], offsets=[0, 0])}, "beyond all memory"),
    ({"a": entry(offsets=[0])}, "data_offsets that are none"),
    ({"a": entry(offsets=[-8, 0])}, "data_offsets that are none"),
    ({"a": entry(offsets=[8, 0])}, "does not have the bytes of its shape"),
    ({"a": entry(shape=[3])}, "does not have the bytes of its shape"),
    ({"a": entry(shape=[1 << 40], offsets=[0, 1 << 42])}, "it has .* bytes, its tensors end at"),
    ({"a": entry(offsets=[4, 12])}, "begins at byte"),
    ({"a": entry(), "b": entry()}, "begins at byte"),
    ({"a": entry(shape=[1], offsets=[0, 4])}, "it has .* bytes, its tensors end at"),
    ({}, "it has .* bytes, its tensors end at"),
]


@pytest.mark.parametrize(("header", "text"), BAD_HEADERS)
def test_a_header_that_cannot_be(tmp_path, header, text):
    with pytest.raises(CheckpointError, match=text):
        open_tensors(file_of(tmp_path / "a", header, bytes(8)))


@pytest.mark.parametrize("length", [3, 1 << 20, 1 << 63, (1 << 64) - 1])
def test_the_length_of_a_header_that_cannot_be(tmp_path, length):
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        open_tensors(file_of(tmp_path / "a", {}, length=length))


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "a"
    record = write_tensors(path, TENSORS)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            open_tensors(path)
        with pytest.raises(CheckpointError, match=f"has {size} bytes instead of {len(content)}"):
            check_file(tmp_path, record)


def test_flipped_bits_are_an_error_or_another_file(tmp_path):
    """Without the checksum, too: whatever is read is no larger than the file."""
    path = tmp_path / "a"
    write_tensors(path, {name: TENSORS[name] for name in ("bytes", "params")})
    content = path.read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    refused = 0
    for bit in range(8 * header):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            file = open_tensors(path)
        except CheckpointError:
            refused += 1
            continue
        assert sum(file.tensor(name).nbytes for name in file.names) <= len(content)
    assert 0 < refused < 8 * header


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    write_tensors(tmp_path / "a", TENSORS)
    file = open_tensors(tmp_path / "a")
    os.truncate(tmp_path / "a", (tmp_path / "a").stat().st_size - 1)
    with pytest.raises(CheckpointError, match="ends inside of tensor 'bytes'"):
        file.tensor("bytes")
    (tmp_path / "a").unlink()
    with pytest.raises(CheckpointError, match="a is missing"):
        file.tensor("bytes")


def test_what_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="b is missing"):
        open_tensors(tmp_path / "b")
    write_tensors(tmp_path / "a", TENSORS)
    with pytest.raises(CheckpointError, match="has no tensor 'c'"):
        open_tensors(tmp_path / "a").tensor("c")
