"""Files of a run that grow while they are read."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median


class Lines:
    """The whole lines of a file, each once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def skip(self) -> None:
        """What is there now is old."""
        with suppress(OSError):
            self._offset = self._path.stat().st_size

    def read(self) -> list[bytes]:
        """Those that have come since."""
        with suppress(OSError), self._path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._offset:  # written from its start
                self._offset = 0
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")[0]
            self._offset += len(whole) + bool(whole)
            return whole.splitlines()
        return []


class Tail:
    """The steps of one worker in one attempt; earlier attempts have left theirs before.

    ``own``: how many it has to do itself. Before those that it takes over it waits for others.
    """

    def __init__(self, path: Path, own: float = math.inf) -> None:
        self.step = 0  # the last one; 0 before the first
        self.seconds: list[float] = []  # when each of its own was done, since the start of its rank
        self._own = own
        self._lines = Lines(path)

    def begin(self) -> None:
        """Another attempt begins."""
        self.step, self.seconds = 0, []
        self._lines.skip()

    def read(self) -> None:
        """Takes in what was written since."""
        for line in self._lines.read():
            with suppress(ValueError, KeyError):  # another kind of record
                record = json.loads(line)
                self.step = record["step"]
                if self.step <= self._own:
                    self.seconds.append(record["seconds"])


def pause(seconds: Sequence[float], before: int, within_s: float) -> float | None:
    """The longest gap between steps, less the usual one, from step ``before`` on.

    Only gaps that begin up to ``within_s`` seconds after it; None where there is no step behind.
    """
    first = max(0, before - 1)
    if len(seconds) - first < 2:
        return None
    gaps = [later - sooner for sooner, later in pairwise(seconds)]
    begun = [g for at, g in zip(seconds, gaps, strict=False) if at <= seconds[first] + within_s]
    return max(0.0, max(begun[first:]) - median(gaps))


def samples(paths: Sequence[Path]) -> dict[int, int]:
    """How many samples all steps of a run have used, by epoch."""
    used: Counter[int] = Counter()
    for path in paths:
        for line in Lines(path).read():
            with suppress(ValueError, KeyError):
                record = json.loads(line)
                used[record["epoch"]] += record["samples"]
    return dict(used)


def steps(paths: Sequence[Path]) -> list[int]:
    """How many steps of each worker were written down."""
    return [sum(b'"kind": "step"' in line for line in Lines(path).read()) for path in paths]
