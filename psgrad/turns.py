"""What a server takes, one thing after the other; and how its replica is told of it.

A turn travels as two messages: a ``REPLICATE`` with the header that it is about, and, where that
has a payload, a ``PAYLOAD`` straight from and to the memory where the servers use it.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from psgrad.errors import ProtocolError
from psgrad.messages import HEADER_NBYTES, Header, Kind
from psgrad.transport import Buffer, Place
from psgrad.transport.kept import scratch

NOTHING: Final = Header(Kind.LOST)  # of a turn that is about no message
NUMBERS: Final = 1 << 32


class What(enum.IntEnum):
    """What a turn is for."""

    MESSAGE = 0
    TIME = 1  # nothing has come for a while
    WRITTEN = 2  # a writer is done: ``peer`` says which one, the payload with what
    STOP = 3  # this rank was asked to stop the run: the payload says by what


@dataclass(frozen=True)
class Turn:
    """One turn: a message of the rank ``peer``, or what else there is.

    ``at_s`` is the time as the server is to see it; ``number`` counts turns, from 0 to 2^32 - 1 and
    on from 0.
    """

    what: What
    at_s: float
    peer: int = 0
    header: Header = NOTHING
    payload: Buffer | None = None
    number: int = 0

    def messages(self, run: int) -> Iterator[tuple[Header, Buffer]]:
        """What a replica is sent. The payload must stay as it is until that has it."""
        nbytes = 0 if self.payload is None else memoryview(self.payload).nbytes
        head = Header(
            Kind.REPLICATE,
            run=run,
            worker=self.peer,
            chunk=int(self.what),
            version=nbytes,
            rate=self.at_s,
            nbytes=HEADER_NBYTES,
            sequence=self.number,
        )
        yield head, self.header.encode()
        if nbytes:
            yield (
                Header(Kind.PAYLOAD, run=run, nbytes=nbytes, sequence=self.number),
                self.payload,
            )


class Arriving:
    """Turns on their way to the replica of the server on rank ``peer``, in order.

    What comes twice is received, because it is on its way, and not looked at.
    """

    def __init__(self, peer: int) -> None:
        self._peer = peer
        # Of what is received: heads and payloads, the oldest first.
        self._heads: deque[tuple[Header, bytearray]] = deque()
        self._payloads: deque[Buffer] = deque()
        self._last: tuple[Header, bytearray] | None = None  # the newest head
        self._wanted = False  # whether its payload has no place yet
        self._taken = 0  # turns whose head has been taken
        self._open: Turn | None = None  # its payload has not been taken

    def place(self, header: Header, place: Place) -> Buffer:
        """Where the payload of a message is received; ``place`` has that of the turn's."""
        if header.kind is Kind.REPLICATE:
            return self._place_head(header)
        if self._last is None:
            raise ProtocolError(f"server {self._peer} replicates a payload of no turn")
        head, memory = self._last
        if not self._wanted or header.sequence != head.sequence:
            payload: Buffer = scratch(self._peer, header)
        elif header.nbytes != head.version:
            raise ProtocolError(
                f"server {self._peer} replicates {header.nbytes} bytes where {head.version} were "
                "announced"
            )
        elif head.chunk == What.MESSAGE:
            # A header that comes with its message lies there before the next one is looked at.
            payload = place(head.worker, Header.decode(memory))
            self._wanted = False
        else:
            payload = scratch(self._peer, header)
            self._wanted = False
        self._payloads.append(payload)
        return payload

    def take(self, header: Header) -> Turn | None:
        """A message has come whole: the turn that is complete by that, if one is."""
        if header.kind is Kind.PAYLOAD:
            payload, turn = self._payloads.popleft(), self._open
            if turn is None or turn.number != header.sequence:
                return None
            self._open = None
            return replace(turn, payload=payload)
        if not header.nbytes:
            raise ProtocolError(f"server {self._peer} replicates a turn without a header")
        head, memory = self._heads.popleft()
        if head.sequence != self._taken % NUMBERS:
            return None
        if self._open is not None or head.chunk not in tuple(What):
            raise ProtocolError(f"server {self._peer} replicates turn {head.sequence} in part")
        self._taken += 1
        turn = Turn(
            What(head.chunk), head.rate, head.worker, Header.decode(memory), None, head.sequence
        )
        if head.version:
            self._open = turn
            return None
        return turn

    def _place_head(self, header: Header) -> Buffer:
        if header.nbytes != HEADER_NBYTES:
            raise ProtocolError(f"server {self._peer} replicates a header of {header.nbytes} bytes")
        memory = bytearray(HEADER_NBYTES)
        self._heads.append((header, memory))
        expected = 0 if self._last is None else (self._last[0].sequence + 1) % NUMBERS
        if header.sequence == expected:
            self._last, self._wanted = (header, memory), header.version > 0
        return memory
