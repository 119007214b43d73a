"""What must hold in a rehearsed run whose workers die: all others go on, and nothing is lost.

The books have every push of every worker, and all that any shard applied. A worker that comes in
the place of one that was lost is another one in them, with the number of its admission. So they say
of each chunk for itself

- that no push was applied twice, and of each worker its first ones without a gap;
- that all pushes of the workers that live were applied, and of those that died, all that had been
  answered;
- where servers have replicas, that these have applied the same, in the same order;
- in sync mode, that each round was closed with the same workers on all chunks;
- with plain SGD and float32, that the parameters at the end are the initial ones less the rate
  times the sum of what was applied: nothing else, and nothing of it half.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from psgrad.chunk_state import ChunkState, Push
from psgrad.invariants import InvariantError
from psgrad.layout import Chunk, Float32
from psgrad.scenario import LEARNING_RATE, Scenario
from psgrad.seats import Seat
from psgrad.shard import Shard
from psgrad.transport.faults import Kill

LONG_S: Final = 1.2  # for a lease
FROZEN_S: Final = 30.0  # for ten steps as long as that
SETTLED_S: Final = 1.0  # by then, all servers know of all deaths and nothing is under way
EVENTS: Final = 400_000  # who waits says that it lives, so a stall has no other end


@dataclass(frozen=True)
class Fates:
    """What becomes of workers."""

    die: Mapping[int, int]  # worker -> after so many calls of its transport
    die_at_once: Sequence[int]
    freezes: int | None
    computes_long: int | None
    cut_off: Collection[int] = ()  # may be shut out: a split parts them from the coordinator

    @classmethod
    def of(cls, scenario: Scenario) -> Fates:
        """Which workers: an order that follows from the seed, and they in turn."""
        order = scenario.fated
        count = len(scenario.deaths)
        die = dict(zip(order, scenario.deaths, strict=False))
        rest = order[count:]
        # Somebody goes on.
        at_once = [rest.pop(0) for _ in range(min(2, len(rest) - 1))] if scenario.death_s else []
        freezes = rest.pop(0) if scenario.freeze and len(rest) > 1 else None
        long = rest.pop(0) if scenario.freeze and rest else None
        behind = scenario.behind if scenario.lease_s else ()
        cut_off = {r - scenario.servers for r in behind if r >= scenario.servers}
        return cls(die, at_once, freezes, long, cut_off)

    @property
    def doomed(self) -> set[int]:
        """Workers that may be gone at the end."""
        frozen = set() if self.freezes is None else {self.freezes}
        return {*self.die, *self.die_at_once, *frozen, *self.cut_off}


def kills(scenario: Scenario) -> list[Kill]:
    """The deaths of a scenario, for its simulation."""
    fates, servers = Fates.of(scenario), scenario.servers
    by_call = [Kill(servers + w, call=n, tolerated=True) for w, n in fates.die.items()]
    if scenario.server_death:
        by_call.append(Kill(scenario.victim, call=scenario.server_death, tolerated=True))
    at_s = scenario.death_s
    return by_call + [Kill(servers + w, at_s=at_s, tolerated=True) for w in fates.die_at_once]


Applied: TypeAlias = tuple[tuple[Seat, int], ...]  # an update's pushes: (worker, clock)


@dataclass
class Books:
    """What workers have pushed, float64[n] by (worker, clock), and what shards have applied."""

    pushed: dict[tuple[Seat, int], NDArray[np.float64]] = field(default_factory=dict)
    answered: dict[Seat, int] = field(default_factory=dict)  # worker -> clock of its last answer
    left: dict[Seat, int] = field(default_factory=dict)  # worker -> its last clock, all of it
    began: dict[Seat, int] = field(default_factory=dict)  # worker -> clock before its first push
    woken: set[Seat] = field(default_factory=set)  # workers that were frozen
    copies: dict[int, dict[Shard, list[Applied]]] = field(default_factory=lambda: defaultdict(dict))
    """By chunk and by shard: where servers have replicas, two shards have a chunk."""
    chunks: dict[int, Chunk] = field(default_factory=dict)

    def of(self, chunk: int, shard: Shard) -> list[Applied]:
        """What this shard has applied to a chunk; to be added to."""
        return self.copies[chunk].setdefault(shard, [])

    @property
    def applied(self) -> dict[int, list[Applied]]:
        """By chunk; what a server that died has applied, its replica has."""
        return {chunk: max(copies.values(), key=len) for chunk, copies in self.copies.items()}

    def check_copies(self, servers_died: int) -> None:
        """Raises ``InvariantError`` where two shards have applied something else to a chunk."""
        for chunk, copies in self.copies.items():
            longest = max(copies.values(), key=len)
            for copy in copies.values():
                if copy != longest[: len(copy)]:
                    raise InvariantError(f"chunk {chunk} and its replica have applied other pushes")
            if sum(len(copy) < len(longest) for copy in copies.values()) > servers_died:
                raise InvariantError(f"the replica of chunk {chunk} has not applied all pushes")


class Booking(Shard):
    """A shard that keeps the books."""

    books: Books

    def _apply(self, state: ChunkState, pushes: Sequence[Push], position: float) -> None:
        self.books.chunks[state.chunk.index] = state.chunk
        headers = [push.header for push in pushes]
        applied = tuple((Seat(h.worker, h.incarnation), h.clock) for h in headers)
        self.books.of(state.chunk.index, self).append(applied)
        super()._apply(state, pushes, position)


def booked(shard: type[Shard], books: Books) -> type[Shard]:
    """``shard``, keeping ``books``."""
    return type("Booked", (Booking, shard), {"books": books})


def check(
    scenario: Scenario,
    books: Books,
    ends: Mapping[Seat, Float32],
    warnings: Sequence[str],
    servers_died: int = 0,
) -> list[str]:
    """What was compared; ``ends`` are the parameters of each worker that has come to the end.

    Raises ``InvariantError``.
    """
    fates = Fates.of(scenario)
    gone = {worker for worker in range(scenario.workers) if Seat(worker) not in ends}
    if gone - fates.doomed:
        raise InvariantError(f"workers {sorted(gone - fates.doomed)} are gone and should not be")
    died = books.began.keys() - ends.keys()
    newcomers = {seat for seat in books.began if seat.incarnation}
    fenced = {w for w in range(scenario.workers) if _is_fenced(scenario.servers + w, warnings)}
    if not scenario.freeze_s:  # else it may have come back, or not have been missed
        for seat in books.woken:
            if seat.worker not in fenced or seat in ends:
                raise InvariantError(f"worker {seat.worker} was frozen and is not shut out")
        if unsaid := gone - fenced - {*fates.die, *fates.die_at_once}:
            raise InvariantError(f"workers {sorted(unsaid)} are gone and nobody said why")
    first = min(ends)
    for worker, params in ends.items():
        if params.tobytes() != ends[first].tobytes():
            raise InvariantError(
                f"{_name(worker)} and {_name(first)} end with different parameters"
            )
    compared = ["survivors"]
    if scenario.replicas:
        books.check_copies(servers_died)
        compared += ["replicas", "failover"] if servers_died else ["replicas"]
    if scenario.bound == 0:
        if len({tuple(applied) for applied in books.applied.values()}) > 1:
            raise InvariantError("a round was closed with other workers on one chunk than another")
        compared.append("rounds")
    for chunk, applied in books.applied.items():
        _check_order(books, chunk, applied, died)
    if scenario.optimizer == "sgd" and scenario.codec == "none":
        _check_mass(scenario, books, ends[first])
        compared.append("accepted")
    if gone:
        compared.append("deaths")
    if books.woken:
        compared.append("fenced")
    if fenced - {seat.worker for seat in books.woken}:
        compared.append("cut off")
    if newcomers & ends.keys():
        compared.append("newcomers")
    return compared


def _is_fenced(rank: int, warnings: Sequence[str]) -> bool:
    return any(f"rank {rank} " in said and "FencedError" in said for said in warnings)


def _check_order(books: Books, chunk: int, applied: Sequence[Applied], died: set[Seat]) -> None:
    clocks: dict[Seat, list[int]] = {}
    for worker, clock in itertools.chain.from_iterable(applied):
        clocks.setdefault(worker, []).append(clock)
    for worker, seen in clocks.items():
        start = books.began[worker]
        if seen != list(range(start + 1, start + 1 + len(seen))):
            raise InvariantError(
                f"chunk {chunk} has taken clocks {seen} of {_name(worker)}, which began at {start}"
            )
    for worker in books.began:
        began = books.began[worker]
        last, answered = clocks.get(worker, [began])[-1], books.answered.get(worker, began)
        pushed = answered if worker in died else books.left[worker]
        if last < pushed or (last > pushed and worker not in died):
            raise InvariantError(
                f"chunk {chunk} has taken {_name(worker)} up to clock {last}, it has pushed up to "
                f"{pushed} for sure"
            )


def _name(seat: Seat) -> str:
    later = f", admission {seat.incarnation}" if seat.incarnation else ""
    return f"worker {seat.worker}{later}"


def _check_mass(scenario: Scenario, books: Books, params: Float32) -> None:
    start = np.concatenate(list(scenario.arrays().values()))
    total = np.zeros(start.size)
    for chunk, applied in books.applied.items():
        here = books.chunks[chunk]
        for update in applied:
            parts = [
                books.pushed[worker, clock][here.start : here.stop] for worker, clock in update
            ]
            shares = _shares(scenario, update)
            total[here.start : here.stop] += sum(s * p for s, p in zip(shares, parts, strict=True))
    size = 1.0 + np.abs(start).max() + LEARNING_RATE * np.abs(total).max()
    error = float(np.abs(start - LEARNING_RATE * total - params).max())
    if error > 1e-4 * size:
        raise InvariantError(f"the parameters differ from what was accepted by {error:g}")


def _shares(scenario: Scenario, update: Applied) -> list[float]:
    """By what each push of an update is multiplied: in sync mode, its share of the samples."""
    if scenario.bound != 0:
        return [1.0 for _ in update]
    weights = [
        0.0 if scenario.is_skipped(seat.worker, clock) else scenario.weight(seat.worker, clock)
        for seat, clock in update
    ]
    return [weight / (sum(weights) or 1.0) for weight in weights]
