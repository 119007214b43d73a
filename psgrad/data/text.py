"""Plain text as a data set: from a window of characters predict the next one, or each next one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psgrad.data.dataset import FloatArray, IndexArray
from psgrad.data.files import read_bytes
from psgrad.errors import DataError


@dataclass(frozen=True, eq=False)
class TextDataset:
    """Sample i is ``ids[i : i + context]``, one-hot, and its label is ``ids[i + context]``.

    ``ids`` (the smallest unsigned integer that fits) numbers each character of the text by its
    place in ``vocabulary``, the distinct characters in code point order. A sample is the one-hot
    vectors of its characters one after another: features = context * len(vocabulary). Only a
    batch is ever one-hot; memory stays that of the text.
    """

    name: str
    ids: NDArray[Any]
    vocabulary: str
    context: int
    classes: int
    sequential: bool = True

    @property
    def features(self) -> int:
        return self.context * len(self.vocabulary)

    @property
    def labels(self) -> IndexArray:
        return self.ids[self.context :].astype(np.int64)

    def __len__(self) -> int:
        return int(self.ids.size) - self.context

    def batch(self, indices: IndexArray) -> tuple[FloatArray, IndexArray]:
        windows = self.ids[indices[:, None] + np.arange(self.context)]  # [b, context]
        x = np.zeros((windows.size, len(self.vocabulary)), np.float32)
        x[np.arange(windows.size), windows.ravel()] = 1
        return x.reshape(indices.size, self.features), self.ids[indices + self.context].astype(
            np.int64
        )


@dataclass(frozen=True, eq=False)
class TokenDataset:
    """The same text for a model of sequences: sample i is the i-th window, none overlaps another.

    ``batch`` gives windows int64[b, context] of ``ids`` and int64[b, context], the ids that follow
    each of them. So an epoch has each character once as a label, but for the first one and an
    incomplete last window. For a partition by label, a window has that of its last character.
    """

    name: str
    ids: NDArray[Any]
    vocabulary: str
    context: int
    classes: int
    sequential: bool = True

    @property
    def features(self) -> int:
        return self.context

    @property
    def labels(self) -> IndexArray:
        return self.ids[self.context :: self.context].astype(np.int64)

    def __len__(self) -> int:
        return (int(self.ids.size) - 1) // self.context

    def batch(self, indices: IndexArray) -> tuple[IndexArray, IndexArray]:
        where = indices[:, None] * self.context + np.arange(self.context + 1)
        windows = self.ids[where].astype(np.int64)  # [b, context + 1]
        return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])


def read_tokens(path: Path, *, context: int, classes: int = 0) -> TokenDataset:
    """As `read_text`, in windows that do not overlap."""
    text = read_text(path, context=context, classes=classes)
    return TokenDataset(text.name, text.ids, text.vocabulary, context, text.classes)


def read_text(path: Path, *, context: int, classes: int = 0) -> TextDataset:
    """Reads UTF-8 text as it is, line ends included (a byte order mark is dropped).

    Its K distinct characters are the classes; K may not exceed ``classes`` unless that is 0.

    Raises DataError: not UTF-8 (with the offset), or not longer than ``context``.
    """
    data = read_bytes(path)
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8; "
            "convert the file to UTF-8"
        ) from error
    if len(text) <= context:
        raise DataError(
            f"{path} has {len(text)} characters; context {context} needs at least {context + 1}"
        )
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    present = np.zeros(int(codes.max()) + 1, bool)
    present[codes] = True
    letters = np.flatnonzero(present)
    if classes and letters.size > classes:
        letter = chr(letters[classes])
        raise DataError(
            f"{path}: character {letter!r} at offset {text.index(letter)} is one too many, the "
            f"text has {letters.size} distinct ones, the limit is {classes}"
        )
    id_of = np.zeros(present.size, np.min_scalar_type(letters.size - 1))
    id_of[letters] = np.arange(letters.size)
    vocabulary = "".join(map(chr, letters))
    return TextDataset(path.name, id_of[codes], vocabulary, context, classes or letters.size)
