"""Who takes the place of a worker that is lost: the coordinator's decisions, without I/O.

::

    a rank asks (JOIN)  ->  it is promised a worker index (PLACE)  ->  it gets ready (REGISTER)
    ->  it is admitted (ADMIT, to all servers; each of them tells it)  ->  it is heard

A spare asks at its start, a rank that was shut out when it knows. Nobody waits for one that gets
ready, which may take long: only its admission has others wait for it. One is admitted at a time,
and none when a worker has left: the others are about to end, and it would come too late.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from psgrad.seats import Seat


@dataclass
class Admission:
    """``number`` is that of the last promise."""

    number: int = 0
    over: bool = False
    """Whether a worker has left: nobody is admitted any more."""
    entering: int | None = None
    """The rank that was admitted last, as long as not all servers are known to know."""
    _waiting: list[int] = field(default_factory=list)  # ranks, who came first stands first
    _vacant: list[int] = field(default_factory=list)  # workers that are lost, and promised to none
    _promised: dict[int, Seat] = field(default_factory=dict)  # to ranks that get ready
    _ready: list[int] = field(default_factory=list)  # those of them that are

    def ask(self, rank: int) -> None:
        """``rank`` would be a worker."""
        self.lose(rank)
        self._waiting.append(rank)

    def vacate(self, worker: int) -> None:
        """``worker`` is lost."""
        self._vacant.append(worker)

    def lose(self, rank: int) -> None:
        """``rank`` is gone, or begins anew: what it was promised is for others."""
        if rank in self._waiting:
            self._waiting.remove(rank)
        if rank in self._ready:
            self._ready.remove(rank)
        if rank in self._promised:
            self._vacant.append(self._promised.pop(rank).worker)
        if rank == self.entering:
            self.entering = None

    def promise(self) -> list[tuple[int, Seat]]:
        """Ranks that are to get ready, and for what; each is said once."""
        said = []
        while self._waiting and self._vacant and not self.over:
            self.number += 1
            rank, seat = self._waiting.pop(0), Seat(self._vacant.pop(0), self.number)
            self._promised[rank] = seat
            said.append((rank, seat))
        return said

    def promised(self, rank: int) -> Seat | None:
        """What ``rank`` gets ready for."""
        return self._promised.get(rank)

    def ready(self, rank: int) -> None:
        """``rank`` may be admitted."""
        self._ready.append(rank)

    @property
    def is_ready(self) -> bool:
        """Whether somebody waits for nothing but being admitted."""
        return bool(self._ready) and self.entering is None and not self.over

    def admit(self) -> tuple[int, Seat] | None:
        """The rank that is admitted now, and as whom, if one may be."""
        if not self.is_ready:
            return None
        rank = self.entering = self._ready.pop(0)
        return rank, self._promised.pop(rank)

    def heard(self, rank: int) -> bool:
        """``rank`` has said something after its admission: all servers have told it of that.

        Whether that is news."""
        if rank != self.entering:
            return False
        self.entering = None
        return True

    def close(self) -> list[int]:
        """Nobody is admitted any more; the ranks that are to be told."""
        self.over = True
        told = [*self._waiting, *self._promised]
        self._waiting.clear()
        self._promised.clear()
        self._ready.clear()
        return told

    @property
    def hopes(self) -> bool:
        """Whether somebody may still come in."""
        return bool(self._waiting or self._promised or self.entering is not None)
