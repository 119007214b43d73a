"""The arithmetic of robust aggregates: ranks by a sorting network, distances of pairs.

It goes over a chunk in blocks that stay in cache, a row for each gradient. Results depend neither
on the order in which gradients came nor on blocks or threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from psgrad.aggregate import Aggregate, Float64, Krum, Median, TrimmedMean
from psgrad.codecs.base import BLOCK, Workspace
from psgrad.errors import ConfigError
from psgrad.kernels.crew import PIECE, Crew
from psgrad.layout import Float32
from psgrad.update import Gradient

WIDE: Final = 8 << 10
"""Elements of which Krum takes differences at a time, in float64; a divisor of ``BLOCK``."""


class Comparator(NamedTuple):
    """rows[low], rows[high] <- their smaller and larger values; of what nobody reads, neither."""

    low: int
    high: int
    keeps_low: bool
    keeps_high: bool


def network(count: int, ranks: range) -> tuple[Comparator, ...]:
    """What brings the values of ``ranks`` to the rows of these numbers, out of ``count`` rows.

    Batcher's merge exchange (AFIPS 1968), without the comparisons that other ranks are for.
    """
    pairs: list[tuple[int, int]] = []
    top = 1 << max(0, count - 1).bit_length() >> 1
    p = top
    while p:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(count - d) if i & p == r]
            if q == p:
                break
            q, r, d = q >> 1, p, q - p
        p >>= 1
    wanted, kept = set(ranks), list[Comparator]()
    for low, high in reversed(pairs):
        if low in wanted or high in wanted:
            kept.append(Comparator(low, high, low in wanted, high in wanted))
            wanted |= {low, high}
    return tuple(reversed(kept))


def mean_of_ranks(
    rows: Sequence[Float32],
    spare: Float32,
    comparators: Sequence[Comparator],
    ranks: range,
    out: Float32,
) -> None:
    """out[n] = the mean of the values of ``ranks`` of each column of rows[W][n], without NaN.

    Rows and ``spare[n]`` are used up. Each step is one pass over two rows: where a comparison keeps
    both of its values, the smaller ones go to the spare row, and the row that is free is the next.
    """
    rows = list(rows)
    for low, high, keeps_low, keeps_high in comparators:
        a, b = rows[low], rows[high]
        if keeps_low and keeps_high:
            np.minimum(a, b, out=spare)
            np.maximum(a, b, out=b)
            rows[low], spare = spare, a
        elif keeps_low:
            np.minimum(a, b, out=a)
        else:
            np.maximum(a, b, out=b)
    share = np.float32(1 / len(ranks))
    np.multiply(rows[ranks[0]], share, out=out)
    for rank in ranks[1:]:
        rows[rank] *= share
        out += rows[rank]


def add_distances(rows: NDArray[np.float32], out: Float64, work: Workspace) -> None:
    """out[i, j] += |rows[i] - rows[j]|^2 for i < j, of rows[W, n], in float64."""
    count, n = rows.shape
    wide = work.take("wide", count * WIDE, np.float64).reshape(count, WIDE)
    apart = work.take("apart", WIDE, np.float64)
    for start in range(0, n, WIDE):
        piece = rows[:, start : start + WIDE]
        values, difference = wide[:, : piece.shape[1]], apart[: piece.shape[1]]
        np.copyto(values, piece)
        for i in range(count):
            for j in range(i + 1, count):
                np.subtract(values[i], values[j], out=difference)
                out[i, j] += np.dot(difference, difference)


class Aggregator:
    """A rule with its scratch memory and threads; one for each shard."""

    def __init__(self, rule: Aggregate, crew: Crew | None = None) -> None:
        self.rule = rule
        self._crew = crew or Crew()
        self._work = [Workspace() for _ in range(self._crew.size)]  # by thread
        self._networks: dict[int, tuple[Comparator, ...]] = {}  # by the number of gradients

    def combine(self, payloads: Sequence[Gradient], n: int, clock: int = 0) -> Gradient:
        """What stands for the gradients of round ``clock``, n elements each, in worker order.

        It is one of them, or memory of its own that the next call writes to. Raises
        ``ConfigError`` where they are too few.
        """
        rule = self.rule
        if len(payloads) < rule.least:
            cure = rule.most(len(payloads)) or "aggregate mean"
            raise ConfigError(
                f"aggregate {rule.spec} needs {rule.least} gradients in every round, round {clock} "
                f"has {len(payloads)}: a worker has left, or its step was empty; give all workers "
                f"the same number of steps, start more, or use {cure}"
            )
        if isinstance(rule, Krum):
            return payloads[rule.choose(self.distances(payloads, n))]
        assert isinstance(rule, (Median, TrimmedMean)), "there are no others"
        return self._mean_of_ranks(payloads, n, rule.ranks(len(payloads)))

    def distances(self, payloads: Sequence[Gradient], n: int) -> Float64:
        """The squared distances[W, W] of all pairs."""
        count = len(payloads)
        # By pieces of the crew, then their sum in order: as if one thread had done all.
        parts = np.zeros((max(1, -(-n // PIECE)), count, count))

        def block(rows: NDArray[np.float32], start: int, work: Workspace) -> None:
            add_distances(rows[:-1], parts[start // PIECE], work)

        self._share(payloads, n, block)
        total = np.zeros((count, count))
        for part in parts:
            total += part
        return total + total.T

    def _mean_of_ranks(self, payloads: Sequence[Gradient], n: int, ranks: range) -> Float32:
        count = len(payloads)
        if count not in self._networks:
            self._networks[count] = network(count, ranks)
        comparators = self._networks[count]
        out: Float32 = self._work[0].take("out", n, np.float32)

        def block(rows: NDArray[np.float32], start: int, work: Workspace) -> None:
            here = out[start : start + rows.shape[1]]
            mean_of_ranks(list(rows[:-1]), rows[-1], comparators, ranks, here)

        self._share(payloads, n, block)
        return out

    def _share(self, payloads: Sequence[Gradient], n: int, block: _Block) -> None:
        """Calls ``block`` for each block of the payloads, by the threads of the crew."""
        count = len(payloads)

        def part(start: int, stop: int, thread: int) -> None:
            work = self._work[thread]
            room = work.take("rows", (count + 1) * BLOCK, np.float32).reshape(count + 1, BLOCK)
            with np.errstate(invalid="ignore", over="ignore"):  # it is all one, from outside
                for first in range(start, stop, BLOCK):
                    rows = room[:, : min(BLOCK, stop - first)]
                    for payload, row in zip(payloads, rows[:-1], strict=True):
                        _load(payload, first, row)
                    block(rows, first, work)

        if all(isinstance(payload, np.ndarray) for payload in payloads):
            self._crew.share(n, part)
        else:
            part(0, n, 0)  # an opened payload has scratch of its own


class _Block(Protocol):
    def __call__(self, rows: NDArray[np.float32], start: int, work: Workspace) -> None:
        """Takes the elements from ``start`` of all payloads, rows[:-1], and a spare row."""
        ...


def _load(payload: Gradient, start: int, row: Float32) -> None:
    """row[m] = the payload's elements from ``start``, with infinity for NaN."""
    source = row
    if isinstance(payload, np.ndarray):
        source = payload[start : start + row.size]
    else:
        payload.add_to(row, start, np.float32(1), first=True)
    np.fmin(source, np.float32(math.inf), out=row)
