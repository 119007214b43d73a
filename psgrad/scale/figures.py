"""Figures of a ``Timeline``: throughput, efficiency, staleness, how busy servers are.

All workers do the same number of steps, so where they drift apart some finish before others. What
counts lies between two moments: when the first worker has done a tenth of its steps, and when the
first one has done all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from psgrad.errors import ConfigError
from psgrad.pace import Constant
from psgrad.scale.flow import Timeline, play
from psgrad.scale.model import Case
from psgrad.scale.queues import Seconds
from psgrad.scale.traffic import crowding

WARM_UP: Final = 10  # one step in so many
ALONE_STEPS: Final = 10


@dataclass(frozen=True)
class Figures:
    """What a timeline comes to.

    ``efficiency`` compares with workers that do the same steps, each alone with the servers.
    ``staleness[k]`` is the share of answers that were k steps stale. Loads are the shares of the
    time for which the busiest server's NIC in, NIC out and processor are busy.
    """

    workers: int
    mode: str
    throughput: float  # steps a second, of all workers
    efficiency: float
    staleness: tuple[float, ...]
    nic_in: float
    nic_out: float
    processor: float

    @property
    def step_s(self) -> float:
        """The mean time of one worker's step."""
        return self.workers / self.throughput

    @property
    def staleness_mean(self) -> float:
        """Steps."""
        return sum(k * share for k, share in enumerate(self.staleness))

    @property
    def staleness_max(self) -> int:
        """Steps."""
        return len(self.staleness) - 1

    @property
    def load(self) -> float:
        """The largest of the loads."""
        return max(self.nic_in, self.nic_out, self.processor)

    @classmethod
    def of(cls, timeline: Timeline) -> Figures:
        """The figures of ``timeline``. Raises ``ConfigError`` where no time passes in it."""
        case, service = timeline.case, timeline.service
        first, last = span(timeline)
        if not last > first:
            raise ConfigError("a step takes no time at all; give a pace, a latency or a bandwidth")
        steps, computes = progress(timeline, last) - progress(timeline, first)
        rate = steps / (last - first)
        alone = computes / steps / crowding(case)[0] + exchange_s(case)

        def load(work: Seconds) -> float:
            return float(rate * np.bincount(timeline.grid.owner, work).max())

        answered = timeline.answered
        counts = np.bincount(timeline.staleness[(answered > first) & (answered <= last)])
        return cls(
            case.workers,
            case.mode,
            rate,
            alone * rate / case.workers,
            tuple((counts / counts.sum()).tolist()),
            load(service.push_nic),
            load(service.pull_nic),
            load(service.server_seconds(case.workers)),
        )


def span(timeline: Timeline) -> tuple[float, float]:
    """From when until when a timeline counts."""
    answered = timeline.answered
    warm = answered.shape[1] // WARM_UP
    return float(answered[:, warm - 1].min()) if warm else 0.0, float(answered[:, -1].min())


def progress(timeline: Timeline, time: float) -> NDArray[np.float64]:
    """Steps that all workers have done by ``time``, and the seconds that they computed in them.

    What is done of a step counts in proportion to its time.
    """
    count = np.arange(timeline.answered.shape[1] + 1.0)
    total = np.zeros(2)
    for answered, compute in zip(timeline.answered, timeline.service.compute, strict=True):
        at = float(np.interp(time, np.concatenate(([0.0], answered)), count))
        total += at, np.interp(at, count, np.concatenate(([0.0], np.cumsum(compute))))
    return total


def exchange_s(case: Case) -> float:
    """What a step takes beside the computation when a worker is alone with the servers."""
    idle = replace(
        case,
        workers=1,
        steps=ALONE_STEPS,
        pace=Constant(0.0),
        costs=replace(case.costs, judge_s=0.0),
    )
    return float(play(idle).answered[0, -1]) / ALONE_STEPS
