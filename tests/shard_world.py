"""A world of workers, links and servers around shards, with a referee who keeps clocks of his own.

The referee knows nothing of ``psgrad.consistency``: he counts what was delivered to each chunk and
says, after every delivery, exactly which requests must be answered now, no more and no fewer. A
schedule is drawn from a seed: links are first in, first out, everything else comes in any order.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
from shard_scenarios import Ledger, Op, Scenario, twin

from psgrad.invariants import Referee
from psgrad.layout import assign
from psgrad.messages import NO_RATE, Header, Kind, Verdict
from psgrad.shard import Shard

TURNS = 100_000  # a schedule that takes longer does not end


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
