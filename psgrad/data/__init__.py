"""Data sets: the bundled ones and files of five formats, split, shared out, cut into batches.

A run reads its data like this::

    data = load(options)
    train, test = split(data, options.test_fraction, seed)
    mine = partition(data.labels, train, workers, options.partition, seed)[worker]
    for epoch, indices in Batches(mine, batch_size, seed, worker, epochs):
        x, labels = data.batch(indices)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from psgrad.data.batches import Batches
from psgrad.data.csv import read_csv
from psgrad.data.dataset import ArrayDataset, Dataset, IndexArray, SparseDataset
from psgrad.data.files import missing
from psgrad.data.idx import read_idx
from psgrad.data.libsvm import read_libsvm
from psgrad.data.npz import read_npz
from psgrad.data.partition import PARTITIONS, check_fraction, partition, split
from psgrad.data.text import TextDataset, TokenDataset, read_text, read_tokens
from psgrad.errors import ConfigError, DataError, unknown_name

__all__ = [
    "DATASETS",
    "FORMATS",
    "PARTITIONS",
    "ArrayDataset",
    "Batches",
    "Bundled",
    "Dataset",
    "DatasetOptions",
    "IndexArray",
    "SparseDataset",
    "TextDataset",
    "TokenDataset",
    "load",
    "partition",
    "split",
]

FORMATS: Final = ("auto", "npz", "csv", "libsvm", "idx", "text")

_FORMAT_OF_SUFFIX: Final[Mapping[str, str]] = MappingProxyType(
    {
        ".npz": "npz",
        ".csv": "csv",
        ".libsvm": "libsvm",
        ".svm": "libsvm",
        ".svmlight": "libsvm",
        ".txt": "text",
        ".idx": "idx",
        "-ubyte": "idx",
        ".idx.gz": "idx",
        "-ubyte.gz": "idx",
    }
)


@dataclass(frozen=True)
class Bundled:
    """A data set that comes with psgrad: an npz beside this file, and a page on its source."""

    file: str
    classes: int
    divisor: float
    summary: str


DATASETS: Final[Mapping[str, Bundled]] = MappingProxyType(
    {
        "digits": Bundled(
            "digits.npz", 10, 16.0, "1797 handwritten digits of 8x8 pixels (UCI; digits.rst)"
        ),
    }
)


@dataclass(frozen=True)
class DatasetOptions:
    """What to train on; raises ConfigError for a value out of range.

    ``name`` is a name of DATASETS or the path of a file, ``format`` one of FORMATS (``auto``: by
    the suffix). ``test_fraction``, in (0, 1), is kept for the test; ``partition``, one of
    PARTITIONS, shares the rest out. ``context``: characters in a window of text,
    unless the model says that. ``label_column``
    of a csv file counts from 0, or from the end if negative. ``classes``: how many classes there
    are, labels beyond are an error; 0 takes it from the labels.
    """

    name: str = "digits"
    format: str = "auto"
    test_fraction: float = 0.2
    partition: str = "iid"
    context: int = 8
    label_column: int = -1
    classes: int = 0

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError(f"dataset name is empty; give {' or '.join(DATASETS)} or a path")
        if self.format not in FORMATS:
            raise ConfigError(unknown_name("data format", self.format, FORMATS))
        if self.partition not in PARTITIONS:
            raise ConfigError(unknown_name("partition", self.partition, PARTITIONS))
        check_fraction(self.test_fraction)
        if self.context < 1:
            raise ConfigError(f"context must be at least 1, got {self.context}")
        if self.classes < 0 or self.classes == 1:
            raise ConfigError(f"classes must be at least 2, or 0 to count them, got {self.classes}")


def load(options: DatasetOptions, window: int = 0) -> Dataset:
    """Reads the whole data set; with a ``window``, as so many tokens a sample, which text alone is.

    A name of DATASETS wins over a file of that name (``./digits`` is the file). Labels are whole
    numbers 0..K-1; those of libsvm files are renumbered to that, see
    :func:`psgrad.data.libsvm.read_libsvm`. All values are finite float32.

    Raises ConfigError for a name that is neither in DATASETS nor like a path, or a format that
    does not fit; DataError for a file that is missing, malformed or not fit to train on, with the
    line, offset or row.
    """
    if options.name in DATASETS:
        if window:
            raise _no_tokens(options.name)
        return _load_bundled(options)
    path = Path(options.name)
    if not path.exists():
        known = _format_by_suffix(path) is not None or len(path.parts) > 1
        if known:
            raise missing(path)
        text = unknown_name("dataset", options.name, DATASETS)
        raise ConfigError(f"{text}, or the path of a file")
    dataset = _read(path, options, window)
    if dataset.classes < 2:
        raise DataError(f"{path}: all {len(dataset)} labels are the same; at least 2 are needed")
    return dataset


def _load_bundled(options: DatasetOptions) -> ArrayDataset:
    bundled = DATASETS[options.name]
    if options.format not in ("auto", "npz"):
        raise ConfigError(
            f"data format {options.format!r} does not fit the bundled {options.name!r}; "
            "leave it at 'auto'"
        )
    path = Path(__file__).with_name(bundled.file)
    data = read_npz(path, classes=options.classes or bundled.classes, divisor=bundled.divisor)
    return ArrayDataset(options.name, data.x, data.labels, data.classes)


def _format_by_suffix(path: Path) -> str | None:
    name = path.name.lower()
    return next((f for suffix, f in _FORMAT_OF_SUFFIX.items() if name.endswith(suffix)), None)


def _no_tokens(name: str) -> ConfigError:
    return ConfigError(
        f"this model reads text, and dataset {name} is none; give it a .txt file, or another model"
    )


def _read(path: Path, options: DatasetOptions, window: int) -> Dataset:
    kind = _format_by_suffix(path) if options.format == "auto" else options.format
    classes = options.classes
    if window and kind not in ("text", None):
        raise _no_tokens(str(path))
    if kind == "npz":
        return read_npz(path, classes=classes)
    if kind == "csv":
        return read_csv(path, label_column=options.label_column, classes=classes)
    if kind == "libsvm":
        return read_libsvm(path, classes=classes)
    if kind == "idx":
        return read_idx(path, classes=classes)
    if kind == "text" and window:
        return read_tokens(path, context=window, classes=classes)
    if kind == "text":
        return read_text(path, context=options.context, classes=classes)
    raise ConfigError(
        f"cannot tell the data format of {path} from its suffix; set it to one of "
        f"{', '.join(FORMATS[1:])}"
    )
