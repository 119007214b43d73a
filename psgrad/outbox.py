"""What a server sends: each message with its number, parameters as the worker reads them."""

from __future__ import annotations

import numpy as np

from psgrad.chunk_state import Reply
from psgrad.messages import HEADER_NBYTES, Flag, Header
from psgrad.numbering import Numbering
from psgrad.options import Options
from psgrad.params_encoder import Memory, ParamsEncoder
from psgrad.pools import SnapshotPool
from psgrad.record import Recorder
from psgrad.roles import Roles
from psgrad.seats import Seats
from psgrad.sharing import ServerSharing
from psgrad.transport import Buffer, Sent, Transport


class Outbox:
    """All that one server sends goes through here."""

    def __init__(
        self,
        transport: Transport,
        roles: Roles,
        seats: Seats,
        options: Options,
        numbering: Numbering,
        sharing: ServerSharing,
        recorder: Recorder | None,
    ) -> None:
        self.bytes_pulled = 0
        """Of answers about chunks, with their headers."""
        self._transport = transport
        self._seats = seats
        self._numbering = numbering
        self._sharing = sharing
        self._recorder = recorder
        self._snapshots = SnapshotPool()
        elsewhere = [
            rank
            for rank in range(roles.servers, roles.size)
            if not roles.same_node(rank, transport.rank)
        ]
        self._encoder = ParamsEncoder(options.compression.pull, options.seed, bool(elsewhere))

    def tell(self, worker: int, header: Header, payload: bytes = b"") -> None:
        """Sends a control message to ``worker``, if it is in the run."""
        seat = self._seats.holder(worker)
        if seat is not None:
            header = header._replace(incarnation=seat.incarnation, nbytes=len(payload))
            self.post(self._seats.rank_of(worker), header, payload or None)

    def post(self, peer: int, header: Header, payload: Buffer | None = None) -> Sent:
        """Sends a message to the rank ``peer``; ``payload`` stays as it is until it is gone."""
        number = self._numbering.next(peer)
        return self._transport.send(peer, header._replace(number=number), payload)

    def answer(self, reply: Reply) -> None:
        """Sends what a shard has answered, unless nobody asked, or who asked is out of the run."""
        seat = self._seats.holder(reply.header.worker)
        is_out = seat is None or seat.incarnation != reply.header.incarnation
        if reply.header.flags & Flag.QUIET or is_out:
            return
        header, payload = self._encoder.encode(reply)
        if payload is not None and self._is_read_there(reply):
            self.bytes_pulled += payload.nbytes
            header, payload = header._replace(flags=Flag.SHARED, nbytes=0), None
        self.bytes_pulled += HEADER_NBYTES + header.nbytes
        peer = self._seats.rank_of(header.worker)
        if self._recorder is not None:
            self._recorder.answered(peer, header)
        if payload is None or reply.stable:
            self.post(peer, header, payload)
        else:
            self._post_copy(peer, header, payload)

    def _post_copy(self, peer: int, header: Header, payload: Memory) -> None:
        memory = self._snapshots.memory(payload.nbytes)
        copy = memory[: payload.nbytes]
        np.copyto(copy, payload.view(np.uint8))
        self._snapshots.sent(self.post(peer, header, copy), memory)

    def _is_read_there(self, reply: Reply) -> bool:
        """Whether the worker takes the parameters from shared memory."""
        if reply.header.worker not in self._sharing.readers:
            return False
        if reply.stable:
            return True
        # A copy may be newer than this answer, and a replay of the run could not tell.
        stamped = self._sharing.place is not None and self._sharing.place.stamps is not None
        return stamped and self._recorder is None and not reply.header.flags & Flag.BY_MESSAGE
