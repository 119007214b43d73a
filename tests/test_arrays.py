"""Arrays: views that keep the memory, and a mapping that behaves like one."""

from __future__ import annotations

import numpy as np
import pytest

from psgrad.arrays import Arrays
from psgrad.errors import LayoutError
from psgrad.layout import Layout


@pytest.fixture
def flat():
    return np.zeros(17, np.float32)


@pytest.fixture
def arrays(flat):
    shapes = {"w": (3, 4), "b": (4,), "scalar": ()}
    layout = Layout.of({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    return Arrays(layout.views(flat))


def test_reading_gives_the_view_itself(arrays, flat):
    assert arrays["w"] is arrays["w"]
    flat[0] = 5
    assert arrays["w"][0, 0] == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("w", np.arange(12.0).reshape(3, 4)),
        ("w", np.arange(12, dtype=np.int64).reshape(3, 4)),
        ("w", np.arange(12, dtype=np.float32).reshape(4, 3).T),
        ("b", [1, 2.5, 3, 4]),
        ("scalar", 7.0),
        ("scalar", np.float32(7)),
    ],
)
def test_writing_copies_into_the_view(arrays, name, value):
    view = arrays[name]
    arrays[name] = value
    assert arrays[name] is view
    np.testing.assert_array_equal(view, value)


def test_writing_in_place(arrays, flat):
    arrays["b"] += 1
    arrays["w"][:] = 2
    arrays["scalar"] -= 3
    np.testing.assert_array_equal(flat, [2] * 12 + [1] * 4 + [-3])


def test_a_view_may_be_written_from_itself(arrays):
    arrays["b"] = [1, 2, 3, 4]
    arrays["b"] = arrays["b"][::-1]
    np.testing.assert_array_equal(arrays["b"], [4, 3, 2, 1])


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("b", np.zeros(3), r"'b' has shape \(4,\), got \(3,\)"),
        ("b", 0.0, r"'b' has shape \(4,\), got \(\)"),  # no broadcasting: it hides mistakes
        ("w", np.zeros(12), r"'w' has shape \(3, 4\), got \(12,\)"),
        ("bias", np.zeros(4), "unknown parameter 'bias'"),
        ("b", np.zeros(4, np.complex64), "'b' takes real numbers, got complex64"),
        ("b", ["a", "b", "c", "d"], "'b' takes real numbers, got <U1"),
    ],
)
def test_values_that_do_not_fit(arrays, name, value, text):
    with pytest.raises(LayoutError, match=text):
        arrays[name] = value


def test_a_subset_shares_the_views(arrays):
    some = arrays(["scalar", "b"])
    assert list(some) == ["scalar", "b"]
    assert some["b"] is arrays["b"]
    with pytest.raises(LayoutError, match="unknown parameter 'w'"):
        some["w"]
    with pytest.raises(LayoutError, match=r"unknown parameter 'v'.* Known: b, scalar, w"):
        arrays(["w", "v"])


def test_a_mapping_like_any_other(arrays):
    assert list(arrays) == ["w", "b", "scalar"]
    assert len(arrays) == 3
    assert "w" in arrays
    assert "v" not in arrays
    assert 7 not in arrays
    assert arrays.get("w") is arrays["w"]
    assert arrays.get("v") is None
    assert arrays.get("v", 7) == 7
    assert [name for name, view in arrays.items() if view is arrays[name]] == list(arrays)
    arrays.update(b=[1, 1, 1, 1], scalar=2)
    assert arrays["scalar"] == 2
    assert repr(arrays) == "Arrays(w[3, 4], b[4], scalar[])"


@pytest.mark.parametrize(
    "remove",
    [
        lambda a: a.pop("b"),
        lambda a: a.popitem(),
        lambda a: a.clear(),
        lambda a: a.__delitem__("b"),
    ],
)
def test_nothing_can_be_removed(arrays, remove):
    with pytest.raises(LayoutError, match="cannot be removed: the layout is fixed"):
        remove(arrays)
    assert len(arrays) == 3
