"""Who waits for what at a shard, and why, in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from psgrad.chunk_state import ChunkState
from psgrad.consistency import may_answer
from psgrad.cuts import Marks
from psgrad.messages import Header, Kind


def blocked(
    chunks: Iterable[ChunkState], marks: Marks, live: Collection[int], bound: int | None
) -> list[str]:
    """Why each unanswered message has no answer yet; ``live`` workers have not left."""
    return [
        f"chunk {state.chunk.index}: worker {header.worker}: "
        f"{_reason(state, header, marks, live, bound)}"
        for state in chunks
        for header in [pull.header for pull in state.pulls]
        + [push.header for push in state.round.values()]
        + [push.header for queue in state.parked.values() for push in queue]
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


def _reason(
    state: ChunkState, header: Header, marks: Marks, live: Collection[int], bound: int | None
) -> str:
    if not state.ready:
        return "the chunk has no initial value yet"
    if marks.holds(header.worker, header.clock):
        return "a checkpoint waits for " + ", ".join(f"worker {w}" for w in marks.missing(live))
    return may_answer(header.clock, state.clocks, bound).reason
