"""Train and test parts and workers' shares: each sample exactly once, from the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.data import PARTITIONS, ArrayDataset, TextDataset, partition, split
from psgrad.errors import ConfigError, DataError

LABELS = st.lists(st.integers(0, 5), max_size=60).map(lambda labels: np.array(labels, np.int64))
SEEDS = st.integers(0, 2**40)


def dataset(n):
    return ArrayDataset("a", np.zeros((n, 1), np.float32), np.zeros(n, np.int64), 2)


def text(n, context):
    return TextDataset("t", np.zeros(n + context, np.uint8), "ab", context, 2)


@settings(deadline=None)
@given(st.integers(2, 300), st.floats(0.001, 0.999), SEEDS)
def test_split_gives_each_sample_once(n, fraction, seed):
    for data in (dataset(n), text(n, context=3)):
        train, test = split(data, fraction, seed)
        assert sorted([*train, *test]) == list(range(n))
        assert test.size == min(max(round(n * fraction), 1), n - 1)
        assert train.dtype == test.dtype == np.int64
        assert (np.diff(train) > 0).all()
        assert (np.diff(test) > 0).all()


def test_split_is_drawn_by_the_seed():
    tests = [split(dataset(1000), 0.2, seed)[1].tolist() for seed in (0, 0, 1)]
    assert tests[0] == tests[1] != tests[2]
    assert abs(np.mean(tests[0]) - 500) < 70  # from everywhere: 3.5 deviations of the mean


def test_no_test_label_of_text_is_seen_in_training():
    data = text(100, context=7)
    train, test = split(data, 0.25, seed=3)
    assert test.tolist() == list(range(75, 100))
    read_in_training = train.max() + data.context  # the label of the last window
    assert read_in_training < test.min() + data.context


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_refuses_a_fraction(fraction):
    with pytest.raises(ConfigError, match="test_fraction must be between 0 and 1"):
        split(dataset(9), fraction, 0)


def test_split_refuses_one_sample():
    with pytest.raises(DataError, match="data set a has 1 sample; at least 2 are needed"):
        split(dataset(1), 0.5, 0)


@settings(deadline=None)
@given(LABELS, st.data(), st.integers(1, 9), st.sampled_from(PARTITIONS), SEEDS)
def test_partition_gives_each_index_once(labels, data, workers, scheme, seed):
    chosen = data.draw(st.permutations(range(labels.size)))[: data.draw(st.integers(0, 60))]
    indices = np.array(chosen, np.int64)
    shares = partition(labels, indices, workers, scheme, seed)
    assert sorted(i for share in shares for i in share) == sorted(chosen)
    sizes = [share.size for share in shares]
    assert len(sizes) == workers
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    assert {share.dtype for share in shares} == {np.dtype(np.int64)}
    again = partition(labels, np.sort(indices), workers, scheme, seed)
    assert [s.tolist() for s in again] == [s.tolist() for s in shares]


@settings(deadline=None)
@given(LABELS, st.integers(1, 9), SEEDS)
def test_by_label_workers_see_few_classes(labels, workers, seed):
    shares = partition(labels, np.arange(labels.size), workers, "by-label", seed)
    seen = [set(labels[share]) for share in shares]
    assert sum(map(len, seen)) <= len(set(labels)) + workers - 1


def test_contiguous_ignores_the_seed_and_the_others_do_not():
    labels, indices = np.zeros(100, np.int64), np.arange(100)
    shares = partition(labels, indices, 3, "contiguous", 0)
    assert [(s[0], s[-1]) for s in shares] == [(0, 33), (34, 66), (67, 99)]
    for scheme in ("iid", "by-label"):
        a, b = (partition(labels, indices, 3, scheme, seed)[0].tolist() for seed in (0, 1))
        assert sorted(a) != sorted(b)


def test_shuffles_of_one_seed_differ():
    """Split, shares and the first epoch of worker 0 do not draw the same permutation."""
    n = 50
    share = partition(np.zeros(n, np.int64), np.arange(n), 1, "iid", 5)[0].tolist()
    train = set(split(dataset(n), 0.5, 5)[0])
    epoch = np.random.default_rng([5, 0, 0]).permutation(n).tolist()
    assert share != epoch
    assert set(share[: n // 2]) != train
    assert set(epoch[: n // 2]) != train


def test_partition_refused():
    labels = np.zeros(4, np.int64)
    with pytest.raises(ConfigError, match="unknown partition 'by_label'; did you mean 'by-label'"):
        partition(labels, np.arange(4), 2, "by_label", 0)
    with pytest.raises(ConfigError, match="workers must be at least 1, got 0"):
        partition(labels, np.arange(4), 0, "iid", 0)
