"""What is under way in a simulated run: messages between ranks' ends, and collective calls.

A message is copied when it is sent, and its memory compared when it has left the sender's NIC. Who
changes a payload that is under way is found out there; the receiver gets what was sent.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from psgrad.errors import ProtocolError
from psgrad.messages import HEADER_NBYTES, Header, Kind
from psgrad.transport import Buffer
from psgrad.transport.clockwork import Clockwork, Rank, SimulationError
from psgrad.transport.network import Line, Wires
from psgrad.transport.trace import Event, Sink

NOTICE: Final = -1  # the number of the message that says so, which nobody has sent
POLLS: Final = 1_000_000  # of one message: no program asks that often if it ever waits


class AliasingError(SimulationError):
    """A payload changed between ``send`` and ``Sent.done()``."""


@dataclass(slots=True, eq=False)
class Message:
    """One message, from ``send`` to ``receive``; what ``send`` returns."""

    number: int
    line: Line
    header: Header
    data: bytes  # the payload as it was sent
    memory: memoryview | None  # where it lies until it has left
    left_s: float = 0.0
    fate: str = "is under way"
    polls: int = 0

    @property
    def nbytes(self) -> int:
        """Its size on the wire."""
        return HEADER_NBYTES + len(self.data)

    @property
    def is_notice(self) -> bool:
        """Whether it is this carrier's own: somebody is gone."""
        return self.number == NOTICE

    def done(self) -> bool:
        """Whether the payload's memory may be written again."""
        if self.memory is None:
            return True
        self.polls += 1
        if self.polls > POLLS:
            raise SimulationError(
                f"rank {self.line.source} has asked {POLLS} times whether a message to rank "
                f"{self.line.dest} is done; no time passes by asking, call sleep() or flush()"
            )
        return False

    def text(self) -> str:
        """It and its fate, for people."""
        h = self.header
        return (
            f"{h.kind.name} of worker {h.worker}, chunk {h.chunk}, clock {h.clock}, "
            f"{h.nbytes} bytes, {self.fate}"
        )


@dataclass(slots=True, eq=False)
class End:
    """One rank's end of the carrier, as the carrier sees it."""

    rank: Rank
    hears: set[int] = field(default_factory=set)
    inbox: deque[Message] = field(default_factory=deque)
    unheard: list[Message] = field(default_factory=list)  # of peers that it has not connected to
    lines: dict[int, Line] = field(default_factory=dict)
    last: dict[int, Message] = field(default_factory=dict)  # to each peer
    leaving: int = 0  # payloads that lie in its memory
    gathered: int = 0  # collective calls so far
    closed: bool = False
    tolerant: bool = False
    lost: set[int] = field(default_factory=set)  # peers of whom nothing is taken any more


@dataclass(eq=False)
class Gathering:
    """A collective call: who has come with what."""

    call: str
    blobs: dict[int, bytes] = field(default_factory=dict)


class Carrier:
    """The messages of all ranks."""

    def __init__(self, clock: Clockwork, wires: Wires, latency_s: float, sink: Sink | None) -> None:
        self.messages = 0
        self.ends = [End(rank) for rank in clock.ranks]
        self.gatherings: dict[int, Gathering] = {}
        self.clock = clock
        self._wires = wires
        self._sink = sink
        self._gathering_s = latency_s * math.ceil(math.log2(len(self.ends)))

    def send(self, end: End, peer: int, header: Header, payload: Buffer | None) -> Message:
        """Starts a message. Raises ``ProtocolError`` where header and payload do not fit."""
        line = end.lines.get(peer)
        if line is None:
            line = self._new_line(end, peer)
        if payload is None or (header.nbytes == 0 and memoryview(payload).nbytes == 0):
            memory, data = None, b""
        else:
            memory = memoryview(payload)
            if not memory.c_contiguous:
                raise ProtocolError(f"rank {end.rank.index} sends memory that is not contiguous")
            data = memory.tobytes()
        if len(data) != header.nbytes:
            raise ProtocolError(
                f"rank {end.rank.index} announces {header.nbytes} bytes of {header.kind.name} "
                f"to rank {peer} and sends {len(data)}"
            )
        clock = self.clock
        header = Header.decode(header.encode())  # as it would come out of a wire
        message = Message(self.messages, line, header, data, memory)
        self.messages += 1
        journey = self._wires.send(line, message.nbytes, header.kind, clock.now_s)
        message.left_s = journey.left_s
        end.last[peer] = message
        if memory is not None:
            end.leaving += 1
            clock.at(journey.left_s, self._leave, message)
        for enters_s in (journey.enters_s, *journey.again_s):
            if enters_s < math.inf:
                clock.at(enters_s, self._enter, message)
            else:
                message.fate = "is held back for ever"
        if self._sink is not None:
            self._tell(message, "send", line.source, journey.starts_s, journey.left_s)
        return message

    def flushed_s(self, end: End) -> float:
        """When all that ``end`` has sent so far will have left."""
        return self._wires.idle_s(end.rank.index)

    def take(self, end: End) -> Message:
        """The next message of the inbox."""
        message = end.inbox.popleft()
        message.fate = "was taken"
        if self._sink is not None:
            self._tell(message, "take", end.rank.index)
        return message

    def wait(self, end: End, call: str, deadline_s: float = math.inf) -> bool:
        """``Clockwork.wait``, on record."""
        start_s = self.clock.now_s
        woken = self.clock.wait(end.rank, call, deadline_s)
        if self._sink is not None:
            now_s = self.clock.now_s
            self._sink(Event(now_s, end.rank.index, call, start_s=start_s, end_s=now_s))
        return woken

    def note(self, rank: Rank, what: str) -> None:
        """Puts something on record that happens to ``rank`` now."""
        if self._sink is not None:
            self._sink(Event(self.clock.now_s, rank.index, what))

    def gather(self, end: End, call: str, blob: bytes) -> list[bytes]:
        """Waits until all ranks have come to their same collective call; what each brought."""
        number = end.gathered
        end.gathered += 1
        gathering = self.gatherings.setdefault(number, Gathering(call))
        if gathering.call != call:
            others = ", ".join(map(str, gathering.blobs))
            raise ProtocolError(
                f"rank {end.rank.index} calls {call}() where rank {others} called "
                f"{gathering.call}(); all ranks must make the same collective calls"
            )
        gathering.blobs[end.rank.index] = blob
        if len(gathering.blobs) == len(self.ends):
            self.clock.at(self.clock.now_s + self._gathering_s, self._gathered, number)
        self.wait(end, call)
        return [gathering.blobs[rank] for rank in range(len(self.ends))]

    def _new_line(self, end: End, peer: int) -> Line:
        if not 0 <= peer < len(self.ends):
            raise ProtocolError(
                f"rank {end.rank.index} sends to rank {peer}, ranks go from 0 to "
                f"{len(self.ends) - 1}"
            )
        line = end.lines[peer] = self._wires.line(end.rank.index, peer)
        return line

    def _leave(self, message: Message) -> None:
        end = self.ends[message.line.source]
        if message.memory is None or end.rank.killed:
            return
        dead = self.ends[message.line.dest].rank.killed  # nobody gets it
        if message.memory.tobytes() != message.data and not dead:
            raise AliasingError(
                f"rank {message.line.source} has changed a payload on its way to rank "
                f"{message.line.dest} ({message.text()}); wait for Sent.done() or flush(), or "
                "send a copy"
            )
        message.memory = None
        end.leaving -= 1
        if not end.leaving and end.rank.waits_in in ("flush", "close"):
            self.clock.wake(end.rank)

    def _enter(self, message: Message) -> None:
        if self._is_cut_off(message):
            return
        now_s = self.clock.now_s
        begins_s, arrives_s = self._wires.enter(message.line, message.nbytes, now_s)
        self.clock.at(arrives_s, self._arrive, message)
        if self._sink is not None:
            self._tell(message, "enter", message.line.dest, begins_s, arrives_s)

    def _arrive(self, message: Message) -> None:
        end = self.ends[message.line.dest]
        if self._is_cut_off(message):
            return
        if end.closed or not end.rank.runs or message.line.source in end.lost:
            self._lose(message, "came when nobody heard it any more")
            return
        self.clock.moved()
        message.fate = "has arrived"
        if self._sink is not None:
            self._tell(message, "arrive", end.rank.index)
        if message.line.source not in end.hears:
            end.unheard.append(message)
            return
        end.inbox.append(message)
        if end.rank.waits_in == "receive":
            self.clock.wake(end.rank)

    def kill(self, end: End) -> None:
        """Called by an event: a rank never goes on."""
        if end.rank.runs:
            self.note(end.rank, "kill")
            self.clock.kill(end.rank)
            self.tell_lost(end)

    def tell_lost(self, gone: End) -> None:
        """A rank has died or ended: those that hear it will know, a little later."""
        for end in self.ends:
            self.tell(end, gone.rank.index)

    def tell(self, end: End, peer: int) -> None:
        """``end`` will know a little later that ``peer`` has died."""
        if self.ends[peer].tolerant:
            when_s = self._wires.noticed_s(end.rank.index, peer, self.clock.now_s)
            self.clock.at(when_s, self._notice, (end, peer))

    def _notice(self, what: tuple[End, int]) -> None:
        end, peer = what
        deaf = end.closed or not end.rank.runs or not end.tolerant
        if deaf or peer not in end.hears or peer in end.lost:
            return
        end.lost.add(peer)
        line = self.ends[peer].lines.get(end.rank.index)
        line = line or self._new_line(self.ends[peer], end.rank.index)
        end.inbox.append(Message(NOTICE, line, Header(Kind.LOST), b"", None))
        if end.rank.waits_in == "receive":
            self.clock.wake(end.rank)

    def _is_cut_off(self, message: Message) -> bool:
        """Whether the sender was killed before the last byte had left."""
        sender = self.ends[message.line.source].rank
        if not sender.killed or sender.ended_s >= message.left_s:
            return False
        self._lose(message, "was lost with its sender")
        return True

    def _lose(self, message: Message, fate: str) -> None:
        message.fate = fate
        if self._sink is not None:
            self._tell(message, "lost", message.line.dest)

    def _gathered(self, number: int) -> None:
        for rank in self.clock.ranks:
            if rank.runs and self.ends[rank.index].gathered == number + 1:
                self.clock.wake(rank)
        del self.gatherings[number]

    def _tell(
        self, message: Message, what: str, rank: int, start_s: float = 0.0, end_s: float = 0.0
    ) -> None:
        assert self._sink is not None, "the caller has looked"
        line = message.line
        peer = line.dest if rank == line.source else line.source
        now_s = self.clock.now_s
        self._sink(Event(now_s, rank, what, peer, message.header, message.number, start_s, end_s))
