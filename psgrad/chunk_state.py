"""What a shard knows and says: the rules, a chunk's state, messages in line, answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from psgrad.aggregate import Aggregate
from psgrad.codecs import Codec
from psgrad.layout import Chunk, Float32, SegmentOptions
from psgrad.messages import Header
from psgrad.optimizers import Optimizer
from psgrad.references import References
from psgrad.schedules import Schedule
from psgrad.update import Gradient


@dataclass(frozen=True)
class Rules:
    """How a shard treats pushes: the same on every server."""

    optimizer: Optimizer
    schedule: Schedule
    bound: int | None  # staleness; 0 sync, None async
    ef21: bool = False  # pushes are differences to an estimate of the mean gradient
    differences: Codec | None = None  # pulls are differences to what the worker holds
    seed: int = 0  # of what that codec draws
    threads: int = 1  # that share the arithmetic on one chunk; no result depends on it
    committed: bool = False  # in sync mode, a round closes when it is told to
    aggregate: Aggregate | None = None  # in sync mode, what stands for a round; None: the mean


class Reply(NamedTuple):
    """An answer for one worker. ``params`` is the shard's own memory, not a copy.

    ``stable`` says that no update can touch ``params`` before the worker has received them: in
    sync mode the next round needs a push that the worker sends only afterwards. ``released`` is
    the gradient memory of the push that is answered: the shard will not look at it again.

    ``references``, where the parameters may travel as a difference, know what the worker holds;
    ``held`` is what it says itself: the version of its reference, or None.
    """

    header: Header
    chunk: Chunk
    params: Float32 | None = None
    stable: bool = False
    released: Gradient | None = None
    references: References | None = None
    held: int | None = None


class Push(NamedTuple):
    """A gradient chunk as it lies in a receive buffer; ``grad`` is None for an empty push."""

    header: Header
    grad: Gradient | None


class Pull(NamedTuple):
    """A request for parameters, with the push that it came with, if any."""

    header: Header
    push: Push | None = None


@dataclass
class Counters:
    """What a shard has done so far; ``staleness_max`` is the largest seen in an answered pull."""

    pushes: int = 0
    skipped: int = 0
    duplicates: int = 0
    updates: int = 0
    pulls: int = 0
    staleness_max: int = 0


@dataclass
class ChunkState:
    """All that is known of one chunk; the shard is its only writer."""

    chunk: Chunk
    options: SegmentOptions
    params: Float32
    slots: dict[str, Float32]
    clocks: dict[int, int]  # of the live workers of the segment's group
    members: int  # of that group, at the start
    estimate: Float32 | None  # EF21: of the mean gradient
    rate: float  # base learning rate, before schedule and segment scale
    references: References | None  # to what workers hold, where pulls are differences
    stamps: NDArray[np.int64] | None = None  # of all chunks, where others read while it is updated
    ready: bool = False  # has worker 0's initial value
    version: int = 0
    position: float = 0.0  # of the learning-rate schedule
    round: dict[int, Push] = field(default_factory=dict)  # sync: pushes of the open round
    parked: dict[int, deque[Push]] = field(default_factory=dict)  # by worker; no queue is empty
    leaving: set[int] = field(default_factory=set)  # workers that leave when none is parked
    pulls: list[Pull] = field(default_factory=list)  # not answered yet


def fresh(
    chunk: Chunk, options: SegmentOptions, everyone: Sequence[int], rules: Rules
) -> ChunkState:
    """A chunk at the start of a run of the workers ``everyone``."""
    optimizer = rules.optimizer
    members = everyone if options.members is None else options.members
    clocks = {worker: 0 for worker in everyone if worker in members}
    tracked = rules.ef21 and not options.buffer
    return ChunkState(
        chunk=chunk,
        options=options,
        params=np.zeros(chunk.size, np.float32),
        slots={} if options.buffer else optimizer.init(chunk.size),
        clocks=clocks,
        members=len(clocks),
        estimate=np.zeros(chunk.size, np.float32) if tracked else None,
        rate=optimizer.learning_rate,
        references=None
        if rules.differences is None
        else References(chunk, rules.differences, rules.bound == 0, rules.seed),
    )
