"""The one staleness rule, as pure decisions: no I/O, no state, no modes.

A worker's *clock* is the number of steps it has pushed. With bound ``s`` (None: no bound)::

    pull at clock c        may be answered when  slowest live clock >= c - s
    push for clock c + 1   may be accepted when  the pull at c may be answered

The second line keeps a worker that pushes without pulling inside the same bound. Bound 0 is
synchronous: the pushes of one clock form a round, which closes when every live worker has pushed.
A worker that has left is not live and holds nobody up.

This is the stale synchronous parallel rule of Ho et al., NIPS 2013, with the bound enforced by the
servers, for each chunk. Theirs lets a reader be at most s clocks ahead of the slowest *finished*
clock; so does this one, because an answered pull at clock c rests on all pushes up to c - s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Decision(NamedTuple):
    """Whether something may happen now, and on which clocks that rests."""

    allowed: bool
    clock: int
    slowest: int
    bound: int | None
    waits_for: tuple[int, ...] = ()

    @property
    def reason(self) -> str:
        """The decision in words, for logs and for the stall report."""
        if self.bound is None:
            return f"clock {self.clock} may go on: there is no staleness bound"
        if self.allowed:
            return f"clock {self.clock} is within {self.bound} of the slowest clock {self.slowest}"
        who = ", ".join(f"worker {index}" for index in self.waits_for)
        return (
            f"clock {self.clock} is {self.clock - self.slowest} ahead of {who} "
            f"at clock {self.slowest}; the staleness bound is {self.bound}"
        )


def slowest_clock(clocks: Mapping[int, int], otherwise: int) -> int:
    """The smallest clock of the live workers; ``otherwise`` when none is live."""
    return min(clocks.values(), default=otherwise)


def slowest_only(clocks: Mapping[int, int]) -> dict[int, int]:
    """The slowest worker's clock alone: all that a decision rests on, however many workers."""
    worker = min(clocks, key=clocks.__getitem__, default=None)
    return {} if worker is None else {worker: clocks[worker]}


def may_answer(clock: int, clocks: Mapping[int, int], bound: int | None) -> Decision:
    """May a pull at ``clock`` be answered, given the live workers' clocks?"""
    slowest = min(clocks.values(), default=clock)
    if bound is None or slowest >= clock - bound:
        return Decision(True, clock, slowest, bound)
    waits_for = tuple(sorted(w for w, c in clocks.items() if c < clock - bound))
    return Decision(False, clock, slowest, bound, waits_for)


def may_accept(clock: int, clocks: Mapping[int, int], bound: int | None) -> Decision:
    """May a push for ``clock`` be accepted? It may when its worker's previous pull was due."""
    return may_answer(clock - 1, clocks, bound)


def round_is_complete(clock: int, clocks: Mapping[int, int]) -> bool:
    """Has every live worker pushed ``clock``? With no live worker left, what is there is all."""
    return min(clocks.values(), default=clock) >= clock
