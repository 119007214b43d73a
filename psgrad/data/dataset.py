"""What a data set is to a trainer: n samples, each a float32 vector and a class number.

Three kinds hold their samples in the form they came in, so memory stays that of the file:
dense rows (:class:`ArrayDataset`), sparse rows (:class:`SparseDataset`) and text
(:class:`psgrad.data.text.TextDataset`). All become dense float32 only one batch at a time. For
models that read tokens, text is windows of integers (:class:`psgrad.data.text.TokenDataset`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

IndexArray: TypeAlias = NDArray[np.int64]
FloatArray: TypeAlias = NDArray[np.float32]

MAX_CLASSES: Final = 65_536
"""The most classes a data set may have when its options do not say how many there are."""


class Dataset(Protocol):
    """n samples with ``features`` float32 values and a label in 0..classes-1 each.

    Of tokens: with ``features`` integers in 0..classes-1, and as many labels.
    """

    @property
    def name(self) -> str: ...

    @property
    def features(self) -> int:
        """The length of one sample as :meth:`batch` gives it."""
        ...

    @property
    def classes(self) -> int:
        """One more than the largest label allowed; at least 2."""
        ...

    @property
    def sequential(self) -> bool:
        """Whether neighbouring samples overlap, so that only contiguous parts are independent."""
        ...

    @property
    def labels(self) -> IndexArray:
        """int64[n]; may be computed anew at each access."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: IndexArray) -> tuple[FloatArray | IndexArray, IndexArray]:
        """Samples float32[b, features] and labels int64[b], copies, for indices in 0..n-1.

        Of tokens: int64[b, features] both.
        """
        ...


@dataclass(frozen=True, eq=False)
class ArrayDataset:
    """Dense samples: ``x`` float32[n, features], ``labels`` int64[n]."""

    name: str
    x: FloatArray
    labels: IndexArray
    classes: int
    sequential: bool = False

    @property
    def features(self) -> int:
        return int(self.x.shape[1])

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def batch(self, indices: IndexArray) -> tuple[FloatArray, IndexArray]:
        return self.x[indices], self.labels[indices]


@dataclass(frozen=True, eq=False)
class SparseDataset:
    """Sparse samples, row after row (CSR).

    Row i holds ``values[k]`` (float32) at column ``columns[k]`` (int32) for k from
    ``row_starts[i]`` to ``row_starts[i + 1]`` (int64[n + 1]), and zeros elsewhere.
    """

    name: str
    row_starts: IndexArray
    columns: NDArray[np.int32]
    values: FloatArray
    features: int
    labels: IndexArray
    classes: int
    sequential: bool = False

    def __len__(self) -> int:
        return int(self.labels.size)

    def batch(self, indices: IndexArray) -> tuple[FloatArray, IndexArray]:
        starts = self.row_starts[indices]
        lengths = self.row_starts[indices + 1] - starts
        # Entry j of the batch lies at starts[row] + (j - entries of the rows before it).
        before = np.cumsum(lengths) - lengths
        entries = np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
        x = np.zeros((indices.size, self.features), np.float32)
        x[np.repeat(np.arange(indices.size), lengths), self.columns[entries]] = self.values[entries]
        return x, self.labels[indices]


def to_float32(x: NDArray[Any]) -> FloatArray:
    """``x`` as C-ordered float32; values beyond its range become infinite, without a warning."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(x, dtype=np.float32)


def first_not_finite(x: FloatArray) -> tuple[int, int] | None:
    """Row and column of the first NaN or infinity of ``x`` [n, features], None without one."""
    finite = np.isfinite(x)
    if finite.all():
        return None
    row, column = divmod(int(np.argmin(finite)), x.shape[1])
    return row, column


def bad_label(labels: NDArray[Any], classes: int) -> tuple[int, str] | None:
    """The first of ``labels`` [n] that is not a whole number in 0..classes-1.

    Its row and the reason in words; None if all are good. ``classes`` 0: MAX_CLASSES.
    """
    limit = classes or MAX_CLASSES
    values = labels.astype(np.float64)
    good = (values >= 0) & (values < limit) & (values == np.floor(values))
    if good.all():
        return None
    row = int(np.argmin(good))
    value = float(values[row])
    if not value.is_integer():
        return row, f"label {value} is not a whole number; labels are 0 to {limit - 1}"
    if value < 0:
        return row, f"label {int(value)} is negative; number the classes from 0 to {limit - 1}"
    return row, f"label {int(value)} is out of range, the limit is {limit - 1}"
