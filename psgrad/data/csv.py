"""Comma-separated numbers: one sample a line, the label in one of the columns."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from psgrad.data.dataset import ArrayDataset, bad_label, first_not_finite, to_float32
from psgrad.data.files import number, reading, shown
from psgrad.errors import ConfigError, DataError


def read_csv(path: Path, *, label_column: int = -1, classes: int = 0) -> ArrayDataset:
    """Reads dense samples from UTF-8 text, comma-separated, all fields decimal numbers.

    The first line is a header, and skipped, if its label field starts with a letter. The label is
    in ``label_column``, counted from 0, or from the end if negative. Labels are whole numbers
    0..K-1 (1.0 counts as one); K is ``classes``, or 1 + the largest label if that is 0. Empty
    lines are skipped; quotes, comments and missing values are not understood.

    Raises DataError naming the line (from 1, header and empty lines included) and the column
    (from 1); ConfigError for a ``label_column`` that the file does not have.
    """
    with reading(path), path.open(encoding="utf-8-sig", errors="replace") as file:
        header = _header_lines(path, file, label_column)
        file.seek(0)
        table = _parse(file, header)
        if table is None:
            file.seek(0)
            raise _syntax_error(path, file, header)
        label = _label_index(path, label_column, table.shape[1])
        x = np.empty((table.shape[0], table.shape[1] - 1), np.float32)
        x[:, :label] = to_float32(table[:, :label])
        x[:, label:] = to_float32(table[:, label + 1 :])
        if (place := first_not_finite(x)) is not None:
            row, column = place[0], place[1] + (place[1] >= label)
            raise DataError(
                f"{path}:{_line_of(file, header, row)}: column {column + 1} is "
                f"{table[row, column]}, not a finite float32; remove or fill in the row"
            )
        if (bad := bad_label(table[:, label], classes)) is not None:
            raise DataError(
                f"{path}:{_line_of(file, header, bad[0])}: column {label + 1}: {bad[1]}"
            )
    labels = table[:, label].astype(np.int64)
    return ArrayDataset(path.name, x, labels, classes or int(labels.max()) + 1)


def _header_lines(path: Path, file: TextIO, label_column: int) -> int:
    """How many lines to skip: those up to the header, 0 if there is none."""
    for count, line in enumerate(file, start=1):
        if not line.rstrip("\n"):
            continue
        fields = line.split(",")
        field = fields[_label_index(path, label_column, len(fields))].strip()
        # A label that is missing ("", "?") or malformed ("0;") does not make a row a header.
        word = number(field) is None and field.lstrip("\"'_")[:1].isalpha()
        return count if word else 0
    raise DataError(f"{path} has 0 rows; at least 1 is needed")


def _label_index(path: Path, label_column: int, columns: int) -> int:
    if columns < 2:
        raise DataError(
            f"{path} has {columns} column; at least 2, separated by commas, are needed: "
            "a feature and the label"
        )
    if not -columns <= label_column < columns:
        raise ConfigError(
            f"label_column must be {-columns} to {columns - 1} for the {columns} columns "
            f"of {path}, got {label_column}"
        )
    return label_column % columns


def _parse(file: TextIO, header: int) -> NDArray[np.float64] | None:
    """The numbers float64[rows, columns]; None if the text is not a table of numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "input contained no data" is an error of ours, below
        try:
            table: NDArray[np.float64] = np.loadtxt(
                file, np.float64, comments=None, delimiter=",", skiprows=header, ndmin=2
            )
        except ValueError:
            return None
    return table if table.size else None


def _syntax_error(path: Path, file: TextIO, header: int) -> DataError:
    """Why :func:`_parse` refused: a slow second reading that knows the line."""
    columns = 0
    for count, line in enumerate(file, start=1):
        text = line.rstrip("\n")
        if count <= header or not text:
            continue
        fields = text.split(",")
        columns = columns or len(fields)
        if len(fields) != columns:
            return DataError(
                f"{path}:{count}: {len(fields)} columns, but {columns} in the lines before; "
                "every line needs the same"
            )
        for column, field in enumerate(fields, start=1):
            if number(field) is None:
                return DataError(
                    f"{path}:{count}: column {column} is not a number: {shown(field)}; "
                    "write every field as a decimal number"
                )
    if not columns:
        return DataError(f"{path} has 0 rows below its header; at least 1 is needed")
    return DataError(f"{path} is not a table of comma-separated numbers; write it as one")


def _line_of(file: TextIO, header: int, row: int) -> int:
    """The line (from 1) of a row (from 0): empty lines and the header are not rows."""
    file.seek(0)
    lines = (count for count, line in enumerate(file, start=1) if line.rstrip("\n"))
    below = (count for count in lines if count > header)
    return next(count for at, count in enumerate(below) if at == row)
