"""``psgrad bench tune``: which chunk size suits a machine. It suggests, and changes nothing.

Steps in place are measured for each candidate in turn, several times over, beside a copy of the
same size; candidates are compared by the ratio to what that allows. The default grid stays the
suggestion unless another is clearly better: with a codec, results depend on the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any, Final

from psgrad.bench.figures import IN_PLACE, MEMCPY, Spread, in_bytes, milliseconds
from psgrad.bench.machine import describe
from psgrad.bench.step import StepPlan, measure
from psgrad.layout import DEFAULT_CHUNK_STEP, default_chunk_bytes
from psgrad.roles import Roles
from psgrad.session import run
from psgrad.transport.mpi import load_mpi

PASSES: Final = 3  # over all candidates
BETTER: Final = 1.05  # times faster than the default grid, to be worth another one


@dataclass(frozen=True)
class TunePlan:
    """What is tried, the same on all ranks. ``step`` has one size, and rounds of one pass."""

    step: StepPlan
    chunk_bytes: tuple[int, ...]  # candidates; the default grid's is always among them
    passes: int = PASSES

    @classmethod
    def of(
        cls, nbytes: int, rounds: int, chunk_bytes: Sequence[int], run: Mapping[str, Any]
    ) -> TunePlan:
        """The plan for a layout of ``nbytes``; no candidates: a few around the default grid's.

        Raises ``ConfigError`` for a candidate that is no chunk size.
        """
        wanted = chunk_bytes or around(default_chunk_bytes(nbytes))
        candidates = tuple(sorted({*wanted, default_chunk_bytes(nbytes)}))
        step = StepPlan((nbytes,), rounds, (IN_PLACE, MEMCPY), run=run)
        plan = cls(step, candidates)
        for candidate in candidates:
            _ = plan.with_chunks(candidate).options
        return plan

    def with_chunks(self, chunk_bytes: int) -> StepPlan:
        """The steps of one candidate."""
        return replace(self.step, run={**self.step.run, "chunk_bytes": chunk_bytes})

    def roles(self, ranks: int) -> Roles:
        """Who is what among ``ranks`` ranks; raises ``ConfigError`` where there are too few."""
        return self.step.roles(ranks)


@dataclass(frozen=True)
class Candidate:
    """A chunk size and what it gave.

    ``ratio`` is the median over the passes of (median step) / (limit by the copies of that pass).
    """

    chunk_bytes: int
    samples: tuple[float, ...] = field(repr=False)  # seconds, slowest worker
    ratio: float

    @property
    def spread(self) -> Spread:
        """Of the samples, in seconds."""
        return Spread.of(self.samples)


def around(chunk_bytes: int) -> list[int]:
    """Candidates: from an eighth of a chunk size to four times it, each double the one before."""
    least = max(DEFAULT_CHUNK_STEP, chunk_bytes // 8)
    found = [least]
    while found[-1] * 2 <= 4 * chunk_bytes:
        found.append(found[-1] * 2)
    return found


def suggest(candidates: Sequence[Candidate], default: int) -> Candidate:
    """The fastest, if it is clearly faster than the default grid; else that."""
    best = min(candidates, key=lambda candidate: candidate.ratio)
    usual = next(candidate for candidate in candidates if candidate.chunk_bytes == default)
    return best if usual.ratio > BETTER * best.ratio else usual


def bench_chunks(plan: TunePlan, show: Callable[[str], None]) -> dict[str, Any] | None:
    """Tries the candidates as one rank of the job; every rank calls it.

    ``show`` takes the table on worker 0. Returns the record there and None on the other ranks.
    """
    world = load_mpi().COMM_WORLD
    roles = plan.roles(int(world.size))
    (nbytes,) = plan.step.sizes
    samples: dict[int, list[float]] = {size: [] for size in plan.chunk_bytes}
    ratios: dict[int, list[float]] = {size: [] for size in plan.chunk_bytes}
    for _ in range(plan.passes):
        for size in plan.chunk_bytes:
            steps = plan.with_chunks(size)
            for row in run(partial(measure, plan=steps, nbytes=nbytes), **steps.run) or ():
                if row.way == IN_PLACE and row.limit_s is not None:
                    samples[size] += row.samples
                    ratios[size].append(row.spread.median / row.limit_s)
    if int(world.rank) != roles.rank_of(0):
        return None
    found = [Candidate(s, tuple(samples[s]), median(ratios[s])) for s in plan.chunk_bytes]
    default = default_chunk_bytes(nbytes)
    show(table(found, nbytes, roles, default))
    return {
        "what": "tune",
        "machine": describe(mpi=True),
        "nbytes": nbytes,
        "servers": roles.servers,
        "workers": roles.workers,
        "default_chunk_bytes": default,
        "suggestion": suggest(found, default).chunk_bytes,
        "rows": [
            {**asdict(one), **{f"{k}_s": v for k, v in asdict(one.spread).items()}} for one in found
        ],
    }


def table(found: Sequence[Candidate], nbytes: int, roles: Roles, default: int) -> str:
    """The candidates for a person, and the suggestion."""
    head = (
        f"steps of {in_bytes(nbytes)}, servers {roles.servers}, workers {roles.workers}; "
        "the slowest worker\n"
        f"{'--chunk-bytes':>14}{'median ms':>11}{'min - max':>21}{'x limit':>9}"
    )
    lines = []
    for one in found:
        spread = one.spread
        range_ms = f"{milliseconds(spread.least)} - {milliseconds(spread.most)}"
        lines.append(
            f"{one.chunk_bytes:>14}{milliseconds(spread.median):>11}{range_ms:>21}{one.ratio:9.2f}"
            + ("  (the default grid)" if one.chunk_bytes == default else "")
        )
    best = suggest(found, default)
    if best.chunk_bytes == default:
        advice = "keep the default grid: no candidate is clearly faster"
    else:
        advice = f"try --chunk-bytes {best.chunk_bytes}; with a codec, results depend on the grid"
    return "\n".join([head, *lines, advice])
