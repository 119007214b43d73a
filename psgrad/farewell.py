"""How ranks of servers with replicas end: none before all servers have done their part.

A rank that has done its own may still have to stand in for one that dies. So each says when a
server on it is done, and stays until all are. What a rank has said last may be lost with it; who is
done itself and learns that another rank is gone asks no further than for its stand-in.
"""

from __future__ import annotations

from psgrad.errors import ProtocolError
from psgrad.messages import Flag, Header, Kind
from psgrad.roles import Roles
from psgrad.transport import Transport


class Farewell:
    """One rank's part. ``dead`` are ranks of servers that have died, or ended."""

    def __init__(self, transport: Transport, roles: Roles, run: int) -> None:
        self.dead: set[int] = set()
        self._transport = transport
        self._servers = roles.servers
        self._run = run
        self._ended: set[int] = set()  # servers that are done, wherever they were
        self._said: set[int] = set()  # of these, ours, and the others know

    def say(self, server: int) -> None:
        """A server on this rank is done."""
        if server in self._said:
            return
        self._said.add(server)
        flags = Flag.STANDIN if server != self._transport.rank else 0
        for rank in set(range(self._servers)) - self.dead - {self._transport.rank}:
            self._transport.send(rank, Header(Kind.ENDED, run=self._run, flags=flags))

    def hear(self, peer: int, header: Header) -> None:
        """The rank ``peer`` says so; raises ``ProtocolError`` for one that has no server."""
        if peer >= self._servers:
            raise ProtocolError(f"rank {peer} sends {header.kind.name}, which servers send alone")
        stands_in = header.flags & Flag.STANDIN
        self._ended.add((peer - 1) % self._servers if stands_in else peer)

    def is_done(self, servers: int) -> bool:
        """Whether so many servers, those of this rank, are done."""
        return len(self._said) >= servers

    def is_over(self) -> bool:
        """Whether nobody needs this rank any more, now that its own servers are done."""
        gone = {rank for rank in self.dead if (rank + 1) % self._servers in self.dead}
        return set(range(self._servers)) == self._said | self._ended | gone
