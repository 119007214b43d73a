"""The training that schedules are rehearsed with: each worker is pulled to a target of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from psgrad import pace, survival
from psgrad.checkpoint import InlineWriter
from psgrad.invariants import InvariantError
from psgrad.layout import Float32
from psgrad.scenario import Scenario
from psgrad.seats import Seat
from psgrad.session import Session
from psgrad.shard import Shard
from psgrad.survival import FROZEN_S, LONG_S, SETTLED_S, Books, Fates
from psgrad.transport.simulated import SimulatedTransport, Simulation
from psgrad.transport.trace import Sink
from psgrad.worker import Worker

ALL: Final = 1 << 20  # checkpoints stay


@dataclass
class Told:
    """What a worker's program says at the end.

    ``pushed`` is the sum of its gradients, float64[n], behind each clock, the first one's first;
    ``done`` how many steps it had done there.
    """

    params: Float32
    updates: int
    clocks: list[int]
    done: list[int]
    pushed: list[NDArray[np.float64]]
    seat: Seat

    def at(self, clock: int | None) -> tuple[int, NDArray[np.float64]]:
        """The steps done and the sum of gradients pushed at ``clock``; None: at the end."""
        if clock is None or clock > self.clocks[-1]:  # what is behind is a residual
            return self.done[-1], self.pushed[-1]
        where = self.clocks.index(clock)
        return self.done[where], self.pushed[where]


@dataclass
class Played:
    """What a run of the toy came to."""

    told: list[Told]
    seconds: float  # virtual
    messages: int
    warnings: list[str] = field(default_factory=list)
    ends: dict[Seat, Float32] = field(default_factory=dict)  # by worker, of those that came there
    books: Books = field(default_factory=Books)
    servers_died: int = 0


class Place:
    """Where a worker is in its steps; a part of its checkpoints, with a vector that shows whose."""

    def __init__(self, worker: int, size: int) -> None:
        self.step = 0
        self._worker = worker
        self._size = size

    def state_dict(self) -> dict[str, Any]:
        """A number, a vector over all parameters, and what JSON has no word for."""
        return {"step": self.step, "whose": self._vector(self.step), "never": math.nan}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ``InvariantError`` for what is not of this worker and that step."""
        self.step = state["step"]
        whose = state["whose"]
        # Who had left when the checkpoint was made has no vectors in it.
        if whose is not None and whose.tobytes() != self._vector(self.step).tobytes():
            raise InvariantError(f"worker {self._worker} goes on with a vector that is not its own")
        if not math.isnan(state["never"]):
            raise InvariantError(f"NaN came back as {state['never']}")

    def _vector(self, step: int) -> Float32:
        return np.full(self._size, 100 * self._worker + step, np.float32)


def play(
    scenario: Scenario,
    shard: type[Shard],
    *,
    trace: Sink | None = None,
    checkpoints: Path | None = None,
    resume: Path | None = None,
) -> Played:
    """Runs the toy in the simulator; raises whatever ends the simulation."""
    losses = scenario.has_losses
    limits: dict[str, Any] = {"event_limit": survival.EVENTS} if losses else {}
    simulation = Simulation(
        scenario.size,
        scenario.network,
        [*scenario.faults, *survival.kills(scenario)],
        scenario.seed,
        trace=trace or False,
        hosts=scenario.machines,
        **limits,
    )
    warnings: list[str] = []
    books = Books()

    def program(transport: SimulatedTransport) -> Told | None:
        with Session(
            transport=transport,
            shard=survival.booked(shard, books) if losses else shard,
            report=lambda _: None,
            warn=warnings.append,
            writer=InlineWriter,
        ) as session:
            return session.run(
                lambda worker: _train(scenario, worker, books),
                servers=scenario.servers,
                staleness=scenario.bound,
                optimizer=scenario.rule,
                clip_norm=scenario.clip_norm,
                chunk_bytes=scenario.chunk_bytes,
                window=scenario.window,
                codec=scenario.codec,
                pull_codec=scenario.pull_codec,
                feedback=scenario.feedback,
                zstd=scenario.zstd,
                seed=scenario.seed % (1 << 32),
                fault_tolerant=losses,
                lease=scenario.lease_s or 30.0,
                rejoin=scenario.freeze_s > 0,
                spares=scenario.spares,
                replicas=scenario.replicas,
                checkpoint_dir="" if checkpoints is None else str(checkpoints),
                checkpoint_every="" if checkpoints is None else scenario.checkpoints,
                checkpoint_keep=ALL,
                resume="" if resume is None else str(resume),
            )

    said = simulation.run(program)[scenario.servers :]
    told = [value for value in said if value is not None]
    ends = {value.seat: value.params for value in told}
    died = sum(rank < scenario.servers for rank in simulation.killed)
    return Played(told, simulation.now_s, simulation.messages, warnings, ends, books, died)


def _train(scenario: Scenario, worker: Worker, books: Books) -> Told:
    """The main of a worker."""
    params = worker.register(scenario.arrays())
    fates = Fates.of(scenario)
    names = list(params)
    seat = Seat(worker.rank, worker.incarnation)
    books.began[seat] = worker.clock
    place = Place(worker.rank, sum(scenario.sizes))
    if worker.incarnation:
        place.step = worker.clock
    worker.keep("place", place)
    compute = pace.parse(scenario.pace, scenario.seed % (1 << 32))
    told = Told(
        np.zeros(0, np.float32),
        0,
        [worker.clock],
        [place.step],
        [np.zeros(sum(scenario.sizes))],
        seat,
    )
    for step in range(place.step + 1, scenario.steps_of(worker.rank) + 1):
        flat = np.concatenate([params[name] for name in names])
        _compute(scenario, worker, step, compute.seconds(worker.rank, step), books)
        same = flat.tobytes() == b"".join(params[name].tobytes() for name in names)
        apart = seat in books.woken or worker.rank in fates.cut_off
        if not same and not apart:  # others may go on without it
            raise InvariantError(f"parameters of worker {worker.rank} changed while it computed")
        place.step = step
        grad = scenario.gradient(worker.rank, step, flat)
        grads = dict(zip(names, np.split(grad, np.cumsum(scenario.sizes)[:-1]), strict=True))
        pushed = np.zeros(grad.size)
        if np.isfinite(grad).all():
            norm = float(np.linalg.norm(grad.astype(np.float64)))
            clip = min(1.0, (scenario.clip_norm or math.inf) / norm if norm else 1.0)
            pushed += grad * clip
        books.pushed[seat, worker.clock + 1] = pushed
        _push(scenario, worker, step, grads)
        if not scenario.is_push(worker.rank, step):
            books.answered[seat] = worker.clock
        told.clocks.append(worker.clock)
        told.done.append(step)
        told.pushed.append(told.pushed[-1] + pushed)
        if scenario.bound is not None and worker.staleness > scenario.bound:
            raise InvariantError(f"worker {worker.rank} saw a staleness of {worker.staleness}")
    worker.leave()
    books.left[seat] = worker.clock
    worker.barrier()
    if scenario.has_losses:
        # What had left of the dead comes, or not, at one server or another; behind a split later.
        healed_s = scenario.split_s + scenario.split_for_s if scenario.behind else 0.0
        _sleep(scenario, worker, SETTLED_S + max(0.0, healed_s - worker.now()))
    worker.pull(dense=True)
    told.updates = worker.updates
    worker.barrier()
    told.params = np.concatenate([params[name] for name in names])
    return told


def _compute(scenario: Scenario, worker: Worker, step: int, seconds: float, books: Books) -> None:
    fates = Fates.of(scenario)
    frozen = worker.rank == fates.freezes and not worker.incarnation
    if step == scenario.freeze and frozen:
        worker.sleep(scenario.freeze_s or FROZEN_S)
        books.woken.add(Seat(worker.rank))
    if step == scenario.freeze and worker.rank == fates.computes_long:
        seconds += LONG_S
    _sleep(scenario, worker, seconds)


def _sleep(scenario: Scenario, worker: Worker, seconds: float) -> None:
    """Takes its time; with short leases it says now and then that it lives."""
    lease_s = scenario.lease_s
    while lease_s and seconds > lease_s / 3:
        worker.sleep(lease_s / 3)
        worker.alive()
        seconds -= lease_s / 3
    worker.sleep(seconds)


def _push(scenario: Scenario, worker: Worker, step: int, grads: Mapping[str, Float32]) -> None:
    weight = scenario.weight(worker.rank, step)
    if scenario.is_push(worker.rank, step):
        worker.push(grads, weight)
    elif scenario.is_overlapped(worker.rank, step):
        _overlapped(worker, scenario.order(worker.rank, step), grads, weight)
    else:
        worker.step(grads, weight)


def _overlapped(
    worker: Worker, order: Sequence[str], grads: Mapping[str, Float32], weight: float
) -> None:
    """A step that leaves layer by layer, in ``order``."""
    for name, grad in grads.items():
        worker.grads[name] = grad
    for name in order:
        worker.ready(name)
        worker.sleep(1e-4)
    worker.step_async(weight=weight)
    worker.sleep(1e-4)
    for name in reversed(order):
        worker.wait(name)
    worker.wait()
