"""A server program that may run elsewhere than on its own rank.

What a server does follows from its turns. So a second program that takes the same turns in the same
order is a replica of it: it holds the same parameters, and has said the same. What it says is kept
and not sent, until the rank of the first one has died.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from psgrad.checkpoint.writer import ToldWriter, Writer
from psgrad.errors import PsgradError
from psgrad.messages import Header, Kind, decode_json, encode_json
from psgrad.metrics import Sink
from psgrad.server import Server
from psgrad.transport import Buffer, Sent, Transport
from psgrad.transport.kept import Outgoing, is_behind, scratch
from psgrad.transport.over import Over
from psgrad.turns import Turn, What


class Carry(Protocol):
    """Sends a message of ``server`` to the rank or server ``peer``."""

    def __call__(
        self, server: int, peer: int, header: Header, payload: Buffer | None, /
    ) -> Sent: ...


class Voice:
    """What a server says to people; a replica says nothing."""

    def __init__(self, sink: Sink, warn: Callable[[str], None], live: bool) -> None:
        self.live = live
        self._sink = sink
        self._warn = warn

    def record(self, kind: str, **fields: Any) -> None:
        """As in ``Sink``."""
        if self.live:
            self._sink.record(kind, **fields)

    def log(self, text: str) -> None:
        """As in ``Sink``."""
        if self.live:
            self._sink.log(text)

    def warn(self, text: str) -> None:
        """Says what goes wrong."""
        if self.live:
            self._warn(text)


class End(Over):
    """The transport of the program of ``server``, over that of the rank that runs it.

    What goes to other servers is kept until they are known to have it, and so is all that a replica
    would have sent; ``carry`` is called only where it is ``live``.
    """

    def __init__(
        self, below: Transport, server: int, servers: int, live: bool, carry: Carry
    ) -> None:
        super().__init__(below)
        self.live = live
        self.kept: dict[int, Outgoing] = defaultdict(Outgoing)
        self.taken: dict[int, int] = defaultdict(int)  # of each peer: the last message in a turn
        self.dropped: set[int] = set()
        self._server = server
        self._servers = servers
        self._carry = carry

    @property
    def rank(self) -> int:
        """Of the server, whoever runs it."""
        return self._server

    def connect(self, peers: Sequence[int]) -> None:
        """Whoever runs it hears everybody."""

    def send(self, peer: int, header: Header, payload: Buffer | None = None) -> Sent:
        """As in ``Transport``."""
        header = header._replace(taken=self.taken[peer])
        if self.live and not self.is_server(peer):
            return self._carry(self._server, peer, header, payload)
        kept = self.kept[peer].keep(header, payload)
        if self.live:
            kept.sent = self._carry(self._server, peer, header, payload)
        return kept

    def is_server(self, peer: int) -> bool:
        """Whether ``peer`` is a server, too."""
        return peer < self._servers

    def drop(self, peer: int) -> None:
        """As in ``Transport``, for this server."""
        self.dropped.add(peer)
        self.kept[peer].clear()

    def forsake(self, peer: int) -> None:
        """As in ``Transport``; where servers have replicas, who was shut out does not come back."""
        self.drop(peer)


class Hosted:
    """A server program with what belongs to it; ``writers`` are those of its checkpoints."""

    def __init__(
        self, end: End, program: Server, writers: Sequence[ToldWriter[Any]], voice: Voice
    ) -> None:
        self.end = end
        self.program = program
        self.writers = writers
        self.last_s = end.now()
        """The time of the last turn."""
        self.came: dict[int, int] = defaultdict(int)
        """The number of the last message of each other server; its turn may be still to come."""
        self._voice = voice
        self._ahead_s = 0.0  # of this rank's time
        self._failed: PsgradError | None = None

    @property
    def server(self) -> int:
        """Which server it is."""
        return self.end.rank

    @property
    def is_writing(self) -> bool:
        """Whether a writer of this rank may have something to say."""
        return self.end.live and any(writer.busy for writer in self.writers)

    def due(self) -> Iterator[tuple[What, int, bytes | None]]:
        """What it is to take beside messages: what for, of which writer, with what."""
        for i, writer in enumerate(self.writers):
            result = writer.outcome()
            if result is not None:
                yield What.WRITTEN, i, encode_json(result)
        beat_s = self.program.beat_s
        if beat_s is not None and self.now() >= self.last_s + beat_s:
            yield What.TIME, 0, None

    def now(self) -> float:
        """The time as the server is to see it."""
        return self.end.now() + self._ahead_s

    def place(self, peer: int, header: Header) -> Buffer:
        """Where a payload is received; that of a server gets its place in its turn."""
        if peer in self.end.dropped or self.end.is_server(peer) or header.kind is Kind.LOST:
            return scratch(peer, header)
        return self.program.place(peer, header)

    def is_new(self, server: int, number: int) -> bool:
        """Whether a message of another server has not come before."""
        if number and is_behind(number, self.came[server]):
            return False
        self.came[server] = number or self.came[server]
        return True

    def take(self, turn: Turn) -> None:
        """Takes a turn. What a replica raises is raised where it is to go on for its server."""
        self.last_s = turn.at_s
        try:
            self._take(turn)
        except PsgradError as error:
            if self.end.live:
                raise
            self._failed = self._failed or error

    def _take(self, turn: Turn) -> None:
        peer, header = turn.peer, turn.header
        if turn.what is What.MESSAGE and header.kind is not Kind.LOST:
            self.end.kept[peer].known(header.taken)
            if header.number:
                self.end.taken[peer] = header.number
        if self.program.is_over or self._failed is not None:
            return
        if turn.what is What.WRITTEN:
            self.writers[peer].tell(decode_json(turn.payload or b""))
        if turn.what is not What.MESSAGE:
            reason = bytes(turn.payload or b"").decode() if turn.what is What.STOP else ""
            self.program.turn(None, turn.at_s, reason)
        elif peer not in self.end.dropped:
            if turn.payload is not None and self.end.is_server(peer):
                memoryview(self.program.place(peer, header)).cast("B")[:] = turn.payload
            self.program.turn((peer, header), turn.at_s)

    def go_live(self, writer: Callable[[], Writer[Any]]) -> None:
        """Its own rank has died: from now on it speaks. Raises what it has not said so far."""
        if self._failed is not None:
            raise self._failed
        self.end.live = self._voice.live = True
        self._ahead_s = self.last_s - self.end.now()
        self.program.forget_places()
        for mine in self.writers:
            mine.begin(writer())
