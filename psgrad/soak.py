"""Many seeded schedules one after another, in several processes: which fail, and what they had."""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from psgrad import rehearsal
from psgrad.errors import PsgradError
from psgrad.scenario import Scenario
from psgrad.scenario_text import command

BLOCK = 100  # seeds that a process goes through between two looks
SAID = 5_000  # between two lines


@dataclass
class Soaked:
    """What a range of seeds has come to; ``had`` counts schedules by what they had."""

    first: int
    last: int
    failed: list[tuple[int, str]] = field(default_factory=list)
    had: Counter[str] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        """How many seeds."""
        return self.last + 1 - self.first

    def add(self, other: Soaked) -> None:
        """Takes in the seeds that follow."""
        self.last = other.last
        self.failed += other.failed
        self.had += other.had

    @property
    def line(self) -> str:
        """For a person."""
        passed = self.count - len(self.failed)
        said = f"{passed} schedules passed, {len(self.failed)} failed"
        return f"{said}; the last seed was {self.last}"


def block(seeds: range) -> Soaked:
    """Runs ``seeds``, at least one."""
    soaked = Soaked(seeds[0], seeds[-1])
    for seed in seeds:
        scenario = Scenario.of(seed)
        soaked.had.update(_had(scenario))
        try:
            soaked.had.update(f"compared: {what}" for what in rehearsal.run(scenario).compared)
        except PsgradError as error:
            soaked.failed.append((seed, str(error)))
    return soaked


def soak(first: int, seeds: int | None, minutes: float | None, jobs: int) -> Soaked:
    """Goes through ``seeds`` seeds from ``first`` on, or as many as ``minutes`` have room for.

    Says what fails as soon as it does, and now and then how far it is.
    """
    start_s = time.monotonic()
    end_s = None if minutes is None else start_s + 60 * minutes
    whole = Soaked(first, first - 1)
    for done in _blocks(first, seeds, end_s, jobs):
        before = whole.count // SAID
        whole.add(done)
        for seed, why in done.failed:
            sys.stderr.write(f"{command(Scenario.of(seed))}\n    {why}\n")
        if whole.count // SAID > before:
            print(f"{whole.line}, {time.monotonic() - start_s:.0f} s", flush=True)
    return whole


def _blocks(first: int, seeds: int | None, end_s: float | None, jobs: int) -> Iterator[Soaked]:
    """What blocks of seeds come to, in their order."""
    size = BLOCK if end_s is None else 1 if jobs == 1 else 10
    stop = None if seeds is None else first + seeds
    starts = itertools.count(first, size) if stop is None else range(first, stop, size)

    def ranges() -> Iterator[range]:
        for start in starts:
            if end_s is not None and time.monotonic() >= end_s:
                return
            yield range(start, start + size if stop is None else min(start + size, stop))

    if jobs == 1:
        yield from map(block, ranges())
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        waiting: deque[Future[Soaked]] = deque()
        for each in ranges():
            waiting.append(pool.submit(block, each))
            if len(waiting) == 2 * jobs:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def _had(scenario: Scenario) -> Iterator[str]:
    """What can go wrong in it."""
    shares = {
        "late messages": scenario.delays or scenario.jitter,
        "messages that come twice": scenario.duplicates,
        "messages that are sent again": scenario.drops,
        "partitions": scenario.partition or scenario.behind,
        "deaths": scenario.deaths or scenario.death_s,
        "leases that run out": scenario.lease_s,
        "partitions and deaths": (scenario.partition or scenario.behind) and scenario.has_losses,
        "checkpoints": scenario.checkpoints,
    }
    return (name for name, value in shares.items() if value)


def table(soaked: Soaked) -> str:
    """How many schedules had what, and were compared with what."""
    width = max((len(name) for name in soaked.had), default=0)
    return "\n".join(f"{name:{width}}  {n}" for name, n in sorted(soaked.had.items()))
