"""How a run ends before its data do: whoever is asked to stop tells the coordinator.

::

    signal -> STOP -> CUT, the last, at once -> MARK -> written -> STOPPED -> LEAVE, FINISH

The coordinator announces a cut, as for any checkpoint. Behind it, workers wait until that is safe,
and leave. A worker that has nothing more to push takes no part in the cut, and is in the
checkpoint with what it said when it left.
"""

from __future__ import annotations

from psgrad.control import Stopped
from psgrad.cuts import Markers
from psgrad.exchange import Exchange
from psgrad.links import ServerLinks
from psgrad.messages import Header, Kind, encode_json
from psgrad.preemption import WATCH_S, Preemption


class Halting:
    """A worker's part in it."""

    def __init__(self, links: ServerLinks, markers: Markers) -> None:
        self._links = links
        self._markers = markers

    @property
    def stopped(self) -> Stopped | None:
        """Why this worker goes no further, and what is safe; None: it does."""
        return self._links.stopped

    @property
    def parting_words(self) -> bytes | None:
        """What servers are told with the worker's FINISH; None where its run was not stopped."""
        return None if self.stopped is None else encode_json(self.stopped._asdict())

    def end_if_told(self, exchange: Exchange | None) -> None:
        """Between two steps: raises ``Preempted`` where the last cut is behind this worker, as soon
        as the checkpoint is safe. It has left then, and whatever it had pushed was answered."""
        self._links.look_outside()
        if exchange is not None and exchange.is_open:
            return
        if exchange is not None and self._markers.stops and not exchange.marking.over:
            exchange.mark_if_due()
            while self.stopped is None and not self._markers.asked:
                self._links.awaiting = Kind.STOPPED
                self._links.take()
            self._links.awaiting = None
        if self.stopped is None:
            return
        if exchange is not None and not exchange.marking.over:
            self._leave(exchange)
        error = self.stopped.error
        error.spokesman = False  # the coordinator says it
        raise error

    def _leave(self, exchange: Exchange) -> None:
        """Leaves without pushing what feedback has kept back: that is in the checkpoint."""
        exchange.abandon()
        said = exchange.marking.last_words(exchange.position)
        exchange.marking.over = True
        self._links.tell_all(Header(Kind.LEAVE, clock=exchange.clock), said)
        # Others that leave may have completed a rendezvous, or whatever this worker waited for.
        self._links.await_left()
        self._links.await_answers()


class Stopping:
    """A server's part in it. ``preemption`` is what this rank is told from outside."""

    def __init__(self, preemption: Preemption | None) -> None:
        self.stopped: Stopped | None = None
        """What a worker was told that has stopped; None: none has."""
        self._preemption = preemption
        self._said = False

    @property
    def watch_s(self) -> float | None:
        """How often a server that waits looks outside; None: there is nothing to look at."""
        return None if self._preemption is None else WATCH_S

    def news(self) -> str:
        """Why the run is to stop, once; empty as long as nothing was said to this rank."""
        if self._preemption is None or self._said or not self._preemption.reason:
            return ""
        self._said = True
        return self._preemption.reason
