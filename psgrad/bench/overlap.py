"""``psgrad bench overlap``: how much of the communication hides behind computation.

Each worker trains a multilayer perceptron of equal layers on random data, in these ways in turn,
round by round:

computation
    ``loss_and_grad``, no message
communication
    ``worker.step()``, no gradient is computed
one after the other
    ``loss_and_grad``, then ``step()``
overlapped
    layers are pushed as soon as they are ready, and the next forward pass waits for one after the
    other: steady state, several steps in a row

What can be hidden is the shorter of computation and communication. Hidden is the share of it by
which a step is shorter than one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, Final

import numpy as np

from psgrad.bench.figures import in_bytes
from psgrad.bench.machine import describe
from psgrad.errors import ConfigError
from psgrad.kernels import Kernels
from psgrad.kernels import load as load_kernels
from psgrad.layout import ITEMSIZE
from psgrad.models import MLP, Hooks
from psgrad.optimizers import SGD
from psgrad.options import Options
from psgrad.roles import Roles
from psgrad.session import run
from psgrad.transport.mpi import load_mpi
from psgrad.worker import Worker

COMPUTE: Final = "computation"
COMMUNICATE: Final = "communication"
IN_TURN: Final = "one after the other"
OVERLAPPED: Final = "overlapped"
WAYS: Final = (COMPUTE, COMMUNICATE, IN_TURN, OVERLAPPED)
IN_A_ROW: Final = 5  # steps in a sample
RATE: Final = 1e-6


@dataclass(frozen=True)
class OverlapPlan:
    """What is measured, the same on all ranks: ``run`` has arguments of ``psgrad.run``."""

    layers: int = 10
    width: int = 1024
    batch: int = 256
    rounds: int = 11
    run: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("layers", "width", "batch", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        # Labels are random: a model that learned them would diverge in time.
        object.__setattr__(self, "run", {**self.run, "optimizer": SGD(RATE)})

    @property
    def options(self) -> Options:
        """``run`` as ``psgrad.run`` takes it; raises ``ConfigError`` for what it refuses."""
        return Options(**self.run)

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters."""
        return ITEMSIZE * self.layers * self.width * (self.width + 1)

    def roles(self, ranks: int) -> Roles:
        """Who is what among ``ranks`` ranks; raises ``ConfigError`` where there are too few."""
        return self.options.roles(ranks)


class Stage:
    """A worker's model and data, and each way to take steps with them."""

    def __init__(self, worker: Worker, plan: OverlapPlan, kernels: Kernels) -> None:
        self._worker = worker
        self._kernels = kernels
        self._model = MLP((plan.width,) * (plan.layers - 1))
        worker.register(self._model.init(plan.width, plan.width, seed=1))
        rng = np.random.default_rng(worker.rank)
        self._x = rng.standard_normal((plan.batch, plan.width), dtype=np.float32)
        self._y = rng.integers(0, plan.width, plan.batch)

    def call(self, way: str, times: int) -> None:
        """Takes ``times`` steps the way ``way``; all that they push is answered when it returns."""
        worker = self._worker
        for _ in range(times):
            if way == OVERLAPPED:
                self._compute(Hooks(worker.wait, worker.ready))
                worker.step_async()
            else:
                if way != COMMUNICATE:
                    self._compute(Hooks())
                if way != COMPUTE:
                    worker.step()
        if way == OVERLAPPED:
            worker.wait()

    def _compute(self, hooks: Hooks) -> None:
        worker = self._worker
        self._model.loss_and_grad(
            worker.params, self._x, self._y, worker.grads, self._kernels, hooks=hooks
        )


def measure(worker: Worker, plan: OverlapPlan) -> dict[str, list[float]]:
    """One worker's part: seconds of a step of the slowest worker, by way and round."""
    mpi = load_mpi()
    stage = Stage(worker, plan, load_kernels("cpu"))
    samples: dict[str, list[float]] = {way: [] for way in WAYS}
    slowest = np.zeros(1)
    for i in range(plan.rounds + 1):
        for way in (*WAYS[i % len(WAYS) :], *WAYS[: i % len(WAYS)]):
            worker.comm.Barrier()
            start = time.perf_counter()
            stage.call(way, IN_A_ROW)
            seconds = np.array([(time.perf_counter() - start) / IN_A_ROW])
            worker.comm.Allreduce(seconds, slowest, op=mpi.MAX)
            if i > 0:  # the first round touches memory and makes connections
                samples[way].append(float(slowest[0]))
    return samples


def hidden(samples: Mapping[str, Sequence[float]]) -> list[float]:
    """Of each round, the share of the shorter of computation and communication that is hidden."""
    return [
        (in_turn - overlapped) / min(compute, communicate)
        for compute, communicate, in_turn, overlapped in zip(
            *(samples[way] for way in WAYS), strict=True
        )
    ]


def bench_overlap(plan: OverlapPlan, show: Callable[[str], None]) -> dict[str, Any] | None:
    """Measures ``plan`` as one rank of the job; every rank calls it.

    ``show`` takes the table on worker 0. Returns the record there and None on the other ranks.
    """
    world = load_mpi().COMM_WORLD
    roles = plan.roles(int(world.size))
    samples = run(partial(measure, plan=plan), **plan.run)
    if samples is None or int(world.rank) != roles.rank_of(0):
        return None
    show(table(plan, roles, samples))
    return {
        "what": "overlap",
        "machine": describe(mpi=True),
        "workers": roles.workers,
        "servers": roles.servers,
        "layers": plan.layers,
        "width": plan.width,
        "batch": plan.batch,
        "nbytes": plan.nbytes,
        "run": {name: str(value) for name, value in plan.options.describe().items()},
        "seconds": samples,
        "hidden": hidden(samples),
    }


def table(plan: OverlapPlan, roles: Roles, samples: Mapping[str, Sequence[float]]) -> str:
    """The ways for a person."""
    shares = hidden(samples)
    lines = [
        f"{plan.layers} layers of {plan.width}, {in_bytes(plan.nbytes)} of parameters, batches of "
        f"{plan.batch}, servers {roles.servers}, workers {roles.workers}, {plan.rounds} rounds",
        f"{'':22}{'median ms':>10}{'min - max':>18}",
    ]
    for way in WAYS:
        ms = [1e3 * seconds for seconds in samples[way]]
        spread = f"{min(ms):.2f} - {max(ms):.2f}"
        lines.append(f"{way:22}{median(ms):10.2f}{spread:>18}")
    spread = f"{min(shares):.2f} - {max(shares):.2f}"
    lines.append(f"{'hidden':22}{median(shares):10.2f}{spread:>18}")
    return "\n".join(lines)
