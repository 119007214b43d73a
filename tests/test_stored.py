"""Fields of a checkpoint: typed values, or an error of one line that names the field."""

from __future__ import annotations

import math

import numpy as np
import pytest

from psgrad import stored
from psgrad.errors import CheckpointError, shown


def test_what_fits_comes_back():
    record = {"n": 3, "x": 2, "keys": {"0": "a", "12": "b"}, "small": np.int64(7)}
    assert stored.count(record, "n", "it") == 3
    assert stored.count(record, "small", "it") == 7
    assert stored.number(record, "x", "it") == 2.0
    assert stored.keys_as_counts(record, "keys", "it", 12) == {0: "a", 12: "b"}
    assert math.isnan(stored.real(math.nan, "it"))
    assert stored.mapping(record, "it") is record


REFUSED = [
    (lambda: stored.mapping([1], "it"), "it must be an object, got [1]"),
    (lambda: stored.field({}, "n", "it"), "it has no 'n'"),
    (lambda: stored.field(None, "n", "it"), "it must be an object, got None"),
    (lambda: stored.count({"n": True}, "n", "it"), "n of it must be a whole number from 0 to"),
    (lambda: stored.count({"n": 1.0}, "n", "it"), "n of it must be a whole number from 0 to"),
    (lambda: stored.count({"n": -1}, "n", "it"), "n of it must be a whole number from 0 to"),
    (lambda: stored.count({"n": 4}, "n", "it", 3), "n of it must be a whole number from 0 to 3,"),
    (lambda: stored.count({"n": 0}, "n", "it", 3, 1), "n of it must be a whole number from 1 to"),
    (lambda: stored.count({"n": 10**30}, "n", "it"), "n of it must be a whole number from 0 to"),
    (lambda: stored.number({"x": "1"}, "x", "it"), "x of it must be a number, got '1'"),
    (lambda: stored.number({"x": True}, "x", "it"), "x of it must be a number, got True"),
    (lambda: stored.number({"x": 10**400}, "x", "it"), "x of it must be a number, got 1000"),
    (lambda: stored.number({"x": math.nan}, "x", "it"), "x of it must be finite and at least 0"),
    (lambda: stored.number({"x": math.inf}, "x", "it"), "x of it must be finite and at least 0"),
    (lambda: stored.number({"x": -2}, "x", "it", -1), "x of it must be finite and at least -1"),
    (lambda: stored.keys_as_counts({"k": {"01": 0}}, "k", "it", 9), "k of it has the key '01'"),
    (lambda: stored.keys_as_counts({"k": {"²": 0}}, "k", "it", 9), "k of it has the key '²'"),
    (lambda: stored.keys_as_counts({"k": {"": 0}}, "k", "it", 9), "k of it has the key ''"),
    (lambda: stored.keys_as_counts({"k": {5000 * "1": 0}}, "k", "it", 9), "k of it has the key"),
    (lambda: stored.keys_as_counts({"k": {"10": 0}}, "k", "it", 9), "a key in k of it must be a"),
    (lambda: stored.keys_as_counts({"k": 7}, "k", "it", 9), "k of it must be an object, got 7"),
]  # fmt: skip


@pytest.mark.parametrize(("read", "text"), REFUSED)
def test_another_shape_is_refused_by_name(read, text):
    with pytest.raises(CheckpointError) as caught:
        read()
    assert str(caught.value).startswith(text)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("value", ["a\nb" * 100, {"a": list(range(100))}, np.zeros((50, 50))])
def test_a_value_in_an_error_is_one_short_line(value):
    text = shown(value)
    assert len(text) == 60
    assert text.endswith("...")
    assert "\n" not in text
