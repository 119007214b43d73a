"""The simulated network: when each message leaves, enters and arrives.

A message of n bytes, its header among them, goes through three queues, each first in, first out:

1. the sender's NIC, which it holds for n / nic_bandwidth;
2. its link (sender to receiver), whose far end it holds for n / bandwidth, from a latency after it
   got the NIC;
3. the receiver's NIC, which it holds for n / nic_bandwidth, from when it got the link's far end.

So alone it takes latency + n / (the smaller bandwidth): bytes are passed on as they come. Many
messages into one rank, or out of it, share its NIC; those in do not share with those out. A NIC
takes messages whole, one after the other, in the order of their first bytes. Within the network
there is no other limit: switches have enough of everything.

Jitter multiplies the latency of each message by a number from [1, 1 + jitter). No message overtakes
another of its link, whatever jitter and faults say: it waits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from psgrad.errors import ConfigError
from psgrad.kernels.hashing import stream
from psgrad.messages import Kind
from psgrad.transport.faults import Delay, Drop, Duplicate, Fault, Messages, Partition

JITTER: Final = 1 << 32  # in the key of a number: what it is drawn for; a fault has its position
NOTICED: Final = JITTER + 1

# Until a rank's death is known elsewhere: what was measured with Open MPI, on one host and not.
NOTICED_S: Final = (5e-3, 50e-3)
LATE: Final = 20  # times as long, now and then
LATE_SHARE: Final = 0.1


@dataclass(frozen=True)
class Link:
    """Latency and bandwidth of the links from ``source`` to ``dest``; None is every rank."""

    latency_s: float
    bandwidth: float  # bytes/s
    source: int | None = None
    dest: int | None = None

    def __post_init__(self) -> None:
        _check(self, "latency_s", self.latency_s, 0 <= self.latency_s < math.inf)
        _check(self, "bandwidth", self.bandwidth, self.bandwidth > 0)


@dataclass(frozen=True)
class Network:
    """Latency in seconds, bandwidths in bytes a second, jitter relative to the latency.

    ``nic_bandwidth`` None: a NIC is as fast as ``bandwidth``. ``links`` are exceptions; of those
    that fit the first counts. A bandwidth may be infinite. Raises ``ConfigError``.
    """

    latency_s: float = 20e-6
    bandwidth: float = 1.25e9
    jitter: float = 0.0
    nic_bandwidth: float | None = None
    links: tuple[Link, ...] = ()

    def __post_init__(self) -> None:
        Link(self.latency_s, self.bandwidth)
        _check(self, "jitter", self.jitter, 0 <= self.jitter < math.inf)
        _check(self, "nic_bandwidth", self.nic_rate, self.nic_rate > 0)

    @property
    def nic_rate(self) -> float:
        """Bytes a second into, and out of, one rank."""
        return self.bandwidth if self.nic_bandwidth is None else self.nic_bandwidth

    def link(self, source: int, dest: int) -> Link:
        """What the messages from ``source`` to ``dest`` travel over."""
        for link in self.links:
            if link.source in (None, source) and link.dest in (None, dest):
                return link
        return Link(self.latency_s, self.bandwidth)


@dataclass(eq=False)
class Line:
    """One link in use: what it knows of its messages so far."""

    source: int
    dest: int
    link: Link
    sent: int = 0
    clear_s: float = 0.0  # when the last message so far will have come out at the far end
    key: int = field(init=False)

    def __post_init__(self) -> None:
        self.key = self.source << 32 | self.dest


class Journey(NamedTuple):
    """When a message starts to leave, has left, and enters the receiver's NIC."""

    starts_s: float
    left_s: float
    enters_s: float  # infinite: never
    again_s: tuple[float, ...]  # the same of its duplicates


class Wires:
    """All NICs of a run, and its faults. Numbers are keyed by (seed, what for, link, message)."""

    def __init__(self, network: Network, faults: Sequence[Fault], seed: int, size: int) -> None:
        self._network = network
        self._nic_rate = network.nic_rate
        self._out_free_s = [0.0] * size
        self._in_free_s = [0.0] * size
        self._seed = seed
        self._jitter_key = stream(seed, JITTER, 0)
        self._late = [(i, f) for i, f in enumerate(faults) if isinstance(f, Delay | Drop)]
        self._doubled = [(i, f) for i, f in enumerate(faults) if isinstance(f, Duplicate)]
        partitions = [fault for fault in faults if isinstance(fault, Partition)]
        self._partitions = sorted(partitions, key=lambda fault: fault.start_s)
        self._faulty = bool(self._late or self._doubled or partitions)

    def line(self, source: int, dest: int) -> Line:
        """A link that has not been used."""
        return Line(source, dest, self._network.link(source, dest))

    def idle_s(self, rank: int) -> float:
        """When the last message so far has left ``rank``."""
        return self._out_free_s[rank]

    def noticed_s(self, rank: int, peer: int, now_s: float) -> float:
        """When ``rank`` knows that ``peer`` has died now: each learns it by itself.

        Across a partition nobody does before it heals.
        """
        key = stream(self._seed, NOTICED, rank)
        least_s, most_s = NOTICED_S
        noticed_s = least_s + (most_s - least_s) * _uniform(key, peer, 0)
        noticed_s *= LATE if _uniform(key, peer, 1) < LATE_SHARE else 1
        return self._heal_s(peer, rank, now_s) + noticed_s

    def send(self, line: Line, nbytes: int, kind: Kind, now_s: float) -> Journey:
        """Puts a message of ``nbytes`` bytes in line."""
        source, link = line.source, line.link
        number = line.sent
        line.sent = number + 1
        starts_s = self._out_free_s[source]
        if starts_s < now_s:
            starts_s = now_s
        left_s = self._out_free_s[source] = starts_s + nbytes / self._nic_rate
        latency_s = link.latency_s
        if self._network.jitter:
            latency_s *= 1 + self._network.jitter * _uniform(self._jitter_key, line.key, number)
        enters_s = starts_s + latency_s
        again_s: tuple[float, ...] = ()
        if self._faulty:
            enters_s += self._late_s(line, number, kind, now_s)
            enters_s = self._heal_s(source, line.dest, max(enters_s, line.clear_s))
            again_s = self._again_s(line, number, kind, now_s, enters_s)
        if enters_s < line.clear_s:
            enters_s = line.clear_s
        line.clear_s = enters_s + nbytes / link.bandwidth
        return Journey(starts_s, left_s, enters_s, again_s)

    def enter(self, line: Line, nbytes: int, now_s: float) -> tuple[float, float]:
        """When a message that comes to the receiver's NIC now begins to enter, and arrives."""
        begins_s = self._in_free_s[line.dest]
        if begins_s < now_s:
            begins_s = now_s
        passed_s = self._in_free_s[line.dest] = begins_s + nbytes / self._nic_rate
        last_byte_s = now_s + nbytes / line.link.bandwidth
        return begins_s, passed_s if passed_s > last_byte_s else last_byte_s

    def _late_s(self, line: Line, number: int, kind: Kind, now_s: float) -> float:
        late_s = 0.0
        for position, fault in self._late:
            chance = self._chance(position, line)
            if not _hit(fault.of, line, kind, now_s, _uniform(chance, number, 0)):
                continue
            if isinstance(fault, Delay):
                late_s += fault.seconds + fault.spread_s * _uniform(chance, number, 1)
            else:
                losses = 1
                while _uniform(chance, number, losses) < fault.of.share:
                    losses += 1
                late_s += losses * fault.timeout_s
        return late_s

    def _heal_s(self, source: int, dest: int, enters_s: float) -> float:
        for partition in self._partitions:
            inside = partition.start_s <= enters_s < partition.stop_s
            if inside and partition.parts(source, dest):
                enters_s = partition.stop_s
        return enters_s

    def _again_s(
        self, line: Line, number: int, kind: Kind, now_s: float, enters_s: float
    ) -> tuple[float, ...]:
        return tuple(
            self._heal_s(line.source, line.dest, enters_s + fault.after_s)
            for position, fault in self._doubled
            if _hit(fault.of, line, kind, now_s, _uniform(self._chance(position, line), number, 0))
        )

    def _chance(self, position: int, line: Line) -> int:
        return stream(self._seed, position, line.key)


def _uniform(key: int, first: int, second: int) -> float:
    """A number from [0, 1), the same whenever the arguments are."""
    return (stream(key, first, second) >> 11) * 2.0**-53


def _hit(of: Messages, line: Line, kind: Kind, now_s: float, chance: float) -> bool:
    return of.meets(line.source, line.dest, kind, now_s) and chance < of.share


def _check(what: object, name: str, value: float, holds: bool) -> None:
    if not holds:
        raise ConfigError(
            f"{type(what).__name__}: {name} must be a number above 0"
            f"{'' if 'bandwidth' in name else ', or 0'}, got {value}"
        )
