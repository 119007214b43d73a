"""Sparse text of LIBSVM and SVMlight: ``label index:value index:value ...``, one sample a line."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from psgrad.data.dataset import MAX_CLASSES, IndexArray, SparseDataset, to_float32
from psgrad.data.files import number, read_bytes, shown
from psgrad.errors import DataError

MAX_FEATURES: Final = 1 << 24
"""The largest index accepted: a mistyped one must not ask for a model of gigabytes."""

_EXACT: Final = float(1 << 53)


@dataclass(frozen=True, eq=False)
class _Rows:
    """The numbers of a file: ``labels`` [n], and pairs [p] of which row i has those from
    ``row_starts[i]`` to ``row_starts[i + 1]``. ``lines`` [n] is the line (from 1) of each row."""

    labels: NDArray[np.float64]
    lines: IndexArray
    row_starts: IndexArray
    indices: NDArray[np.float64]
    values: NDArray[np.float64]

    def line_of_pair(self, pair: int) -> int:
        return int(self.lines[np.searchsorted(self.row_starts, pair, side="right") - 1])


def read_libsvm(path: Path, *, classes: int = 0) -> SparseDataset:
    """Reads sparse samples.

    Indices ascend within a line and count from 1, or from 0 if the file has an index 0; there are
    as many features as the largest index asks for. What follows ``#`` is a comment.

    **Labels are renumbered:** the K distinct labels of the file, whole numbers in any range (1.0
    counts as one), become 0..K-1 in ascending order; so -1, 1 become 0, 1, and 1..K become 0..K-1.
    K may not exceed ``classes``, nor MAX_CLASSES if that is 0.

    Raises DataError naming the line (from 1).
    """
    data = re.sub(rb"#[^\n]*", b"", read_bytes(path))
    rows = _parse(data)
    if rows is None:
        raise _syntax_error(path, data)
    _check_pairs(path, rows)
    base = 0 if rows.indices.size and rows.indices.min() == 0 else 1
    features = int(rows.indices.max()) + 1 - base if rows.indices.size else 0
    if features == 0:
        raise DataError(f"{path}: no line has a feature; write lines like '1 3:0.5 7:1'")
    labels, found = _renumber(path, rows, classes)
    columns = (rows.indices - base).astype(np.int32)
    values = to_float32(rows.values)
    return SparseDataset(
        path.name, rows.row_starts, columns, values, features, labels, classes or found
    )


def _parse(data: bytes) -> _Rows | None:
    """All numbers of the text at once; None if it is not of this format.

    Every word of a line but the first has one colon, inside it. That is checked on the bytes, so
    that the flat list of numbers can only mean what the lines say.
    """
    text = np.frombuffer(b" " + data + b" ", np.uint8)
    blank = (text == 0x20) | ((text >= 0x09) & (text <= 0x0D))
    words = np.flatnonzero(~blank[1:] & blank[:-1]) + 1
    colons = np.flatnonzero(text == ord(":"))
    line = np.searchsorted(np.flatnonzero(text == ord("\n")), words)
    is_label = np.diff(line, prepend=-1) > 0
    colons_in = np.bincount(np.searchsorted(words, colons, "right"), minlength=words.size + 1)[1:]
    sound = bool(words.size) and not (blank[colons - 1] | blank[colons + 1]).any()
    if not sound or not np.array_equal(colons_in, ~is_label):
        return None
    numbers = _numbers(data.replace(b":", b" "), words.size + colons.size)
    if numbers is None:
        return None
    label_words = np.flatnonzero(is_label)
    # Before the k-th label, at word w, there are k labels and w - k pairs.
    at = 2 * label_words - np.arange(label_words.size)
    pairs = np.delete(numbers, at).reshape(-1, 2)
    row_starts = np.append(label_words - np.arange(label_words.size), colons.size)
    return _Rows(numbers[at], line[label_words] + 1, row_starts, pairs[:, 0], pairs[:, 1])


def _numbers(text: bytes, count: int) -> NDArray[np.float64] | None:
    """The ``count`` numbers of ``text``; None if it has another number of them, or other words."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy only warns where it stops at a word
        try:
            numbers = np.fromstring(text, np.float64, sep=" ")
        except (DeprecationWarning, ValueError):
            return None
    return numbers if numbers.size == count else None


def _syntax_error(path: Path, data: bytes) -> DataError:
    """Why :func:`_parse` refused: a slow second reading that knows the line."""
    empty = True
    for count, line in enumerate(data.split(b"\n"), start=1):
        words = line.decode("latin-1").split()
        if not words:
            continue
        empty = False
        if number(words[0]) is None:
            return DataError(f"{path}:{count}: label {shown(words[0])} is not a number")
        for word in words[1:]:
            index, colon, value = word.partition(":")
            if not colon or number(index) is None or number(value) is None:
                return DataError(
                    f"{path}:{count}: {shown(word)} is not index:value; write pairs like 3:0.5"
                )
    if empty:
        return DataError(f"{path} has 0 rows; at least 1 is needed")
    return DataError(f"{path} is not libsvm text; write lines like '1 3:0.5 7:1'")


def _check_pairs(path: Path, rows: _Rows) -> None:
    indices = rows.indices
    good = (indices >= 0) & (indices <= MAX_FEATURES) & (indices == np.floor(indices))
    if not good.all():
        pair = int(np.argmin(good))
        raise DataError(
            f"{path}:{rows.line_of_pair(pair)}: index {indices[pair]:.17g} must be a whole number "
            f"from 0 to {MAX_FEATURES}"
        )
    ascends = np.diff(indices, prepend=-1.0) > 0
    starts = rows.row_starts[:-1]
    ascends[starts[starts < indices.size]] = True
    if not ascends.all():
        pair = int(np.argmin(ascends))
        raise DataError(
            f"{path}:{rows.line_of_pair(pair)}: index {int(indices[pair])} follows "
            f"{int(indices[pair - 1])}; indices must ascend, sort them"
        )
    finite = np.isfinite(to_float32(rows.values))
    if not finite.all():
        pair = int(np.argmin(finite))
        raise DataError(
            f"{path}:{rows.line_of_pair(pair)}: index {int(indices[pair])} is "
            f"{rows.values[pair]}, not a finite float32; remove or fill in the row"
        )


def _renumber(path: Path, rows: _Rows, classes: int) -> tuple[IndexArray, int]:
    """Labels int64[n] in 0..K-1, and K."""
    whole = (np.abs(rows.labels) < _EXACT) & (rows.labels == np.floor(rows.labels))
    if not whole.all():
        row = int(np.argmin(whole))
        raise DataError(
            f"{path}:{rows.lines[row]}: label {rows.labels[row]} is not a whole number below 2**53"
        )
    distinct, labels = np.unique(rows.labels, return_inverse=True)
    limit = classes or MAX_CLASSES
    if distinct.size > limit:
        row = int(np.argmax(labels == limit))
        raise DataError(
            f"{path}:{rows.lines[row]}: label {int(distinct[limit])} is one too many, the file has "
            f"{distinct.size} distinct labels, the limit is {limit}"
        )
    return labels.astype(np.int64), int(distinct.size)
