"""Who goes through which samples, when workers die: each worker's work, and who takes it over.

Training goes on in phases, and a rendezvous ends each. A worker's work of a phase is a list of
pieces. A piece is a range of steps of a *source*, the steps that one worker would do if nobody
died: its own at first, later every n-th one of what others have left. All workers keep the same
ledger and settle it with the same facts, so none has to be told its share.

Where one worker has less to do than another it idles for some steps, so that all are at the same
clock when they meet: nobody waits for the step of one that waits for it. Who comes in the place of
a worker that died goes on with its work, as far as it gets until then; the rest is dealt out like
what those have left that nobody replaces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from psgrad.control import Span

IDLE: Final = -1


class Piece(NamedTuple):
    """Steps ``steps`` of what worker ``source`` has to do, counted from 0 at the start of a run;
    source ``IDLE``: as many steps without a gradient."""

    source: int
    steps: range


@dataclass
class Ledger:
    """The work of each worker in this phase, the first piece first."""

    work: dict[int, list[Piece]]
    begun: dict[int, int]  # the clock of each worker index at which the phase began
    length: int  # how many steps it has, for each worker

    @classmethod
    def of(cls, steps: Mapping[int, int], begun: Mapping[int, int]) -> Ledger:
        """At the start of a run: each worker has so many ``steps`` to do, from its clock on."""
        length = max(steps.values(), default=0)
        work = {worker: _padded([Piece(worker, range(n))], length) for worker, n in steps.items()}
        return cls(work, dict(begun), length)

    def todo(self, worker: int, clock: int, spans: Sequence[Span] = ()) -> list[Piece]:
        """What ``worker`` does in this phase, from its ``clock`` on; ``spans`` are the clocks
        between which others were this worker before."""
        count = max(0, self.begun[worker] + self.length - max(clock, self.begun[worker]))
        done = self._done(worker, [span for span in spans if span.ended is not None])
        return _padded(_first(_behind(self.work.get(worker, []), done), count), count)

    def settle(self, spans: Mapping[int, Sequence[Span]], survivors: Sequence[int]) -> None:
        """The phase is over: deals out what workers have left, by the ``spans`` of those that were
        ever lost. Step i of what one has left goes to survivor i modulo their number."""
        dealt: dict[int, list[Piece]] = {worker: [] for worker in survivors}
        for worker in sorted(spans.keys() & self.work.keys()):
            for source, steps in _behind(self.work[worker], self._done(worker, spans[worker])):
                for i, survivor in enumerate(survivors):
                    if mine := steps[i :: len(survivors)]:
                        dealt[survivor].append(Piece(source, mine))
        for worker, clock in self.begun.items():
            came = max((span.began or 0 for span in spans.get(worker, ())), default=0)
            self.begun[worker] = max(clock + self.length, came)
        self.length = max((_length(pieces) for pieces in dealt.values()), default=0)
        self.work = {worker: _padded(pieces, self.length) for worker, pieces in dealt.items()}

    def _done(self, worker: int, spans: Sequence[Span]) -> int:
        """How many steps of this phase's work were done in ``spans``."""
        begun, end = self.begun[worker], self.begun[worker] + self.length
        done = 0
        for span in spans:
            start = max(begun, span.began or 0)
            stop = end if span.ended is None else min(span.ended, end)
            done += max(0, stop - start)
        return done


def _length(pieces: Sequence[Piece]) -> int:
    return sum(len(steps) for _, steps in pieces)


def _padded(pieces: list[Piece], length: int) -> list[Piece]:
    """``pieces``, and then as many idle steps as are missing."""
    idle = length - _length(pieces)
    return [*pieces, Piece(IDLE, range(idle))] if idle else pieces


def _first(pieces: Sequence[Piece], count: int) -> list[Piece]:
    """The first ``count`` steps."""
    first = []
    for source, steps in pieces:
        if mine := steps[:count]:
            first.append(Piece(source, mine))
        count -= len(mine)
    return first


def _behind(pieces: Sequence[Piece], done: int) -> list[Piece]:
    """What is left to do when the first ``done`` steps are done."""
    left = []
    for source, steps in pieces:
        rest = steps[done:]
        if rest and source != IDLE:
            left.append(Piece(source, rest))
        done = max(0, done - len(steps))
    return left
