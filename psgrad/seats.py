"""Which rank is which worker: fixed as long as nobody is lost, and known alike to all servers.

A rank that is shut out may send for a while: it does not know yet. When it comes back, as this
worker or another one, it is a new *incarnation*: its messages have the number of its admission, and
those with a lower one are not taken. The same number in an answer tells the rank what is for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from psgrad.roles import Roles


class Seat(NamedTuple):
    """A worker index, and since which admission somebody has it; 0: since the start."""

    worker: int
    incarnation: int = 0


@dataclass
class Seats:
    """Who is which worker, as one server knows it."""

    _rank_of: dict[int, int]  # worker -> the rank that has been it last
    _seat_of: dict[int, Seat]  # rank -> what it is; not of those that are out, or are spares
    _past: dict[int, int] = field(default_factory=dict)  # rank -> its last incarnation

    @classmethod
    def of(cls, roles: Roles) -> Seats:
        """At the start of a run."""
        ranks = {worker: roles.rank_of(worker) for worker in range(roles.workers)}
        return cls(ranks, {rank: Seat(worker) for worker, rank in ranks.items()})

    def rank_of(self, worker: int) -> int:
        """The rank that is ``worker``, or was it last."""
        return self._rank_of[worker]

    def seat_of(self, rank: int) -> Seat | None:
        """What ``rank`` is; None where it is no worker of this run, at present."""
        return self._seat_of.get(rank)

    def holder(self, worker: int) -> Seat | None:
        """The incarnation of ``worker`` that is in the run; None where none is."""
        seat = self._seat_of.get(self._rank_of[worker])
        return seat if seat is not None and seat.worker == worker else None

    def vacate(self, worker: int) -> None:
        """``worker`` is out of the run: nothing of this incarnation counts any more."""
        rank = self._rank_of[worker]
        seat = self._seat_of.pop(rank)
        self._past[rank] = seat.incarnation

    def admit(self, rank: int, seat: Seat) -> None:
        """``rank`` is this worker from now on."""
        self._rank_of[seat.worker] = rank
        self._seat_of[rank] = seat

    def is_past(self, rank: int, incarnation: int) -> bool:
        """Whether a message of ``rank`` is of an incarnation that is out of the run."""
        return incarnation <= self._past.get(rank, -1)
