"""The k largest magnitudes are those of a full sort, whatever the estimate was."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgrad.codecs.base import Workspace
from psgrad.kernels import select

SCANNED = 3 * select.BLOCK + 17  # large enough for the scan, with a last block of its own


def sorted_top(v, k):
    """The naive twin: by (|v| descending, index ascending)."""
    order = np.lexsort((np.arange(v.size), -np.abs(v.astype(np.float64))))
    return np.sort(order[:k])


def assert_top(v, k, work=None):
    expected = sorted_top(v, k)
    before = v.copy()
    found = select.top_k(v, k, work or Workspace())
    np.testing.assert_array_equal(found.where, expected)
    np.testing.assert_array_equal(found.values.view(np.uint32), before[expected].view(np.uint32))
    np.testing.assert_array_equal(v.view(np.uint32), before.view(np.uint32))


POOLS = {
    "ties": st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0]),
    "denormals": st.sampled_from([0.0, 1e-45, -1e-45, 3e-45, 1e-39, -1e-38, 1.2e-38]),
    "any": st.floats(width=32, allow_nan=False),
}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("scanned", [False, True])
@given(data=st.data())
def test_the_set_of_a_full_sort(data, pool, scanned):
    values = data.draw(st.lists(POOLS[pool], min_size=1, max_size=120))
    k = data.draw(st.integers(1, len(values)))
    with pytest.MonkeyPatch.context() as patch:
        if scanned:  # blocks of 8, and samples small enough to be wrong
            patch.setattr(select, "DIRECT", 0)
            patch.setattr(select, "BLOCK", 8)
            patch.setattr(select, "SAMPLE", 6)
        assert_top(np.array(values, np.float32), k)


def gaussian(n, seed=0):
    return np.random.default_rng(seed).standard_normal(n, np.float32)


def misleading(n, k, sampled, others):
    """What the sample sees, and what it does not."""
    v = np.full(n, others, np.float32)
    v *= 1 + gaussian(n) / 100
    v[:: n // max(select.SAMPLE, int(2.0 * (n * k) ** (1 / 3))) | 1] *= sampled / others
    return v


LARGE = {
    "gaussian": lambda n, k: gaussian(n),
    "all zero": lambda n, k: np.zeros(n, np.float32),
    "all equal": lambda n, k: np.full(n, -2.5, np.float32),
    "few values": lambda n, k: np.round(gaussian(n)),
    "few above zero": lambda n, k: np.where(np.arange(n) % 5003 == 7, gaussian(n), 0).astype("f4"),
    "rising": lambda n, k: np.arange(n, dtype=np.float32),
    "falling": lambda n, k: np.arange(n, 0, -1, dtype=np.float32),
    "denormal": lambda n, k: gaussian(n) * np.float32(1e-42),
    "huge": lambda n, k: gaussian(n) * np.float32(5e37),
    "the sample is too large": lambda n, k: misleading(n, k, 100, 1),
    "the sample is too small": lambda n, k: misleading(n, k, 0.01, 1),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("ratio", [1e-5, 0.001, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("n", [select.DIRECT, SCANNED])
def test_large_vectors(name, ratio, n):
    k = max(1, round(ratio * n))
    assert_top(LARGE[name](n, k), k)


@pytest.mark.parametrize("n", [1, 1000, SCANNED])
def test_what_is_to_be_added_is_added_once(n):
    for v, add in (
        (gaussian(n, 1), gaussian(n, 2)),
        (np.zeros(n, np.float32), misleading(n, max(1, n // 100), 100, 1)),  # scanned twice
    ):
        total, added = v + add, add.copy()
        k = max(1, n // 100)
        found = select.top_k(v, k, Workspace(), add)
        np.testing.assert_array_equal(v, total)
        np.testing.assert_array_equal(add, added)
        np.testing.assert_array_equal(found.where, sorted_top(total, k))
        np.testing.assert_array_equal(found.values, total[found.where])


def test_a_used_workspace_changes_nothing():
    work = Workspace()
    for seed, n in enumerate((SCANNED, 100, select.DIRECT, SCANNED, 5)):
        assert_top(gaussian(n, seed), max(1, n // 50), work)


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("n", [100, SCANNED])
def test_above_a_threshold_are_the_largest_and_at_most_2k(name, n):
    k = max(1, n // 100)
    v = LARGE[name](n, k)
    found = select.above_threshold(v.copy(), k, Workspace())
    assert found.where.size <= 2 * k
    np.testing.assert_array_equal(found.where, sorted_top(v, found.where.size))
    np.testing.assert_array_equal(found.values, v[found.where])
    assert (found.values != 0).all()
    assert found.where.size > 0 or not v.any()


@pytest.mark.parametrize("seed", range(5))
def test_a_threshold_keeps_about_k(seed):
    k = SCANNED // 50
    v, add = gaussian(SCANNED, seed), gaussian(SCANNED, seed + 100)
    found = select.above_threshold(v, k, Workspace(), add)
    assert 0.75 * k < found.where.size < 1.25 * k


@pytest.mark.parametrize("pick", [select.top_k, select.above_threshold])
def test_a_second_call_allocates_for_k_and_a_block(pick):
    n, k, work = 1 << 21, 1 << 11, Workspace()
    v, add = gaussian(n, 1), gaussian(n, 2)
    pick(v, k, work, add)
    tracemalloc.start()
    pick(v, k, work, add)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * k + select.BLOCK
