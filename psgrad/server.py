"""The server's program: receive -> shard -> reply, until every worker is done."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from psgrad.coordinator import Coordinator, Outcome
from psgrad.errors import ProtocolError
from psgrad.layout import Float32, Layout, assign, balance, difference
from psgrad.messages import (
    CONTROL_LIMIT,
    HEADER_NBYTES,
    Header,
    Kind,
    Verdict,
    decode_json,
    encode_json,
)
from psgrad.metrics import Sink
from psgrad.roles import Roles
from psgrad.shard import Counters, Reply, Rules, Shard
from psgrad.transport import Buffer, Sent, Transport

CHUNK_KINDS: Final = frozenset({Kind.INIT, Kind.PUSH, Kind.STEP})


@dataclass
class Traffic:
    """Bytes with their headers, as they cross the transport."""

    bytes_pushed: int = 0
    bytes_pulled: int = 0


class Server:
    """One server rank. Rank 0 is the coordinator too."""

    def __init__(
        self,
        transport: Transport,
        roles: Roles,
        rules: Rules,
        chunk_bytes: int,
        run: int,
        sink: Sink,
    ) -> None:
        self._transport = transport
        self._roles = roles
        self._rules = rules
        self._chunk_bytes = chunk_bytes
        self._run = run
        self._sink = sink
        self._running = set(range(roles.workers))
        self._coordinator = Coordinator.of(self._running) if transport.rank == 0 else None
        self._layouts: dict[int, Layout] = {}
        self._digest = 0
        self._shard: Shard | None = None
        self._balance = 1.0
        self._traffic = Traffic()
        # Payloads that have a place and are not delivered yet, oldest first, by rank.
        self._placed: dict[int, deque[Buffer]] = defaultdict(deque)
        self._free: dict[int, list[Float32]] = defaultdict(list)  # gradient memory by elements
        self._copies: list[tuple[Sent, Float32]] = []

    def serve(self) -> None:
        """Answers until the main of every worker has returned."""
        self._transport.connect(list(self._roles.worker_ranks))
        while self._running:
            message = self._transport.receive(self._place)
            assert message is not None, "receive without a timeout returns a message"
            peer, header = message
            payload = self._placed[peer].popleft() if header.nbytes else None
            self._handle(header, payload)
        if self._shard is not None and (blocked := self._shard.blocked()):
            raise ProtocolError("the run ended with unanswered messages: " + "; ".join(blocked))

    def _place(self, peer: int, header: Header) -> Buffer:
        """Memory for a payload, after a look at every field that it depends on."""
        if header.run != self._run:
            raise ProtocolError(f"rank {peer} sends for run {header.run:x}, not {self._run:x}")
        if header.kind in CHUNK_KINDS:
            memory: Buffer = self._chunk_memory(peer, header)
        elif header.nbytes <= CONTROL_LIMIT:
            memory = bytearray(header.nbytes)
        else:
            raise ProtocolError(f"rank {peer} announces a control message of {header.nbytes} bytes")
        self._placed[peer].append(memory)
        return memory

    def _chunk_memory(self, peer: int, header: Header) -> Float32:
        if self._shard is None or header.chunk not in self._shard.chunks:
            raise ProtocolError(f"rank {peer} pushes chunk {header.chunk}, which is not here")
        if header.layout != self._digest:
            raise ProtocolError(f"rank {peer} pushes with another layout")
        chunk = self._shard.chunks[header.chunk].chunk
        if header.nbytes != chunk.nbytes:
            raise ProtocolError(
                f"rank {peer} pushes {header.nbytes} bytes to chunk {chunk.index} "
                f"of {chunk.nbytes} bytes"
            )
        free = self._free[chunk.size]
        return free.pop() if free else np.zeros(chunk.size, np.float32)

    def _handle(self, header: Header, payload: Any) -> None:
        kind, worker = header.kind, header.worker
        if kind is Kind.REGISTER:
            self._layouts[worker] = Layout.from_json(bytes(payload).decode())
            self._register_if_all_came()
        elif kind is Kind.MEET:
            self._meet(header, payload)
        elif kind is Kind.STATS:
            self._send(worker, header._replace(kind=Kind.STATS_ARE), encode_json(self._stats()))
        elif kind is Kind.FINISH:
            self._finish(worker)
        elif self._shard is None:
            raise ProtocolError(f"worker {worker} sends {kind.name} before its registration")
        else:
            self._serve_chunk(self._shard, header, payload)

    def _serve_chunk(self, shard: Shard, header: Header, payload: Float32 | None) -> None:
        if header.kind in CHUNK_KINDS:
            self._traffic.bytes_pushed += HEADER_NBYTES + header.nbytes
        for reply in shard.handle(header, payload):
            self._reply(reply)
        if header.kind is Kind.LEAVE:
            self._sink.log(f"worker {header.worker} left at clock {header.clock}")
            self._send(header.worker, header._replace(kind=Kind.LEFT))

    def _reply(self, reply: Reply) -> None:
        if reply.released is not None:
            self._free[reply.released.size].append(reply.released)
        header, params = reply.header, reply.params
        self._traffic.bytes_pulled += HEADER_NBYTES + header.nbytes
        peer = self._roles.rank_of(header.worker)
        if params is None or reply.stable:
            self._transport.send(peer, header, params)
        else:
            copy = self._copy(params)
            self._copies.append((self._transport.send(peer, header, copy), copy))

    def _copy(self, params: Float32) -> Float32:
        """A snapshot that a later update cannot change while it is being sent."""
        for i, (sent, memory) in enumerate(self._copies):
            if memory.size == params.size and sent.done():
                del self._copies[i]
                np.copyto(memory, params)
                return memory
        return params.copy()

    def _register_if_all_came(self) -> None:
        if self._shard is not None or not self._layouts or not self._running <= set(self._layouts):
            return
        first, *others = sorted(self._layouts)
        problems = [
            f"worker {w} {text}, as on worker {first}"
            for w in others
            if (text := difference(self._layouts[first], self._layouts[w])) is not None
        ]
        if problems:
            text = "parameters differ between workers: " + problems[0]
            for worker in sorted(self._layouts):
                refused = Header(Kind.REGISTERED, Verdict.REFUSED, self._run, worker=worker)
                self._send(worker, refused, encode_json({"error": text}))
            return
        self._open_shard(self._layouts[first])
        for worker in sorted(self._layouts):
            header = Header(Kind.REGISTERED, Verdict.APPLIED, self._run, self._digest, worker)
            self._send(worker, header, encode_json({"initial": first}))

    def _open_shard(self, layout: Layout) -> None:
        chunks = layout.chunks(self._chunk_bytes)
        owner = assign(chunks, self._roles.servers)
        mine = [chunk for chunk in chunks if owner[chunk.index] == self._transport.rank]
        self._balance = balance(chunks, owner, self._roles.servers)
        self._digest = layout.digest
        # A worker that was done before it registered never pushes: nobody waits for it.
        self._shard = Shard(layout, mine, sorted(self._layouts), self._rules)
        self._sink.log(
            f"shard of {sum(chunk.nbytes for chunk in mine)} bytes in {len(mine)} of "
            f"{len(chunks)} chunks, balance (max/mean over servers) {self._balance:.3f}"
        )

    def _meet(self, header: Header, payload: Any) -> None:
        if self._coordinator is None:
            raise ProtocolError("only the coordinator takes a rendezvous")
        part = decode_json(payload)
        self._send_outcomes(self._coordinator.meet(header.worker, header.sequence, part))

    def _finish(self, worker: int) -> None:
        self._running.discard(worker)
        self._sink.log(f"worker {worker} is done")
        self._register_if_all_came()
        if self._coordinator is not None:
            self._send_outcomes(self._coordinator.finish(worker))

    def _send_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            header = Header(
                Kind.MET, run=self._run, worker=outcome.worker, sequence=outcome.sequence
            )
            self._send(outcome.worker, header, encode_json(outcome.result))

    def _send(self, worker: int, header: Header, payload: bytes = b"") -> None:
        peer = self._roles.rank_of(worker)
        self._transport.send(peer, header._replace(nbytes=len(payload)), payload or None)

    def _stats(self) -> dict[str, Any]:
        counters = self._shard.counters if self._shard is not None else Counters()
        return {**asdict(counters), **asdict(self._traffic), "balance": self._balance}
