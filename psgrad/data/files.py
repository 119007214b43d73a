"""Reading data files: every failure of the operating system becomes a one-line DataError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from psgrad.errors import DataError

DEFLATE_RATIO: Final = 1032
"""The most bytes that one byte of a deflate stream (gzip, zip) can expand to."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Translates OSError inside the block to DataError with the path and the cure."""
    try:
        yield
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot read {path}: {reason}; give a readable data file") from error


def missing(path: Path) -> DataError:
    """The error for a file that is not there."""
    return DataError(
        f"data file {path} does not exist; check the path (relative paths start at {Path.cwd()})"
    )


def read_bytes(path: Path) -> bytes:
    with reading(path):
        return path.read_bytes()


def shown(field: str) -> str:
    """A field of a file for an error text: quoted, and cut if it is long."""
    return repr(field if len(field) <= 24 else field[:21] + "...")


def number(field: str) -> float | None:
    """The value of a decimal number (nan and inf included), None for any other text."""
    if not field.isascii() or "_" in field:  # float() takes these, the fast parsers do not
        return None
    try:
        return float(field)
    except ValueError:
        return None
