"""What must hold after every message that a shard has handled, checked from outside.

The referee knows nothing of ``consistency``: it counts what was delivered to a chunk and says which
requests must be answered now, no more and no fewer. So a wrong bound, a lost wake-up, an answer too
early and a round that closes without someone are all the same mistake: answers that differ from
those that are due. Versions say that each push was applied once, and digests that no two answers
show different parameters of one version.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from psgrad.chunk_state import ChunkState, Push, Reply, Rules
from psgrad.commits import Round
from psgrad.cuts import Cut
from psgrad.errors import ProtocolError
from psgrad.layout import Chunk, Layout
from psgrad.messages import Header, Kind
from psgrad.shard import Shard
from psgrad.shard_state import Source
from psgrad.update import Gradient


class InvariantError(ProtocolError):
    """The program is wrong: something happened that never may."""


class Due(NamedTuple):
    """An answer that must come."""

    kind: Kind
    worker: int
    clock: int


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
    updates: int = 0  # that the pushes accepted so far must have made
    committed: float = math.inf  # the last round that may close; inf: each as soon as it can
    held: dict[int, int] = field(default_factory=dict)  # by a marker: worker -> its clock
    _limbo: dict[int, Header] = field(default_factory=dict)  # pushes of the dead in the open round
    _closing: set[int] = field(default_factory=set)  # whose pushes were committed
    _leaving: set[int] = field(default_factory=set)  # live until all they pushed is accepted
    _filled: set[tuple[int, int]] = field(default_factory=set)  # (worker, clock), not counted yet

    def __post_init__(self) -> None:
        self.delivered = dict.fromkeys(self.live, 0)
        self.accepted = dict.fromkeys(self.live, 0)

    def deliver(self, header: Header) -> Counter[Due]:
        """The answers that must come because of this message."""
        now: list[Due] = []
        if header.kind is Kind.INIT:
            self.ready = True
            now.append(Due(Kind.ACK, header.worker, header.clock))
        elif header.kind is Kind.LEAVE:
            self._leaving.add(header.worker)
        elif header.kind is not Kind.PULL and header.clock <= self.delivered[header.worker]:
            now.append(Due(Kind.ACK, header.worker, header.clock))  # a duplicate
        else:
            self.waiting.append(header)
            if header.kind is not Kind.PULL:
                self.delivered[header.worker] = header.clock
                if header.weight > 0:
                    self._filled.add((header.worker, header.clock))
        return self.settle(now)

    def lose(self, worker: int) -> Counter[Due]:
        """A worker is gone: what of it is not accepted never will be; all is given back."""
        mine = [h for h in self.waiting if h.worker == worker and h.kind is not Kind.PULL]
        here = self.accepted.get(worker, 0)
        back = []
        for header in mine:
            if self.committed < header.clock <= here:
                self._limbo[worker] = header  # in the open round
            else:
                back.append(Due(Kind.ACK, worker, header.clock))
        self.waiting = [h for h in self.waiting if h.worker != worker]
        self._filled = {(w, c) for w, c in self._filled if w != worker or c <= here}
        self.delivered[worker] = here
        self.live.discard(worker)
        self._leaving.discard(worker)
        return self.settle(back)

    def commit(self, clock: int, workers: Collection[int]) -> Counter[Due]:
        """The round of ``clock`` closes with the pushes of ``workers``."""
        self.committed, self._closing = clock, set(workers)
        now = []
        for worker, header in self._limbo.items():
            counts = worker in workers and header.kind is Kind.STEP
            now.append(Due(Kind.PARAMS if counts else Kind.ACK, worker, header.clock))
        self._limbo.clear()
        self._filled = {(w, c) for w, c in self._filled if c != clock or w in workers}
        return self.settle(now)

    def admit(self, worker: int, clock: int) -> Counter[Due]:
        """A worker is in, with pushes after ``clock``; its last incarnation has none left."""
        back = []
        if (header := self._limbo.pop(worker, None)) is not None:
            back.append(Due(Kind.ACK, worker, header.clock))
        self._filled = {(w, c) for w, c in self._filled if w != worker}
        self.delivered[worker] = self.accepted[worker] = clock
        self.live.add(worker)
        return self.settle(back)

    def start(self, clocks: Mapping[int, int], updates: int) -> None:
        """The chunk goes on from a checkpoint."""
        self.ready, self.updates = True, updates
        self.delivered = {worker: clocks[worker] for worker in self.live}
        self.accepted = dict(self.delivered)
        if self.committed < math.inf:
            self.committed = min(clocks.values(), default=0)

    def settle(self, now: list[Due]) -> Counter[Due]:
        """``now``, and the answers that must come of what may happen meanwhile."""
        self._settle()
        still = []
        slowest = min((self.accepted[w] for w in self.live), default=None)
        for request in self.waiting:
            if self._is_due(request, request.clock if slowest is None else slowest):
                kind = Kind.ACK if request.kind is Kind.PUSH else Kind.PARAMS
                now.append(Due(kind, request.worker, request.clock))
            else:
                still.append(request)
        self.waiting = still
        return Counter(now)

    def slowest(self, otherwise: int) -> int:
        """The smallest clock of a live worker whose push was accepted."""
        return min((self.accepted[w] for w in self.live), default=otherwise)

    def round_of(self, clock: int) -> set[int]:
        """Who must be in the round of ``clock``: all that have pushed it, and all that are live."""
        if self.committed < math.inf:
            return self._closing
        return {w for w, accepted in self.accepted.items() if accepted >= clock} | self.live

    def _settle(self) -> None:
        moved = self.ready
        while moved:
            gone = {w for w in self._leaving & self.live if self.delivered[w] == self.accepted[w]}
            self.live -= gone
            moved = bool(gone)
            slowest = self.slowest(0)
            for worker in self.live:
                here = self.accepted[worker]
                in_bound = self.bound is None or here - slowest <= self.bound
                held = here >= min(self.held.get(worker, math.inf), self.committed + 1)
                if self.delivered[worker] > here and in_bound and not held:
                    self.accepted[worker] += 1
                    moved = True
        self._count()

    def _count(self) -> None:
        """One update for each push that carries something; in sync for each round that does."""
        done = {(w, c) for w, c in self._filled if c <= self.accepted[w]}
        if self.bound == 0:
            done = {(w, c) for w, c in done if c <= min(self.slowest(c), self.committed)}
            self.updates += len({c for _, c in done})
        else:
            self.updates += len(done)
        self._filled -= done

    def _is_due(self, request: Header, slowest: int) -> bool:
        clock, live = request.clock, request.worker in self.live
        if not self.ready:
            return False
        if request.kind is not Kind.PULL and self.accepted[request.worker] < clock:
            return False
        if clock > self.committed and (live or request.kind is not Kind.PULL):
            return False
        ahead = clock - slowest
        if request.kind is Kind.PUSH:
            return self.bound != 0 or ahead <= 0
        in_bound = not live or self.bound is None or ahead <= self.bound
        if in_bound and live:
            self.staleness_max = max(self.staleness_max, ahead)
            # Once more without the idea of acceptance: nobody may be further ahead than this of
            # what has come to the server at all.
            behind = min(self.delivered[w] for w in self.live)
            if self.bound is not None and clock - behind > self.bound:
                raise InvariantError(f"clock {clock} is answered, worker pushes only {behind}")
        return in_bound


class CheckedShard(Shard):
    """A shard that raises ``InvariantError`` as soon as it has done what never may happen."""

    def __init__(
        self, layout: Layout, chunks: Sequence[Chunk], workers: Iterable[int], rules: Rules
    ) -> None:
        super().__init__(layout, chunks, workers, rules)
        self._referees = {
            index: Referee(
                rules.bound,
                set(state.clocks),
                committed=0 if rules.committed else math.inf,
            )
            for index, state in self.chunks.items()
        }
        self._digests: dict[int, tuple[int, int]] = {}  # chunk -> version, digest of its parameters
        self._rounds: dict[int, list[tuple[int, set[int]]]] = {}  # in this message, by chunk
        self._marked: dict[int, deque[int]] = {}  # clocks of the markers of each worker

    def handle(self, header: Header, payload: Gradient | None = None) -> list[Reply]:
        touched = list(self.chunks) if header.kind is Kind.LEAVE else [header.chunk]
        return self._checked(
            f"{header.kind.name} of worker {header.worker} at clock {header.clock}",
            touched,
            lambda referee: referee.deliver(header),
            lambda: super(CheckedShard, self).handle(header, payload),
        )

    def drop(self, worker: int) -> list[Reply]:
        self._marked.pop(worker, None)
        self._hold()
        return self._checked(
            f"the loss of worker {worker}",
            list(self.chunks),
            lambda referee: referee.lose(worker),
            lambda: super(CheckedShard, self).drop(worker),
        )

    def admit(self, worker: int, clock: int) -> list[Reply]:
        return self._checked(
            f"the admission of worker {worker} at clock {clock}",
            list(self.chunks),
            lambda referee: referee.admit(worker, clock),
            lambda: super(CheckedShard, self).admit(worker, clock),
        )

    def commit(self, committed: Round) -> list[Reply]:
        return self._checked(
            f"the commit of {committed}",
            list(self.chunks),
            lambda referee: referee.commit(committed.clock, committed.workers),
            lambda: super(CheckedShard, self).commit(committed),
        )

    def mark(self, worker: int, number: int, clock: int) -> None:
        self._marked.setdefault(worker, deque()).append(clock)
        self._hold()
        super().mark(worker, number, clock)

    def cut(self) -> Cut | None:
        cut = super().cut()
        if cut is not None:
            for index, referee in self._referees.items():
                late = {w: c for w, c in referee.accepted.items() if c > cut.clocks.get(w, c)}
                if late:
                    raise InvariantError(f"chunk {index} has pushes behind {cut}: {late}")
        return cut

    def resume(self) -> list[Reply]:
        for clocks in self._marked.values():
            clocks.popleft()
        self._marked = {worker: clocks for worker, clocks in self._marked.items() if clocks}
        self._hold()
        return self._checked(
            "the end of a cut",
            list(self.chunks),
            lambda referee: referee.settle([]),
            lambda: super(CheckedShard, self).resume(),
        )

    def load(
        self,
        clocks: Mapping[int, int],
        records: Mapping[str, Any],
        source: Source,
        rate: float | None = None,
    ) -> None:
        super().load(clocks, records, source, rate)
        for index, referee in self._referees.items():
            referee.start(clocks, self.chunks[index].version)

    def _hold(self) -> None:
        held = {worker: clocks[0] for worker, clocks in self._marked.items()}
        for referee in self._referees.values():
            referee.held = held

    def _checked(
        self,
        what: str,
        touched: Sequence[int],
        deliver: Callable[[Referee], Counter[Due]],
        act: Callable[[], list[Reply]],
    ) -> list[Reply]:
        """``act``, which changes the chunks ``touched``, with its answers against those due."""
        self._rounds.clear()
        versions = {i: self.chunks[i].version for i in touched if i in self.chunks}
        due: Counter[tuple[int, Due]] = Counter()
        for index in touched:
            if index in self._referees:
                answers = deliver(self._referees[index])
                due.update({(index, answer): n for answer, n in answers.items()})
        replies = act()
        got = Counter(
            (r.header.chunk, Due(r.header.kind, r.header.worker, r.header.clock)) for r in replies
        )
        if got != due:
            raise InvariantError(
                f"{what}: answered {_words(got - due)} too much, {_words(due - got)} is missing"
            )
        for index in touched:
            if index in self._referees:
                self._check_updates(self.chunks[index], versions[index])
        for reply in replies:
            self._check_params(reply)
        seen = max((r.staleness_max for r in self._referees.values()), default=0)
        if self.counters.staleness_max != seen:
            raise InvariantError(f"staleness {seen} was seen as {self.counters.staleness_max}")
        return replies

    def _apply(self, state: ChunkState, pushes: Sequence[Push], position: float) -> None:
        index, workers = state.chunk.index, [push.header.worker for push in pushes]
        if self.rules.bound == 0:
            if workers != sorted(set(workers)):
                raise InvariantError(f"chunk {index}: a round sums workers {workers}")
            self._rounds.setdefault(index, []).append((pushes[0].header.clock, set(workers)))
        super()._apply(state, pushes, position)

    def _check_updates(self, state: ChunkState, before: int) -> None:
        index, referee = state.chunk.index, self._referees[state.chunk.index]
        if state.version < before:
            raise InvariantError(f"chunk {index} went from version {before} to {state.version}")
        if state.version != referee.updates:
            raise InvariantError(
                f"chunk {index} has had {state.version} updates, its pushes make {referee.updates}"
            )
        for clock, workers in self._rounds.get(index, ()):
            if workers != (expected := referee.round_of(clock)):
                raise InvariantError(
                    f"chunk {index}: round {clock} closed with {workers}, not {expected}"
                )

    def _check_params(self, reply: Reply) -> None:
        header = reply.header
        if reply.params is None:
            return
        digest = zlib.crc32(reply.params.view(np.uint8).data)
        version, known = self._digests.get(header.chunk, (-1, 0))
        self._digests[header.chunk] = (header.version, digest)
        if version == header.version and digest != known:
            raise InvariantError(
                f"chunk {header.chunk} has two contents of version {header.version}"
            )


def _words(answers: Counter[tuple[int, Due]]) -> str:
    texts = [
        f"{due.kind.name} to worker {due.worker} (chunk {chunk}, clock {due.clock})"
        for chunk, due in answers
    ]
    return ", ".join(texts) or "nothing"
