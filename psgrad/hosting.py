"""A server rank where servers have replicas: its own server, and a replica of the one before it.

::

    worker ── message ──> server k                         rank k
                             │ REPLICATE     ▲ REPLICATED
                             ▼               │
                          replica of server k              rank k + 1 (that of the last one: rank 0)

A server takes a turn only when its replica has it. So whatever a server has said, its replica has
said, too, or is about to. Where rank k dies, rank k + 1 stands in for it: it tells everybody how
far it has heard them, sends what may be missing, and goes on as server k beside its own.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from psgrad.checkpoint.writer import Writer
from psgrad.control import Stopped
from psgrad.errors import ProtocolError, RankLostError
from psgrad.farewell import Farewell
from psgrad.halting import Stopping
from psgrad.messages import Flag, Header, Kind
from psgrad.preemption import Preemption
from psgrad.replicas import Carry, Hosted
from psgrad.roles import Roles
from psgrad.server import WRITING_S
from psgrad.transport import Buffer, Sent, Transport
from psgrad.transport.kept import Kept
from psgrad.turns import NOTHING, NUMBERS, Arriving, Turn, What


class Host:
    """One rank's servers. ``make(server, live, carry)`` makes the program of one, ``writer`` what
    writes its files once this rank stands in for it; ``warn`` says something to people."""

    def __init__(
        self,
        transport: Transport,
        roles: Roles,
        run: int,
        make: Callable[[int, bool, Carry], Hosted],
        writer: Callable[[], Writer[Any]],
        warn: Callable[[str], None],
        preemption: Preemption | None = None,
    ) -> None:
        self._transport = transport
        self._roles = roles
        self._run = run
        self._writer = writer
        self._warn = warn
        self._stopping = Stopping(preemption)
        rank, servers = transport.rank, roles.servers
        self._own = make(rank, True, self._carry)
        self._ward = make((rank - 1) % servers, False, self._carry)
        self._keeper: int | None = self._heir(rank)  # who has the replica of our own server
        self._turns = 0  # of our own server
        self._pending: deque[Turn] = deque()  # of these, what the replica may not have
        self._arriving = Arriving(self._ward.server)
        self._gone: int | None = None  # the rank of a server that has died
        self._moved = False  # whether another rank is known to go on for it
        self._farewell = Farewell(transport, roles, run)
        self._lost: list[int] = []  # ranks of workers that have died
        self._dropped: set[int] = set()
        self._placed: dict[int, deque[Buffer]] = defaultdict(deque)  # payloads under way, by rank
        self._here: deque[tuple[Hosted, int, Header, Buffer | None]] = deque()  # to ourselves

    @property
    def stopped(self) -> Stopped | None:
        """Why the run was stopped before its workers were done; None: it was not."""
        return self._leading.program.stopped

    @property
    def leads(self) -> bool:
        """Whether the coordinator is on this rank."""
        return self._leading.server == 0

    def serve(self) -> None:
        """Answers until the main of every worker has returned."""
        transport = self._transport
        transport.connect([rank for rank in range(self._roles.size) if rank != transport.rank])
        while not self._is_over():
            message = transport.receive(self._place, self._patience_s())
            if message is not None:
                self._take(*message)
            if reason := self._stopping.news():
                self._submit(self._own, What.STOP, payload=reason.encode())
            for hosted in self._live():
                for what, which, said in hosted.due():
                    self._submit(hosted, what, which, payload=said)
            while self._here:
                self._hear(*self._here.popleft())
        for hosted in (self._own, self._ward):
            if hosted.program.is_over:
                hosted.program.close()

    def _is_over(self) -> bool:
        live = self._live()
        for hosted in live:
            if hosted.program.is_over:
                self._farewell.say(hosted.server)
        return self._farewell.is_done(len(live)) and self._farewell.is_over()

    @property
    def _leading(self) -> Hosted:
        """The coordinator, if it is here; else our own server."""
        return next((hosted for hosted in self._live() if hosted.server == 0), self._own)

    def _heir(self, server: int) -> int:
        """The rank that has the replica of a server."""
        return (server + 1) % self._roles.servers

    def _live(self) -> list[Hosted]:
        return [hosted for hosted in (self._own, self._ward) if hosted.end.live]

    def _patience_s(self) -> float | None:
        live = self._live()
        waits = [WRITING_S if any(hosted.is_writing for hosted in live) else None]
        waits += [self._stopping.watch_s, *(hosted.program.beat_s for hosted in live)]
        return min((s for s in waits if s is not None), default=None)

    def _addressed(self, peer: int, header: Header) -> tuple[Hosted, int]:
        """Whom a message is for, and what its sender is, whoever sends it."""
        if not header.flags & Flag.STANDIN:
            return self._own, peer
        if self._ward.end.live:
            return self._ward, peer
        self._check_server(peer, header)
        return self._own, (peer - 1) % self._roles.servers

    def _check_server(self, peer: int, header: Header) -> None:
        if not self._roles.is_server(peer):
            raise ProtocolError(f"rank {peer} sends {header.kind.name} as if it stood in for one")

    def _place(self, peer: int, header: Header) -> Buffer:
        if header.kind in (Kind.REPLICATE, Kind.PAYLOAD):
            if peer != self._ward.server or self._ward.end.live:
                raise ProtocolError(f"rank {peer} replicates to rank {self._transport.rank}")
            return self._arriving.place(header, self._ward.place)
        hosted, sender = self._addressed(peer, header)
        self._placed[peer].append(hosted.place(sender, header))
        return self._placed[peer][-1]

    def _take(self, peer: int, header: Header) -> None:
        kind = header.kind
        if kind is Kind.LOST:
            self._lose(peer)
        elif kind in (Kind.REPLICATE, Kind.PAYLOAD):
            turn = self._arriving.take(header)
            if turn is not None:
                done = Header(Kind.REPLICATED, run=self._run, sequence=turn.number)
                self._transport.send(peer, done)
                self._ward.take(turn)
        elif kind is Kind.REPLICATED:
            if peer == self._keeper:
                self._replicated(header.sequence)
        elif kind is Kind.ENDED:
            self._farewell.hear(peer, header)
        elif kind is Kind.STANDIN:
            self._check_server(peer, header)
            self._move((peer - 1) % self._roles.servers, header.taken)
        else:
            payload = self._placed[peer].popleft() if header.nbytes else None
            hosted, sender = self._addressed(peer, header)
            header = header._replace(flags=header.flags & ~Flag.STANDIN)
            self._hear(hosted, sender, header, payload)

    def _hear(self, hosted: Hosted, sender: int, header: Header, payload: Buffer | None) -> None:
        if not self._roles.is_server(sender) or hosted.is_new(sender, header.number):
            self._submit(hosted, What.MESSAGE, sender, header, payload)

    def _submit(
        self,
        hosted: Hosted,
        what: What,
        peer: int = 0,
        header: Header = NOTHING,
        payload: Buffer | None = None,
    ) -> None:
        """A server is to take a turn, when its replica has it."""
        turn = Turn(what, hosted.now(), peer, header, payload, self._turns % NUMBERS)
        if hosted is not self._own or self._keeper is None:
            self._do(hosted, turn)
            return
        self._turns += 1
        for head, content in turn.messages(self._run):
            self._transport.send(self._keeper, head, content)
        self._pending.append(turn)

    def _replicated(self, number: int) -> None:
        """The replica has all turns up to this one."""
        while self._pending and (number - self._pending[0].number) % NUMBERS < NUMBERS // 2:
            self._do(self._own, self._pending.popleft())

    def _do(self, hosted: Hosted, turn: Turn) -> None:
        hosted.take(turn)
        for peer in set.intersection(*(h.end.dropped for h in self._live())) - self._dropped:
            self._dropped.add(peer)  # no server here hears it any more
            self._placed[peer].clear()
            self._transport.drop(peer)

    def _carry(self, server: int, peer: int, header: Header, payload: Buffer | None) -> Sent:
        """Sends for one of our servers; what goes to another one is kept there as well."""
        rank, flags = self._transport.rank, header.flags
        if peer == rank or (peer == self._gone and self._ward.end.live):
            hosted = self._own if peer == rank else self._ward
            self._here.append((hosted, server, header, payload))
            return Kept(header, payload, is_known=True)
        if peer == self._gone and not self._moved:
            return Kept(
                header, payload, is_known=True
            )  # it is sent when somebody is there to hear it
        if server != rank or peer == self._gone:
            flags |= Flag.STANDIN
        to = self._heir(peer) if peer == self._gone else peer
        return self._transport.send(to, header._replace(flags=flags), payload)

    def _lose(self, peer: int) -> None:
        """The transport says that a rank has died."""
        self._placed[peer].clear()
        if self._roles.is_server(peer):
            self._farewell.dead.add(peer)
            self._lose_server(peer)
            return
        self._lost.append(peer)
        for hosted in self._live():
            self._hear(hosted, peer, NOTHING, None)

    def _lose_server(self, rank: int) -> None:
        if rank == self._gone:
            return
        if self._gone is not None and self._farewell.is_done(len(self._live())):
            if rank == self._ward.server:
                self._farewell.say(rank)  # it has ended, or had nothing more to do
            return
        name = f"rank {rank} ({self._roles.name(rank)}, {self._roles.host(rank)})"
        if self._gone is not None:
            raise RankLostError(
                f"{name} is gone, after rank {self._gone}; one server may die in a run, go on from "
                "the newest checkpoint: psgrad run --restarts does"
            )
        self._gone = rank
        if rank == self._ward.server:
            self._stand_in(name)
        if rank == self._keeper:
            self._keeper = None
            if not self._own.program.is_over:
                self._warn(f"{name} is gone; server {self._own.server} has no replica any more")
            while self._pending:
                self._do(self._own, self._pending.popleft())

    def _stand_in(self, name: str) -> None:
        """Goes on for the server that we have the replica of."""
        ward, own, transport = self._ward, self._own, self._transport
        self._moved = True
        ward.go_live(self._writer)
        if not ward.program.is_over:  # else it may just have ended
            here = f"rank {transport.rank} goes on as server {ward.server}"
            self._warn(f"{name} is gone; {here}, which has no replica any more")
        for peer in range(self._roles.size):
            if peer in (transport.rank, ward.server, *self._lost, *ward.end.dropped):
                continue
            taken = ward.end.taken[peer]
            said = Header(Kind.STANDIN, run=self._run, taken=taken, flags=Flag.STANDIN)
            transport.send(peer, said)
            # Who has it already may go on at once, and parameters change: a copy of them leaves.
            ward.end.kept[peer].copy()
            self._send_again(ward, peer, peer)
        own.end.kept[ward.server].known(ward.end.taken[own.server])
        ward.end.kept[own.server].known(own.came[ward.server])
        for one, other in ((own, ward), (ward, own)):
            for kept in one.end.kept[other.server]:
                self._here.append((other, one.server, kept.header, kept.payload))
        for peer in self._lost:
            self._hear(ward, peer, NOTHING, None)

    def _move(self, server: int, taken: int) -> None:
        """The stand-in of another server goes on; it has our messages up to ``taken``."""
        if self._moved:
            return
        self._lose_server(server)
        if self._gone != server:
            return
        self._farewell.dead.add(server)
        self._moved = True
        self._placed[server].clear()
        self._transport.drop(server)  # what comes of it comes from elsewhere
        self._own.end.kept[server].known(taken)
        self._send_again(self._own, server, self._heir(server))

    def _send_again(self, hosted: Hosted, peer: int, to: int) -> None:
        """What ``peer`` may not have of a server here, to the rank ``to``; one of both is moved."""
        taken = hosted.end.taken[peer]
        for kept in hosted.end.kept[peer]:
            flags = kept.header.flags | Flag.STANDIN
            header = kept.header._replace(flags=flags, taken=taken)
            kept.sent = self._transport.send(to, header, kept.payload)
