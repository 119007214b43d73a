"""Where a checkpoint cuts through a run: after one clock of each worker, the same on every shard.

A worker that is to be cut sends a *marker* on each link, behind its push of that clock. A shard
holds back what a worker pushes behind its marker until the markers of all live workers have come.
Then it has seen exactly the pushes up to these clocks, and so has every other shard: what they copy
at this moment fits together (Chandy and Lamport, TOCS 1985, with workers as the only senders).

In sync mode all workers cut at the same clock, where no round is open: a multiple of the interval,
which each worker knows by itself, or one that the coordinator announces early enough. Otherwise it
announces that it wants a cut, and each worker marks where it is.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from psgrad.errors import ConfigError, ProtocolError


@dataclass(frozen=True)
class Every:
    """How often: every ``steps`` of a worker, or every ``seconds``; the other one is 0."""

    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Every:
        """``"500"`` is steps, ``"600s"`` seconds; empty: never. Raises ``ConfigError``."""
        if not text:
            return cls()
        if re.fullmatch(r"[0-9]{1,12}", text) and int(text) >= 1:
            return cls(steps=int(text))
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]*)?s", text) and float(text[:-1]) > 0:
            return cls(seconds=float(text[:-1]))
        raise ConfigError(
            f"checkpoint_every must be a number of steps of at least 1, such as 500, or of "
            f"seconds, such as 600s, got {text!r}"
        )

    def __bool__(self) -> bool:
        return bool(self.steps or self.seconds)


LAST: Final = 1 << 31
"""The largest clock that can be cut at: a cut's number, about as large, has 32 bits on the wire."""


class Cut(NamedTuple):
    """A checkpoint's number and the clock of each worker that it is behind."""

    number: int
    clocks: dict[int, int]


class Announcement(NamedTuple):
    """The coordinator wants cut ``number``, at ``clock`` or, if that is past, as soon as can be."""

    number: int
    clock: int
    last: bool = False
    """Whether the run stops behind it."""


@dataclass
class Markers:
    """When a worker marks. ``last`` is its last cut, or that of the checkpoint it began with."""

    every: Every = Every()
    bound: int | None = None
    last: int = 0
    announced: Announcement | None = None

    @property
    def asked(self) -> bool:
        """Whether others may be waiting for this worker's marker."""
        return self.announced is not None and self.announced.number > self.last

    @property
    def stops(self) -> bool:
        """Whether the run stops behind a cut that was announced."""
        return self.announced is not None and self.announced.last

    def due(self, clock: int) -> int | None:
        """The number of the cut that is to be made behind the push of ``clock``; None: none."""
        if self.announced is not None and self.asked and clock >= self.announced.clock:
            return self.announced.number
        if self.bound == 0 and self.every.steps:
            return clock if clock % self.every.steps == 0 and clock > self.last else None
        return None


@dataclass
class Marks:
    """The markers that a shard has and has not used up, by worker, the oldest first."""

    _of: dict[int, deque[tuple[int, int]]] = field(default_factory=dict)  # number, clock
    _used: dict[int, tuple[int, int]] = field(default_factory=dict)  # the last one of each worker
    _since: dict[int, int] = field(default_factory=dict)  # who came later: in no cut up to this one

    def put(self, worker: int, number: int, clock: int) -> None:
        """A marker has come; raises ``ProtocolError`` for one that goes back."""
        queue = self._of.setdefault(worker, deque())
        last = queue[-1] if queue else self._used.get(worker, (0, 0))
        if number <= last[0] or clock < last[1]:
            raise ProtocolError(
                f"worker {worker} marks checkpoint {number} at clock {clock}, after {last[0]} at "
                f"clock {last[1]}"
            )
        queue.append((number, clock))

    def holds(self, worker: int, clock: int) -> bool:
        """Whether a push of ``worker`` has to wait for other workers' markers."""
        queue = self._of.get(worker)
        return queue is not None and clock > queue[0][1]

    def missing(self, live: Collection[int]) -> list[int]:
        """Whose markers are waited for; empty where no cut is open."""
        if not self._of:
            return []
        number = min(queue[0][0] for queue in self._of.values())
        return sorted(w for w in set(live) - self._of.keys() if self._since.get(w, 0) < number)

    def complete(self, live: Collection[int]) -> Cut | None:
        """The cut for which the markers of all workers ``live`` are there, if there is one."""
        if not self._of or self.missing(live):
            return None
        first = {worker: queue[0] for worker, queue in sorted(self._of.items())}
        number = min(number for number, _ in first.values())
        numbers = {n for worker, (n, _) in first.items() if self._since.get(worker, 0) < number}
        if len(numbers) > 1:
            raise ProtocolError(f"workers mark different checkpoints: {sorted(numbers)}")
        return Cut(number, {worker: clock for worker, (n, clock) in first.items() if n == number})

    def drop(self, worker: int) -> None:
        """``worker`` is gone: it is in no cut to come."""
        self._of.pop(worker, None)
        self._used.pop(worker, None)

    def admit(self, worker: int, number: int) -> None:
        """``worker`` has come in: it is in no cut up to ``number``."""
        self._since[worker] = number

    def use_up(self) -> None:
        """The complete cut has been made."""
        number = min((queue[0][0] for queue in self._of.values()), default=0)
        for worker, queue in list(self._of.items()):
            if queue[0][0] > number:  # of one that was not in this cut
                continue
            self._used[worker] = queue.popleft()
            if not queue:
                del self._of[worker]


@dataclass
class CutPlan:
    """When the coordinator announces a cut. ``clocks`` are the latest ones that it has seen."""

    every: Every
    bound: int | None
    clocks: dict[int, int]
    number: int = 0  # of the last cut
    under_way: bool = False
    stopping: bool = False
    """Whether the next cut is the last one."""
    apart: bool = False
    """Whether workers may be at clocks of their own in sync mode: pushes without pulls, groups."""
    held: bool = False
    """Whether no cut may begin: a worker comes in, and not all servers know."""
    _last: int = 0  # the number of the last cut, once it was announced
    _gone: set[int] = field(default_factory=set)  # workers that have left
    _since_s: float = math.nan
    _since_steps: int = 0

    @property
    def last(self) -> int | None:
        """The number of the cut behind which the run stops, once that was announced."""
        return self._last or None

    def opened(self, cut: Cut) -> None:
        """All workers have marked ``cut``.

        Where the last one has found them at different clocks in sync mode, as they push without
        pulls, it is no checkpoint, and another one is to be the last: who waits for it can be told
        where to stop.
        """
        self.number = max(self.number, cut.number)
        if self.bound == 0 and cut.number == self._last and len(set(cut.clocks.values())) > 1:
            self._last, self.apart = 0, True

    def saw(self, worker: int, clock: int) -> None:
        """A push has come, or the last clock of a worker that leaves.

        Raises ``ProtocolError`` for one beyond ``LAST``.
        """
        if clock > LAST:
            raise ProtocolError(f"worker {worker} is at clock {clock}, cuts end at {LAST}")
        self.clocks[worker] = max(clock, self.clocks.get(worker, 0))

    def left(self, worker: int) -> None:
        """A worker pushes no more."""
        self._gone.add(worker)

    def may_admit(self, clock: int) -> bool:
        """Whether no cut is under way, nor may be at ``clock``."""
        if self.bound == 0 and self.every.steps:
            return clock % self.every.steps != 0 or clock == 0
        return not self.under_way

    def joined(self, worker: int, clock: int) -> None:
        """A worker has come in, at ``clock``."""
        self._gone.discard(worker)
        self.clocks[worker] = clock

    def announce(self, now_s: float) -> Announcement | None:
        """The cut that is to be made now, if one is due and none is under way."""
        local = self.bound == 0 and self.every.steps  # each worker knows by itself
        live = len(self.clocks.keys() - self._gone)
        if not self.every or self.under_way or self.held or not live or self._last:
            return None
        if self.stopping:
            return self._announce_last()
        if local:
            return None
        steps = sum(self.clocks.values())
        if math.isnan(self._since_s):
            self._since_s, self._since_steps = now_s, steps
        if self.every.seconds:
            due = now_s - self._since_s >= self.every.seconds
        else:
            due = steps - self._since_steps >= self.every.steps * live
        if not due or steps == self._since_steps:
            return None
        # In sync mode nobody is further than the round that is open, and all learn of this before
        # they have the parameters of the next one.
        clock = max(self.clocks.values()) + 1 if self.bound == 0 else 0
        self.number = max(self.number + 1, clock or steps // len(self.clocks))
        self.under_way = True
        self._since_s, self._since_steps = now_s, steps
        return Announcement(self.number, clock)

    def _announce_last(self) -> Announcement:
        clock = max(self.clocks.values()) + 1 if self.bound == 0 else 0
        if self.apart and self.bound == 0 and self.every.steps:
            # Some may be further: all are sure to mark the next multiple, told or not.
            clock = -(-clock // self.every.steps) * self.every.steps
        steps = sum(self.clocks.values())
        self.number = self._last = max(self.number + 1, clock or steps // len(self.clocks))
        self.under_way = True
        return Announcement(self.number, clock, last=True)
