"""Links between ranks: which are measured, and which of them are slow. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import quantiles
from types import MappingProxyType
from typing import Final

ALL_PAIRS: Final = 8  # ranks, or nodes, up to which every pair is measured
MOST_PAIRS: Final = 256
SLOW: Final = MappingProxyType({True: 4.0, False: 2.0})
"""How much worse than the good ones a pair must be to be slow: on one node, between nodes."""
LATE: Final = 8.0  # the same for latency, where it is
LATE_US: Final = 20.0  # more, at least


@dataclass(frozen=True)
class Link:
    """What there is between two ranks: one way, the best of several."""

    a: int
    b: int
    latency_us: float
    bandwidth: float  # bytes a second


@dataclass(frozen=True)
class Slow:
    """A link that is slow: ``times`` worse in ``what`` than most of its kind."""

    link: Link
    what: str
    times: float


@dataclass(frozen=True)
class Measured:
    """``links`` of ``planned`` pairs, and for each rank how far its clock is ahead of rank 0's, in
    seconds. ``silent``: ranks that gave no answer; nothing was measured after that."""

    links: tuple[Link, ...] = ()
    planned: int = 0
    clocks: tuple[float, ...] = ()
    silent: tuple[int, ...] = ()


def better(link: Link, again: Link) -> Link:
    """The better figures of two measurements of one pair."""
    return Link(
        link.a,
        link.b,
        min(link.latency_us, again.latency_us),
        max(link.bandwidth, again.bandwidth),
    )


def pairs(hosts: Sequence[str]) -> list[tuple[int, int]]:
    """Which pairs of ranks are measured, those that say most first.

    All of them for a few ranks. Otherwise the first rank of each node stands for it: all pairs of
    few nodes; of many, each node with the next one, with the second next, the fourth next, and so
    on. Then two ranks of each node.
    """
    n = len(hosts)
    if n <= ALL_PAIRS:
        return list(combinations(range(n), 2))
    first: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        first.setdefault(host, []).append(rank)
    nodes = [members[0] for members in first.values()]
    chosen: dict[tuple[int, int], None] = {}
    if len(nodes) <= ALL_PAIRS:
        chosen.update(dict.fromkeys(combinations(nodes, 2)))
    else:
        stride = 1
        while stride <= len(nodes) // 2 and len(chosen) + len(nodes) <= max(MOST_PAIRS, len(nodes)):
            for i, node in enumerate(nodes):
                other = nodes[(i + stride) % len(nodes)]
                chosen[min(node, other), max(node, other)] = None
            stride *= 2
    inside = [(m[0], m[1]) for m in first.values() if len(m) > 1]
    return [*chosen, *inside[: max(1, MOST_PAIRS - len(chosen))]]


def slow(links: Sequence[Link], hosts: Sequence[str]) -> list[Slow]:
    """The links that are much worse than most of their kind: those on a node, those between nodes.

    They are compared with the better quarter, because one bad node makes half of the links of four
    nodes slow. A link that is the only one of its kind is compared with nothing.
    """
    found = []
    for near in (True, False):
        kind = [link for link in links if (hosts[link.a] == hosts[link.b]) is near]
        if len(kind) < 2:
            continue
        rate = quantiles([link.bandwidth for link in kind], n=4, method="inclusive")[2]
        wait = quantiles([link.latency_us for link in kind], n=4, method="inclusive")[0]
        if len(kind) < 4:  # a quarter of them is none
            rate = max(link.bandwidth for link in kind)
            wait = min(link.latency_us for link in kind)
        for link in kind:
            if rate > SLOW[near] * link.bandwidth:
                found.append(Slow(link, "bandwidth", rate / link.bandwidth))
            elif link.latency_us > max(LATE * wait, wait + LATE_US):
                found.append(Slow(link, "latency", link.latency_us / wait))
    return sorted(found, key=lambda one: -one.times)


def culprits(slow_ones: Sequence[Slow], links: Sequence[Link], hosts: Sequence[str]) -> list[str]:
    """The nodes whose links to others are all slow, where those of some nodes are not."""
    between = [link for link in links if hosts[link.a] != hosts[link.b]]
    bad = {one.link for one in slow_ones}
    nodes = dict.fromkeys(hosts)
    of = {n: [k for k in between if n in (hosts[k.a], hosts[k.b])] for n in nodes}
    named = [node for node in nodes if len(of[node]) > 1 and bad.issuperset(of[node])]
    return named if len(named) < len(nodes) else []
