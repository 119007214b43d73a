"""Runs a scenario in the simulator, with the real workers, servers and sessions, and checks it.

Each worker of the toy model is pulled to a target of its own. After every message is checked what
must hold (``invariants``), and at the end

- that every worker pulls the same parameters;
- in sync mode without codecs, that they are those of a plain loop over whole arrays, bit for bit;
- with plain SGD where nothing may be lost, that the sum of all updates is that of all gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from psgrad import guard, pace
from psgrad.codecs.feedback import NOT_FED_BACK
from psgrad.invariants import CheckedShard, InvariantError
from psgrad.layout import Float32, Layout
from psgrad.scenario import LEARNING_RATE, Scenario
from psgrad.session import Session
from psgrad.shard import Shard
from psgrad.transport.simulated import SimulatedTransport, Simulation
from psgrad.transport.trace import Sink
from psgrad.worker import Worker


@dataclass
class Outcome:
    """What a scenario came to."""

    seconds: float  # virtual
    messages: int
    updates: int
    params: Float32
    compared: list[str] = field(default_factory=list)  # with what


@dataclass
class Told:
    """What a worker's program says at the end."""

    params: Float32
    pushed: NDArray[np.float64]  # [n], the sum of its gradients
    updates: int


def run(
    scenario: Scenario, *, shard: type[Shard] = CheckedShard, trace: Sink | None = None
) -> Outcome:
    """Runs a scenario and checks it.

    Raises ``InvariantError``, or whatever ended the simulation: ``RankError`` with an
    ``InvariantError`` of a server behind it, ``StallError``, ``AliasingError``.
    """
    simulation = Simulation(
        scenario.size,
        scenario.network,
        scenario.faults,
        scenario.seed,
        trace=trace or False,
        hosts=scenario.machines,
    )

    def program(transport: SimulatedTransport) -> Told | None:
        with Session(transport=transport, shard=shard, report=lambda _: None) as session:
            return session.run(
                lambda worker: _train(scenario, worker),
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
            )

    told = [value for value in simulation.run(program) if value is not None]
    outcome = Outcome(
        simulation.now_s,
        simulation.messages,
        max(value.updates for value in told),
        told[0].params,
    )
    _compare(scenario, told, outcome)
    return outcome


def _train(scenario: Scenario, worker: Worker) -> Told:
    """The main of a worker."""
    params = worker.register(scenario.arrays())
    names = list(params)
    compute = pace.parse(scenario.pace, scenario.seed % (1 << 32))
    pushed = np.zeros(sum(scenario.sizes))
    for step in range(1, scenario.steps_of(worker.rank) + 1):
        flat = np.concatenate([params[name] for name in names])
        worker.sleep(compute.seconds(worker.rank, step))
        if flat.tobytes() != b"".join(params[name].tobytes() for name in names):
            raise InvariantError(f"parameters of worker {worker.rank} changed while it computed")
        grad = scenario.gradient(worker.rank, step, flat)
        grads = dict(zip(names, _split(grad, scenario.sizes), strict=True))
        weight = scenario.weight(worker.rank, step)
        if scenario.is_push(worker.rank, step):
            worker.push(grads, weight)
        elif scenario.is_overlapped(worker.rank, step):
            _overlapped(scenario, worker, step, grads, weight)
        else:
            worker.step(grads, weight)
        if np.isfinite(grad).all():
            norm = float(np.linalg.norm(grad.astype(np.float64)))
            pushed += grad * min(1.0, (scenario.clip_norm or math.inf) / norm if norm else 1.0)
        if scenario.bound is not None and worker.staleness > scenario.bound:
            raise InvariantError(f"worker {worker.rank} saw a staleness of {worker.staleness}")
    worker.leave()
    worker.barrier()
    worker.pull(dense=True)
    updates = worker.updates
    worker.barrier()
    return Told(np.concatenate([params[name] for name in names]), pushed, updates)


def _overlapped(
    scenario: Scenario, worker: Worker, step: int, grads: Mapping[str, Float32], weight: float
) -> None:
    """A step that leaves layer by layer, in an order of its own."""
    for name, grad in grads.items():
        worker.grads[name] = grad
    order = scenario.order(worker.rank, step)
    for name in order:
        worker.ready(name)
        worker.sleep(1e-4)
    worker.step_async(weight=weight)
    worker.sleep(1e-4)
    for name in reversed(order):
        worker.wait(name)
    worker.wait()


def _split(flat: Float32, sizes: Sequence[int]) -> list[Float32]:
    return np.split(flat, np.cumsum(sizes)[:-1])


def _compare(scenario: Scenario, told: Sequence[Told], outcome: Outcome) -> None:
    for worker, value in enumerate(told):
        if value.params.tobytes() != outcome.params.tobytes():
            raise InvariantError(f"worker {worker} and worker 0 end with different parameters")
    outcome.compared.append("workers")
    if scenario.bound == 0 and scenario.codec == scenario.pull_codec == "none":
        if naive_sync(scenario).tobytes() != outcome.params.tobytes():
            raise InvariantError("sync differs from the plain loop over whole arrays")
        outcome.compared.append("twin")
    codec = scenario.codec.partition(":")[0]
    # An unbiased codec without feedback loses here and finds there.
    lossy = codec != "none" and (codec in NOT_FED_BACK or scenario.feedback not in ("auto", "ef"))
    if scenario.bound != 0 and scenario.optimizer == "sgd" and not lossy:
        start = np.concatenate(list(scenario.arrays().values()))
        total = sum(value.pushed for value in told)
        moved = start - LEARNING_RATE * total
        size = 1.0 + np.abs(start).max() + LEARNING_RATE * np.abs(total).max()
        error = float(np.abs(moved - outcome.params).max())
        if error > 1e-4 * size:
            raise InvariantError(f"the updates differ from the sum of gradients by {error:g}")
        outcome.compared.append("mass")


def naive_sync(scenario: Scenario) -> Float32:
    """The parameters after synchronous training: one loop, one process, whole arrays."""
    params = np.concatenate(list(scenario.arrays().values()))
    rule, layout = scenario.rule, Layout.of(scenario.arrays())
    slots, scratch = rule.init(params.size), np.zeros((2, params.size), np.float32)
    seen = [params.copy() for _ in range(scenario.workers)]
    updates = 0
    for step in range(1, scenario.steps + 1):
        live = [w for w in range(scenario.workers) if scenario.steps_of(w) >= step]
        grads = {w: scenario.gradient(w, step, seen[w]) for w in live}
        sent = {w: g for w, g in grads.items() if np.isfinite(g).all()}
        weights = {w: scenario.weight(w, step) for w in sent}
        if sent:
            total = sum(weights.values())
            for g in sent.values():
                verdict = guard.check(g, layout, layout.segments, scenario.clip_norm)
                g *= np.float32(verdict.scale)
            terms = [g * np.float32(weights[w] / total) for w, g in sent.items()]
            mean = terms[0]
            for term in terms[1:]:
                mean = mean + term
            updates += 1
            rule.apply(params, mean, slots, updates, LEARNING_RATE, rule.weight_decay, scratch)
        for w in live:
            if not scenario.is_push(w, step):
                seen[w] = params.copy()
    return params
