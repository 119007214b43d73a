"""A small network on one machine: each host is a network namespace, all of them at one switch.

::

    host 0  eth0 --- p0  switch  p1 --- eth0  host 1      10.77.0.1, 10.77.0.2, ...; switch: .254
                           |
                           p2 --- eth0  host 2

The switch is a bridge in a namespace of its own. Both ends of each cable have a token bucket, so a
host can neither send nor receive faster than the rate; a queue is bounded, as that of a switch's
port is. There is no way out: no namespace has a link to the machine's own network, and nothing of
the machine's is changed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ENTER: Final = Path(__file__).with_name("enter")
NETWORK: Final = "10.77.0.0/24"
INTERFACE: Final = "eth0"
FRAME_NBYTES: Final = 1514
BURST_S: Final = 150e-6  # a bucket holds the bytes of this time, two frames at least
QUEUE_NBYTES: Final = 1 << 20  # what waits at a port at most; what comes then is dropped
CONGESTION: Final = "cubic"  # whatever this machine prefers
TOOLS: Final = ("ip", "tc", "unshare")
COMMAND_S: Final = 20.0
END_S: Final = 3.0


class LanError(Exception):
    """There is no such network here, or something in it failed. It says what would help."""


@dataclass(frozen=True)
class Lan:
    """``hosts`` hosts at cables of ``rate`` bits a second; the names begin with ``name``."""

    name: str
    hosts: int
    rate: int

    def __post_init__(self) -> None:
        if not 1 <= self.hosts <= 250:
            raise LanError(f"a network has from 1 to 250 hosts, got {self.hosts}")
        if not 10**6 <= self.rate <= 10**11:
            raise LanError(f"a rate is from 1mbit to 100gbit, got {self.rate} bit/s")

    @property
    def switch(self) -> str:
        """The namespace of the bridge."""
        return f"{self.name}-sw"

    def host(self, i: int) -> str:
        """The namespace of host ``i``, which is also that host's name."""
        return f"{self.name}-h{i}"

    @property
    def names(self) -> tuple[str, ...]:
        """The namespaces of all hosts."""
        return tuple(self.host(i) for i in range(self.hosts))

    @staticmethod
    def address(i: int) -> str:
        """Of host ``i``."""
        return f"10.77.0.{i + 1}"

    @property
    def burst_nbytes(self) -> int:
        """What a token bucket holds."""
        return max(round(self.rate / 8 * BURST_S), 2 * FRAME_NBYTES + 172)

    @property
    def packet_nbytes(self) -> int:
        """The largest packet that a host hands to its card, to be cut into frames there."""
        return min(self.burst_nbytes * 7 // 8, 65_536)

    def building(self) -> list[list[str]]:
        """The commands that build it, in their order."""
        switch = self.switch
        commands = [
            ["ip", "netns", "add", switch],
            ["ip", "-n", switch, "link", "set", "lo", "up"],
            ["ip", "-n", switch, "link", "add", "br0", "type", "bridge"],
            ["ip", "-n", switch, "addr", "add", "10.77.0.254/24", "dev", "br0"],
            ["ip", "-n", switch, "link", "set", "br0", "up"],
        ]
        for i in range(self.hosts):
            commands += self._cable(i)
        return commands

    def _cable(self, i: int) -> list[list[str]]:
        host, port, largest = self.host(i), f"p{i}", str(self.packet_nbytes)
        return [
            ["ip", "netns", "add", host],
            ["ip", "link", "add", INTERFACE, "netns", host, "gso_max_size", largest, "type", "veth",
             "peer", "name", port, "netns", self.switch, "gso_max_size", largest],
            ["ip", "-n", host, "link", "set", "lo", "up"],
            ["ip", "-n", host, "addr", "add", f"{self.address(i)}/24", "dev", INTERFACE],
            ["ip", "-n", host, "link", "set", INTERFACE, "up"],
            ["ip", "-n", host, "route", "replace", NETWORK, "dev", INTERFACE,
             "src", self.address(i), "congctl", CONGESTION],
            ["ip", "-n", self.switch, "link", "set", port, "master", "br0", "up"],
            self._bucket(host, INTERFACE),
            self._bucket(self.switch, port),
        ]  # fmt: skip

    def _bucket(self, namespace: str, interface: str) -> list[str]:
        return ["tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", "tbf",
                "rate", f"{self.rate}bit", "burst", str(self.burst_nbytes),
                "limit", str(QUEUE_NBYTES)]  # fmt: skip

    def on_host(self, i: int, command: Sequence[str]) -> list[str]:
        """``command`` as a process of host ``i``."""
        return [str(ENTER), self.host(i), shlex.join(command)]

    def at_switch(self, command: Sequence[str]) -> list[str]:
        """``command`` where it reaches all hosts and uses none of their cables."""
        return ["ip", "netns", "exec", self.switch, *command]


def check() -> None:
    """Raises ``LanError`` where a network cannot be built."""
    if os.geteuid() != 0:
        raise LanError("network namespaces need root; run this with sudo")
    for tool in TOOLS:
        if shutil.which(tool) is None:
            raise LanError(f"there is no program {tool!r}; install iproute2 and util-linux")


@contextmanager
def built(lan: Lan) -> Iterator[Lan]:
    """``lan``, for as long as the context lasts; whatever still runs in it is ended with it."""
    check()
    try:
        for command in lan.building():
            call(command)
        yield lan
    finally:
        remove(lan)


def remove(lan: Lan) -> None:
    """Ends the processes in the namespaces of ``lan`` and deletes them, as far as there are any."""
    there = set(call(["ip", "netns", "list"]).split())
    mine = [name for name in (*lan.names, lan.switch) if name in there]
    end(lambda: [pid for name in mine for pid in inhabitants(name)])
    for name in mine:
        with suppress(LanError):  # the others are to go in any case
            call(["ip", "netns", "delete", name])


def inhabitants(namespace: str) -> list[int]:
    """The ids of the processes in a namespace."""
    return [int(pid) for pid in call(["ip", "netns", "pids", namespace]).split()]


def call(command: Sequence[str]) -> str:
    """What a command of iproute2 prints; raises ``LanError`` with the reason where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LanError(f"{shlex.join(command)}: {error}") from error
    if done.returncode:
        reason = (done.stderr.strip() or f"status {done.returncode}").splitlines()[0]
        raise LanError(f"{shlex.join(command)}: {reason}")
    return done.stdout


def end(pids: Callable[[], list[int]]) -> None:
    """Ends the processes that ``pids()`` names: asks first, then does not ask."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + END_S
        for pid in pids():
            with suppress(ProcessLookupError):
                os.kill(pid, sign)
        while pids() and time.monotonic() < deadline:
            time.sleep(0.05)
