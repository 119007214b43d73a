"""Comma-separated numbers: what is read, and the line and column of what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from data_files import fuzz, refused, write
from hypothesis import given
from hypothesis import strategies as st

from psgrad.data.csv import read_csv
from psgrad.errors import ConfigError


@pytest.mark.parametrize(
    "content",
    [
        "1,2.5,0\n-3,4e-1,1.0\n",
        "1,2.5,0\n-3,4e-1,1",
        "a,b,label\n1,2.5,0\n-3,.4,1\n",
        "0,1,_digit\n1,2.5,0\n-3,.4,1\n",
        'a,b,"digit"\n1,2.5,0\n-3,.4,1\n',
        "\n\na,b,label\n\n1,2.5,0\n\n-3,.4,1\n\n",
        "\ufeffa,b,label\r\n1, 2.5 ,0\r\n-3,.4,1\r\n",
        "\ufeff1,2.5,0\r-3,.4,1\r",
    ],
)
def test_csv(tmp_path, content):
    data = read_csv(write(tmp_path / "a.csv", content))
    assert data.x.tolist() == [[1, 2.5], [-3, np.float32(0.4)]]
    assert (data.labels.tolist(), data.labels.dtype, data.classes) == ([0, 1], np.int64, 2)
    assert data.x.dtype == np.float32


@pytest.mark.parametrize(
    ("column", "labels"), [(0, [0, 1]), (-3, [0, 1]), (1, [2, 3]), (2, [4, 5])]
)
def test_csv_label_column(tmp_path, column, labels):
    data = read_csv(write(tmp_path / "a.csv", "0,2,4\n1,3,5\n"), label_column=column)
    assert data.labels.tolist() == labels
    rest = [c for c in range(3) if c != column % 3]
    assert data.x.tolist() == np.array([[0, 2, 4], [1, 3, 5]])[:, rest].tolist()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", " has 0 rows; at least 1"),
        ("\n\n", " has 0 rows; at least 1"),
        ("a,b\n\n", " has 0 rows below its header"),
        ("1\n2\n", " has 1 column; at least 2"),
        ("a,b\n1\n2\n", " has 1 column; at least 2"),
        ("1,2,0\n\n1,2\n", ":3: 2 columns, but 3 in the lines before"),
        ("1,2,0\n1,2,3,0\n", ":2: 4 columns, but 3 in the lines before"),
        ("a,b,c\n1,2,0\n1,x2,0\n", ":3: column 2 is not a number: 'x2'"),
        ("1,2,0\n1,,0\n", ":2: column 2 is not a number: ''"),
        ("1,2,?\n1,2,0\n", ":1: column 3 is not a number: '?'"),
        ("1,2,\n1,2,0\n", ":1: column 3 is not a number: ''"),
        ("?,2,0\n1,2,0\n", ":1: column 1 is not a number: '?'"),
        ("1,2,setosa\n1,2,setosa\n", ":2: column 3 is not a number: 'setosa'"),
        ("1,1_0,0\n", ":1: column 2 is not a number: '1_0'"),
        ("1,0x10,0\n", ":1: column 2 is not a number: '0x10'"),
        ("1,2 3,0\n", ":1: column 2 is not a number: '2 3'"),
        ('1,"2",0\n', ":1: column 2 is not a number: '\"2\"'"),
        ("1,2,0 # no\n", ":1: column 3 is not a number: '0 # no'"),
        ("1,2,0\n1,٣,0\n", ":2: column 2 is not a number: '٣'"),
        (b"1,2,0\n1,\xff,0\n", ":2: column 2 is not a number: '\ufffd'"),
        ("1," + "z" * 50 + ",0\n", ":1: column 2 is not a number: '" + "z" * 21 + "...'"),
        ("h,h,h\n\n1,2,0\n\n1,nan,0\n", ":5: column 2 is nan, not a finite float32"),
        ("1,2,0\n1e39,2,0\n", ":2: column 1 is 1e+39, not a finite float32"),
        ("1,2,0\n1,2,-1\n", ":2: column 3: label -1 is negative"),
        ("1,2,0\n\n1,2,0.5\n", ":3: column 3: label 0.5 is not a whole number"),
        ("1,2,0\n1,2,nan\n", ":2: column 3: label nan is not a whole number"),
        ("1,2,0\n1,2,65536\n", ":2: column 3: label 65536 is out of range, the limit is 65535"),
    ],
)
def test_csv_refused(tmp_path, content, text):
    assert refused(read_csv, write(tmp_path / "a.csv", content)).startswith(text)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_csv_column_of_a_bad_value_counts_the_label(tmp_path, value):
    path = write(tmp_path / "a.csv", f"0,1,2\n1,1,{value}\n")
    assert refused(read_csv, path, label_column=1).startswith(f":2: column 3 is {value}")


@pytest.mark.parametrize("column", [3, -4])
def test_csv_label_column_that_is_not_there(tmp_path, column):
    path = write(tmp_path / "a.csv", "0,1,2\n")
    with pytest.raises(ConfigError, match=rf"label_column must be -3 to 2 for .*, got {column}"):
        read_csv(path, label_column=column)


def naive_csv(text):
    """Rows of a headerless file by the plainest code; None where it is not one."""
    rows = []
    for line in text.split("\n"):
        if line:
            try:
                rows.append([float(field) for field in line.split(",")])
            except ValueError:
                return None
    same = rows and len(rows[0]) > 1 and all(len(r) == len(rows[0]) for r in rows)
    good = same and all(r[-1] >= 0 and r[-1] == int(r[-1]) for r in rows)
    return rows if good else None


@fuzz
@given(st.text(alphabet="012.- ,,\n\n", max_size=24))
def test_csv_equals_its_naive_twin(tmp_path, text):
    path, rows = write(tmp_path / "a.csv", text), naive_csv(text)
    if rows is None:
        refused(read_csv, path)
    else:
        data = read_csv(path)
        assert data.x.tolist() == np.float32([r[:-1] for r in rows]).tolist()
        assert data.labels.tolist() == [r[-1] for r in rows]
