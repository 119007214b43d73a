"""Who may train together, and the memory that it takes."""

from __future__ import annotations

import numpy as np
import pytest

from psgrad.layout import Layout
from psgrad.options import Options
from psgrad.registration import differing, reference_memory

LAYOUT = Layout.of({"w": np.zeros((4, 5), np.float32), "b": np.zeros(4, np.float32)})


def came(**arrays):
    return Layout.of(arrays)


def test_equal_layouts_go_together():
    assert differing({0: LAYOUT, 1: LAYOUT, 5: LAYOUT}) is None


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ("no such luck", "worker 3: no such luck"),
        (
            came(w=np.zeros((4, 5), np.float32), b=np.zeros(5, np.float32)),
            "parameters differ between workers: worker 3 has parameter 'b' with shape (5,), "
            "expected (4,), as on worker 1",
        ),
    ],
)
def test_the_first_difference_is_named(other, reason):
    assert differing({1: LAYOUT, 3: other}) == reason


@pytest.mark.parametrize("pull_codec", ["none", "int8", "fp16"])
def test_absolute_values_need_no_memory(pull_codec):
    options = Options(pull_codec=pull_codec, reference_bytes=0)
    assert reference_memory(options, LAYOUT, 1, range(3)) == (None, None)


@pytest.mark.parametrize(
    ("staleness", "nbytes", "copies"),
    [
        (0, 96, "one copy"),
        (2, 288, "a copy for each worker"),
        (None, 288, "a copy for each worker"),
    ],
)
def test_differences_are_announced_and_refused_above_the_limit(staleness, nbytes, copies):
    said = (
        f"pull codec topk keeps {copies} of the parameters as the workers have them: "
        f"up to {nbytes} bytes on a server"
    )
    for limit in (nbytes, nbytes - 1):
        options = Options(pull_codec="topk:0.1", staleness=staleness, reference_bytes=limit)
        notice, refusal = reference_memory(options, LAYOUT, 1, range(3))
        assert notice == said
        assert refusal == (
            None
            if limit == nbytes
            else f"{said}; the limit reference_bytes is {limit}: use more servers, sync mode, a "
            "pull codec such as int8, or raise the limit"
        )
