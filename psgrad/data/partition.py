"""Who trains on what: train and test parts, and each worker's share. Pure functions of a seed."""

from __future__ import annotations

from typing import Final

import numpy as np

from psgrad.data.dataset import Dataset, IndexArray
from psgrad.errors import ConfigError, DataError, unknown_name

PARTITIONS: Final = ("iid", "by-label", "contiguous")

# A generator is keyed by (seed, worker, epoch, purpose); batches have purpose 0, which is what
# NumPy fills missing words with, so no shuffle here repeats one of a worker.
_SPLIT: Final = (0, 0, 1)
_SHARES: Final = (0, 0, 2)


def split(dataset: Dataset, test_fraction: float, seed: int) -> tuple[IndexArray, IndexArray]:
    """Train and test indices, ascending; together 0..n-1, each exactly once.

    round(n * test_fraction) samples are for the test, but at least 1, and at least 1 is left to
    train on. They are drawn by ``seed`` alone, so the same whatever the number of workers. From a
    sequential data set (text) the last samples are taken: no test label is then seen in training,
    neither as a label nor in a window.

    Raises DataError for fewer than 2 samples; ConfigError for a fraction outside (0, 1).
    """
    check_fraction(test_fraction)
    n = len(dataset)
    if n < 2:
        raise DataError(f"data set {dataset.name} has {n} sample; at least 2 are needed to split")
    tests = min(max(round(n * test_fraction), 1), n - 1)
    order = np.arange(n, dtype=np.int64)
    if not dataset.sequential:
        order = np.random.default_rng([seed, *_SPLIT]).permutation(order)
    return np.sort(order[: n - tests]), np.sort(order[n - tests :])


def partition(
    labels: IndexArray, indices: IndexArray, workers: int, scheme: str, seed: int
) -> list[IndexArray]:
    """Each worker's share of ``indices``: every index in exactly one share.

    Sizes differ by at most 1; with more workers than indices the last shares are empty. The
    result depends on the set of ``indices``, not on their order. ``labels`` are those of the
    whole data set. Schemes: ``iid`` deals a seeded shuffle; ``by-label`` sorts by label (within a
    label shuffled), so that W workers and K classes see at most K + W - 1 different (worker,
    class) pairs; ``contiguous`` cuts the ascending indices.

    Raises ConfigError for an unknown scheme or fewer than 1 worker.
    """
    if scheme not in PARTITIONS:
        raise ConfigError(unknown_name("partition", scheme, PARTITIONS))
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    order = np.sort(indices)
    if scheme != "contiguous":
        order = np.random.default_rng([seed, *_SHARES]).permutation(order)
    if scheme == "by-label":
        order = order[np.argsort(labels[order], kind="stable")]
    return list(np.array_split(order, workers))


def check_fraction(test_fraction: float) -> None:
    """Raises ConfigError unless 0 < test_fraction < 1."""
    if not 0.0 < test_fraction < 1.0:
        raise ConfigError(f"test_fraction must be between 0 and 1, got {test_fraction}")
