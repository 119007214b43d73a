"""A server's part in admissions; who is admitted, and when, is decided in ``admission``."""

from __future__ import annotations

from typing import NamedTuple

from psgrad import control
from psgrad.admission import Admission
from psgrad.errors import ProtocolError
from psgrad.layout import Layout, difference
from psgrad.messages import Header, Kind, Verdict, encode_json
from psgrad.outbox import Outbox
from psgrad.roles import Roles
from psgrad.seats import Seat, Seats


class Admitted(NamedTuple):
    """A rank that is a worker from now on, with pushes after ``clock``: the ``number``-th one."""

    number: int
    rank: int
    seat: Seat
    clock: int


class Admitting:
    """What ranks that would be workers say, and what they and other servers are told."""

    def __init__(self, rank: int, run: int, roles: Roles, seats: Seats, outbox: Outbox) -> None:
        self.number = 0
        """How many admissions this server knows of."""
        self.decides = Admission() if rank == 0 else None
        """On the coordinator."""
        self._run = run
        self._roles = roles
        self._seats = seats
        self._outbox = outbox
        self._early: list[Admitted] = []  # those that came before this server had its shard

    def take(self, rank: int, header: Header, payload: bytes | None, layout: Layout | None) -> None:
        """A message of ``rank``, which is no worker; ``layout`` is that of the run."""
        if header.kind in (Kind.ALIVE, Kind.STOP, Kind.DOING):
            return  # all ranks are asked to stop, and those that are workers say it
        if self.decides is None:
            raise ProtocolError(f"rank {rank} sends {header.kind.name} and is no worker")
        if header.kind is Kind.JOIN:
            self._ask(self.decides, rank)
        elif header.kind is Kind.REGISTER:
            self._register(self.decides, rank, header, payload, layout)

    def vacate(self, worker: int) -> None:
        """``worker`` is lost."""
        if self.decides is not None:
            self.decides.vacate(worker)

    def lose(self, rank: int) -> None:
        """``rank`` has died."""
        if self.decides is not None:
            self.decides.lose(rank)

    def heard(self, rank: int, kind: Kind) -> bool:
        """A worker has said something; whether all servers know by that of the last admission.

        That it lives, or is to stop, it may have said before it knew itself.
        """
        if self.decides is None or kind in (Kind.ALIVE, Kind.STOP):
            return False
        return self.decides.heard(rank)

    def close(self) -> None:
        """A worker has left: nobody is admitted any more."""
        if self.decides is not None:
            for rank in self.decides.close():
                self._refuse(self.decides, rank)

    @property
    def hopes(self) -> bool:
        """Whether somebody may still come in; only the coordinator knows."""
        return self.decides is None or self.decides.hopes

    @property
    def is_calm(self) -> bool:
        """Whether nobody comes in at present, as far as this server knows."""
        return self.decides is None or self.decides.entering is None

    def promise(self) -> None:
        """Has ranks get ready where a worker is lost."""
        if self.decides is None:
            return
        for rank, seat in self.decides.promise():
            self._outbox.post(
                rank, Header(Kind.PLACE, run=self._run, worker=seat.worker, incarnation=seat[1])
            )

    def announce(self, admitted: Admitted) -> None:
        """Tells the other servers."""
        payload = encode_json({"rank": admitted.rank})
        worker, incarnation = admitted.seat
        header = Header(
            Kind.ADMIT,
            run=self._run,
            worker=worker,
            incarnation=incarnation,
            clock=admitted.clock,
            sequence=admitted.number,
            nbytes=len(payload),
        )
        for server in self._roles.server_ranks[1:]:
            self._outbox.post(server, header, payload)

    def read(self, header: Header, payload: bytes | None) -> Admitted:
        """An ADMIT; raises ``ProtocolError`` for one that cannot be."""
        rank = control.admitted(payload)
        known = self._roles.servers <= rank < self._roles.size
        expected = self.number + len(self._early) + 1
        if not known or header.worker >= self._roles.workers or header.sequence != expected:
            raise ProtocolError(
                f"rank {rank} is admitted as worker {header.worker} by admission "
                f"{header.sequence}, expected {expected}"
            )
        seat = Seat(header.worker, header.incarnation)
        return Admitted(header.sequence, rank, seat, header.clock)

    def put_off(self, admitted: Admitted) -> None:
        """There is no shard yet."""
        self._early.append(admitted)

    def put_off_so_far(self) -> list[Admitted]:
        """There is one now."""
        early, self._early = self._early, []
        return early

    def _ask(self, decides: Admission, rank: int) -> None:
        if self._seats.seat_of(rank) is not None:
            raise ProtocolError(f"rank {rank} would be a worker and is one")
        if decides.over:
            self._refuse(decides, rank)
        else:
            decides.ask(rank)

    def _register(
        self,
        decides: Admission,
        rank: int,
        header: Header,
        payload: bytes | None,
        layout: Layout | None,
    ) -> None:
        seat = decides.promised(rank)
        if seat is None and decides.over:
            return  # it is told, or will be, that it comes too late
        if seat != Seat(header.worker, header.incarnation):
            raise ProtocolError(f"rank {rank} registers as {header.worker}, it is to be {seat}")
        mine = control.registration(payload, header.worker)
        problem = None if isinstance(mine, Layout) else mine
        if isinstance(mine, Layout) and layout is not None:
            problem = difference(layout, mine)
        if problem is None:
            decides.ready(rank)
            return
        said = {"first": -1, "error": problem, "notice": "", "server": 0, "params": None}
        answer = encode_json(said)
        refusal = header._replace(
            kind=Kind.REGISTERED, verdict=Verdict.REFUSED, nbytes=len(answer), number=0
        )
        self._outbox.post(rank, refusal, answer)

    def _refuse(self, decides: Admission, rank: int) -> None:
        header = Header(Kind.PLACE, Verdict.REFUSED, run=self._run, incarnation=decides.number)
        self._outbox.post(rank, header)
