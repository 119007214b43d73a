"""A worker's links to the servers: a window of unanswered chunks for each, one inbox for the rest.

The window is what keeps messages from piling up at a server: a worker that has ``window`` chunks
unanswered there takes in answers before it sends the next. All workers send chunks in one
canonical order, so a window smaller than a step cannot deadlock a round.
"""

from __future__ import annotations

import math
import traceback
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from psgrad import control
from psgrad.codecs import DIFFERENCES
from psgrad.codecs.base import Bytes, Codec, add_into, write_into
from psgrad.codecs.wire import seal
from psgrad.cuts import Announcement, Markers
from psgrad.errors import FencedError, ProtocolError, RankLostError
from psgrad.layout import Float32
from psgrad.messages import CONTROL_LIMIT, HEADER_NBYTES, Flag, Header, Kind, Verdict, encode_json
from psgrad.numbering import Numbering
from psgrad.preemption import WATCH_S, Preemption
from psgrad.record import Recorder
from psgrad.roles import Roles
from psgrad.seats import Seat
from psgrad.transport import Buffer, Transport
from psgrad.watchdog import Watchdog

OUTDATED_NBYTES: Final = 1 << 30  # MPI counts in 32 bits; chunks have no more
TIMED_NBYTES: Final = 64 << 10  # a pull of less is latency
CARRYING: Final = frozenset(
    {Kind.REGISTERED, Kind.PARAMS, Kind.MET, Kind.STATS_ARE, Kind.SHARED, Kind.STOPPED}
)
"""What servers send with a payload."""


WORDS: Final = MappingProxyType(
    {
        Kind.REGISTERED: "waits until all workers have registered their parameters",
        Kind.SHARED: "waits until a server has taken its memory over",
        Kind.MET: "waits for other workers at mean() or barrier()",
        Kind.STATS_ARE: "waits for the servers' counters",
        Kind.LEFT: "waits until the servers know that it pushes no more",
        Kind.STOPPED: "waits until the last checkpoint is safe",
    }
)
"""What a worker is doing that waits for such a message."""


@dataclass
class Answered:
    """What the last answers said; ``ServerLinks`` is the writer."""

    rate: float = math.nan  # effective learning rate, before segment scales
    version: int = 0  # updates that the chunk has had
    staleness: int = 0  # steps ahead of the slowest worker, of the last pull


class ServerLinks:
    """All of one worker's traffic."""

    def __init__(
        self,
        transport: Transport,
        roles: Roles,
        run: int,
        window: int,
        pull: Codec | None = None,
        recorder: Recorder | None = None,
        markers: Markers | None = None,
        seat: Seat | None = None,
        numbering: Numbering | None = None,
    ) -> None:
        """``seat`` is which worker this is, None as at the start. With ``numbering``, the links are
        those that this rank has had before."""
        self.stopped: control.Stopped | None = None
        """Why the run has stopped, once the coordinator says so."""
        self.awaiting: Kind | None = None
        """The control message that this worker waits for."""
        self.watchdog: Watchdog | None = None
        """Writes the stack of a process down that is elsewhere for too long."""
        self.preemption: Preemption | None = None
        """What this rank is told from outside."""
        self.beat_s: float | None = None
        """How often the coordinator is to hear of a worker that waits; None: never."""
        self.answered = Answered()
        self.markers = Markers() if markers is None else markers
        """Of checkpoints; what the coordinator announces comes in here."""
        self.awaited: set[int] = set()
        """Chunks of an ended step whose parameters have not come."""
        self.is_sound = True
        """Whether servers have found all chunks of an open step finite; who reads it resets it."""
        self.wire_nbytes = 0
        self.link_rate = 0.0
        """Bytes a second that came in during the last large pull; 0 before there was one."""
        self._received = 0  # bytes of answers about chunks
        self._transport = transport
        self._roles = roles
        self._servers = list(roles.server_ranks)
        seat = Seat(roles.worker_of(transport.rank)) if seat is None else seat
        self._worker, self._incarnation = seat
        self._run = run
        self._window = window  # chunks that may be unanswered at one server
        self._pull = pull  # what encoded parameters are to be opened with
        self._unanswered = dict.fromkeys(self._servers, 0)
        self._requested: dict[int, Header] = {}  # the last one of each server
        self._expected: set[int] = set()  # chunks whose parameters come without a request
        # Memory of payloads under way that is not the parameters' own, oldest first.
        self._placed: dict[int, deque[Bytes]] = {rank: deque() for rank in self._servers}
        self._inbox: deque[tuple[Header, bytes]] = deque()
        self._params_of: Callable[[int], Float32] | None = None
        self._take_shared: Callable[[int], int] | None = None
        self._first_values: Callable[[int], None] | None = None
        self._wanted: list[int] = []  # chunks of which a server wants them, of this worker
        self._parting: set[int] | None = None  # servers that do not know yet that this worker ends
        self._recorder = recorder
        self._numbering = Numbering() if numbering is None else numbering
        self._asked = False  # whether the coordinator was asked to stop the run
        self._silent_s = 0.0  # how long it has heard nothing, while this worker waits
        self._held: dict[int, int] = {}  # chunk -> version of the reference that lies in its memory
        if numbering is None:
            transport.connect(self._servers)

    def receive_params_into(
        self, params_of: Callable[[int], Float32], take_shared: Callable[[int], int]
    ) -> None:
        """``params_of(chunk)`` is the memory that the parameters of a chunk are received into.

        ``take_shared(chunk)`` takes over those that lie in shared memory, and says how many bytes;
        0 where it could not: then they are asked for by message.
        """
        self._params_of, self._take_shared = params_of, take_shared

    def give_first_values(self, give: Callable[[int], None] | None) -> None:
        """``give(chunk)`` sends the first values of a chunk, whose giver has died; None: all have
        them."""
        self._first_values = give
        while give is not None and self._wanted:
            give(self._wanted.pop())

    def part(self, words: bytes | None = None) -> None:
        """Tells every server that this worker's main has returned, and waits until they know.

        One that is gone need not know.
        """
        self._parting = set(self._servers)
        self.tell_all(Header(Kind.FINISH), words)
        while self._parting:
            self._take_one()

    def request(self, server: int, header: Header, payload: Buffer | None = None) -> None:
        """Sends a message about a chunk, when the window has room for it."""
        while not self.has_room(server):
            self._take_one()
        self._unanswered[server] += 1
        self._requested[server] = header
        if header.chunk in self._held and header.kind in (Kind.PULL, Kind.STEP):
            flags = header.flags | Flag.HELD
            header = header._replace(version=self._held[header.chunk], flags=flags)
        if header.flags & Flag.ENCODED and not self._roles.same_node(self._transport.rank, server):
            seal(np.asarray(payload))
        self.tell(server, header, payload)

    def tell(self, server: int, header: Header, payload: Buffer | None = None) -> None:
        """Sends a control message, which no window counts."""
        nbytes = 0 if payload is None else memoryview(payload).nbytes
        self.wire_nbytes += HEADER_NBYTES + nbytes
        number = self._numbering.next(server)
        header = header._replace(
            run=self._run,
            worker=self._worker,
            incarnation=self._incarnation,
            nbytes=nbytes,
            number=number,
        )
        self._transport.send(server, header, payload)

    def tell_all(self, header: Header, payload: Buffer | None = None) -> None:
        """``tell`` to every server."""
        for server in self._servers:
            self.tell(server, header, payload)

    def ask_all(
        self, header: Header, answer: Kind, payload: Buffer | None = None
    ) -> list[tuple[Header, bytes]]:
        """``tell_all``, then waits for one control message of kind ``answer`` from each."""
        self.tell_all(header, payload)
        return self.await_each(answer)

    def await_each(self, kind: Kind) -> list[tuple[Header, bytes]]:
        """Waits for one control message of ``kind`` from each server."""
        return [self.await_control(kind) for _ in self._servers]

    def expect(self, chunks: Collection[int]) -> None:
        """The parameters of ``chunks`` will come without a further request.

        They take no room in a window: their servers have all that they need of this worker, and
        what others send of them may have to wait for what this one has not sent.
        """
        self._expected.update(chunks)
        self.awaited.update(chunks)

    def await_answers(self) -> None:
        """Waits until nothing is unanswered."""
        while not self.idle:
            self._take_one()

    def has_room(self, server: int) -> bool:
        """Whether ``request`` would send at once.

        While others may wait for this worker's marker, always: answers may have to wait for them.
        """
        return self._unanswered[server] < self._window or self.markers.asked

    @property
    def has_control(self) -> bool:
        """Whether ``await_control`` would return at once."""
        return bool(self._inbox)

    def take(self) -> None:
        """Waits for one message, and takes it."""
        self._take_one()

    def drive(self) -> None:
        """Lets messages go on their way, and takes those that have come, without waiting."""
        while self._take_one(0.0):
            pass

    @property
    def idle(self) -> bool:
        """Whether nothing is unanswered."""
        return not self._expected and not any(self._unanswered.values())

    def timed(self, pull: Callable[[], None]) -> None:
        """Runs ``pull``, which sends requests without a payload and waits for all answers.

        Nothing else is under way, so the time that a large one takes says what the links carry.
        """
        start, before = self._transport.now(), self._received
        pull()
        seconds, nbytes = self._transport.now() - start, self._received - before
        if nbytes >= TIMED_NBYTES and seconds > 0:
            self.link_rate = nbytes / seconds

    def await_control(self, kind: Kind) -> tuple[Header, bytes]:
        """Waits for the next control message, which must be of ``kind``."""
        self.awaiting = kind
        while not self._inbox:
            self._take_one()
        self.awaiting = None
        header, payload = self._inbox.popleft()
        if header.kind is not kind:
            raise ProtocolError(f"expected {kind.name}, got {header.kind.name}")
        return header, payload

    def await_left(self) -> None:
        """Waits until all servers have said that this worker has left; drops what else they say."""
        self.awaiting = Kind.LEFT
        for _ in self._servers:
            while not self._inbox or self._inbox.popleft()[0].kind is not Kind.LEFT:
                self._take_one()

    @property
    def doing(self) -> str:
        """What this worker is doing, as far as its links know."""
        if self.awaiting is not None:
            return WORDS[self.awaiting]
        counts = {server: n for server, n in self._unanswered.items() if n}
        if counts:
            what = [
                f"{n} of server {server}, the last is chunk {self._requested[server].chunk} at "
                f"clock {self._requested[server].clock}"
                for server, n in counts.items()
            ]
            return f"waits for answers about chunks: {'; '.join(what)}"
        if self._expected:
            return f"waits for the parameters of {len(self._expected)} chunks"
        return "computes, or waits for something else"

    def look_outside(self) -> None:
        """This worker is in psgrad: tells the coordinator where it was asked to stop."""
        if self.watchdog is not None:
            self.watchdog.alive()
        if self.preemption is not None and self.preemption.reason:
            self.ask_to_stop(f"{self.preemption.reason} at rank {self._transport.rank}")

    def ask_to_stop(self, reason: str) -> None:
        """Asks the coordinator, once, to stop the run."""
        if not self._asked:
            self._asked = True
            self.tell(0, Header(Kind.STOP), encode_json({"reason": reason}))

    def _take_one(self, timeout: float | None = None) -> bool:
        """Takes a message; False where none came within ``timeout`` seconds."""
        patience_s = self._patience_s if timeout is None else timeout
        message = self._transport.receive(self._place, patience_s)
        while message is None:
            if timeout is not None:
                return False
            self._look_up(patience_s or 0.0)
            message = self._transport.receive(self._place, patience_s)
        server, header = message
        if header.kind is Kind.MOVED:
            self._placed[server].clear()
            self._numbering.forget_seen(server)
            return True
        if header.kind is Kind.LOST and self._parting is not None:
            self._parting.discard(server)
            return True
        if header.kind is Kind.LOST:
            raise RankLostError(
                f"rank {server} ({self._roles.name(server)}, {self._roles.host(server)}) is gone, "
                "and its part of the parameters with it; go on from the newest checkpoint: psgrad "
                "run --restarts does"
            )
        self.wire_nbytes += HEADER_NBYTES + header.nbytes
        new = self._numbering.take(server, header.number)
        if header.incarnation < self._incarnation:  # for what this rank was before
            return True
        if not new:
            if header.nbytes:
                self._placed[server].popleft()
            return True
        if self._recorder is not None:
            self._recorder.took(server, header)
        if header.flags & Flag.SHARED and header.kind is Kind.PARAMS and not self._read(header):
            again = Header(
                Kind.PULL,
                layout=header.layout,
                segment=header.segment,
                chunk=header.chunk,
                clock=header.clock,
                flags=Flag.BY_MESSAGE,
            )
            self.tell(server, again)  # as unanswered as what it stands for
        elif header.kind is Kind.FENCED:
            raise FencedError(
                f"worker {self._worker} was silent for longer than its lease and is shut out; call "
                "worker.alive() in long computations, or give it a longer lease"
            )
        elif header.kind is Kind.PLACE:
            raise FencedError(
                f"worker {self._worker} would come in when others have ended their steps already"
            )
        elif header.kind is Kind.LEFT and self._parting is not None:
            self._parting.discard(server)
        elif header.kind is Kind.INIT:
            self._wanted.append(header.chunk)
            self.give_first_values(self._first_values)
        elif header.kind is Kind.CUT:
            last = bool(header.flags & Flag.LAST)
            self.markers.announced = Announcement(header.sequence, header.clock, last)
        elif header.kind is Kind.ASK:
            stack = traceback.format_stack()
            said = {"doing": self.doing, "stack": stack[:-1], "view": None}
            self.tell(0, Header(Kind.DOING, sequence=self._transport.rank), encode_json(said))
        elif header.kind is Kind.STOPPED:
            self.stopped = control.stopped(self._placed[server].popleft())
        elif header.kind is Kind.RECEIVED:
            self._count_answer(server, header)
            self.is_sound &= header.verdict is not Verdict.SKIPPED
        elif header.kind in (Kind.ACK, Kind.PARAMS):
            if header.kind is Kind.PARAMS and header.chunk in self._expected:
                self._expected.remove(header.chunk)
            else:
                self._count_answer(server, header)
            self._received += HEADER_NBYTES + header.nbytes
            self.answered.rate, self.answered.version = header.rate, header.version
            if header.kind is Kind.PARAMS:
                self._take_params(server, header)
        else:
            payload = self._placed[server].popleft().tobytes() if header.nbytes else b""
            self._inbox.append((header, payload))
        return True

    @property
    def _patience_s(self) -> float | None:
        """How long this worker waits for a message before it looks up."""
        if self.preemption is None:
            return self.beat_s
        return WATCH_S if self.beat_s is None else min(WATCH_S, self.beat_s)

    def _look_up(self, waited_s: float) -> None:
        """Nothing has come for a while: what is to be done meanwhile."""
        self.look_outside()
        self._silent_s += waited_s
        if self.beat_s is not None and self._silent_s >= self.beat_s:
            self._silent_s = 0.0
            self.tell(0, Header(Kind.ALIVE))  # who waits is not dead

    def _count_answer(self, server: int, header: Header) -> None:
        if not self._unanswered[server]:
            raise ProtocolError(
                f"server {server} sends {header.kind.name} of chunk {header.chunk}, which nothing "
                "has asked for"
            )
        self._unanswered[server] -= 1

    def _read(self, header: Header) -> bool:
        """Parameters are in shared memory: takes them over; whether that went well."""
        assert self._take_shared is not None, "a server answers after the registration"
        nbytes = self._take_shared(header.chunk)
        self.wire_nbytes += nbytes
        return nbytes > 0

    def _take_params(self, server: int, header: Header) -> None:
        self.awaited.discard(header.chunk)
        self.answered.staleness = max(0, header.clock - header.slowest)
        if header.flags & Flag.ENCODED and header.nbytes:
            self._decode(header.chunk, self._placed[server].popleft())
        if header.flags & Flag.HELD:
            self._held[header.chunk] = header.version
        else:
            self._held.pop(header.chunk, None)

    def _place(self, server: int, header: Header) -> Buffer:
        if header.kind not in CARRYING:
            raise ProtocolError(f"server {server} sends {header.kind.name} with a payload")
        new = self._numbering.is_new(server, header.number)
        if header.incarnation < self._incarnation:
            return outdated(server, header)
        if new and header.kind is Kind.PARAMS and not header.flags & Flag.ENCODED:
            return self._params(header.chunk)
        limit = CONTROL_LIMIT
        if header.kind is Kind.PARAMS and header.flags & Flag.ENCODED and self._pull is not None:
            limit = self._pull.nbytes_max(self._params(header.chunk).size)
        if header.nbytes > limit:
            raise ProtocolError(
                f"server {server} announces {header.nbytes} bytes of {header.kind.name}, "
                f"the limit is {limit}"
            )
        memory = np.empty(header.nbytes, np.uint8)
        self._placed[server].append(memory)
        return memory

    def _params(self, chunk: int) -> Float32:
        if self._params_of is None:
            raise ProtocolError(f"parameters of chunk {chunk} came before they were registered")
        return self._params_of(chunk)

    def _decode(self, chunk: int, payload: Bytes) -> None:
        if self._pull is None:
            raise ProtocolError("encoded parameters came, but this run has no pull codec")
        params = self._params(chunk)
        opened = self._pull.open(payload, params.size)
        if self._pull.name in DIFFERENCES:
            add_into(opened, params)
        else:
            write_into(opened, params)


def outdated(server: int, header: Header) -> Buffer:
    """Memory for a payload that nobody looks at: it is for what this rank was before."""
    if header.nbytes > OUTDATED_NBYTES:
        raise ProtocolError(
            f"server {server} announces {header.nbytes} bytes of {header.kind.name}, the limit is "
            f"{OUTDATED_NBYTES}"
        )
    return bytearray(header.nbytes)
