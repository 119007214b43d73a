"""A worker's transport where servers have replicas: one of them may die, and the links go on.

The replica of a server is on the rank of the server after it. Where a server dies, that rank stands
in for it: it says so to everybody, with the number of the last message that it has of each, and
sends again what may be missing. So does everybody else. What comes twice is dropped here, by its
number; what the dead server had begun to send and did not end is told by ``MOVED``: payloads that
have a place and were not delivered come again.

Servers keep the ranks that they had: a program over this transport sends to a server by that, and
sees its messages come from there, wherever they come from.
"""

from __future__ import annotations

from collections import defaultdict, deque

from psgrad.errors import ProtocolError
from psgrad.messages import Flag, Header, Kind
from psgrad.transport import Buffer, Place, Sent, Transport
from psgrad.transport.kept import Outgoing, is_behind, scratch
from psgrad.transport.over import Over


class _Swallowed:
    """A message that is kept, and not under way."""

    def done(self) -> bool:
        """Not before it is known to be there; who has to know calls ``flush``."""
        return False


class Rerouted(Over):
    """Over the transport of a worker; ranks 0 to ``servers`` - 1 are the servers, at least 2."""

    def __init__(self, below: Transport, servers: int) -> None:
        super().__init__(below)
        self._servers = servers
        self._gone: int | None = None  # the server that has died
        self._moved = False  # whether its stand-in has said that it goes on
        self._kept: dict[int, Outgoing] = defaultdict(Outgoing)
        self._taken: dict[int, int] = defaultdict(int)  # the last message of each server
        # Payloads under way, by rank, the oldest first: memory of this transport, or None.
        self._places: dict[int, deque[bytearray | None]] = defaultdict(deque)
        self._told: deque[tuple[int, Header]] = deque()

    def send(self, peer: int, header: Header, payload: Buffer | None = None) -> Sent:
        header = header._replace(taken=self._taken[peer])
        kept = self._kept[peer].keep(header, payload)
        if peer != self._gone:
            return self._below.send(peer, header, payload)
        if not self._moved:
            return _Swallowed()
        header = header._replace(flags=header.flags | Flag.STANDIN)
        kept.sent = self._below.send(self._heir(peer), header, payload)
        return kept.sent

    def flush(self) -> None:
        self._below.flush()
        for outgoing in self._kept.values():
            outgoing.copy()

    def receive(self, place: Place, timeout: float | None = None) -> tuple[int, Header] | None:
        end_s = None if timeout is None else self.now() + timeout
        while not self._told:
            left_s = None if end_s is None else max(0.0, end_s - self.now())
            message = self._below.receive(lambda p, h: self._place(place, p, h), left_s)
            if message is None:
                return None
            self._take(place, *message)
        return self._told.popleft()

    def _heir(self, server: int) -> int:
        return (server + 1) % self._servers

    def _sender(self, peer: int, header: Header) -> int:
        """The server that a message is of."""
        return (peer - 1) % self._servers if header.flags & Flag.STANDIN else peer

    def _place(self, place: Place, peer: int, header: Header) -> Buffer:
        server, places = self._sender(peer, header), self._places[peer]
        # Of a stand-in: before all that the dead one has sent is out of the way, and behind what
        # waits here, the program is not asked.
        early = server != peer and (not self._moved or any(p is not None for p in places))
        if not early and not self._is_old(server, header):
            places.append(None)
            return place(server, header)
        held = scratch(peer, header)
        places.append(held)
        return held

    def _is_old(self, server: int, header: Header) -> bool:
        return header.number > 0 and is_behind(header.number, self._taken[server])

    def _take(self, place: Place, peer: int, header: Header) -> None:
        if header.kind is Kind.LOST:
            self._lose(peer)
            return
        server = self._sender(peer, header)
        held = self._places[peer].popleft() if header.nbytes else None
        if header.kind is Kind.STANDIN:
            self._move(server, header.taken)
            return
        old = self._is_old(server, header)
        if old and (held is not None or not header.nbytes):
            return  # what has a place of the program's goes there
        self._kept[server].known(header.taken)
        if header.number and not old:
            self._taken[server] = header.number
        header = header._replace(flags=header.flags & ~Flag.STANDIN)
        if held is not None:
            memoryview(place(server, header)).cast("B")[:] = held
        self._told.append((server, header))

    def _lose(self, peer: int) -> None:
        if self._gone is None:
            self._gone = peer  # its stand-in will say so
            return
        self._told.append((peer, Header(Kind.LOST)))
        if peer == self._heir(self._gone):
            self._told.append((self._gone, Header(Kind.LOST)))

    def _move(self, server: int, taken: int) -> None:
        """The stand-in of ``server`` goes on; it has all messages up to ``taken``."""
        if self._moved and self._gone == server:
            return
        if self._gone not in (None, server):
            raise ProtocolError(f"server {server} has a stand-in, and so has server {self._gone}")
        self._gone, self._moved = server, True
        self._below.drop(server)  # where its death is not known here, it will not be told
        self._places[server].clear()
        self._told.append((server, Header(Kind.MOVED)))
        outgoing = self._kept[server]
        outgoing.known(taken)
        for kept in outgoing:
            flags = kept.header.flags | Flag.STANDIN
            header = kept.header._replace(flags=flags, taken=self._taken[server])
            kept.sent = self._below.send(self._heir(server), header, kept.payload)
