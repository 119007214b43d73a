"""What a rank reports: records for programs, lines for people, one sink for both."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Protocol, TextIO


class Sink(Protocol):
    """Where reports go."""

    def record(self, kind: str, **fields: Any) -> None:
        """One line of the metrics: the seconds since the start, ``kind`` and ``fields``."""
        ...

    def log(self, text: str) -> None:
        """One line of this rank's log."""
        ...


class Silent:
    """A sink that keeps nothing: ``psgrad.run`` without a run folder."""

    def record(self, kind: str, **fields: Any) -> None:
        """Keeps nothing."""

    def log(self, text: str) -> None:
        """Keeps nothing."""


class Journal:
    """A rank's part of the run folder: ``logs/NAME.log`` and, if asked, its metrics.

    Each line reaches the file at once, so a rank that is killed leaves what it said.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        now: Callable[[], float],
        *,
        metrics: str = "",
        append: bool = False,
        echo: TextIO | None = None,
    ) -> None:
        """``metrics``: the file that has this rank's; ``append``: behind what a run before left;
        ``echo`` has the lines of the log too, with the rank's name."""
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self._name = name
        self._echo = echo
        self._now = now
        self._start = now()
        self._log = _open(folder / "logs" / f"{name}.log", append)
        self._metrics = _open(folder / metrics, append) if metrics else None

    def record(self, kind: str, **fields: Any) -> None:
        """Appends to the metrics; on a rank that keeps none, nothing."""
        if self._metrics is not None:
            line = {"seconds": round(self._now() - self._start, 6), "kind": kind, **fields}
            self._metrics.write(to_json(line) + "\n")

    def log(self, text: str) -> None:
        """Appends to the rank's log, with the seconds since the start."""
        line = f"{self._now() - self._start:10.3f} {text}\n"
        self._log.write(line)
        if self._echo is not None:
            self._echo.write(f"{self._name}: {line}")
            self._echo.flush()

    @property
    def file(self) -> TextIOWrapper:
        """The rank's log, for what writes there by itself."""
        return self._log

    def close(self) -> None:
        """Closes the files."""
        self._log.close()
        if self._metrics is not None:
            self._metrics.close()


def to_json(record: Any) -> str:
    """One line of JSON; numbers that JSON does not have, NaN and infinities, become null."""
    return json.dumps(_finite(record), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value


def _open(path: Path, append: bool) -> TextIOWrapper:
    return path.open("a" if append else "w", encoding="utf-8", buffering=1)
