"""The figures of a record for a person: one row a system, by number of workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from peers.systems import BY_NAME, IN_PLACE, MEMCPY, SYSTEMS
from psgrad.bench.figures import Spread, in_bytes, limit_s, milliseconds

WIDTH: Final = 1 + max(len(system.label) for system in SYSTEMS)


@dataclass(frozen=True)
class Row:
    """A system with ``workers`` workers. ``samples``: for each round the median, in ms.

    ``reason``: why it was left out, from some round on or altogether, without samples then.
    """

    system: str
    workers: int
    samples: tuple[float, ...]
    reason: str | None = None

    @property
    def label(self) -> str:
        """What it is called in table and picture."""
        return BY_NAME[self.system].label

    @property
    def spread(self) -> Spread | None:
        """Of the samples, in ms; None where there are none."""
        return Spread.of(self.samples) if self.samples else None


def limit_ms(record: Mapping[str, Any], workers: int) -> float | None:
    """What a step takes at least, by the copies of all rounds; None without any."""
    copies = _medians(record, MEMCPY.name, 1)
    return limit_s(median(copies), workers) if copies else None


def rows(record: Mapping[str, Any], workers: int) -> list[Row]:
    """A row for each system that was asked for, in the order of the table of systems."""
    found = []
    for system in SYSTEMS:
        samples = _medians(record, system.name, workers)
        left_out = [
            one
            for one in record["skipped"]
            if (one["system"], one["workers"]) == (system.name, workers)
        ]
        wrong = any(one["wrong"] for one in left_out)
        reason = left_out[0]["reason"] if left_out else None
        if samples or left_out:
            kept = () if wrong else tuple(samples)  # a wrong result has no time
            found.append(Row(system.name, workers, kept, reason))
    return found


def text(record: Mapping[str, Any]) -> str:
    """All tables of a record."""
    return "\n\n".join(_table(record, workers) for workers in record["workers"])


def counted(workers: int) -> str:
    """1 worker, 2 workers."""
    return f"{workers} worker{'s' if workers > 1 else ''}"


def _table(record: Mapping[str, Any], workers: int) -> str:
    limit, found = limit_ms(record, workers), rows(record, workers)
    ours = next((row.spread for row in found if row.system == IN_PLACE.name), None)
    known = "not known" if limit is None else f"{milliseconds(1e-3 * limit)} ms"
    lines = [
        f"{in_bytes(record['nbytes'])}, {counted(workers)}, medians of {record['rounds']} rounds; "
        f"limit {known}",
        f"{'':{WIDTH}}{'ms':>8}{'least - most':>20}{'of limit':>10}{'x psgrad':>10}",
    ]
    return "\n".join([*lines, *(_line(row, limit, ours) for row in found)])


def _line(row: Row, limit: float | None, ours: Spread | None) -> str:
    spread = row.spread
    if spread is None:
        return f"{row.label:{WIDTH}}{'-':>8}  {row.reason}"
    share = "" if limit is None else f"{limit / spread.median:.2f}"
    ratio = "" if ours is None else f"{spread.median / ours.median:.2f}"
    middle, least, most = (
        milliseconds(1e-3 * ms) for ms in (spread.median, spread.least, spread.most)
    )
    note = "" if row.reason is None else f"  {len(row.samples)} rounds: {row.reason}"
    figures = f"{middle:>8}{f'{least} - {most}':>20}{share:>10}{ratio:>10}"
    return f"{row.label:{WIDTH}}{figures}{note}".rstrip()


def _medians(record: Mapping[str, Any], system: str, workers: int) -> Sequence[float]:
    return [
        median(run["times_ms"])
        for run in record["runs"]
        if (run["system"], run["workers"]) == (system, workers)
    ]
