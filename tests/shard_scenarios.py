"""Random runs of a few workers and shards, and the naive single process that each must equal."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np

from psgrad.chunk_state import Rules
from psgrad.layout import Layout, SegmentOptions
from psgrad.messages import NO_RATE, Kind
from psgrad.optimizers import FTRL, SGD, Adam, AdamW, Momentum
from psgrad.schedules import Constant, StepDecay, Warmup


@dataclass(frozen=True)
class Op:
    """One entry of a worker's program: a PUSH, a STEP (wait for the answers) or a PULL (wait)."""

    kind: Kind
    weight: float = 1.0  # 0: an empty push
    rate: float = NO_RATE
    twice: bool = False  # the network delivers each message of a push two times


@dataclass(frozen=True)
class Scenario:
    """Everything of a run but the order in which messages arrive."""

    sizes: tuple[int, ...]
    options: tuple[SegmentOptions, ...]
    chunk_bytes: int
    servers: int
    programs: tuple[tuple[Op, ...], ...]  # by worker; each leaves at the end of its program
    rules: Rules

    @property
    def layout(self) -> Layout:
        arrays = {f"t{i}": np.zeros(size, np.float32) for i, size in enumerate(self.sizes)}
        return Layout.of(arrays, self.options)

    @property
    def initial(self) -> np.ndarray:
        return np.random.default_rng(1).standard_normal(self.layout.size).astype(np.float32)

    def grad(self, worker: int, clock: int) -> np.ndarray:
        rng = np.random.default_rng((2, worker, clock))
        return rng.standard_normal(self.layout.size).astype(np.float32)

    def pushes(self, worker: int) -> list[Op]:
        """The pushes of a worker; the k-th has clock k + 1."""
        return [op for op in self.programs[worker] if op.kind is not Kind.PULL]

    def members(self, segment: int) -> list[int]:
        chosen = self.layout.segments[segment].options.members
        everyone = range(len(self.programs))
        return [w for w in everyone if chosen is None or w in chosen]


@dataclass(frozen=True)
class Ledger(Scenario):
    """A scenario whose parameters say which pushes are in them: -1 for each of (worker, clock)."""

    ROW = 8  # elements of a worker, more than anyone has clocks

    @property
    def initial(self) -> np.ndarray:
        return np.zeros(self.layout.size, np.float32)

    def grad(self, worker: int, clock: int) -> np.ndarray:
        grad = np.zeros(self.layout.size, np.float32)
        grad.reshape(-1, self.ROW)[worker, clock] = 1
        return grad

    def entries(self, flat: np.ndarray) -> np.ndarray:
        """How often the push (worker, clock) is in ``flat``, as [worker, clock]."""
        return -flat.reshape(-1, self.ROW)

    @classmethod
    def of(cls, scenario: Scenario) -> Ledger:
        """The programs and the grid of ``scenario`` with plain SGD and one segment."""
        rules = replace(scenario.rules, optimizer=SGD(1.0), schedule=Constant())
        programs = tuple(
            tuple(replace(op, rate=NO_RATE) for op in program) for program in scenario.programs
        )
        sizes = (cls.ROW * len(programs),)
        return cls(sizes, (), scenario.chunk_bytes, scenario.servers, programs, rules)


def draw_scenario(rng: random.Random, bound: int | None) -> Scenario:
    """A small random scenario; ``rng`` may be hypothesis's, which can then shrink it."""
    workers = rng.randint(1, 4)
    sizes = tuple(rng.randint(1, 70) for _ in range(rng.randint(1, 4)))
    group = tuple(sorted(rng.sample(range(workers), rng.randint(1, workers))))
    pool = [
        SegmentOptions("t0", learning_rate_scale=0.5),
        SegmentOptions("t1", weight_decay=0.25),
        SegmentOptions("t2", buffer=True),
        SegmentOptions("t3", members=group),
    ]
    options = tuple(o for o in pool[: len(sizes)] if rng.random() < 0.5)
    rates = {clock: rng.choice([0.05, 0.2]) for clock in range(1, 7) if rng.random() < 0.2}
    all_carry = any(o.members is not None for o in options)
    programs = tuple(_draw_program(rng, rates, all_carry) for _ in range(workers))
    optimizers = [SGD(0.1, weight_decay=0.01), Momentum(0.1), Adam(0.1), AdamW(), FTRL(l1=0.01)]
    schedules = [Constant(), Warmup(3), StepDecay(2, 0.5)]
    rules = Rules(rng.choice(optimizers), rng.choice(schedules), bound)
    chunk_bytes = rng.choice([64, 128, 192, 0])
    return Scenario(sizes, options, chunk_bytes, rng.randint(1, 3), programs, rules)


def _draw_program(rng, rates, all_carry) -> tuple[Op, ...]:
    program, clock = [], 0
    for _ in range(rng.randint(0, 6)):
        kind = rng.choice([Kind.PUSH, Kind.STEP, Kind.STEP, Kind.PULL])
        clock += kind is not Kind.PULL
        carries = clock in rates and kind is not Kind.PULL and (all_carry or rng.random() < 0.5)
        program.append(
            Op(
                kind,
                weight=rng.choice([0.0, 1.0, 1.0, 2.0, 3.5, 7.0]),
                rate=rates[clock] if carries else NO_RATE,
            )
        )
    return tuple(program)


def twin(scenario: Scenario) -> list[np.ndarray]:
    """The naive single process: all gradients of a clock, averaged in worker order, then one
    optimizer step on whole arrays. Entry c is the flat vector after round c."""
    layout, rules = scenario.layout, scenario.rules
    history = [scenario.initial.copy()]
    rounds = max(len(scenario.pushes(w)) for w in range(len(scenario.programs)))
    slots = [rules.optimizer.init(s.stop - s.start) for s in layout.segments]
    rates = [rules.optimizer.learning_rate] * len(layout.segments)
    steps = [0] * len(layout.segments)
    for clock in range(1, rounds + 1):
        flat = history[-1].copy()
        for i, segment in enumerate(layout.segments):
            here = [
                (w, scenario.pushes(w)[clock - 1])
                for w in scenario.members(i)
                if len(scenario.pushes(w)) >= clock
            ]
            for _, op in here:
                rates[i] = rates[i] if op.rate == NO_RATE else op.rate
            total = sum(op.weight for _, op in here)
            if total == 0:
                continue
            steps[i] += 1
            mean = np.zeros(0, np.float32)
            for w, op in here:
                if op.weight:
                    grad = scenario.grad(w, clock)[segment.start : segment.stop]
                    part = grad * np.float32(op.weight / total)
                    mean = mean + part if mean.size else part
            params, chosen = flat[segment.start : segment.stop], segment.options
            if chosen.buffer:
                params[:] = mean
                continue
            decay = rules.optimizer.weight_decay
            rules.optimizer.apply(
                params,
                mean,
                slots[i],
                steps[i],
                rates[i] * rules.schedule.factor(clock - 1) * chosen.learning_rate_scale,
                decay if chosen.weight_decay is None else chosen.weight_decay,
                np.zeros((max(1, rules.optimizer.scratch_rows), params.size), np.float32),
            )
        history.append(flat)
    return history


def with_duplicates(scenario: Scenario) -> Scenario:
    """The same, but every push comes two times, as acknowledged pushes do after a retry."""
    programs = tuple(
        tuple(
            replace(op, kind=Kind.PUSH, twice=True) if op.kind is not Kind.PULL else op for op in p
        )
        for p in scenario.programs
    )
    return replace(scenario, programs=programs)
