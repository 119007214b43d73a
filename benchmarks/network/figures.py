"""Figures of a run from the diaries of its workers, and the table of all runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import mean, median
from typing import Any, Final

from network.task import Task
from network.ways import DDP, Way

SHARE: Final = 0.95  # of the final accuracy: when training counts as nearly over
LAST: Final = 5  # looks at the accuracy whose mean is the final one
TICKS: Final = 100  # of /proc/stat, a second


@dataclass(frozen=True)
class Row:
    """One way at one rate. Bytes and processor time are of a step.

    ``server_*`` are of the host with most traffic that has a server, ``worker_*`` of that of worker
    0. ``share`` is the busiest direction's of all, ``floor_s`` what its bytes take at the link's
    rate.
    """

    way: str
    rate: int
    steps: int
    median_s: float
    least_s: float
    most_s: float
    compute_s: float
    server_in: float
    server_out: float
    worker_in: float
    worker_out: float
    floor_s: float
    share: float
    cpu_s: Mapping[str, float]  # by rank
    busy: float  # cores of this machine that were, by whomever
    final_accuracy: float | None = None  # as the run ended
    curve: tuple[tuple[int, float], ...] = ()  # (step, accuracy)
    facts: Mapping[str, Any] | None = None

    @property
    def accuracy(self) -> float | None:
        """The mean of the last looks at it; None where nobody looked."""
        looks = [accuracy for _, accuracy in self.curve[-LAST:]]
        return mean(looks) if looks else None

    def steps_to(self, accuracy: float) -> int | None:
        """The step after which it was reached first, of those at which somebody looked."""
        return next((step for step, seen in self.curve if seen >= accuracy), None)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "accuracy": self.accuracy}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Row:
        """The row that gave ``record``."""
        curve = tuple((int(step), float(seen)) for step, seen in record["curve"])
        names = {f.name for f in fields(cls)}
        return cls(**{**{k: v for k, v in record.items() if k in names}, "curve": curve})


def row(way: Way, rate: int, task: Task, diaries: Sequence[Mapping[str, Any]]) -> Row:
    """The figures of one run; a step takes as long as on its slowest worker."""
    window = slice(task.warmup, task.warmup + task.timed)
    step_s = [max(of_step) for of_step in zip(*(d["step_s"][window] for d in diaries), strict=True)]
    compute_s = [
        max(of_step) for of_step in zip(*(d["compute_s"][window] for d in diaries), strict=True)
    ]
    before, after = diaries[0]["before"], diaries[0]["after"]
    inward, outward = (
        [(b - a) / task.timed for a, b in zip(before[way_], after[way_], strict=True)]
        for way_ in ("inward", "outward")
    )
    hosts = way.places(task.workers)
    servers = sorted(set(hosts[: way.servers]), key=lambda h: inward[h] + outward[h])
    busiest = max(*inward, *outward)
    worker = hosts[way.servers]
    window_s = after["now_s"] - before["now_s"]
    facts = {k: v for k, v in diaries[0]["facts"].items() if k not in ("final_accuracy", "stats")}
    return Row(
        way=way.name,
        rate=rate,
        steps=task.timed,
        median_s=median(step_s),
        least_s=min(step_s),
        most_s=max(step_s),
        compute_s=median(compute_s),
        server_in=inward[servers[-1]] if servers else 0.0,
        server_out=outward[servers[-1]] if servers else 0.0,
        worker_in=inward[worker],
        worker_out=outward[worker],
        floor_s=8 * busiest / rate,
        share=8 * busiest * task.timed / rate / sum(step_s),
        cpu_s={
            rank: (ns - before["cpu_ns"][rank]) / 1e9 / task.timed
            for rank, ns in after["cpu_ns"].items()
        },
        busy=(after["busy_ticks"] - before["busy_ticks"]) / TICKS / window_s,
        final_accuracy=diaries[0]["facts"].get("final_accuracy") if diaries[0]["curve"] else None,
        curve=tuple((int(step), float(accuracy)) for step, accuracy in diaries[0]["curve"]),
        facts=facts,
    )


def merged(rows: Sequence[Row]) -> Row:
    """One row of several rounds of the same: the one whose median is in the middle.

    Its range is that of all.
    """
    middle = sorted(rows, key=lambda r: r.median_s)[len(rows) // 2]
    found = {**vars(middle), "least_s": min(r.least_s for r in rows)}
    found["most_s"] = max(r.most_s for r in rows)
    curves = [r for r in rows if r.curve]
    if curves:
        found.update(curve=curves[0].curve, final_accuracy=curves[0].final_accuracy)
    return Row(**found)


HEAD: Final = (
    f"{'':22}{'ms a step':>10}{'min - max':>16}{'x DDP':>8}{'floor':>8}{'share':>7}"
    f"{'server MB in, out':>19}{'worker MB in, out':>19}{'CPU ms: server':>16}{'worker':>8}"
    f"{'accuracy':>10}{'s to 95%':>10}"
)


def table(rows: Sequence[Row]) -> str:
    """All rows for a person, rate by rate."""
    parts = []
    for rate in dict.fromkeys(row.rate for row in rows):
        here = [row for row in rows if row.rate == rate]
        parts.append(f"{in_bits(rate)} a second\n{HEAD}\n" + "\n".join(lines(here, rows)))
    return "\n\n".join(parts)


def lines(here: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """The table of one rate. Accuracy by step is looked up in the ``rows`` of all rates."""
    curves = {row.way: row for row in rows if row.curve}
    goal = threshold(rows)
    ddp = next((row.median_s for row in here if row.way == DDP), None)
    found = []
    for row in here:
        curve = curves.get(row.way)
        steps = None if curve is None or goal is None else curve.steps_to(goal)
        found.append(
            f"{row.way:22}{ms(row.median_s):>10}{f'{ms(row.least_s)} - {ms(row.most_s)}':>16}"
            f"{'' if ddp is None else f'{ddp / row.median_s:.2f}':>8}{ms(row.floor_s):>8}"
            f"{row.share:7.2f}{pair(row.server_in, row.server_out):>19}"
            f"{pair(row.worker_in, row.worker_out):>19}{ms(cpu(row, 'server')):>16}"
            f"{ms(cpu(row, 'worker')):>8}"
            f"{'' if curve is None else f'{curve.accuracy:.4f}':>10}"
            f"{'' if steps is None else f'{steps * row.median_s:.1f}':>10}".rstrip()
        )
    return found


def threshold(rows: Sequence[Row]) -> float | None:
    """95% of the final accuracy of DDP, or of what comes first; None where nobody looked."""
    looked = [row for row in rows if row.curve]
    first = next((row for row in looked if row.way == DDP), looked[0] if looked else None)
    return None if first is None or first.accuracy is None else SHARE * first.accuracy


def cpu(row: Row, role: str) -> float:
    """Seconds of processor time of a step, on the rank of that role which needs most."""
    return max((s for rank, s in row.cpu_s.items() if rank.startswith(role)), default=0.0)


def in_bits(rate: int) -> str:
    """1 Gb, 100 Mb: in the largest unit that it is a whole number of."""
    for unit, size in (("Gb", 10**9), ("Mb", 10**6)):
        if rate % size == 0:
            return f"{rate // size} {unit}"
    return f"{rate} b"


def ms(seconds: float) -> str:
    """Milliseconds; with a digit behind the point below 100."""
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def pair(inward: float, outward: float) -> str:
    """Megabytes in and out; nothing for a host that has no traffic."""
    return "" if inward + outward == 0 else f"{inward / 1e6:.2f}, {outward / 1e6:.2f}"
