"""The simulated carrier: all ranks in one process, under a virtual clock, from one seed.

::

    Simulation(4, Network(latency_s=1e-4), [Kill(2, at_s=0.5)], seed=7).run(program)

runs ``program(transport)`` for each of four ranks. It is the same blocking code that runs over MPI:
wherever it waits, another rank goes on. Between two waits a program takes no virtual time, so
compute time is what it sleeps for. No wall clock and no random state is read: the same seed gives
the same events, byte for byte.

Where this carrier is not MPI's: a message has left when it has left the sender's NIC, whether its
receiver listens or not, and ``exchange`` costs a latency for each doubling of the number of ranks,
whatever its bytes, jitter and faults.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn, TypeVar

from psgrad.errors import ConfigError, ProtocolError
from psgrad.messages import Header
from psgrad.transport import Buffer, Place, Sent, check_travelled
from psgrad.transport.carrier import Carrier, End
from psgrad.transport.clockwork import Clockwork, SimulationError, failure_of
from psgrad.transport.faults import Fault, Kill, Partition
from psgrad.transport.network import Network, Wires
from psgrad.transport.stall import explain
from psgrad.transport.trace import Event, Sink

T = TypeVar("T")

POLL_S: Final = 1e-6  # the least that a wait in vain takes: time must pass for who polls
READINGS: Final = 1_000_000  # of the clock between two waits: a loop that waits for time to pass


@dataclass(frozen=True)
class Group:
    """What ``subgroup`` returns to its members."""

    rank: int
    size: int


class Simulation:
    """``size`` ranks on a network, to be run once.

    ``stall_after_s`` is the virtual time that may pass without a message that arrives or a rank
    that ends, ``event_limit`` the number of events in a run. With ``trace``, every ``Event`` is
    kept in the attribute of that name, or handed to the sink that is given. ``order`` has, for some
    ranks, whose messages they receive, one after the other; what comes before its turn waits.
    ``hosts`` are the names of the ranks' machines: each has one of its own otherwise. Ranks of one
    machine share memory, if they want to; the network does not know it. Raises ``ConfigError`` for
    faults of ranks that there are not.
    """

    def __init__(
        self,
        size: int,
        network: Network | None = None,
        faults: Sequence[Fault] = (),
        seed: int = 0,
        *,
        stall_after_s: float = 3600.0,
        event_limit: int = 20_000_000,
        trace: bool | Sink = False,
        order: Mapping[int, Sequence[int]] | None = None,
        hosts: Sequence[str] = (),
    ) -> None:
        if size < 1:
            raise ConfigError(f"a simulation needs at least 1 rank, got {size}")
        for fault in faults:
            _check_ranks(fault, size)
        network = network or Network()
        self.trace: list[Event] = []
        sink = (self.trace.append if trace else None) if isinstance(trace, bool) else trace
        self._clock = Clockwork(size, stall_after_s, event_limit, lambda: explain(self._carrier))
        wires = Wires(network, faults, seed, size)
        self._carrier = Carrier(self._clock, wires, network.latency_s, sink)
        self._begun = False
        self._order = order or {}
        self._hosts = list(hosts) or [f"node{rank}" for rank in range(size)]
        self._kills = [fault for fault in faults if isinstance(fault, Kill)]

    @property
    def now_s(self) -> float:
        """The virtual time, in seconds from 0."""
        return self._clock.now_s

    @property
    def events(self) -> int:
        """How many events there were so far."""
        return self._clock.events

    @property
    def messages(self) -> int:
        """How many messages were sent so far."""
        return self._carrier.messages

    @property
    def killed(self) -> tuple[int, ...]:
        """The ranks that a fault has ended."""
        return tuple(rank.index for rank in self._clock.ranks if rank.killed)

    def run(self, program: Callable[[SimulatedTransport], T]) -> list[T | None]:
        """Runs ``program`` on every rank; what each returned, None for one that was killed.

        Raises ``RankError`` from the first exception of a rank or for its ``abort``,
        ``AliasingError`` for a payload that was changed under way, and ``StallError``, whose text
        says who waits for whom, where the run gets nowhere. Then and in the end, programs that
        have not returned unwind: their next call of the transport raises.
        """
        if self._begun:
            raise ConfigError("a simulation runs once; make another one with the same arguments")
        self._begun = True
        transports = [
            SimulatedTransport(
                self._carrier,
                end,
                [kill for kill in self._kills if kill.rank == end.rank.index],
                self._order.get(end.rank.index, ()),
                self._hosts[end.rank.index],
            )
            for end in self._carrier.ends
        ]
        return self._clock.run([partial(self._play, program, t) for t in transports])

    def _play(self, program: Callable[[SimulatedTransport], T], transport: SimulatedTransport) -> T:
        rank = self._clock.ranks[transport.rank]
        value = program(transport)
        self._clock.check(rank)
        self._carrier.note(rank, "end")
        # Nobody can tell a process that ends from one that dies.
        self._carrier.tell_lost(self._carrier.ends[rank.index])
        return value


class SimulatedTransport:
    """One rank's end, handed to its program by ``Simulation.run``. It keeps to ``Transport``.

    Beyond the contract it refuses what goes wrong over MPI without a word: a payload of another
    size than its header says, a peer that is connected to twice, a call after ``close``.
    """

    def __init__(
        self,
        carrier: Carrier,
        end: End,
        kills: Sequence[Kill] = (),
        order: Sequence[int] = (),
        host: str = "",
    ) -> None:
        self._carrier = carrier
        self._clock = carrier.clock
        self._end = end
        self._rank = end.rank
        self._calls = 0
        self._last_call = math.inf
        self._kills = kills
        self._take_kills(tolerated=False)
        self._readings = 0  # of the clock since it last waited
        self._ready: deque[tuple[int, Header]] = deque()
        self._order = deque(order)
        self._host = host

    @property
    def rank(self) -> int:
        return self._rank.index

    @property
    def size(self) -> int:
        return len(self._carrier.ends)

    @property
    def host(self) -> str:
        return self._host

    @property
    def cores(self) -> int:
        return 1

    def now(self) -> float:
        self._readings += 1
        if self._readings > READINGS:
            raise SimulationError(
                f"rank {self.rank} has read the clock {READINGS} times without a wait; no time "
                "passes by that, call sleep() or receive()"
            )
        return self._clock.now_s

    def sleep(self, seconds: float) -> None:
        """Lets ``seconds`` pass, at least ``POLL_S``."""
        self._begin(closed=self._end.closed)
        if not seconds >= 0:
            raise ValueError(f"sleep needs at least 0 seconds, got {seconds}")
        self._wait("sleep", self._clock.now_s + max(seconds, POLL_S))

    def exchange(self, blob: bytes) -> list[bytes]:
        self._begin()
        self._readings = 0
        return self._carrier.gather(self._end, "exchange", bytes(blob))

    def subgroup(self, ranks: Sequence[int]) -> Group | None:
        self._begin()
        self._readings = 0
        self._carrier.gather(self._end, "subgroup", b"")
        members = sorted(set(ranks))
        return Group(members.index(self.rank), len(members)) if self.rank in members else None

    def connect(self, peers: Sequence[int]) -> None:
        self._begin()
        end = self._end
        for peer in peers:
            if peer in end.hears:
                raise ProtocolError(f"rank {self.rank} connects to rank {peer} twice")
            end.hears.add(peer)
            if not self._carrier.ends[peer].rank.runs:
                self._carrier.tell(end, peer)
        unheard, end.unheard = end.unheard, []
        for message in unheard:
            (end.inbox if message.line.source in end.hears else end.unheard).append(message)

    def send(self, peer: int, header: Header, payload: Buffer | None = None) -> Sent:
        self._begin()
        return self._carrier.send(self._end, peer, header, payload)

    def flush(self) -> None:
        self._begin()
        while self._end.leaving:
            self._wait("flush")

    def receive(self, place: Place, timeout: float | None = None) -> tuple[int, Header] | None:
        """The next whole message; None when ``timeout`` seconds, at least ``POLL_S``, pass."""
        self._begin()
        while (message := self._next_in_order()) is None:
            if not self._end.inbox:
                wait_s = math.inf if timeout is None else max(timeout, POLL_S)
                if not self._wait("receive", self._clock.now_s + wait_s):
                    return None
            # As over MPI, all that is there gets its place before the first of it is returned.
            while self._end.inbox:
                self._take(place)
        return message

    def _next_in_order(self) -> tuple[int, Header] | None:
        """Of what is ready, the message whose turn it is."""
        if not self._order:
            return self._ready.popleft() if self._ready else None
        for i, (peer, _) in enumerate(self._ready):
            if peer == self._order[0]:
                message = self._ready[i]
                del self._ready[i]
                self._order.popleft()
                return message
        return None

    def tolerate(self) -> None:
        self._end.tolerant = True
        self._take_kills(tolerated=True)

    def drop(self, peer: int) -> None:
        end = self._end
        end.hears.discard(peer)
        end.lost.add(peer)
        end.inbox = deque(m for m in end.inbox if m.line.source != peer)
        self._ready = deque(message for message in self._ready if message[0] != peer)

    def forsake(self, peer: int) -> None:
        """Nothing to do: what has left here is sent, whether ``peer`` listens or not."""

    def leave(self, status: int) -> None:
        self._carrier.note(self._rank, "kill")
        self._carrier.tell_lost(self._end)
        self._clock.die(self._rank)

    def close(self, status: int = 0) -> None:
        self._begin()
        while self._end.leaving:
            self._wait("close")
        gone_s = self._carrier.flushed_s(self._end)
        if gone_s > self._clock.now_s:
            self._wait("close", gone_s)
        self._end.closed = True
        self._end.hears.clear()

    def abort(self, status: int) -> NoReturn:
        """Ends the run with the exception that is being handled, where there is one."""
        self._clock.check(self._rank)
        error = sys.exc_info()[1]
        failure = failure_of(self._rank, error, status)
        self._clock.fail(failure)
        raise failure

    def _take_kills(self, tolerated: bool) -> None:
        """This rank dies as its kills say whose time begins now."""
        for kill in self._kills:
            if kill.tolerated != tolerated:
                continue
            if kill.at_s is not None:
                self._clock.at(self._clock.now_s + kill.at_s, self._carrier.kill, self._end)
            if kill.call is not None:
                self._last_call = min(self._last_call, self._calls + kill.call)

    def _begin(self, closed: bool = False) -> None:
        """Each call that sends or waits begins here, and may not get further."""
        self._clock.check(self._rank)
        self._calls += 1
        if self._calls >= self._last_call:
            self._carrier.note(self._rank, "kill")
            self._carrier.tell_lost(self._end)
            self._clock.die(self._rank)
        if self._end.closed and not closed:
            raise ProtocolError(f"rank {self.rank} uses its transport after close()")

    def _wait(self, call: str, deadline_s: float = math.inf) -> bool:
        self._readings = 0
        return self._carrier.wait(self._end, call, deadline_s)

    def _take(self, place: Place) -> None:
        message = self._carrier.take(self._end)
        source, header = message.line.source, message.header
        if not message.is_notice:
            check_travelled(source, header)
        if header.nbytes:
            target = memoryview(place(source, header)).cast("B")
            if target.nbytes != header.nbytes:
                raise ProtocolError(
                    f"rank {source} announces {header.nbytes} bytes of {header.kind.name} "
                    f"where {target.nbytes} are expected"
                )
            target[:] = message.data
        self._ready.append((source, header))


def _check_ranks(fault: Fault, size: int) -> None:
    """Raises ``ConfigError`` for a rank that there is not."""
    if isinstance(fault, Partition):
        named = [*fault.ranks, *(fault.others or ())]
    elif isinstance(fault, Kill):
        named = [fault.rank]
    else:
        named = [rank for rank in (fault.of.source, fault.of.dest) if rank is not None]
    for rank in named:
        if not 0 <= rank < size:
            raise ConfigError(f"{fault!r}: ranks go from 0 to {size - 1}, got {rank}")
