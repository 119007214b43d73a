"""A world of workers, links and servers around shards, with a referee who keeps clocks of his own.

The referee knows nothing of ``psgrad.consistency``: he counts what was delivered to each chunk and
says, after every delivery, exactly which requests must be answered now, no more and no fewer. A
schedule is drawn from a seed: links are first in, first out, everything else comes in any order.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field, replace

import numpy as np

from psgrad.layout import Layout, SegmentOptions, assign
from psgrad.messages import NO_RATE, Header, Kind, Verdict
from psgrad.optimizers import FTRL, SGD, Adam, AdamW, Momentum
from psgrad.schedules import Constant, StepDecay, Warmup
from psgrad.shard import Rules, Shard

TURNS = 100_000  # a schedule that takes longer does not end


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


@dataclass
class Referee:
    """One chunk as seen from outside: what came, and what is therefore due."""

    bound: int | None
    live: set[int]
    ready: bool = False
    delivered: dict[int, int] = field(default_factory=dict)  # clock of the last push that came
    accepted: dict[int, int] = field(default_factory=dict)
    waiting: list[Header] = field(default_factory=list)
    staleness_max: int = 0

    def __post_init__(self) -> None:
        self.delivered = dict.fromkeys(self.live, 0)
        self.accepted = dict.fromkeys(self.live, 0)

    def deliver(self, header: Header) -> Counter:
        """The answers that must come because of this message: (kind, worker, clock) -> number."""
        now: list[tuple[Kind, int, int]] = []
        if header.kind is Kind.INIT:
            self.ready = True
            now.append((Kind.ACK, header.worker, header.clock))
        elif header.kind is Kind.LEAVE:
            self.live.discard(header.worker)
        elif header.kind is not Kind.PULL and header.clock <= self.delivered[header.worker]:
            now.append((Kind.ACK, header.worker, header.clock))  # a duplicate
        else:
            self.waiting.append(header)
            if header.kind is not Kind.PULL:
                self.delivered[header.worker] = header.clock
        self._settle()
        still = []
        for request in self.waiting:
            if self._due(request):
                kind = Kind.ACK if request.kind is Kind.PUSH else Kind.PARAMS
                now.append((kind, request.worker, request.clock))
            else:
                still.append(request)
        self.waiting = still
        return Counter(now)

    def slowest(self, otherwise: int) -> int:
        return min((self.accepted[w] for w in self.live), default=otherwise)

    def _settle(self) -> None:
        moved = self.ready
        while moved:
            moved = False
            for w in self.live:
                here = self.accepted[w]
                in_bound = self.bound is None or here - self.slowest(here) <= self.bound
                if self.delivered[w] > here and in_bound:
                    self.accepted[w] += 1
                    moved = True

    def _due(self, request: Header) -> bool:
        clock, live = request.clock, request.worker in self.live
        if not self.ready:
            return False
        if request.kind is not Kind.PULL and self.accepted[request.worker] < clock:
            return False
        ahead = clock - self.slowest(clock)
        if request.kind is Kind.PUSH:
            return self.bound != 0 or ahead <= 0
        in_bound = not live or self.bound is None or ahead <= self.bound
        if in_bound and live:
            self.staleness_max = max(self.staleness_max, ahead)
            # Once more without the referee's idea of acceptance: nobody may be further ahead
            # than this of what has come to the server at all.
            behind = min(self.delivered[w] for w in self.live)
            assert self.bound is None or clock - behind <= self.bound
        return in_bound


@dataclass
class Actor:
    """A worker that runs its program, and what it has in its memory."""

    index: int
    todo: deque[Op | Kind]
    params: np.ndarray
    clock: int = 0
    unanswered: int = 0
    waits: bool = False
    fetches: bool = False
    pulled: list[tuple[int, np.ndarray]] = field(default_factory=list)  # (clock, parameters)


class World:
    """Runs a scenario in the order that ``seed`` says, and checks every single answer."""

    def __init__(self, scenario: Scenario, seed: int, shard: type[Shard] = Shard) -> None:
        self.scenario = scenario
        self.rng = random.Random(seed)
        layout, workers = scenario.layout, range(len(scenario.programs))
        self.chunks = layout.chunks(scenario.chunk_bytes)
        self.owner = assign(self.chunks, scenario.servers)
        self.shards = [
            shard(
                layout,
                [c for c in self.chunks if self.owner[c.index] == server],
                workers,
                scenario.rules,
            )
            for server in range(scenario.servers)
        ]
        self.referees = [
            Referee(scenario.rules.bound, set(scenario.members(c.segment))) for c in self.chunks
        ]
        self.actors = [
            Actor(
                w,
                deque([*([Kind.INIT] if w == 0 else []), Op(Kind.PULL), *program, Kind.LEAVE]),
                np.full(layout.size, np.nan, np.float32),
            )
            for w, program in enumerate(scenario.programs)
        ]
        self.to_server: dict[tuple[int, int], deque] = {}
        self.to_worker: dict[tuple[int, int], deque] = {}
        self.memory: dict[int, np.ndarray] = {}  # gradients that a server has and not yet released
        self.speed: dict[object, float] = {}

    def run(self) -> None:
        """To the end, or an AssertionError: a wrong answer, or nothing can move any more."""
        for _ in range(TURNS):
            moves = [
                *(("act", a.index) for a in self.actors if a.todo and not a.waits),
                *(("server", link) for link, queue in self.to_server.items() if queue),
                *(("worker", link) for link, queue in self.to_worker.items() if queue),
            ]
            if not moves:
                break
            # Links and workers differ in speed up to a hundredfold, or nobody would drift apart.
            speeds = [
                self.speed.setdefault(move, self.rng.choice([0.01, 0.1, 1.0])) for move in moves
            ]
            kind, where = self.rng.choices(moves, speeds)[0]
            if kind == "act":
                self._act(self.actors[where])
            elif kind == "server":
                self._deliver_to_server(*where)
            else:
                self._deliver_to_worker(*where)
        stuck = [a.index for a in self.actors if a.todo or a.unanswered]
        assert not stuck, f"workers {stuck} wait for ever"
        assert not self.memory, "gradient memory was never released"
        assert [reason for shard in self.shards for reason in shard.blocked()] == []
        self._check_counters()

    @property
    def flat(self) -> np.ndarray:
        """The parameters as the servers have them."""
        flat = np.full(self.scenario.layout.size, np.nan, np.float32)
        for chunk in self.chunks:
            state = self.shards[self.owner[chunk.index]].chunks[chunk.index]
            flat[chunk.start : chunk.stop] = state.params
        return flat

    def _check_counters(self) -> None:
        for server, shard in enumerate(self.shards):
            mine = [
                r for r, owner in zip(self.referees, self.owner, strict=True) if owner == server
            ]
            seen = max((referee.staleness_max for referee in mine), default=0)
            assert shard.counters.staleness_max == seen

    def _act(self, actor: Actor) -> None:
        op = actor.todo[0]
        if op is Kind.LEAVE and actor.unanswered:
            actor.waits = True
            return
        actor.todo.popleft()
        if op is Kind.LEAVE:
            for server in range(self.scenario.servers):
                leave = Header(Kind.LEAVE, worker=actor.index, clock=actor.clock)
                self._send(actor, server, leave, None)
        elif op is Kind.INIT:
            for chunk in self.chunks:
                values = self.scenario.initial[chunk.start : chunk.stop].copy()
                self._request(actor, chunk, Header(Kind.INIT, worker=actor.index), values)
        else:
            self._push_or_pull(actor, op)
            actor.fetches = actor.waits = op.kind is not Kind.PUSH and actor.unanswered > 0

    def _push_or_pull(self, actor: Actor, op: Op) -> None:
        is_pull = op.kind is Kind.PULL
        actor.clock += not is_pull
        grad = self.scenario.grad(actor.index, actor.clock)
        for chunk in self.chunks:
            if not is_pull and actor.index not in self.scenario.members(chunk.segment):
                continue
            weight = 0.0 if is_pull else op.weight
            header = Header(
                op.kind,
                worker=actor.index,
                chunk=chunk.index,
                segment=chunk.segment,
                clock=actor.clock,
                weight=weight,
                rate=NO_RATE if is_pull else op.rate,
            )
            for _ in range(2 if op.twice else 1):
                payload = grad[chunk.start : chunk.stop].copy() if weight else None
                self._request(actor, chunk, header, payload)

    def _request(self, actor: Actor, chunk, header: Header, payload) -> None:
        actor.unanswered += 1
        self._send(actor, self.owner[chunk.index], header._replace(chunk=chunk.index), payload)

    def _send(self, actor: Actor, server: int, header: Header, payload) -> None:
        self.to_server.setdefault((actor.index, server), deque()).append((header, payload))

    def _deliver_to_server(self, worker: int, server: int) -> None:
        header, payload = self.to_server[worker, server].popleft()
        shard = self.shards[server]
        expected: Counter = Counter()
        for chunk in self.chunks:
            touched = header.kind is Kind.LEAVE or header.chunk == chunk.index
            if touched and self.owner[chunk.index] == server:
                due = self.referees[chunk.index].deliver(header)
                expected += Counter({(chunk.index, *key): n for key, n in due.items()})
        if payload is not None:
            self.memory[id(payload)] = payload
        replies = shard.handle(header, payload)
        got = Counter(
            (r.header.chunk, r.header.kind, r.header.worker, r.header.clock) for r in replies
        )
        assert got == expected, f"{header.kind.name}: answered {got}, due is {expected}"
        for reply in replies:
            self._look_at(reply)
            answer = self.to_worker.setdefault((server, reply.header.worker), deque())
            answer.append((reply, None if reply.params is None else reply.params.copy()))

    def _look_at(self, reply) -> None:
        header, referee = reply.header, self.referees[reply.header.chunk]
        if reply.released is not None:
            memory = self.memory.pop(id(reply.released), None)
            assert memory is reply.released, "released memory that it does not have"
            memory.fill(np.nan)  # whoever looks at it again will show
        if header.kind is Kind.PARAMS and header.worker in referee.live:
            assert header.slowest == referee.slowest(header.clock)
        assert (reply.params is not None) == (header.kind is Kind.PARAMS)
        assert header.nbytes == (0 if reply.params is None else reply.params.nbytes)
        if header.weight:
            assert header.verdict in (Verdict.APPLIED, Verdict.DUPLICATE)

    def _deliver_to_worker(self, server: int, worker: int) -> None:
        reply, snapshot = self.to_worker[server, worker].popleft()
        actor = self.actors[worker]
        actor.unanswered -= 1
        if snapshot is not None:
            assert not reply.stable or np.array_equal(reply.params, snapshot), "it was not stable"
            chunk = self.chunks[reply.header.chunk]
            actor.params[chunk.start : chunk.stop] = snapshot
        if actor.unanswered == 0:
            if actor.fetches:
                actor.pulled.append((actor.clock, actor.params.copy()))
            actor.waits = actor.fetches = False


def check_sync(scenario: Scenario, seed: int, shard: type[Shard] = Shard) -> None:
    """Bit for bit the twin: on the servers at the end, and in every pull of every worker."""
    world = World(scenario, seed, shard)
    world.run()
    history = twin(scenario)
    np.testing.assert_array_equal(world.flat, history[-1])
    for actor in world.actors:
        for clock, params in actor.pulled:
            for segment in scenario.layout.segments:
                # The parameters of other groups are as fresh as they happen to be.
                if actor.index in scenario.members(segment.index):
                    piece = slice(segment.start, segment.stop)
                    np.testing.assert_array_equal(params[piece], history[clock][piece])


def check_ledger(scenario: Ledger, seed: int, shard: type[Shard] = Shard) -> None:
    """Each push is applied once, and a pull holds all that the bound promises."""
    world = World(scenario, seed, shard)
    world.run()
    bound, done = scenario.rules.bound, np.zeros((len(scenario.programs), Ledger.ROW))
    for worker in range(len(scenario.programs)):
        for clock, op in enumerate(scenario.pushes(worker), start=1):
            done[worker, clock] = op.weight > 0
    np.testing.assert_array_equal(scenario.entries(world.flat), done)
    for actor in world.actors:
        for clock, params in actor.pulled:
            seen = scenario.entries(params)
            assert ((seen == 0) | (seen == done)).all()
            np.testing.assert_array_equal(
                seen[actor.index, : clock + 1], done[actor.index, : clock + 1]
            )
            if bound is not None:
                old = slice(0, max(0, clock - bound) + 1)
                np.testing.assert_array_equal(seen[:, old], done[:, old])


def with_duplicates(scenario: Scenario) -> Scenario:
    """The same, but every push comes two times, as acknowledged pushes do after a retry."""
    programs = tuple(
        tuple(
            replace(op, kind=Kind.PUSH, twice=True) if op.kind is not Kind.PULL else op for op in p
        )
        for p in scenario.programs
    )
    return replace(scenario, programs=programs)
