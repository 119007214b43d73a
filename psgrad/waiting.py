"""Who waits for what at a shard, and why, in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from psgrad.chunk_state import ChunkState
from psgrad.consistency import may_answer
from psgrad.cuts import Marks
from psgrad.messages import Header, Kind


class Wait(NamedTuple):
    """A message about ``chunk`` that has no answer, and the workers that it waits for."""

    worker: int
    clock: int
    chunk: int
    reason: str
    others: tuple[int, ...]


def unanswered(
    chunks: Iterable[ChunkState], marks: Marks, live: Collection[int], bound: int | None
) -> list[Wait]:
    """All messages that have no answer yet; ``live`` workers have not left."""
    return [
        _wait(state, header, marks, live, bound)
        for state in chunks
        for header in [pull.header for pull in state.pulls]
        + [push.header for push in state.round.values()]
        + [push.header for queue in state.parked.values() for push in queue]
    ]


def blocked(
    chunks: Iterable[ChunkState], marks: Marks, live: Collection[int], bound: int | None
) -> list[str]:
    """Why each unanswered message has no answer yet; ``live`` workers have not left."""
    return [
        f"chunk {wait.chunk}: worker {wait.worker}: {wait.reason}"
        for wait in unanswered(chunks, marks, live, bound)
    ]


def for_pushes(chunks: Iterable[ChunkState], bound: int | None) -> dict[int, set[int]]:
    """Workers with an unanswered pull, and whose next pushes each of them waits for."""
    waits: dict[int, set[int]] = {}
    for state in chunks:
        for header in [pull.header for pull in state.pulls] + [
            push.header for push in state.round.values() if push.header.kind is Kind.STEP
        ]:
            decision = may_answer(header.clock, state.clocks, bound)
            # A parked push is on its way in: its worker is not what this one waits for.
            late = {w for w in decision.waits_for if not state.parked.get(w)}
            if late and header.worker in state.clocks:
                waits.setdefault(header.worker, set()).update(late)
    return waits


def for_markers(
    chunks: Iterable[ChunkState], marks: Marks, live: Collection[int]
) -> dict[int, set[int]]:
    """Workers whose pushes a cut holds back, and whose markers each of them waits for."""
    missing = set(marks.missing(live))
    return {
        worker: missing
        for state in chunks
        for worker, queue in state.parked.items()
        if missing and any(marks.holds(worker, push.header.clock) for push in queue)
    }


def _wait(
    state: ChunkState, header: Header, marks: Marks, live: Collection[int], bound: int | None
) -> Wait:
    worker, clock, chunk = header.worker, header.clock, state.chunk.index
    if not state.ready:
        return Wait(worker, clock, chunk, "the chunk has no initial value yet", ())
    if marks.holds(worker, clock):
        missing = tuple(marks.missing(live))
        reason = "a checkpoint waits for " + ", ".join(f"worker {w}" for w in missing)
        return Wait(worker, clock, chunk, reason, missing)
    decision = may_answer(clock, state.clocks, bound)
    if decision.allowed:  # a round that is complete here, and is to be committed as a whole
        return Wait(worker, clock, chunk, "the round is not complete on other servers", ())
    return Wait(worker, clock, chunk, decision.reason, decision.waits_for)
