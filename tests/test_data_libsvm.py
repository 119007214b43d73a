"""Sparse text: what is read, the line of what is refused, and a naive twin."""

from __future__ import annotations

import numpy as np
import pytest
from data_files import fuzz, refused, write
from hypothesis import example, given
from hypothesis import strategies as st

from psgrad.data.libsvm import MAX_FEATURES, read_libsvm


@pytest.mark.parametrize(
    "content",
    [
        "1 1:1 3:2.5\n-1 2:-1e1\n",
        "1 1:1 3:2.5\n-1 2:-1e1",
        "+1 1:1 3:2.5 # comment 9:9\n# whole line\n\n-1.0\t2:-10 \r\n",
        "  7 0:1 2:2.5\n 3 1:-10",
    ],
)
def test_libsvm(tmp_path, content):
    data = read_libsvm(write(tmp_path / "a.svm", content))
    x, labels = data.batch(np.array([1, 0, 1]))
    assert (len(data), data.features, data.classes) == (2, 3, 2)
    assert (x.dtype, labels.dtype) == (np.float32, np.int64)
    assert x.tolist() == [[0, -10, 0], [1, 0, 2.5], [0, -10, 0]]
    assert labels.tolist() == [0, 1, 0]


def test_libsvm_renumbers_labels_in_ascending_order(tmp_path):
    data = read_libsvm(write(tmp_path / "a.svm", "30 1:1\n-2\n7 2:1\n30\n"))
    assert (data.labels.tolist(), data.classes) == ([2, 0, 1, 2], 3)


def test_libsvm_rows_without_pairs_are_zeros(tmp_path):
    data = read_libsvm(write(tmp_path / "a.svm", "0\n1 2:5\n0\n1 1:4\n0\n"))
    assert data.batch(np.arange(5))[0].tolist() == [[0, 0], [0, 5], [0, 0], [4, 0], [0, 0]]
    assert data.batch(np.array([], np.int64))[0].shape == (0, 2)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", " has 0 rows"),
        ("# nothing\n\n", " has 0 rows"),
        ("1\n2\n", ": no line has a feature"),
        ("1 1:1\nx 1:1\n", ":2: label 'x' is not a number"),
        ("1 1:1\n\n1:1 2:1\n", ":3: label '1:1' is not a number"),
        ("1,2 1:1\n", ":1: label '1,2' is not a number"),
        ("1 1:1 5\n", ":1: '5' is not index:value; write pairs like 3:0.5"),
        ("1 1:1\n1 qid:3 1:1\n", ":2: 'qid:3' is not index:value"),
        ("1 1:1\n1 3: 1\n", ":2: '3:' is not index:value"),
        ("1 1:1\n1 :3 1:1\n", ":2: ':3' is not index:value"),
        ("1 3\n1 1:2:3\n", ":1: '3' is not index:value"),
        ("1 1:2:3\n1 3\n", ":1: '1:2:3' is not index:value"),
        ("1 1:1_0\n", ":1: '1:1_0' is not index:value"),
        ("1 1:1\n0 1:1x", ":2: '1:1x' is not index:value"),
        (b"1 1:1\n0 1:\xff\n", ":2: '1:ÿ' is not index:value"),
        (b"1 1:1\n0 1:1\x00\n", ":2: '1:1\\x00' is not index:value"),
        ("1 1:1\n1 -1:1\n", ":2: index -1 must be a whole number from 0 to 16777216"),
        ("1 1:1\n1 1.5:1\n", ":2: index 1.5 must be a whole number"),
        ("1 1:1\n1 nan:1\n", ":2: index nan must be a whole number"),
        (f"1 1:1\n1 {MAX_FEATURES + 1}:1\n", ":2: index 16777217 must be a whole number"),
        ("1 1:1\n\n1 2:1 2:1\n", ":3: index 2 follows 2; indices must ascend"),
        ("1\n1 1:1 3:1 2:1\n", ":2: index 2 follows 3; indices must ascend"),
        ("1 1:1\n1 4:nan\n", ":2: index 4 is nan, not a finite float32"),
        ("1 1:1\n1 4:-1e39\n", ":2: index 4 is -1e+39, not a finite float32"),
        ("1 1:1\n1.5 4:1\n", ":2: label 1.5 is not a whole number"),
        ("1 1:1\nnan 4:1\n", ":2: label nan is not a whole number"),
        ("1 1:1\n1e300 4:1\n", ":2: label 1e+300 is not a whole number below 2**53"),
    ],
)
def test_libsvm_refused(tmp_path, content, text):
    assert refused(read_libsvm, write(tmp_path / "a.svm", content)).startswith(text)


def test_libsvm_more_labels_than_classes(tmp_path):
    path = write(tmp_path / "a.svm", "5 1:1\n9 1:1\n\n7 1:1\n9 1:1\n")
    text = refused(read_libsvm, path, classes=2)
    assert text.startswith(":2: label 9 is one too many, the file has 3 distinct labels, the limit")
    assert read_libsvm(path, classes=4).classes == 4


def naive_libsvm(text):
    """Labels and dictionaries of a file by the plainest code; None where it is not one."""
    rows = []
    for line in text.split("\n"):
        words = line.split("#")[0].split()
        try:
            pairs = [word.split(":") for word in words[1:]]
            row = [(int(index), float(value)) for index, value in pairs]
            label = int(words[0]) if words else None
        except ValueError:
            return None
        indices = [index for index, _ in row]
        if indices != sorted(set(indices)) or min(indices, default=0) < 0:
            return None
        if words:
            rows.append((label, dict(row)))
    return rows if any(row for _, row in rows) else None


PAIRS = st.dictionaries(st.integers(0, 12), st.sampled_from(["0", "1", "-2.5", "3e2"]))
LINES = st.builds(
    lambda label, pairs: " ".join([str(label), *(f"{i}:{pairs[i]}" for i in sorted(pairs))]),
    st.integers(-3, 3),
    PAIRS,
)


@fuzz
@given(
    st.one_of(
        st.text(alphabet="1234 ::\n#-", max_size=24),
        st.lists(LINES, max_size=6).map("\n".join),
    )
)
@example("1 3\n1 1:2:3\n")  # two defects that leave the count of numbers right
@example("1 1:1\n1:1\n1 1\n")
def test_libsvm_equals_its_naive_twin(tmp_path, text):
    path, rows = write(tmp_path / "a.svm", text), naive_libsvm(text)
    if rows is None:
        refused(read_libsvm, path)
        return
    data = read_libsvm(path)
    x, labels = data.batch(np.arange(len(data)))
    base = min(min(row, default=1) for _, row in rows) != 0
    dense = [[row.get(c + base, 0.0) for c in range(data.features)] for _, row in rows]
    assert x.tolist() == dense
    assert np.unique([label for label, _ in rows])[labels].tolist() == [r[0] for r in rows]
    assert max(max(row, default=0) for _, row in rows) == data.features - 1 + base
