"""A worker's flat vectors, and what of them the servers of its node share.

Where worker and server are on one node, gradients and parameters need not travel: the server
reads the gradient where the worker has computed it, and in sync mode the worker reads parameters
where the server has updated them; messages are headers alone. That is safe because

- a gradient is used until its step is answered, and ``step`` returns only then;
- no chunk of a worker's parameters can change before its next push, in sync mode.

What breaks the second, a push without a pull or leaving, gives the worker parameters of its own
first (``detach``). Its arrays stay what they are, address and all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from psgrad.layout import Float32, Layout
from psgrad.options import Options
from psgrad.roles import Roles
from psgrad.transport.shared import Segment, SharingError, privatise

ITEM: Final = 4  # bytes of a float32


@dataclass
class WorkerMemory:
    """``params[n]`` and ``grads[n]``; ``detach`` is the only writer of the fields.

    ``takes`` are the servers that read ``grads``; ``source[n]`` has the parameters of those that
    share theirs. ``in_place``: ``params`` is a second view of that memory.
    """

    params: Float32
    grads: Float32
    takes: frozenset[int] = frozenset()
    source: Float32 | None = None
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

    def received(self, start: int, stop: int) -> None:
        """A server says that its parameters are up to date: takes them over."""
        if not self.in_place and self.source is not None:
            np.copyto(self.params[start:stop], self.source[start:stop])


@dataclass(frozen=True)
class Wishes:
    """What may be shared in a run, between which ranks."""

    grads: bool
    params: bool

    @classmethod
    def of(cls, options: Options) -> Wishes:
        """Payloads of codecs are small and go by message; other modes' parameters do as well."""
        wanted, codecs = options.shared_memory != "off", options.compression
        return cls(
            wanted and codecs.push is None,
            wanted and codecs.pull is None and options.staleness == 0,
        )


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
        self._n = layout.size
        self._all_servers = set(roles.server_ranks)
        self._handle: str | None = None
        self._grads: Segment | None = None
        self._params: list[Float32] = []
        wishes = Wishes.of(options)
        if not roles.hosts or not self._n:
            return
        try:
            if wishes.grads:
                self._grads = Segment.create(ITEM * self._n)
            if wishes.params and handle is not None:
                # One to read in place, one to copy from when that may not be any more.
                self._params = [_attach(handle, self._n) for _ in range(2)]
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
            in_place, memory.source = self._params
            if trains_all and servers == self._all_servers:
                memory.params, memory.in_place = in_place, True
        return memory


def _attach(handle: str, n: int) -> Float32:
    """float32[n] that a server writes."""
    return Segment.attach(handle, ITEM * n, writable=False).data.view(np.float32)


class ServerSharing:
    """What a server shares with the workers of its node."""

    def __init__(self, options: Options, roles: Roles, rank: int) -> None:
        self.params: Float32 | None = None
        """The flat vector in shared memory, of which this server has its chunks."""
        self.handle: str | None = None
        """Of that segment, where this server has made it."""
        self.readers: set[int] = set()
        """Workers that read parameters there."""
        self._wishes = Wishes.of(options)
        self._leads = leader(roles, rank) == rank
        self._grads: dict[int, Float32] = {}
        self._segment: Segment | None = None

    def open(self, layout: Layout) -> str:
        """Makes the segment of parameters, where this server is to; returns why it could not."""
        if not (self._leads and self._wishes.params and layout.size):
            return ""
        try:
            segment = Segment.create(ITEM * layout.size)
        except SharingError as error:
            return str(error)
        self.params, self.handle = segment.data.view(np.float32), segment.handle
        self._segment = segment
        return ""

    def close(self) -> None:
        """The run is over: lets nobody in any more."""
        if self._segment is not None:
            self._segment.close()

    def accept(self, worker: int, layout: Layout, grads: str | None, params: str | None) -> None:
        """Takes the offer of ``worker``; raises ``SharingError`` where it cannot be reached."""
        nbytes = ITEM * layout.size
        if grads is not None:
            segment = Segment.attach(grads, nbytes, writable=False)
            self._grads[worker] = segment.data.view(np.float32)
        if params is not None:
            if self.params is None:
                segment = Segment.attach(params, nbytes, writable=True)
                self.params = segment.data.view(np.float32)
            self.readers.add(worker)

    def grads_of(self, worker: int) -> Float32 | None:
        """The flat gradient of ``worker``, in its memory."""
        return self._grads.get(worker)
