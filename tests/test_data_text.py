"""Text as windows of characters."""

from __future__ import annotations

import numpy as np
import pytest
from data_files import fuzz, refused, write
from hypothesis import given
from hypothesis import strategies as st

from psgrad.data.text import read_text, read_tokens


def test_text_windows(tmp_path):
    data = read_text(write(tmp_path / "a.txt", "abca\nb"), context=2)
    assert (data.vocabulary, data.ids.tolist()) == ("\nabc", [1, 2, 3, 1, 0, 2])
    assert (len(data), data.features, data.classes, data.sequential) == (4, 8, 4, True)
    x, labels = data.batch(np.array([3, 0]))
    assert (x.dtype, labels.dtype) == (np.float32, np.int64)
    assert x.tolist() == [[0, 1, 0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0, 1, 0]]
    assert labels.tolist() == [2, 3]
    assert data.labels.tolist() == [3, 1, 0, 2]


def test_windows_of_tokens(tmp_path):
    data = read_tokens(write(tmp_path / "a.txt", "abca\nbc"), context=2)
    assert (data.vocabulary, data.ids.tolist()) == ("\nabc", [1, 2, 3, 1, 0, 2, 3])
    assert (len(data), data.features, data.classes, data.sequential) == (3, 2, 4, True)
    x, labels = data.batch(np.array([2, 0]))
    assert (x.dtype, labels.dtype) == (np.int64, np.int64)
    assert x.flags.c_contiguous
    assert labels.flags.c_contiguous
    assert x.tolist() == [[0, 2], [1, 2]]
    assert labels.tolist() == [[2, 3], [2, 3]]
    assert data.labels.tolist() == [3, 0, 3]


@fuzz
@given(st.text(min_size=2), st.integers(1, 4))
def test_each_character_is_a_label_of_a_token_once(tmp_path, text, context):
    path, expected = write(tmp_path / "a.txt", text), text.removeprefix("\ufeff")
    if len(expected) <= context:
        assert refused(read_tokens, path, context=context).startswith(f" has {len(expected)} char")
        return
    data = read_tokens(path, context=context)
    x, labels = data.batch(np.arange(len(data)))
    assert x.shape == labels.shape == (len(data), context)
    whole = labels.size
    assert len(expected) - 1 - whole < context
    assert "".join(data.vocabulary[i] for i in labels.ravel()) == expected[1 : 1 + whole]
    assert "".join(data.vocabulary[i] for i in x.ravel()) == expected[:whole]
    np.testing.assert_array_equal(labels[:, -1], data.labels)


@fuzz
@given(st.text(min_size=2), st.integers(1, 4))
def test_text_reads_back(tmp_path, text, context):
    path, expected = write(tmp_path / "a.txt", text), text.removeprefix("\ufeff")
    if len(expected) <= context:
        assert refused(read_text, path, context=context).startswith(f" has {len(expected)} char")
        return
    data = read_text(path, context=context)
    assert "".join(data.vocabulary[i] for i in data.ids) == expected
    x, labels = data.batch(np.arange(len(data)))
    assert x.sum() == len(data) * context
    windows = x.reshape(len(data), context, -1).argmax(axis=2)
    np.testing.assert_array_equal(windows[:, 0], data.ids[: len(data)])
    np.testing.assert_array_equal(labels, data.labels)


def test_text_drops_a_byte_order_mark_and_keeps_line_ends(tmp_path):
    data = read_text(write(tmp_path / "a.txt", "\ufeffa\r\nb\ufeff"), context=1)
    assert "".join(data.vocabulary[i] for i in data.ids) == "a\r\nb\ufeff"


@pytest.mark.parametrize(
    ("count", "dtype"), [(2, np.uint8), (256, np.uint8), (257, np.uint16), (65537, np.uint32)]
)
def test_text_ids_are_small(tmp_path, count, dtype):
    text = "".join(chr(0x10000 + i) for i in range(count))
    data = read_text(write(tmp_path / "a.txt", text), context=1)
    assert data.ids.dtype == dtype
    assert data.ids.tolist() == list(range(count))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"ab\xffcd", ": byte 0xff at offset 2 is not UTF-8; convert"),
        (b"", " has 0 characters; context 3 needs at least 4"),
        (b"abc", " has 3 characters; context 3 needs at least 4"),
        (b"abcd", ": character 'c' at offset 2 is one too many, the text has 4 distinct ones"),
    ],
)
def test_text_refused(tmp_path, content, text):
    path = write(tmp_path / "a.txt", content)
    assert refused(read_text, path, context=3, classes=2).startswith(text)
