"""A transport whose messages are written down beforehand: one rank's programs without the others.

It keeps the contract of ``psgrad.transport`` that matters here: a payload is received into the
memory that ``place`` names, before ``receive`` returns its header.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from psgrad.messages import Header


class NothingComesError(Exception):
    """The program waits for a message that the script does not have: in a run it would hang."""


@dataclass
class Sending:
    """A message under way; the test says when it is ``gone``."""

    gone: bool = False

    def done(self) -> bool:
        return self.gone


@dataclass
class Scripted:
    """``events`` has what happened in order: ("send" or "receive", peer, header)."""

    rank: int
    script: deque[tuple[int, Header, bytes]] = field(default_factory=deque)
    events: list[tuple[str, int, Header]] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)  # of what was sent
    memory: list[object] = field(default_factory=list)  # the very objects that were sent
    sendings: list[Sending] = field(default_factory=list)
    peers: list[int] = field(default_factory=list)
    cores: int = 1
    readings: int = 0  # of the clock, which goes on by a second with each

    def arrives(self, peer: int, header: Header, payload: bytes = b"") -> None:
        self.script.append((peer, header._replace(nbytes=len(payload)), payload))

    def now(self) -> float:
        self.readings += 1
        return float(self.readings)

    @property
    def sent(self) -> list[Header]:
        return [header for what, _, header in self.events if what == "send"]

    def connect(self, peers) -> None:
        self.peers += peers

    def send(self, peer, header, payload=None) -> Sending:
        data = b"" if payload is None else bytes(memoryview(payload).cast("B"))
        assert len(data) == header.nbytes
        self.events.append(("send", peer, header))
        self.payloads.append(data)
        self.memory.append(payload)
        self.sendings.append(Sending())
        return self.sendings[-1]

    def receive(self, place, timeout=None):
        if not self.script and timeout is not None:
            return None
        if not self.script:
            raise NothingComesError
        peer, header, payload = self.script.popleft()
        assert peer in self.peers
        if header.nbytes:
            memoryview(place(peer, header)).cast("B")[:] = payload
        self.events.append(("receive", peer, header))
        return peer, header
