"""The arithmetic of a table of steps: spreads, the limit of the memory, ratios.

Every figure of a row follows from the samples that are in it, so a reader of the JSON can take
another statistic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

IN_PLACE: Final = "in place"
COPIED: Final = "copied"
ALLREDUCE: Final = "Allreduce"
TUNED: Final = "tuned"
GUARD: Final = "guard"
MEMCPY: Final = "memcpy"
WAYS: Final = (IN_PLACE, COPIED, ALLREDUCE, TUNED, GUARD, MEMCPY)
NO_STEPS: Final = (GUARD, MEMCPY)

GUARD_SHARE: Final = 0.02  # of a training step that the guard may cost

UNITS: Final = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


@dataclass(frozen=True)
class Spread:
    """Of samples: the median, the least and the greatest."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """The spread of ``samples``, of which there must be one at least."""
        return cls(median(samples), min(samples), max(samples))


def limit_s(memcpy_s: float, workers: int, together: bool = True) -> float:
    """The seconds that a step takes at least where all ranks share one machine's memory.

    The gradients of all W workers are read, the parameters read and written: (W + 2) n bytes, at
    the rate of a copy, which moves 2 n in ``memcpy_s``. That is for a synchronous step; where
    each push is an update of its own (not ``together``) the W of them move 3 n each.
    """
    moved = workers + 2 if together else 3 * workers
    return moved / 2 * memcpy_s


@dataclass(frozen=True)
class Row:
    """One way to take a step of ``nbytes`` of float32.

    ``samples``: for each round the seconds of one step on the slowest worker. ``limit_s``,
    ``allreduce_s`` and ``tuned_s``, medians of Allreduce, are of the same rounds; None where they
    were not measured.
    """

    nbytes: int
    way: str
    samples: tuple[float, ...]
    limit_s: float | None
    allreduce_s: float | None
    tuned_s: float | None

    @property
    def spread(self) -> Spread:
        """Of the samples, in seconds."""
        return Spread.of(self.samples)

    @property
    def rate(self) -> float:
        """GB/s of each worker: ``nbytes`` of gradient over the median step."""
        return 1e-9 * self.nbytes / self.spread.median

    @property
    def of_limit(self) -> float | None:
        """The limit over the median: 1 is as fast as memory allows."""
        return None if self.limit_s is None else self.limit_s / self.spread.median

    @property
    def to_allreduce(self) -> float | None:
        """How many times faster than Allreduce and the local update, by the medians."""
        return None if self.allreduce_s is None else self.allreduce_s / self.spread.median

    @property
    def to_tuned(self) -> float | None:
        """The same, of Allreduce as fast as it can be made."""
        return None if self.tuned_s is None else self.tuned_s / self.spread.median

    def record(self) -> dict[str, Any]:
        """The row for a program."""
        return {
            **asdict(self),
            **{f"{name}_s": value for name, value in asdict(self.spread).items()},
            "gb_per_s": self.rate,
            "of_limit": self.of_limit,
            "to_allreduce": self.to_allreduce,
            "to_tuned": self.to_tuned,
        }


def rows(
    nbytes: int, samples: Mapping[str, Sequence[float]], workers: int, together: bool
) -> list[Row]:
    """A row for each way that was measured, in their order."""
    medians = {way: median(of_one) for way, of_one in samples.items()}
    limit = limit_s(medians[MEMCPY], workers, together) if MEMCPY in medians else None
    return [
        Row(nbytes, way, tuple(of_one), limit, medians.get(ALLREDUCE), medians.get(TUNED))
        if way not in NO_STEPS
        else Row(nbytes, way, tuple(of_one), None, None, None)
        for way, of_one in samples.items()
    ]


def guard_line(table: Sequence[Row]) -> str:
    """What the guard of the table's steps costs, for a person; empty where it was not measured."""
    by_way = {row.way: row.spread.median for row in table}
    if GUARD not in by_way or IN_PLACE not in by_way:
        return ""
    guard_s, step_s = by_way[GUARD], by_way[IN_PLACE]
    return (
        f"{'':9}  guard: {guard_s / step_s:.0%} of a step in place; below {GUARD_SHARE:.0%} of a "
        f"training step from {milliseconds(guard_s / GUARD_SHARE)} ms on"
    )


def head() -> str:
    """The line above :func:`lines`."""
    return (
        f"{'size':>9}  {'':9}{'median ms':>10}{'min - max':>21}{'GB/s':>8}"
        f"{'limit ms':>10}{'of limit':>10}{'x Allreduce':>13}{'x tuned':>9}"
    )


def lines(table: Sequence[Row]) -> str:
    """The rows for a person."""
    found = [_line(row, first=i == 0) for i, row in enumerate(table)]
    return "\n".join([*found, *filter(None, [guard_line(table)])])


def _line(row: Row, first: bool) -> str:
    spread = row.spread
    range_ms = f"{milliseconds(spread.least)} - {milliseconds(spread.most)}"
    limit = "" if row.limit_s is None else milliseconds(row.limit_s)
    share = "" if row.of_limit is None else f"{row.of_limit:.2f}"
    ratio = "" if row.to_allreduce is None else f"{row.to_allreduce:.2f}"
    other = "" if row.to_tuned is None else f"{row.to_tuned:.2f}"
    return (
        f"{in_bytes(row.nbytes) if first else '':>9}  {row.way:9}"
        f"{milliseconds(spread.median):>10}{range_ms:>21}{row.rate:8.2f}"
        f"{limit:>10}{share:>10}{ratio:>13}{other:>9}"
    ).rstrip()


def milliseconds(seconds: float) -> str:
    """Four digits of it, but nothing below 0.1 us."""
    value = 1e3 * seconds
    whole = len(str(int(value))) if value >= 1 else 0
    return f"{value:.{max(0, 4 - whole)}f}"


def in_bytes(nbytes: int) -> str:
    """4 KiB, 64 MiB, 1000 B: in the largest unit that it is a whole number of."""
    for unit, size in UNITS:
        if nbytes % size == 0:
            return f"{nbytes // size} {unit}"
    return f"{nbytes} B"
