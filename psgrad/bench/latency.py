"""``psgrad bench latency``: the shortest step, beside a bare exchange of the same bytes.

One worker, one server. A step pushes ``nbytes`` of gradient and pulls as many of parameters. The
bare exchange is a blocking MPI send and receive of as many bytes each way, without any header. They
are measured in turn, in blocks; the first ones of a block warm up and do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from psgrad.bench.figures import in_bytes
from psgrad.bench.machine import describe
from psgrad.errors import ConfigError
from psgrad.layout import ITEMSIZE
from psgrad.options import Options
from psgrad.roles import Roles
from psgrad.session import run
from psgrad.transport.mpi import load_mpi
from psgrad.worker import Worker

BLOCKS: Final = 10
WARM_UP: Final = 20
RANKS: Final = 2
PERCENTILES: Final = (10, 50, 90)


@dataclass(frozen=True)
class LatencyPlan:
    """What is measured, the same on both ranks: ``run`` has arguments of ``psgrad.run``."""

    nbytes: int = 4096
    steps: int = 2000
    run: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.nbytes < ITEMSIZE or self.nbytes % ITEMSIZE:
            raise ConfigError(
                f"a size must be a multiple of {ITEMSIZE} bytes (float32), got {self.nbytes}"
            )
        if self.steps < BLOCKS:
            raise ConfigError(f"bench latency needs at least {BLOCKS} steps, got {self.steps}")

    @property
    def options(self) -> Options:
        """``run`` as ``psgrad.run`` takes it; raises ``ConfigError`` for what it refuses."""
        return Options(**self.run)

    def roles(self, ranks: int) -> Roles:
        """Who is what; raises ``ConfigError`` where it is not one worker and one server."""
        if ranks != RANKS:
            raise ConfigError(
                f"bench latency takes {RANKS} ranks, a server and a worker, this job has {ranks}"
            )
        return self.options.roles(ranks)


@dataclass(frozen=True)
class Latency:
    """Microseconds of one kind of exchange: percentiles of all that were timed."""

    what: str
    p10: float
    p50: float
    p90: float
    count: int

    @classmethod
    def of(cls, what: str, seconds: Sequence[float]) -> Latency:
        """The percentiles of ``seconds``."""
        low, middle, high = np.percentile(seconds, PERCENTILES)
        return cls(what, 1e6 * float(low), 1e6 * float(middle), 1e6 * float(high), len(seconds))


def steps(worker: Worker, nbytes: int, count: int) -> list[float]:
    """The worker's part of a block: the seconds of each of ``count`` steps."""
    worker.register({"w": np.zeros(nbytes // ITEMSIZE, np.float32)})
    worker.grads["w"] = np.ones(nbytes // ITEMSIZE, np.float32)
    return timed(worker.step, count)


def ping_pong(nbytes: int, count: int) -> list[float]:
    """A block of bare exchanges between ranks 0 and 1; seconds of each, on rank 1."""
    comm = load_mpi().COMM_WORLD
    there, back = np.zeros(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
    peer = 1 - int(comm.rank)

    def answer() -> None:
        comm.Recv(there, peer)
        comm.Send(back, peer)

    def ask() -> None:
        comm.Send(there, peer)
        comm.Recv(back, peer)

    return timed(ask if comm.rank == 1 else answer, count)


def timed(call: Callable[[], None], count: int) -> list[float]:
    """The seconds of each of ``count`` calls, after ``WARM_UP`` that are not timed."""
    for _ in range(WARM_UP):
        call()
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def bench_latency(plan: LatencyPlan, show: Callable[[str], None]) -> dict[str, Any] | None:
    """Measures ``plan`` as one of two ranks; both call it.

    ``show`` takes the table on the worker. Returns the record there and None on the server.
    """
    world = load_mpi().COMM_WORLD
    roles = plan.roles(int(world.size))
    count = plan.steps // BLOCKS
    stepped: list[float] = []
    exchanged: list[float] = []
    for _ in range(BLOCKS):
        found = run(partial(steps, nbytes=plan.nbytes, count=count), **plan.run)
        stepped += found or []
        exchanged += ping_pong(plan.nbytes, count)
    if roles.is_server(int(world.rank)):
        return None
    found_rows = [Latency.of("psgrad step", stepped), Latency.of("bare MPI", exchanged)]
    show(table(found_rows, plan.nbytes))
    return {
        "what": "latency",
        "machine": describe(mpi=True),
        "nbytes": plan.nbytes,
        "run": {name: str(value) for name, value in plan.options.describe().items()},
        "rows": [
            {"what": row.what, "p10_us": row.p10, "p50_us": row.p50, "p90_us": row.p90,
             "count": row.count}
            for row in found_rows
        ],
    }  # fmt: skip


def table(found: Sequence[Latency], nbytes: int) -> str:
    """The rows for a person; the ratio is to the last one's median."""
    head = (
        f"{in_bytes(nbytes)} there and back, 1 server, 1 worker, {found[0].count} of each; us\n"
        f"{'':14}{'10%':>9}{'median':>9}{'90%':>9}{'x bare':>9}"
    )
    lines = [
        f"{row.what:14}{row.p10:9.1f}{row.p50:9.1f}{row.p90:9.1f}{row.p50 / found[-1].p50:9.2f}"
        for row in found
    ]
    return "\n".join([head, *lines])
