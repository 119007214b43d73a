"""When a worker that says nothing counts as dead: a pure decision of the coordinator.

MPI tells of a process that has died, not of one that is frozen, swapped out or in an endless loop.
Every message renews a worker's lease. A worker that waits sends one now and then, and a long
computation can (``worker.alive``), so silence means that it does not get on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Final

STEPS: Final = 10  # of a worker's own steps that it may be silent for
REMEMBERED: Final = 15  # steps, for their median
BEATS: Final = 4  # messages in the time of a lease, of one that waits


@dataclass
class Leases:
    """The leases of all workers, of ``lease_s`` seconds, or ``STEPS`` steps where that is more."""

    lease_s: float
    looked_s: float = 0.0  # when somebody last looked for silence
    _heard_s: dict[int, float] = field(default_factory=dict)
    _stepped: dict[int, tuple[int, float]] = field(default_factory=dict)  # last clock, and when
    _steps_s: dict[int, deque[float]] = field(default_factory=dict)

    @property
    def beat_s(self) -> float:
        """How often somebody who waits is heard, and silence is looked for."""
        return self.lease_s / BEATS

    def heard(self, worker: int, clock: int, now_s: float) -> None:
        """A message has come; ``clock`` is that of a push, or 0."""
        self._heard_s[worker] = now_s
        last, when_s = self._stepped.get(worker, (0, now_s))
        if clock > last:
            if last:
                steps = self._steps_s.setdefault(worker, deque(maxlen=REMEMBERED))
                steps.append((now_s - when_s) / (clock - last))
            self._stepped[worker] = clock, now_s

    def over(self, workers: Iterable[int], now_s: float) -> dict[int, float]:
        """As ``silent``, at most once in ``beat_s``; who looks too late begins again with all.

        One that did not get on itself has not been able to hear anybody.
        """
        if now_s < self.looked_s + self.beat_s:
            return {}
        late_s, self.looked_s = now_s - self.looked_s, now_s
        if late_s > 2 * self.beat_s:
            self.renew(now_s)
            return {}
        return self.silent(workers, now_s)

    def forget(self, worker: int) -> None:
        """``worker`` is gone; who comes in its place begins anew."""
        for known in (self._heard_s, self._stepped, self._steps_s):
            known.pop(worker, None)

    def renew(self, now_s: float) -> None:
        """Nobody could be heard until now: all leases begin again."""
        self._heard_s = dict.fromkeys(self._heard_s, now_s)

    def limit_s(self, worker: int) -> float:
        """How long this worker may be silent."""
        steps = self._steps_s.get(worker)
        return max(self.lease_s, STEPS * median(steps)) if steps else self.lease_s

    def silent(self, workers: Iterable[int], now_s: float) -> dict[int, float]:
        """Those of ``workers`` whose lease is over, and for how long each was silent.

        Who was never heard is not known to have begun.
        """
        silence = {w: now_s - self._heard_s[w] for w in workers if w in self._heard_s}
        return {w: s for w, s in silence.items() if s > self.limit_s(w)}
