"""The counters of the network and of the ranks, read from outside of them.

Bytes are those that the token buckets have let through: with Ethernet's header for each frame,
which the interfaces' own counters leave out where a packet is cut up later.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from network.lan import COMMAND_S, INTERFACE

PROC = Path("/proc")


def sent(text: str, interface: str) -> int:
    """Bytes that have left the bucket of ``interface``, by ``tc -s -j qdisc show``."""
    for qdisc in json.loads(text):
        if qdisc["kind"] == "tbf" and qdisc.get("dev", interface) == interface:
            return int(qdisc["bytes"])
    raise ValueError(f"there is no token bucket at {interface}: {text}")


def cpu_ns(schedstats: Sequence[str]) -> int:
    """Nanoseconds on a processor, by the ``schedstat`` of each thread."""
    return sum(int(line.split()[0]) for line in schedstats)


def busy_ticks(stat: str) -> int:
    """What all cores together have not spent idle, in ticks, by ``/proc/stat``."""
    first = stat.splitlines()[0].split()
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, first[1:9])
    return user + nice + system + irq + softirq + steal


def read(switch: str, hosts: Sequence[str], pids: Mapping[str, int]) -> dict[str, Any]:
    """All counters now: of the links by host, of the ranks by what they are."""
    inward = {h: _bucket(switch, f"p{i}") for i, h in enumerate(hosts)}
    outward = {h: _bucket(h, INTERFACE) for h in hosts}
    return {
        "now_s": time.perf_counter(),
        "inward": [inward[h] for h in hosts],
        "outward": [outward[h] for h in hosts],
        "cpu_ns": {name: cpu_ns(_threads(pid)) for name, pid in pids.items()},
        "busy_ticks": busy_ticks((PROC / "stat").read_text()),
    }


def _bucket(namespace: str, interface: str) -> int:
    command = ["tc", "-n", namespace, "-s", "-j", "qdisc", "show", "dev", interface]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=True)
    return sent(done.stdout, interface)


def _threads(pid: int) -> list[str]:
    return [path.read_text() for path in (PROC / str(pid) / "task").glob("*/schedstat")]
