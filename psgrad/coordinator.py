"""What rank 0 decides for all workers: rendezvous (means, barriers) and who is done. No I/O.

A rendezvous is complete when every worker whose ``main`` is still running has come to it. Workers
number their rendezvous from 1; the n-th of one worker meets the n-th of each other. One that comes
in later begins with the one that the others come to next.

What became of workers is told at each rendezvous, so that all know the same. Who comes in later is
told what was said at those before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from psgrad.control import Change, Part, Past, Span
from psgrad.errors import ProtocolError


@dataclass(frozen=True)
class Outcome:
    """The result of a rendezvous for one worker."""

    worker: int
    sequence: int
    result: dict[str, Any]


@dataclass
class Coordinator:
    """``running`` are the workers whose main has not returned."""

    running: set[int]
    lost: dict[int, int] = field(default_factory=dict)  # workers that died -> their last clock
    spans: dict[int, tuple[Span, ...]] = field(default_factory=dict)  # of those that ever did
    past: Past = field(default_factory=Past)  # what was told so far
    _open: dict[int, dict[int, Part]] = field(default_factory=dict)
    _come: dict[int, int] = field(default_factory=dict)  # each worker's last rendezvous

    @classmethod
    def of(cls, workers: Iterable[int]) -> Coordinator:
        """A coordinator at the start of a run, with all workers running."""
        return cls(set(workers))

    def meet(self, worker: int, sequence: int, part: Part) -> list[Outcome]:
        """A worker comes to its next rendezvous; raises ``ProtocolError`` for any other."""
        expected = self._come.get(worker, 0) + 1
        if worker not in self.running or sequence != expected:
            following = expected if worker in self.running else "none"
            raise ProtocolError(
                f"worker {worker} is not expected at rendezvous {sequence}, its next is {following}"
            )
        self._come[worker] = sequence
        self._open.setdefault(sequence, {})[worker] = part
        return self._complete()

    def finish(self, worker: int) -> list[Outcome]:
        """A worker's main has returned: nobody waits for it any more."""
        self.running.discard(worker)
        return self._complete()

    def lose(self, worker: int, clock: int) -> list[Outcome]:
        """A worker has died, after its push of ``clock``: nobody waits for it any more."""
        self.lost[worker] = clock
        *before, last = self.spans.get(worker, (Span(),))
        self.spans[worker] = (*before, last._replace(ended=clock))
        return self.finish(worker)

    def admit(self, worker: int, clock: int) -> None:
        """One that was lost is there again, with pushes after ``clock``."""
        self.running.add(worker)
        self.lost.pop(worker)
        self.spans[worker] = (*self.spans[worker], Span(clock))
        self._come[worker] = self.past.meetings

    def past_of(self, worker: int) -> Past:
        """What ``worker``, which was admitted, has missed."""
        return self.past._replace(mine=self.spans[worker][:-1])

    def waiting(self) -> tuple[set[int], set[int]]:
        """Who waits at a rendezvous, and which running workers have not come to it."""
        come = {worker for parts in self._open.values() for worker in parts}
        return come, self.running - come

    def _complete(self) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for sequence in sorted(self._open):
            parts = self._open[sequence]
            if self.running <= parts.keys():
                result = {**combine(parts), **self._tell()}
                outcomes += [Outcome(worker, sequence, result) for worker in sorted(parts)]
                del self._open[sequence]
        return outcomes

    def _tell(self) -> dict[str, Any]:
        """What became of workers, as of a rendezvous that is complete."""
        told = self.past.changes[-1].spans if self.past.changes else {}
        changed = told != self.spans
        running = tuple(sorted(self.running))
        news = (Change(running, dict(self.spans)),) if changed else ()
        self.past = Past(self.past.meetings + 1, (*self.past.changes, *news))
        lost = {str(w): clock for w, clock in sorted(self.lost.items())}
        said = {"running": list(running), "lost": lost}
        if not self.spans:
            return said
        spans = {str(w): spans for w, spans in sorted(self.spans.items())}
        return {**said, "spans": spans, "changed": changed}


def combine(parts: Mapping[int, Part]) -> dict[str, Any]:
    """The weighted mean of each value over the workers, in worker order, in float64.

    Parts of weight 0 count for nothing; without any other the mean is NaN.

    ``{"mean": {...}}``, or, where they brought different names, ``{"error": text, "first": w}``, w
    being the first of them.
    """
    first, *others = sorted(parts)
    names = list(parts[first].values)
    for worker in others:
        if set(parts[worker].values) != set(names):
            return {
                "first": first,
                "error": f"worker {worker} brought {sorted(parts[worker].values)} to "
                f"mean(), worker {first} brought {sorted(names)}; all must bring the same names",
            }
    counted = [parts[worker] for worker in sorted(parts) if parts[worker].weight > 0]
    total = sum(part.weight for part in counted)
    mean = {
        name: sum(part.values[name] * part.weight for part in counted) / total
        if counted
        else math.nan
        for name in names
    }
    return {"mean": mean}
