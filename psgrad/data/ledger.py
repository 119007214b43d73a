"""Who goes through which samples, when workers die: each worker's work, and who takes it over.

A worker's work is a list of pieces. A piece is a range of steps of a *source*, the steps that one
worker would do if nobody died: its own at first, later every n-th one of what another has left. All
workers keep the same ledger and settle it with the same facts, so none has to be told its share.

Where one worker has less to do than another it idles for some steps, so that all are at the same
clock when they meet: nobody waits for the step of one that waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

IDLE: Final = -1


class Piece(NamedTuple):
    """Steps ``steps`` of what worker ``source`` has to do, counted from 0 at the start of a run;
    source ``IDLE``: as many steps without a gradient."""

    source: int
    steps: range


@dataclass
class Ledger:
    """The work of each worker, the first piece first."""

    work: dict[int, list[Piece]]
    _settled: set[int] = field(default_factory=set)  # workers whose work was taken over

    @classmethod
    def of(cls, steps: Mapping[int, int]) -> Ledger:
        """At the start of a run: each worker has so many ``steps`` to do."""
        return cls(_even({worker: [Piece(worker, range(n))] for worker, n in steps.items()}))

    def settle(self, lost: Mapping[int, int], survivors: Sequence[int]) -> dict[int, list[Piece]]:
        """Deals out what workers that are ``lost`` have left, after so many steps of each.

        Returns the new pieces of each of ``survivors``; step i of what is left goes to survivor i
        modulo their number.
        """
        dealt: dict[int, list[Piece]] = {worker: [] for worker in survivors}
        for worker in sorted(lost.keys() - self._settled):
            self._settled.add(worker)
            for source, steps in self.left(worker, lost[worker]):
                for i, survivor in enumerate(survivors):
                    if mine := steps[i :: len(survivors)]:
                        dealt[survivor].append(Piece(source, mine))
        for worker, pieces in _even(dealt).items():
            self.work[worker] += pieces
        return dealt

    def left(self, worker: int, done: int) -> list[Piece]:
        """What ``worker`` has not done, after ``done`` steps."""
        left = []
        for source, steps in self.work[worker]:
            rest = steps[done:]
            if rest and source != IDLE:
                left.append(Piece(source, rest))
            done = max(0, done - len(steps))
        return left


def _even(work: dict[int, list[Piece]]) -> dict[int, list[Piece]]:
    """``work``, with as many steps for each worker."""
    counts = {worker: sum(len(steps) for _, steps in pieces) for worker, pieces in work.items()}
    for worker, count in counts.items():
        if idle := max(counts.values()) - count:
            work[worker].append(Piece(IDLE, range(idle)))
    return work
