"""A worker's flat vectors, and what of them the servers of its node share.

Where worker and server are on one node, gradients and parameters need not travel: the server
reads the gradient where the worker has computed it, and in sync mode the worker reads parameters
where the server has updated them; messages are headers alone. That is safe because

- a gradient is used until its step is answered, and ``step``, or ``wait``, returns only then;
- no chunk of a worker's parameters can change before its next push, in sync mode.

In the other modes a worker copies parameters out, while updates go on. A stamp for each chunk, odd
during an update, says whether the copy is whole: it is when the stamp was even and is the same
afterwards. A worker that meets an update each time asks for a message. What is copied may be newer
than the answer says, never older.

What breaks the second, a push without a pull or leaving, gives the worker parameters of its own
first (``detach``). Its arrays stay what they are, address and all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from psgrad.layout import Chunk, Float32, Layout
from psgrad.options import Options
from psgrad.roles import Roles
from psgrad.transport.shared import IN_ORDER, Segment, SharingError, privatise

ITEM: Final = 4  # bytes of a float32
TRIES: Final = 3  # copies that may meet an update, before a message is asked for
LOOKS: Final = 500  # at a stamp, for the end of an update: some 50 us

Stamps: TypeAlias = NDArray[np.int64]


@dataclass
class WorkerMemory:
    """``params[n]`` and ``grads[n]``; ``detach`` is the only writer of the fields.

    ``takes`` are the servers that read ``grads``; ``source[n]`` has the parameters of those that
    share theirs, ``stamps[chunks]`` counts their updates. ``in_place``: ``params`` is a second view
    of that memory.
    """

    params: Float32
    grads: Float32
    takes: frozenset[int] = frozenset()
    source: Float32 | None = None
    stamps: Stamps | None = None
    in_place: bool = False

    @classmethod
    def private(cls, n: int) -> WorkerMemory:
        """Nothing is shared."""
        return cls(np.zeros(n, np.float32), np.zeros(n, np.float32))

    def detach(self) -> None:
        """From now on the parameters change only when they are received."""
        if self.in_place:
            self.params = privatise(self.params)
            self.in_place = False

    def received(self, chunk: Chunk) -> bool:
        """A server says that its parameters are up to date: takes them over, if that can be done.

        False where each of ``TRIES`` copies met an update; ``params`` has nonsense there then.
        """
        if self.in_place or self.source is None:
            return True
        here = slice(chunk.start, chunk.stop)
        if self.stamps is None:
            np.copyto(self.params[here], self.source[here])
            return True
        for _ in range(TRIES):
            before = _look(self.stamps, chunk.index)
            np.copyto(self.params[here], self.source[here])
            if before % 2 == 0 and self.stamps[chunk.index] == before:
                return True
        return False


def _look(stamps: Stamps, chunk: int) -> int:
    """The stamp of a chunk, when the update that is under way is over, if that is soon."""
    stamp = 1
    for _ in range(LOOKS):
        stamp = int(stamps[chunk])
        if stamp % 2 == 0:
            break
    return stamp


@dataclass(frozen=True)
class Wishes:
    """What may be shared in a run, between which ranks."""

    grads: bool
    params: bool

    @classmethod
    def of(cls, options: Options) -> Wishes:
        """Payloads of codecs are small and go by message.

        Stamps need a processor that keeps its stores, and its loads, in order.
        """
        wanted, codecs = options.shared_memory != "off", options.compression
        whole = options.staleness == 0 or IN_ORDER
        return cls(wanted and codecs.push is None, wanted and codecs.pull is None and whole)


class Place(NamedTuple):
    """Parameters in shared memory: ``params[n]``, then ``stamps[chunks]`` where there are any."""

    params: Float32
    stamps: Stamps | None

    @classmethod
    def nbytes(cls, layout: Layout, options: Options) -> int:
        """Bytes of the segment."""
        return _stamps_start(layout) + 8 * _stamps(layout, options)

    @classmethod
    def of(cls, segment: Segment, layout: Layout, options: Options) -> Place:
        """The arrays in a segment of ``nbytes``."""
        start, count = _stamps_start(layout), _stamps(layout, options)
        stamps = segment.data[start:].view(np.int64) if count else None
        return cls(segment.data[: ITEM * layout.size].view(np.float32), stamps)


def _stamps_start(layout: Layout) -> int:
    return -(-ITEM * layout.size // 8) * 8


def _stamps(layout: Layout, options: Options) -> int:
    """How many: in sync mode there is no update while a worker reads."""
    return len(layout.chunks(options.chunk_bytes)) if options.staleness != 0 else 0


def leader(roles: Roles, rank: int) -> int | None:
    """The server that makes the segment of parameters on the node of ``rank``: its first one.

    None where that node has no server, or no worker.
    """
    here = [r for r in range(roles.size) if roles.hosts and roles.same_node(r, rank)]
    servers = [r for r in here if roles.is_server(r)]
    return servers[0] if servers and len(servers) < len(here) else None


class Offer:
    """What a worker offers to the servers of its node, and what comes of it.

    ``handle`` is that of the servers' parameters, if they gave one.
    """

    def __init__(
        self, layout: Layout, options: Options, roles: Roles, rank: int, handle: str | None
    ) -> None:
        self.problem = ""
        """Why something is not shared that was to be."""
        self.servers: list[int] = []
        """To whom it is made."""
        self._layout = layout
        self._options = options
        self._n = layout.size
        self._all_servers = set(roles.server_ranks)
        self._handle: str | None = None
        self._grads: Segment | None = None
        self._params: list[Place] = []
        wishes = Wishes.of(options)
        if not roles.hosts or not self._n:
            return
        try:
            if wishes.grads:
                self._grads = Segment.create(ITEM * self._n)
            if wishes.params and handle is not None:
                # One to read in place, one to copy from when that may not be any more.
                self._params = [self._attach(handle) for _ in range(2)]
                self._handle = handle
        except SharingError as error:
            self.problem = str(error)
        if self._grads is not None or self._handle is not None:
            self.servers = [s for s in roles.server_ranks if roles.same_node(s, rank)]

    def record(self) -> dict[str, Any]:
        """The message to each of ``servers``."""
        return {"grads": self._grads.handle if self._grads else None, "params": self._handle}

    def settle(self, accepted: Iterable[int], trains_all: bool) -> WorkerMemory:
        """The memory to use, where the servers ``accepted`` have taken the offer.

        ``trains_all``: this worker is in every round of every chunk.
        """
        servers = frozenset(accepted)
        if self._grads is not None:
            self._grads.close()  # whoever is to read it has it
        memory = WorkerMemory.private(self._n)
        if self._grads is not None and servers:
            memory.grads, memory.takes = self._grads.data.view(np.float32), servers
        if self._params and servers:
            in_place, (memory.source, memory.stamps) = self._params
            if trains_all and servers == self._all_servers and memory.stamps is None:
                memory.params, memory.in_place = in_place.params, True
        return memory

    def _attach(self, handle: str) -> Place:
        """Parameters that a server writes."""
        nbytes = Place.nbytes(self._layout, self._options)
        segment = Segment.attach(handle, nbytes, writable=False)
        return Place.of(segment, self._layout, self._options)


class ServerSharing:
    """What a server shares with the workers of its node."""

    def __init__(self, options: Options, roles: Roles, rank: int) -> None:
        self.place: Place | None = None
        """The flat vector in shared memory, of which this server has its chunks."""
        self.handle: str | None = None
        """Of that segment, where this server has made it."""
        self.readers: set[int] = set()
        """Workers that read parameters there."""
        self._options = options
        self._wishes = Wishes.of(options)
        self._leads = leader(roles, rank) == rank
        self._grads: dict[int, Float32] = {}
        self._segment: Segment | None = None

    def open(self, layout: Layout) -> str:
        """Makes the segment of parameters, where this server is to; returns why it could not."""
        if not (self._leads and self._wishes.params and layout.size):
            return ""
        try:
            segment = Segment.create(Place.nbytes(layout, self._options))
        except SharingError as error:
            return str(error)
        self.place, self.handle = Place.of(segment, layout, self._options), segment.handle
        self._segment = segment
        return ""

    def close(self) -> None:
        """The run is over: lets nobody in any more."""
        if self._segment is not None:
            self._segment.close()

    def accept(self, worker: int, layout: Layout, grads: str | None, params: str | None) -> None:
        """Takes the offer of ``worker``; raises ``SharingError`` where it cannot be reached."""
        if grads is not None:
            segment = Segment.attach(grads, ITEM * layout.size, writable=False)
            self._grads[worker] = segment.data.view(np.float32)
        if params is not None:
            if self.place is None:
                nbytes = Place.nbytes(layout, self._options)
                segment = Segment.attach(params, nbytes, writable=True)
                self.place = Place.of(segment, layout, self._options)
            self.readers.add(worker)

    def forget(self, worker: int) -> None:
        """``worker`` is gone; who comes in its place may be elsewhere."""
        self.readers.discard(worker)
        self._grads.pop(worker, None)

    def grads_of(self, worker: int) -> Float32 | None:
        """The flat gradient of ``worker``, in its memory."""
        return self._grads.get(worker)
