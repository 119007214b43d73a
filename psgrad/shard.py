"""The server's state machine: messages in, messages out, no I/O.

A shard holds the chunks that one server owns. For each chunk the journey of a push is::

    park  ->  accept  ->  apply  ->  answer

It is parked until the staleness rule of ``consistency`` lets it in, accepted by raising its
worker's clock, applied at once (or, with bound 0, when its round closes), and then answered:
acknowledged, or with parameters when a pull came with it and the rule lets that pull be answered.
Every step happens at most once for each (worker, clock, chunk).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from psgrad import shard_state, waiting
from psgrad.applying import Applier
from psgrad.chunk_state import ChunkState, Counters, Pull, Push, Reply, Rules, fresh
from psgrad.commits import OpenRound, Round
from psgrad.consistency import (
    may_accept,
    may_answer,
    round_is_complete,
    slowest_clock,
    slowest_only,
)
from psgrad.cuts import Cut, Marks
from psgrad.errors import CheckpointError, ProtocolError
from psgrad.kernels import plain
from psgrad.kernels.chunks import fastest
from psgrad.kernels.crew import Crew
from psgrad.layout import Chunk, Float32, Layout
from psgrad.messages import Flag, Header, Kind, Verdict
from psgrad.update import Gradient, Updater

COMPILED_NBYTES: Final = 4 << 20
"""A shard from this size on is worth the half second in which compiled kernels are loaded."""


class Shard:
    """The chunks of one server. ``handle`` is the only way in."""

    def __init__(
        self, layout: Layout, chunks: Sequence[Chunk], workers: Iterable[int], rules: Rules
    ) -> None:
        self.rules = rules
        self.counters = Counters()
        large = sum(chunk.nbytes for chunk in chunks) >= COMPILED_NBYTES
        self._crew = Crew(rules.threads)
        updater = Updater.of(rules.optimizer, fastest() if large else plain, self._crew)
        self._applier = Applier(rules, updater, self.counters)
        everyone = sorted(workers)
        self._live = set(everyone)  # those that have not left
        self._lost: set[int] = set()  # those that have died
        self._marks = Marks()
        self._open_round: OpenRound | None = None  # where rounds wait to be committed
        if rules.committed:
            self._open_round = OpenRound(frozenset(chunk.index for chunk in chunks))
        self.chunks = {
            chunk.index: fresh(chunk, layout.segments[chunk.segment].options, everyone, rules)
            for chunk in chunks
        }

    def handle(self, header: Header, payload: Gradient | None = None) -> list[Reply]:
        """Takes one message of a worker and returns every answer that is due because of it.

        ``payload`` must stay untouched until the push that it belongs to is answered. Raises
        ``ProtocolError`` for a message that a correct worker cannot have sent.
        """
        if header.kind is Kind.LEAVE:
            self._check_pushed(header.worker, header.clock, "leaves")
            self._live.discard(header.worker)
            return [r for state in self.chunks.values() for r in self._leave(state, header)]
        state = self.chunks.get(header.chunk)
        if state is None:
            raise ProtocolError(f"chunk {header.chunk} is not on this server")
        if header.kind is Kind.INIT:
            return self._initialise(state, Push(header, payload))
        if header.kind is Kind.PULL:
            state.pulls.append(Pull(header))
            return self._advance(state)
        if header.kind in (Kind.PUSH, Kind.STEP):
            return self._push(state, Push(header, payload))
        raise ProtocolError(f"a shard does not handle {header.kind.name}")

    def move(self, flat: Float32, stamps: NDArray[np.int64] | None) -> None:
        """Keeps the parameters in ``flat``, the whole flat vector, from now on.

        Others may read there: a chunk's stamp, where there is one, is odd during an update.
        """
        for state in self.chunks.values():
            place = flat[state.chunk.start : state.chunk.stop]
            np.copyto(place, state.params)
            state.params = place
            state.stamps = stamps

    def clock_of(self, worker: int) -> int:
        """The last step of ``worker`` that all its chunks here have taken; 0: none.

        What it has pushed into a round that is not committed is not taken: it is in no update if
        the worker is lost now.
        """
        clocks = [s.clocks[worker] for s in self.chunks.values() if worker in s.clocks]
        clock = min(clocks, default=0)
        return clock if self._open_round is None else min(clock, self._open_round.committed)

    def entry_clock(self, otherwise: int) -> int:
        """The clock at which a worker may come in: the slowest live one of all chunks here.

        With rounds that are committed it is that of the last one. ``otherwise``: nobody is live.

        Any clock would keep the bound, since a decision rests on the live clocks of its moment.
        At this one nobody waits for long. On another server the slowest worker may be behind it, by
        pushes that are on their way; these need no answer that rests on the newcomer, so it waits
        for them and they do not wait for it. Whoever is ahead waits as for any slow worker.
        """
        if self._open_round is not None:
            return self._open_round.committed
        slowest = (slowest_clock(s.clocks, -1) for s in self.chunks.values() if s.clocks)
        return min(slowest, default=otherwise)

    def admit(self, worker: int, clock: int) -> list[Reply]:
        """``worker`` is in from now on, with pushes from ``clock`` + 1; nothing of it is here.

        Returns the answers to what its last incarnation has in a round that is open.
        """
        self._live.add(worker)
        self._lost.discard(worker)
        self._marks.admit(worker, clock if self.rules.bound == 0 else 0)
        if self._open_round is not None:
            self._open_round.admit()
        replies = []
        for state in self.chunks.values():
            members = state.options.members
            if members is None or worker in members:
                state.clocks[worker] = clock
            if (push := state.round.pop(worker, None)) is not None:
                replies.append(self._answer(state, push.header, Kind.ACK, Verdict.LATE, push))
        return replies

    def drop(self, worker: int) -> list[Reply]:
        """``worker`` is gone: what of it is not applied never will be, and nobody waits for it.

        Returns the answers that are due because of that; some may be to ``worker``.
        """
        self._live.discard(worker)
        self._lost.add(worker)
        self._marks.drop(worker)
        replies: list[Reply] = []
        for state in self.chunks.values():
            replies += [
                self._answer(state, push.header, Kind.ACK, Verdict.LATE, push)
                for push in state.parked.pop(worker, ())
            ]
            # A step that was applied and not answered gives its memory back, too.
            replies += [
                self._answer(state, pull.header, Kind.ACK, _verdict(pull.push), pull.push)
                for pull in state.pulls
                if pull.header.worker == worker and pull.push is not None
            ]
            state.pulls = [pull for pull in state.pulls if pull.header.worker != worker]
            state.leaving.discard(worker)
            if state.clocks.pop(worker, None) is not None and state.references is not None:
                state.references.drop(worker)
            replies += self._advance(state)
        return replies

    def complete_round(self) -> Round | None:
        """The round that is complete on all chunks, once for each set of workers that it has."""
        return None if self._open_round is None else self._open_round.news(self._lost)

    def commit(self, committed: Round) -> list[Reply]:
        """The round closes with these workers; returns every answer that is due because of it."""
        if self._open_round is None:
            raise ProtocolError(f"round {committed.clock} is committed, rounds here close alone")
        self._open_round.commit(committed.clock)
        replies: list[Reply] = []
        for state in self.chunks.values():
            for worker in sorted(state.round.keys() - set(committed.workers)):
                push = state.round.pop(worker)
                replies.append(self._answer(state, push.header, Kind.ACK, Verdict.LATE, push))
            replies += self._advance(state)
        return replies

    def give_up(self) -> list[Reply]:
        """No round closes any more: what the dead had pushed into an open one goes back."""
        return [
            self._answer(state, state.round.pop(worker).header, Kind.ACK, Verdict.LATE, push)
            for state in self.chunks.values()
            for worker, push in sorted(state.round.items())
            if worker in self._lost
        ]

    def mark(self, worker: int, number: int, clock: int) -> None:
        """Cut ``number`` is behind this worker's push of ``clock``: later ones wait for the cut.

        Raises ``ProtocolError`` where that is not its last push, or it has left.
        """
        if worker not in self._live:
            raise ProtocolError(f"worker {worker} marks checkpoint {number} after it has left")
        self._check_pushed(worker, clock, f"marks checkpoint {number}")
        self._marks.put(worker, number, clock)

    def cut(self) -> Cut | None:
        """The cut that is open, if all live workers have marked it: nothing behind it was applied.

        It stays open until ``resume``.
        """
        cut = self._marks.complete(self._live)
        if cut is None or self._open_round is None:
            return cut
        # In step, all have pushed that round, which will be committed; here too, where there may be
        # no chunk. Else nobody pushes the rest of it before ``resume``.
        first, *others = set(cut.clocks.values())
        return cut if others or first <= self._open_round.committed else None

    @property
    def is_ready(self) -> bool:
        """Whether all chunks have their first values."""
        return all(state.ready for state in self.chunks.values())

    @property
    def is_between_rounds(self) -> bool:
        """Whether no chunk has pushes of a round that is open: those are in no checkpoint.

        What has come of workers that died is in no round by itself.
        """
        return not any(state.round.keys() - self._lost for state in self.chunks.values())

    def save(self, keep: Callable[[str, Float32], None]) -> dict[str, Any]:
        """Hands every array to ``keep``, which copies it; the rest by chunk, as JSON."""
        return {
            str(index): shard_state.save(state, self._marks, keep)
            for index, state in self.chunks.items()
        }

    def resume(self) -> list[Reply]:
        """The cut has been made, or given up: what waited for it goes on."""
        self._marks.use_up()
        return [reply for state in self.chunks.values() for reply in self._advance(state)]

    def load(
        self,
        clocks: Mapping[int, int],
        records: Mapping[str, Any],
        source: shard_state.Source,
        rate: float | None = None,
    ) -> None:
        """Goes on from a checkpoint, with workers at ``clocks``; before the first message.

        ``rate`` is the base learning rate, None for the saved one.
        """
        if self._open_round is not None:
            self._open_round.committed = min(clocks.values(), default=0)
        for index, state in self.chunks.items():
            if str(index) not in records:
                raise CheckpointError(f"the checkpoint has no chunk {index}")
            parked = shard_state.load(state, records[str(index)], source)
            state.rate = state.rate if rate is None else rate
            for worker in state.clocks:
                state.clocks[worker] = clocks[worker]
            # The bound that they waited for holds for what is pulled from now on.
            for push in parked:
                self._applier.set_rate(state, [push])
                self._apply(state, [push], state.position)
                if push.grad is not None:
                    state.position += 1 / max(1, len(state.clocks))

    def share_work(self, shared: bool) -> None:
        """Whether threads take part in updates, which need cores that nobody else needs."""
        self._crew.hands = self._crew.size if shared else 1

    def blocked(self) -> list[str]:
        """Why each unanswered message has no answer yet, in words."""
        return waiting.blocked(self.chunks.values(), self._marks, self._live, self.rules.bound)

    def unanswered(self) -> list[waiting.Wait]:
        """Each message that has no answer yet, and whom it waits for."""
        marks, bound = self._marks, self.rules.bound
        return waiting.unanswered(self.chunks.values(), marks, self._live, bound)

    def pushed(self) -> dict[int, tuple[int, int]]:
        """Of each worker that pushes, the last clock that has come of all its chunks here, and of
        any of them."""
        clocks: dict[int, list[int]] = {}
        for state in self.chunks.values():
            for worker, clock in state.clocks.items():
                came = clock + len(state.parked.get(worker, ()))
                clocks.setdefault(worker, []).append(came)
        return {worker: (min(came), max(came)) for worker, came in clocks.items()}

    def waiting(self) -> dict[int, set[int]]:
        """Workers that wait for others to go on, and for whom."""
        waits = waiting.for_pushes(self.chunks.values(), self.rules.bound)
        if self.rules.bound == 0:  # elsewhere a worker marks wherever it waits
            held = waiting.for_markers(self.chunks.values(), self._marks, self._live)
            for worker, others in held.items():
                waits.setdefault(worker, set()).update(others)
        return waits

    def _check_pushed(self, worker: int, clock: int, what: str) -> None:
        """Raises ``ProtocolError`` where ``worker`` says another clock than it has pushed."""
        for state in self.chunks.values():
            if worker not in state.clocks:
                continue
            pushed = state.clocks[worker] + len(state.parked.get(worker, ()))
            if pushed != clock:
                raise ProtocolError(
                    f"worker {worker} {what} at clock {clock}, it has pushed {pushed} steps of "
                    f"chunk {state.chunk.index}"
                )

    def _initialise(self, state: ChunkState, push: Push) -> list[Reply]:
        if state.ready or not isinstance(push.grad, np.ndarray):
            raise ProtocolError(f"chunk {state.chunk.index} takes one initial value")
        np.copyto(state.params, push.grad)  # nobody reads it before it is ready
        state.ready = True
        acknowledged = self._answer(state, push.header, Kind.ACK, Verdict.APPLIED, push)
        return [acknowledged, *self._advance(state)]

    def _push(self, state: ChunkState, push: Push) -> list[Reply]:
        worker, clock = push.header.worker, push.header.clock
        if worker not in state.clocks:
            raise ProtocolError(
                f"worker {worker} pushes chunk {state.chunk.index} but is not a live member of it"
            )
        if not _carries_its_weight(push):
            raise ProtocolError(
                f"worker {worker} pushes chunk {state.chunk.index} with weight "
                f"{push.header.weight}, {'without' if push.grad is None else 'with'} a gradient"
            )
        queue = state.parked.get(worker, ())
        expected = state.clocks[worker] + len(queue) + 1
        if clock < expected:
            self.counters.duplicates += 1
            return [self._answer(state, push.header, Kind.ACK, Verdict.DUPLICATE, push)]
        if clock > expected:
            raise ProtocolError(
                f"worker {worker} pushes clock {clock} of chunk {state.chunk.index}, "
                f"expected {expected}"
            )
        if not queue and self._accepts(state, push):
            return self._accept(state, push) + self._advance(state)
        state.parked.setdefault(worker, deque()).append(push)
        return self._advance(state)

    def _leave(self, state: ChunkState, header: Header) -> list[Reply]:
        """A worker pushes no more; what it has pushed comes first, if that is parked."""
        if header.worker in state.clocks:
            state.leaving.add(header.worker)
        return self._advance(state)

    def _let_go(self, state: ChunkState) -> None:
        """Takes out the workers that leave and have nothing parked."""
        for worker in state.leaving - state.parked.keys():
            state.leaving.remove(worker)
            del state.clocks[worker]
            if state.references is not None:
                state.references.drop(worker)

    def _advance(self, state: ChunkState) -> list[Reply]:
        """Does all that the rule allows now; each thing done may allow the next."""
        replies: list[Reply] = []
        moved = True
        while moved:
            if state.leaving:
                self._let_go(state)
            if state.round and round_is_complete(_round_clock(state), state.clocks):
                if self._may_close(state):
                    replies += self._close_round(state)
                elif self._open_round is not None:
                    self._open_round.complete(state.chunk.index, state.round)
            moved = bool(state.parked) and self._let_in(state, replies)
        if state.pulls:
            replies += self._answer_pulls(state)
        return replies

    def _let_in(self, state: ChunkState, replies: list[Reply]) -> bool:
        """Accepts the first parked push of each worker, where it may be; whether any was.

        Behind one that completes a round, nothing: that has to close first.
        """
        moved = False
        for worker in sorted(state.parked):
            queue = state.parked[worker]
            if not self._accepts(state, queue[0]):
                continue
            push = queue.popleft()
            assert push.header.worker not in state.round, "a push of the round is not lost"
            if not queue:
                del state.parked[worker]
            replies += self._accept(state, push)
            moved = True
            if state.round and round_is_complete(_round_clock(state), state.clocks):
                break  # it closes before anything of the next one comes in
        return moved

    def _accepts(self, state: ChunkState, push: Push) -> bool:
        if not state.ready or self._marks.holds(push.header.worker, push.header.clock):
            return False
        if self._open_round is not None and push.header.clock > self._open_round.committed + 1:
            return False
        return may_accept(push.header.clock, state.clocks, self.rules.bound).allowed

    def _may_close(self, state: ChunkState) -> bool:
        return self._open_round is None or _round_clock(state) <= self._open_round.committed

    def _accept(self, state: ChunkState, push: Push) -> list[Reply]:
        worker, clock = push.header.worker, push.header.clock
        state.clocks[worker] = clock
        if self.rules.bound == 0:
            state.round[worker] = push
            return []
        self._applier.set_rate(state, [push])
        if state.stamps is not None:
            state.stamps[state.chunk.index] += 1
        self._apply(state, [push], state.position)
        if state.stamps is not None:
            state.stamps[state.chunk.index] += 1
        if push.grad is not None:
            state.position += 1 / len(state.clocks)
        return self._acknowledge(state, push)

    def _close_round(self, state: ChunkState) -> list[Reply]:
        pushes = [state.round[worker] for worker in sorted(state.round)]
        position = _round_clock(state) - 1
        state.round.clear()
        self._applier.set_rate(state, pushes)
        self._apply(state, pushes, position)
        state.position = position + 1
        return [reply for push in pushes for reply in self._acknowledge(state, push)]

    def _apply(self, state: ChunkState, pushes: Sequence[Push], position: float) -> None:
        """One update from the pushes that carry something, in worker order."""
        self._applier.apply(state, pushes, position)

    def _acknowledge(self, state: ChunkState, push: Push) -> list[Reply]:
        if push.header.kind is Kind.STEP:
            state.pulls.append(Pull(push.header, push))
            return []
        return [self._answer(state, push.header, Kind.ACK, _verdict(push), push)]

    def _answer_pulls(self, state: ChunkState) -> list[Reply]:
        replies: list[Reply] = []
        waiting: list[Pull] = []
        slowest = slowest_only(state.clocks)
        for pull in state.pulls:
            header = pull.header
            live = header.worker in state.clocks
            decision = may_answer(header.clock, slowest, self.rules.bound)
            is_open = self._open_round is not None and header.clock > self._open_round.committed
            if not state.ready or (live and (is_open or not decision.allowed)):
                waiting.append(pull)
                continue
            if live:
                staleness = header.clock - decision.slowest
                self.counters.staleness_max = max(self.counters.staleness_max, staleness)
            self.counters.pulls += 1
            replies.append(self._answer(state, header, Kind.PARAMS, _verdict(pull.push), pull.push))
        state.pulls = waiting
        return replies

    def _answer(
        self, state: ChunkState, request: Header, kind: Kind, verdict: Verdict, push: Push | None
    ) -> Reply:
        params = state.params if kind is Kind.PARAMS else None
        header = request._replace(
            kind=kind,
            verdict=verdict,
            slowest=slowest_clock(state.clocks, otherwise=request.clock),
            version=state.version,
            rate=state.rate * self.rules.schedule.factor(state.position),
            nbytes=0 if params is None else params.nbytes,
        )
        live = request.worker in state.clocks
        return Reply(
            header,
            state.chunk,
            params,
            stable=live and self.rules.bound == 0,
            released=None if push is None else push.grad,
            references=state.references if live else None,
            held=request.version if request.flags & Flag.HELD else None,
        )


def _carries_its_weight(push: Push) -> bool:
    weight = push.header.weight
    return weight == 0 if push.grad is None else 0 < weight < math.inf


def _verdict(push: Push | None) -> Verdict:
    if push is None:
        return Verdict.NONE
    return Verdict.SKIPPED if push.grad is None else Verdict.APPLIED


def _round_clock(state: ChunkState) -> int:
    return next(iter(state.round.values())).header.clock
