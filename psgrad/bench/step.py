"""``psgrad bench step``: a step of all ranks, by size, beside Allreduce and a copy.

Each worker takes these ways in turn, round by round, in another order each time:

in place
    ``worker.step()``: the gradient lies where psgrad sends it from, the parameters are read where
    they arrive; the servers' optimizer is applied
copied
    ``worker.step(grads)``, which copies a gradient in, then the parameters are copied out
Allreduce
    as it is mostly written: ``MPI_Allreduce`` of the gradient into a second array, over the workers
    alone, then ``params -= rate * total`` by NumPy on each of them
tuned
    the same as fast as it can be made: ``MPI_Allreduce`` in place, and the update in blocks that
    stay in cache
guard
    the look for NaN and infinity that is part of both steps above, on all workers at once
memcpy
    ``numpy.copyto`` of one such array to another, on worker 0 while everyone else sleeps

Nothing is computed: the gradient is what lies in memory. A round's figure is that of the slowest
worker, and for small sizes the mean of several steps in a row. A way that takes very long (an MPI
that spins where there are more ranks than cores) is not measured again, so it has fewer samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from psgrad.bench import plots
from psgrad.bench.figures import (
    ALLREDUCE,
    COPIED,
    GUARD,
    IN_PLACE,
    MEMCPY,
    TUNED,
    WAYS,
    Row,
    head,
    lines,
    rows,
)
from psgrad.bench.machine import describe
from psgrad.codecs.base import BLOCK
from psgrad.errors import ConfigError
from psgrad.guard import is_finite
from psgrad.layout import ITEMSIZE, Float32
from psgrad.options import Options
from psgrad.roles import Roles
from psgrad.session import run
from psgrad.transport.mpi import load_mpi
from psgrad.worker import Worker

IN_A_ROW: Final = 50  # steps in a sample, at most
SAMPLE_NBYTES: Final = 4 << 20  # that those steps are to send together
PATIENCE_S: Final = 20.0  # for a sample; a way that needs longer is not measured again
PATTERN: Final = 1 << 16  # elements of the gradient before it repeats
RATE: Final = np.float32(1e-3)  # the learning rate of the local update


@dataclass(frozen=True)
class StepPlan:
    """What is measured, the same on all ranks: ``run`` has arguments of ``psgrad.run``.

    The bytes are those of ``tensors`` parameters of one size; the last may be smaller.
    """

    sizes: tuple[int, ...]  # bytes of float32
    rounds: int = 11
    ways: tuple[str, ...] = WAYS
    tensors: int = 1
    run: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for nbytes in self.sizes:
            if nbytes < ITEMSIZE or nbytes % ITEMSIZE:
                raise ConfigError(
                    f"a size must be a multiple of {ITEMSIZE} bytes (float32), got {nbytes}"
                )
            if not 1 <= self.tensors <= nbytes // ITEMSIZE:
                raise ConfigError(
                    f"tensors must be from 1 to the {nbytes // ITEMSIZE} elements of {nbytes} "
                    f"bytes, got {self.tensors}"
                )
        if not self.sizes or self.rounds < 1:
            raise ConfigError(
                f"bench step needs at least one size and one round, got {len(self.sizes)} and "
                f"{self.rounds}"
            )

    @property
    def options(self) -> Options:
        """``run`` as ``psgrad.run`` takes it; raises ``ConfigError`` for what it refuses."""
        return Options(**self.run)

    def roles(self, ranks: int) -> Roles:
        """Who is what among ``ranks`` ranks; raises ``ConfigError`` where there are too few."""
        return self.options.roles(ranks)


class Stage:
    """A worker's arrays of ``nbytes`` bytes, and each way to take a step with them.

    ``gradient[n]`` and ``params[n]`` are a program's own arrays, ``total[n]`` and ``sum[n]`` what
    Allreduce gives and what it reduces in place.
    """

    def __init__(self, worker: Worker, nbytes: int, tensors: int = 1) -> None:
        n = nbytes // ITEMSIZE
        cuts = range(0, n, -(-n // tensors))
        self._parts = {f"w{i}": slice(cut, min(cut + cuts.step, n)) for i, cut in enumerate(cuts)}
        zeros = np.zeros(n, np.float32)
        worker.register({name: zeros[part] for name, part in self._parts.items()})
        pattern = np.random.default_rng(worker.rank).standard_normal(min(n, PATTERN), np.float32)
        self.gradient: Float32 = np.resize(pattern, n)
        self._gradients = {name: self.gradient[part] for name, part in self._parts.items()}
        worker.grads.update(self._gradients)
        self.params = np.full(n, 0, np.float32)
        self.total = np.full(n, 0, np.float32)
        # Sums of anything but 0 would grow from round to round; the time is the same.
        self.sum = np.full(n, 0, np.float32)
        self._scratch = np.zeros(BLOCK, np.float32)
        self._rate = RATE / np.float32(worker.size)
        self._in_place = load_mpi().IN_PLACE
        self._worker = worker

    def call(self, way: str) -> None:
        """Takes one step the way ``way``."""
        if way == IN_PLACE:
            self._worker.step()
        elif way == COPIED:
            self._worker.step(self._gradients)
            for name, part in self._parts.items():
                self.params[part] = self._worker.params[name]
        elif way == ALLREDUCE:
            self._worker.comm.Allreduce(self.gradient, self.total)
            self.params -= self._rate * self.total
        elif way == TUNED:
            self._worker.comm.Allreduce(self._in_place, self.sum)
            descend(self.params, self.sum, self._rate, self._scratch)
        elif way == GUARD:
            is_finite(self.gradient)
        else:
            np.copyto(self.params, self.gradient)


def descend(params: Float32, grads: Float32, rate: np.float32, scratch: Float32) -> None:
    """params[n] -= rate grads[n], block by block."""
    for start in range(0, params.size, scratch.size):
        grad = grads[start : start + scratch.size]
        product = np.multiply(grad, rate, out=scratch[: grad.size])
        params[start : start + scratch.size] -= product


def in_a_row(nbytes: int) -> int:
    """How many steps a sample has, so that its ends do not count where a step is short."""
    return max(1, min(IN_A_ROW, SAMPLE_NBYTES // nbytes))


def sample(worker: Worker, stage: Stage, way: str, times: int) -> float:
    """Seconds of one step on the slowest worker, the mean of ``times`` in a row; collective."""
    seconds = np.zeros(1)
    alone = way == MEMCPY
    if times > 1 and not alone:
        stage.call(way)  # the first one wakes a server that has gone to sleep
    if alone:
        worker.barrier()  # where who waits sleeps; MPI's would burn the cores
    else:
        worker.comm.Barrier()
    if not alone or worker.rank == 0:
        start = time.perf_counter()
        for _ in range(times):
            stage.call(way)
        seconds[0] = (time.perf_counter() - start) / times
    if alone:
        worker.barrier()
    slowest = np.zeros(1)
    worker.comm.Allreduce(seconds, slowest, op=load_mpi().MAX)
    return float(slowest[0])


def measure(worker: Worker, plan: StepPlan, nbytes: int) -> list[Row]:
    """One worker's part of one size; every worker returns the same rows."""
    stage, times = Stage(worker, nbytes, plan.tensors), in_a_row(nbytes)
    samples: dict[str, list[float]] = {way: [] for way in plan.ways}
    ways = list(plan.ways)
    for i in range(plan.rounds + 1):
        ways.append(ways.pop(0))
        for way in tuple(ways):
            seconds = sample(worker, stage, way, times)
            slow = times * seconds > PATIENCE_S
            if i > 0 or slow:  # the first round touches memory and makes connections
                samples[way].append(seconds)
            if slow and len(ways) > 1:
                ways.remove(way)
    return rows(nbytes, samples, worker.size, together=plan.options.staleness == 0)


def bench_steps(plan: StepPlan, show: Callable[[str], None]) -> dict[str, Any] | None:
    """Measures ``plan`` as one rank of the job; every rank calls it.

    ``show`` takes the table on worker 0, line by line as it is measured. Returns the record there
    and None on the other ranks.
    """
    world = load_mpi().COMM_WORLD
    roles = plan.roles(int(world.size))
    spokesman = int(world.rank) == roles.rank_of(0)
    if spokesman:
        show(f"{opening(plan, roles)}\n{head()}")
    table: list[Row] = []
    for nbytes in plan.sizes:
        found = run(partial(measure, plan=plan, nbytes=nbytes), **plan.run)
        if spokesman and found is not None:
            show(lines(found))
            table += found
    if not spokesman:
        return None
    return {
        "what": "step",
        "machine": describe(mpi=True),
        "ranks": roles.size,
        "servers": roles.servers,
        "workers": roles.workers,
        "rounds": plan.rounds,
        "tensors": plan.tensors,
        "run": {name: str(value) for name, value in plan.options.describe().items()},
        "rows": [row.record() for row in table],
    }


def opening(plan: StepPlan, roles: Roles) -> str:
    """What the table is of, in a line."""
    options = plan.options
    bound = options.staleness
    mode = {0: "sync", None: "async"}.get(bound, f"ssp, staleness {bound}")
    return (
        f"servers {roles.servers}, workers {roles.workers}, {mode}, codec {options.codec}, pull "
        f"codec {options.pull_codec}, {plan.rounds} rounds; the slowest worker of each"
        + ("" if options.aggregate == "mean" else f"; aggregate {options.aggregate}")
        + (f"; {plan.tensors} tensors" if plan.tensors > 1 else "")
    )


def plot(record: Mapping[str, Any], path: Path) -> None:
    """A picture of time against size, of a record of :func:`bench_steps`."""
    pyplot = plots.pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    by_way: dict[str, list[dict[str, Any]]] = {}
    for row in record["rows"]:
        by_way.setdefault(row["way"], []).append(row)
    for way, found in by_way.items():
        sizes = [row["nbytes"] for row in found]
        middle = [1e3 * row["median_s"] for row in found]
        below = [1e3 * (row["median_s"] - row["least_s"]) for row in found]
        above = [1e3 * (row["most_s"] - row["median_s"]) for row in found]
        axes.errorbar(sizes, middle, yerr=(below, above), marker="o", capsize=3, label=way)
    limits = [row for row in record["rows"] if row["limit_s"] is not None]
    if limits:
        known = {row["nbytes"]: 1e3 * row["limit_s"] for row in limits}
        axes.plot(list(known), list(known.values()), "k--", linewidth=1, label="limit of memory")
    axes.set(xscale="log", yscale="log", xlabel="bytes of float32", ylabel="ms, slowest worker")
    axes.set_title(f"One step, {record['workers']} workers, {record['servers']} server(s)")
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120)
