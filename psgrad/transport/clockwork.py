"""Programs that take turns under one virtual clock: a heap of what happens next, and greenlets.

A program runs until it waits, which takes no virtual time at all. Then the clock jumps to the next
event of the heap, and whoever that wakes goes on. One program runs at a time, in one thread, and
events of one moment happen in the order in which they were asked for. So a run repeats exactly.

The clockwork knows nothing of messages. Its ranks wait; who wakes them says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, Final

from psgrad.crash import describe, exit_status
from psgrad.errors import LaunchError, PsgradError

PLEAS: Final = 100  # how often a program that is over may catch that and go on


class SimulationError(PsgradError):
    """What ends a simulated run; the root of the ones below."""


class RankError(SimulationError):
    """A rank raised or aborted; ``__cause__`` is its exception.

    ``exit_status`` is what a program ends with because of it, as that rank said.
    """

    def __init__(self, rank: int, text: str, exit_status: int = 1) -> None:
        super().__init__(f"rank {rank}: {text}")
        self.rank = rank
        self.exit_status = exit_status  # type: ignore[misc]  # of this one alone


class StallError(SimulationError):
    """Ranks wait and nothing can wake them, or much happens and nothing comes of it."""


class RankEndedError(PsgradError):
    """Raised inside a rank whose run is over, so that it unwinds. There is nothing to report."""

    spokesman = False


def load_greenlet() -> Any:
    """The greenlet module. Raises ``LaunchError`` where it is not installed."""
    try:
        import greenlet
    except ImportError as error:
        raise LaunchError(
            f"the simulator needs greenlet ({error}); pip install 'psgrad[simulate]'"
        ) from error
    return greenlet


@dataclass(slots=True, eq=False)
class Rank:
    """One program: what it waits in, and what became of it."""

    index: int
    waits_in: str = ""  # the call; empty while the program runs
    since_s: float = 0.0
    deadline_s: float = math.inf
    alarm_s: float = math.inf  # when the heap will look at the deadline
    ended_s: float = math.inf
    killed: bool = False
    value: Any = None
    greenlet: Any = None
    pleas: int = 0

    @property
    def runs(self) -> bool:
        """Whether it has neither returned nor been killed."""
        return self.ended_s == math.inf


class Clockwork:
    """``run`` runs all programs to their ends.

    It raises ``StallError`` when no event is left while ranks wait, when ``stall_after_s`` of
    virtual time have passed without a ``moved()``, and after ``event_limit`` events: a program that
    polls for ever. ``explain`` gives the lines that say who waits for what.
    """

    def __init__(
        self, size: int, stall_after_s: float, event_limit: int, explain: Callable[[], list[str]]
    ) -> None:
        self.now_s = 0.0
        self.events = 0
        self.ranks = [Rank(index) for index in range(size)]
        self._stall_after_s = stall_after_s
        self._event_limit = event_limit
        self._explain = explain
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._asked = 0
        self._moved_s = 0.0
        self._running = size
        self._failure: BaseException | None = None
        self._over = False
        self._hub: Any = None

    def at(self, time_s: float, action: Callable[[Any], None], subject: Any) -> None:
        """Has ``action(subject)`` happen at ``time_s``, after what was asked for that time."""
        self._asked += 1
        heappush(self._heap, (time_s, self._asked, action, subject))

    def moved(self) -> None:
        """Says that the run gets on."""
        self._moved_s = self.now_s

    def run(self, programs: Sequence[Callable[[], Any]]) -> list[Any]:
        """What each program returned; None for one that was killed. Raises what ended the run."""
        greenlet = load_greenlet()
        self._hub = greenlet.getcurrent()
        try:
            for rank, program in zip(self.ranks, programs, strict=True):
                rank.greenlet = greenlet.greenlet(self._play)
                rank.greenlet.gr_context = copy_context()
                rank.greenlet.switch(rank, program)
                self._raise_failure()
            self._turn()
        finally:
            self._unwind()
        return [rank.value for rank in self.ranks]

    def wait(self, rank: Rank, call: str, deadline_s: float = math.inf) -> bool:
        """Called by the rank: lets the others go on until ``wake``, or until the deadline.

        Returns whether it was woken.
        """
        rank.waits_in, rank.since_s, rank.deadline_s = call, self.now_s, deadline_s
        if deadline_s < rank.alarm_s:
            self._set_alarm(rank)
        woken: bool = self._hub.switch()
        rank.waits_in = ""
        return woken

    def wake(self, rank: Rank) -> None:
        """Called by an event: the rank, which waits, goes on until it waits again."""
        self._resume(rank, True)

    def kill(self, rank: Rank) -> None:
        """Called by an event: the rank never goes on."""
        if rank.runs:
            rank.killed = True
            self._end(rank)

    def die(self, rank: Rank) -> None:
        """Called by the rank: it is killed here and now. Does not return."""
        self.kill(rank)
        self._hub.switch()

    def fail(self, failure: BaseException) -> None:
        """Called by a rank: ends the run with ``failure``. Does not return."""
        self._failure = failure
        self._hub.switch()

    def check(self, rank: Rank) -> None:
        """Raises where the run is over: the program is there to unwind, and to do nothing else."""
        if self._over:
            rank.pleas += 1
            if rank.pleas > PLEAS:  # it catches every Exception
                raise SystemExit(1)
            raise RankEndedError("the run is over")

    def _play(self, rank: Rank, program: Callable[[], Any]) -> None:
        try:
            rank.value = program()
        except BaseException as error:
            if not (isinstance(error, SystemExit) and not error.code):
                self._failure = failure_of(rank, error, exit_status(error))
        if rank.runs:
            self._end(rank)

    def _end(self, rank: Rank) -> None:
        rank.ended_s = self.now_s
        self._running -= 1
        self._moved_s = self.now_s

    def _turn(self) -> None:
        heap, limit = self._heap, self._event_limit
        while self._running:
            if not heap:
                raise self._stall("nothing can happen any more")
            time_s, _, action, subject = heappop(heap)
            if time_s > self._moved_s + self._stall_after_s:
                raise self._stall(f"nothing has moved for {self._stall_after_s:g} s")
            self.now_s = time_s
            self.events += 1
            if self.events > limit:
                raise self._stall(f"no end after {limit} events; raise event_limit if it has one")
            action(subject)

    def _resume(self, rank: Rank, woken: bool) -> None:
        rank.greenlet.switch(woken)
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _set_alarm(self, rank: Rank) -> None:
        rank.alarm_s = rank.deadline_s
        self.at(rank.deadline_s, self._alarm, rank)

    def _alarm(self, rank: Rank) -> None:
        if self.now_s != rank.alarm_s:
            return  # an earlier one has taken its place
        rank.alarm_s = math.inf
        if not rank.runs or rank.deadline_s == math.inf:
            return
        if rank.deadline_s <= self.now_s:
            self._resume(rank, False)
        else:  # it has been woken since, and waits for something later
            self._set_alarm(rank)

    def _stall(self, why: str) -> StallError:
        waiting = [rank for rank in self.ranks if rank.runs]
        text = f"{why} at {self.now_s:.9g} s: {len(waiting)} of {len(self.ranks)} ranks wait"
        return StallError("\n  ".join([text, *self._explain()]))

    def _unwind(self) -> None:
        """Lets every program that has not returned go through its ``finally``, and forgets them.

        A suspended greenlet would be made to do so when it is collected, at any odd moment.
        """
        self._over = True
        for rank in self.ranks:
            if rank.greenlet:  # has begun and not returned
                rank.greenlet.throw(RankEndedError("the run is over"))
            rank.greenlet = None


def failure_of(rank: Rank, error: BaseException | None, status: int) -> BaseException:
    """What ends a run because a rank raised ``error``, or aborted with ``status``."""
    if isinstance(error, KeyboardInterrupt):
        return error
    text = f"abort({status})" if error is None else describe(error)
    failure = RankError(rank.index, text, status)
    failure.__cause__ = error
    return failure
