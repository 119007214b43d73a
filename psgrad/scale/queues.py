"""Many first-come-first-served queues at once, without an event heap.

Lindley's recursion, departure = max(arrival, departure before) + service, is a running sum and a
running maximum: with C the running sum of service, departure = C + max over the earlier ones, this
one included, of (arrival - C before it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

TICK: Final = 12  # digits of a second that count

Seconds = NDArray[np.float64]
Indices = NDArray[np.intp]


def serve(arrivals: Seconds, service: Seconds, free: Seconds) -> Seconds:
    """When each one departs: [rows, n], each row a queue that is busy until ``free[row]``.

    Those of a row are served from left to right, whatever their arrivals; one that never arrives
    (infinity) and all behind it never depart.
    """
    work = np.cumsum(np.broadcast_to(service, arrivals.shape), axis=-1)
    departures = arrivals - (work - service)
    np.maximum.accumulate(departures, axis=-1, out=departures)
    np.maximum(departures, free[:, None], out=departures)
    departures += work
    return departures


@dataclass(frozen=True)
class Lines:
    """A batch that has been put in line: a row for each queue that any of it goes to.

    ``order`` sorts the batch by (queue, time). All else is about the sorted batch: ``row`` and
    ``column`` are where each of it stands in a matrix, ``queues`` names the queue of each row, and
    ``last`` is the column of each row's last one.
    """

    order: Indices
    queues: Indices
    row: Indices
    column: Indices
    last: Indices

    @classmethod
    def of(cls, queue: NDArray[np.integer], times: Seconds, ties: Seconds | None = None) -> Lines:
        """Puts a batch in line: ``queue[n]`` by number, ``times[n]``.

        Who comes at the same time, but for rounding, goes in the order of ``ties``, or else in the
        order given.
        """
        times = np.round(times, TICK)
        order = np.argsort(times, kind="stable")
        if ties is not None and np.any(times[order[1:]] == times[order[:-1]]):
            order = np.lexsort((np.round(ties, TICK), times))
        # Small integers are sorted by radix, which is fast.
        order = order[np.argsort(queue[order], kind="stable")]
        ranked = queue[order]
        first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        lengths = np.diff(np.r_[first, ranked.size])
        row = np.repeat(np.arange(first.size), lengths)
        column = np.arange(ranked.size) - np.repeat(first, lengths)
        return cls(order, ranked[first].astype(np.intp), row, column, lengths - 1)

    def matrix(self, values: Seconds) -> Seconds:
        """Values of the sorted batch as a matrix, 0 behind the end of a row."""
        out = np.zeros((self.queues.size, int(self.last.max()) + 1))
        out[self.row, self.column] = values
        return out

    def flat(self, matrix: Seconds) -> Seconds:
        """The inverse of ``matrix``."""
        return matrix[self.row, self.column]

    def ends(self, matrix: Seconds) -> Seconds:
        """The last entry of each row."""
        return matrix[np.arange(self.queues.size), self.last]

    def pass_through(self, arrivals: Seconds, service: Seconds, free: Seconds) -> Seconds:
        """``serve`` for the sorted batch; ``free``, one for each queue there is, moves on."""
        departures = serve(self.matrix(arrivals), self.matrix(service), free[self.queues])
        free[self.queues] = self.ends(departures)
        return self.flat(departures)
