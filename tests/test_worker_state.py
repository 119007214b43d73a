"""A worker's state as JSON and rows: what goes in comes out, and what cannot is refused."""

from __future__ import annotations

import json
import math
import re
from collections import UserDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from psgrad.errors import CheckpointError
from psgrad.worker_state import ARRAY, DTYPES, WorkerState, unpack

N = 6  # parameters
KEYS = st.text(st.characters(exclude_characters="/.", exclude_categories=("Cs",)), max_size=5)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(np.dtype(dtype), SHAPES))
ROWS = hnp.arrays(np.float32, (N,))
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | ARRAYS | ROWS
)
STATES = st.dictionaries(
    KEYS,
    st.recursive(
        LEAVES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


def through_json(state, n=N):
    """As it is read again: JSON with nothing that JSON has no word for, and rows as copies."""
    kept = WorkerState.of(state, n)
    rows = {name: row.copy() for name, row in kept.rows.items()}
    record = json.loads(json.dumps(kept.record, allow_nan=False))
    asked = []

    def row(name):
        asked.append(name)
        return rows[name]

    back = unpack(record, row)
    assert sorted(asked) == sorted(rows), "each row once"
    return back


def same(a, b):
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape
            and a.tobytes() == b.tobytes()
        )  # fmt: skip
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return isinstance(b, float) and a.hex() == b.hex()
    return type(a) is type(b) and a == b


@settings(derandomize=True, deadline=None)
@given(STATES)
def test_what_goes_in_comes_out(state):
    if ARRAY not in str(state):
        assert same(state, through_json(state))


@pytest.mark.parametrize(
    ("value", "back"),
    [
        ((1, 2), [1, 2]),
        (np.int64(7), 7),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (-0.0, -0.0),
        (math.inf, math.inf),
        (-math.inf, -math.inf),
        (1 << 200, 1 << 200),
        (UserDict(a=1), {"a": 1}),
        (np.float64(math.nan), math.nan),
        (np.array(3), 3),
    ],
)
def test_what_comes_out_in_another_shape(value, back):
    assert same(back, through_json({"x": value})["x"])


def test_vectors_over_all_parameters_are_the_memory_itself():
    row, other = np.arange(N, dtype=np.float32), np.arange(N, dtype=np.float64)
    kept = WorkerState.of({"a": {"b": row}, "c": [row[:-1], row], "d": other, "e": row[::1]}, N)
    assert list(kept.rows) == ["a.b", "c.1", "e"]
    assert kept.rows["a.b"] is row
    assert kept.record["a"]["b"] == {ARRAY: "row"}
    assert kept.record["d"][ARRAY] == "float64"


def test_a_vector_that_does_not_lie_in_one_piece_is_no_row():
    strided = np.arange(2 * N, dtype=np.float32)[::2]
    assert not WorkerState.of({"a": strided}, N).rows
    assert same(strided.copy(), through_json({"a": strided})["a"])


def test_what_is_read_is_not_what_was_written():
    array = np.arange(3)
    back = through_json({"x": array})["x"]
    back[0] = 9
    assert array[0] == 0


class Other:
    pass


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"x": Other()}, "x cannot be kept: a state has numbers, strings, lists, dicts and NumPy"),
        ({"x": {"y": [Other()]}}, "x.y.0 cannot be kept"),
        ({"x": {1, 2}}, "got set"),
        ({"x": b"bytes"}, "got bytes"),
        ({"x": 1j}, "got complex"),
        ({"x": np.datetime64("2026-01-01")}, "x cannot be kept"),
        ({"x": np.zeros(2, np.complex64)}, "x cannot be kept: its dtype is complex64"),
        ({"x": np.array(["a"])}, "x cannot be kept: its dtype is <U1"),
        ({"x": np.array([None])}, "x cannot be kept: its dtype is object"),
        ({1: 2}, "a state's keys are strings without a slash, got 1"),
        ({"x": {"a/b": 2}}, "a state's keys are strings without a slash, got 'a/b'"),
        ({ARRAY: 2}, f"a state's keys are strings without a slash, got '{ARRAY}'"),
        (
            {"a.b": np.zeros(N, np.float32), "a": {"b": np.ones(N, np.float32)}},
            "a state has two vectors with the name 'a.b'; rename one",
        ),
    ],
)
def test_what_cannot_be_kept(state, text):
    with pytest.raises(CheckpointError, match=re.escape(text)):
        WorkerState.of(state, N)


@pytest.mark.parametrize(
    "record",
    [
        {ARRAY: "object", "shape": [1], "data": "AAAAAAAAAAA="},
        {ARRAY: "float16", "shape": [1], "data": "AAA="},
        {ARRAY: ["int64"], "shape": [1], "data": "AAAAAAAAAAA="},
        {ARRAY: None},
        {ARRAY: "int64"},
        {ARRAY: "int64", "shape": [1]},
        {ARRAY: "int64", "data": "AAAAAAAAAAA="},
        {ARRAY: "int64", "shape": [2], "data": "AAAAAAAAAAA="},
        {ARRAY: "int64", "shape": [1], "data": "AAAAAAAAAA=="},
        {ARRAY: "int64", "shape": [1], "data": "A"},
        {ARRAY: "int64", "shape": [1], "data": "????AAAAAAA="},
        {ARRAY: "int64", "shape": [1], "data": 5},
        {ARRAY: "int64", "shape": [1], "data": "ÄÖ"},
        {ARRAY: "int64", "shape": 1, "data": "AAAAAAAAAAA="},
        {ARRAY: "int64", "shape": [1.0], "data": "AAAAAAAAAAA="},
        {ARRAY: "int64", "shape": [-1], "data": "AAAAAAAAAAA="},
        {ARRAY: "int64", "shape": [1 << 70], "data": "AAAAAAAAAAA="},
        {ARRAY: "int64", "shape": [1] * 100, "data": "AAAAAAAAAAA="},
        {ARRAY: "int64", "shape": "1", "data": "AAAAAAAAAAA="},
    ],
)
def test_hostile_arrays_are_refused(record):
    with pytest.raises(CheckpointError, match="a checkpoint has an array that is none: "):
        unpack({"x": [record]}, lambda name: None)


def test_what_is_no_array_is_what_it_is():
    record = {"a": [1, {"shape": [3]}], "b": None}
    assert unpack(record, lambda name: pytest.fail("no row")) == record
