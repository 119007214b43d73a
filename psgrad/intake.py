"""What comes to a server: each header is looked at before there is memory for its payload."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from psgrad.chunk_state import ChunkState
from psgrad.codecs import Codec
from psgrad.errors import ProtocolError
from psgrad.messages import CONTROL_LIMIT, NO_RATE, Flag, Header, Kind
from psgrad.numbering import Numbering
from psgrad.pools import GradientPool
from psgrad.roles import Roles
from psgrad.seats import Seat, Seats
from psgrad.transport import Buffer

PUSH_KINDS: Final = frozenset({Kind.PUSH, Kind.STEP})
CHUNK_KINDS: Final = frozenset({Kind.INIT, Kind.PUSH, Kind.STEP})
SERVER_KINDS: Final = frozenset(
    {Kind.WRITTEN, Kind.EVICTED, Kind.COMPLETE, Kind.COMMIT, Kind.ASK, Kind.ADMIT}
)
"""What servers alone send, to each other; beside it they say that they are done."""
COORDINATOR_KINDS: Final = frozenset({Kind.EVICTED, Kind.COMMIT, Kind.ASK, Kind.ADMIT})
EVERYONES_KINDS: Final = frozenset({Kind.FINISH, Kind.STOP, Kind.DOING})
"""What servers and workers send to a server."""
OUTSIDE_KINDS: Final = frozenset({Kind.JOIN, Kind.REGISTER, Kind.ALIVE, Kind.STOP, Kind.DOING})
"""What a rank that is no worker sends."""


class Intake:
    """Where payloads are received, and which messages are new. ``push`` is the codec of pushes."""

    def __init__(
        self,
        roles: Roles,
        seats: Seats,
        run: int,
        push: Codec | None,
        gradients: GradientPool,
        numbering: Numbering,
    ) -> None:
        self.repeated = 0
        """How many messages came once more."""
        self.fenced = 0
        """How many messages came of workers that are out of the run."""
        self._roles = roles
        self._seats = seats
        self._run = run
        self._push = push
        self._gradients = gradients
        self._numbering = numbering
        self._chunks: Mapping[int, ChunkState] = {}
        self._digest = 0
        # Payloads that have a place, of the pool or not, and are not delivered yet, by rank.
        self._placed: dict[int, deque[tuple[Buffer, bool]]] = defaultdict(deque)

    def open(self, chunks: Mapping[int, ChunkState], digest: int) -> None:
        """From now on ``chunks`` of the layout with this digest may come."""
        self._chunks, self._digest = chunks, digest

    def take(self, peer: int, header: Header) -> tuple[bool, Any]:
        """A whole message has come: whether it is new, and its payload, if it has one."""
        self._check_sender(peer, header)
        _check_rate(peer, header)
        if header.kind is Kind.STATE and not header.nbytes:
            raise ProtocolError(
                f"rank {peer} sends state of chunk {header.chunk} without a payload"
            )
        payload = self._placed[peer].popleft()[0] if header.nbytes else None
        new = self._numbering.take(peer, header.number)
        self.repeated += not new
        is_past = self._is_past(peer, header)
        self.fenced += new and is_past
        return new and not is_past, payload

    def place(self, peer: int, header: Header) -> Buffer:
        """Memory for a payload, after a look at every field that it depends on."""
        self._check_sender(peer, header)
        encoded = header.flags & Flag.ENCODED
        if encoded and (header.kind not in PUSH_KINDS or self._push is None):
            raise ProtocolError(f"rank {peer} sends {header.kind.name} with an encoded payload")
        new = False
        if header.kind is Kind.STATE:
            memory: Buffer = self._row_memory(peer, header)
        elif header.kind in CHUNK_KINDS:
            new = self._numbering.is_new(peer, header.number)
            # What comes once more, or too late, is received, because it is on its way, and not
            # looked at.
            new = new and not self._is_past(peer, header)
            memory = self._chunk_memory(peer, header, new)
        elif header.nbytes <= CONTROL_LIMIT:
            memory = bytearray(header.nbytes)
        else:
            raise ProtocolError(f"rank {peer} announces a control message of {header.nbytes} bytes")
        self._placed[peer].append((memory, new))
        return memory

    def forget(self, peer: int) -> None:
        """``peer`` is gone: what had a place will not come."""
        self._gradients.forget(sum(lent for _, lent in self._placed.pop(peer, ())))

    def fence(self, peer: int) -> None:
        """``peer`` is out of the run: what had a place may come, and is not looked at."""
        placed = self._placed.pop(peer, deque())
        self._gradients.forget(sum(lent for _, lent in placed))
        self._placed[peer].extend((memory, False) for memory, _ in placed)

    def _is_past(self, peer: int, header: Header) -> bool:
        if self._roles.is_server(peer):
            return False
        if header.kind is Kind.JOIN and self._seats.seat_of(peer) is None:
            return False  # who was shut out asks for a place
        return self._seats.is_past(peer, header.incarnation)

    def forget_places(self) -> None:
        """What has a place and was not taken will come once more."""
        for peer in list(self._placed):
            self.forget(peer)
            self._numbering.forget_seen(peer)

    def _check_sender(self, peer: int, header: Header) -> None:
        seat = self._seats.seat_of(peer)
        as_ever = seat == (header.worker, header.incarnation) and header.kind not in SERVER_KINDS
        if as_ever and header.run == self._run:
            return
        if header.run != self._run:
            raise ProtocolError(f"rank {peer} sends for run {header.run:x}, not {self._run:x}")
        if self._roles.is_server(peer):
            leads = peer == 0 or header.kind not in COORDINATOR_KINDS
            if not leads or header.kind not in SERVER_KINDS | EVERYONES_KINDS:
                raise ProtocolError(f"server {peer} sends {header.kind.name} to a server")
            return
        if header.kind in SERVER_KINDS:
            raise ProtocolError(f"rank {peer} sends {header.kind.name}, which servers send alone")
        if self._is_past(peer, header):
            return
        if seat is None and header.kind not in OUTSIDE_KINDS:
            raise ProtocolError(f"rank {peer} sends {header.kind.name} and is no worker")
        if seat is not None and Seat(header.worker, header.incarnation) != seat:
            raise ProtocolError(
                f"rank {peer} sends as worker {header.worker}, incarnation {header.incarnation}; "
                f"it is worker {seat.worker}, incarnation {seat.incarnation}"
            )

    def _row_memory(self, peer: int, header: Header) -> Buffer:
        """Memory for the part of a worker's own state that belongs to a chunk."""
        if header.chunk not in self._chunks or header.layout != self._digest:
            raise ProtocolError(f"rank {peer} sends state of chunk {header.chunk}, not here")
        chunk = self._chunks[header.chunk].chunk
        if header.nbytes != chunk.nbytes:
            raise ProtocolError(
                f"rank {peer} sends {header.nbytes} bytes of state for chunk {chunk.index} "
                f"of {chunk.nbytes} bytes"
            )
        return np.empty(chunk.size, np.float32)

    def _chunk_memory(self, peer: int, header: Header, new: bool) -> Buffer:
        if header.chunk not in self._chunks:
            raise ProtocolError(f"rank {peer} pushes chunk {header.chunk}, which is not here")
        if header.layout != self._digest:
            raise ProtocolError(f"rank {peer} pushes with another layout")
        chunk, codec = self._chunks[header.chunk].chunk, self._push
        if header.flags & Flag.ENCODED and header.kind is not Kind.INIT and codec is not None:
            limit = codec.nbytes_max(chunk.size)
            if header.nbytes > limit:
                raise ProtocolError(
                    f"rank {peer} pushes {header.nbytes} bytes of {codec.name} to chunk "
                    f"{chunk.index}, the limit is {limit}"
                )
            if not new:
                return bytearray(header.nbytes)
            return self._gradients.payload(chunk.size, codec, header.nbytes)
        if header.nbytes != chunk.nbytes:
            raise ProtocolError(
                f"rank {peer} pushes {header.nbytes} bytes to chunk {chunk.index} "
                f"of {chunk.nbytes} bytes"
            )
        return self._gradients.bare(chunk.size) if new else bytearray(header.nbytes)


def _check_rate(peer: int, header: Header) -> None:
    """A learning rate that is no number would be in every parameter from then on."""
    if header.rate != NO_RATE and not 0 <= header.rate < math.inf:
        raise ProtocolError(
            f"rank {peer} sends {header.kind.name} with learning rate {header.rate}, which must be "
            f"finite and at least 0, or {NO_RATE:g} for none"
        )
