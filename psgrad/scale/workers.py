"""The cost model's workers: they compute, send chunks as the window lets them, take answers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from psgrad.scale.queues import Indices, Lines, Seconds, serve
from psgrad.scale.traffic import NEVER, Traffic

UP = 0  # the direction of links, as ``Traffic.through_links`` counts


class Workers:
    """All workers: when each is busy until, and what of its step is done."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        case = traffic.case
        self.start, self.pushed, self.answered = np.zeros((3, case.workers, case.steps))
        self.sent = np.zeros(case.workers, np.intp)
        """How many chunks of its step the window has let out."""
        self.entered = np.zeros(case.workers)
        """When the last one of them comes to a server."""
        self._left = np.full(case.workers, traffic.chunks)  # chunks without an answer
        self._out, self._in, self._cpu = np.zeros((3, case.workers))
        self._encoded = np.zeros(case.workers)  # the last chunk sent so far
        # When answers were taken: those of a server, as they came, in the places of its chunks.
        self._room = np.full((case.workers, traffic.chunks), NEVER)
        self._begin(np.arange(case.workers), np.zeros(case.workers))

    def take_answers(self, until: float) -> None:
        """Takes what comes to NICs before ``until``; whoever has all of a step begins the next."""
        traffic, service = self.traffic, self.traffic.service
        at = np.flatnonzero(traffic.down <= until)
        if not at.size:
            return
        lines = Lines.of((at // traffic.chunks).astype(np.uint16), traffic.down[at])
        at = at[lines.order]
        came = traffic.down[at]
        traffic.down[at] = NEVER
        worker, chunk = np.divmod(at, traffic.chunks)
        passed = lines.pass_through(came, service.pull_nic[chunk], self._in)
        arrived = np.maximum(passed, came + service.pull_link[chunk])
        taken = lines.pass_through(arrived, service.worker_take[chunk], self._cpu)
        traffic.note(2, taken - came)
        who = lines.queues
        self._left[who] -= lines.last + 1
        if traffic.grid.limited:
            self._make_room(worker, traffic.owner[chunk], taken)
            self._send(who[(self._left[who] > 0) & (self.sent[who] < traffic.chunks)])
        over = who[self._left[who] == 0]
        self.answered[over, traffic.step[over]] = self._cpu[over]
        traffic.step[over] += 1
        more = over[traffic.step[over] < traffic.case.steps]
        self._begin(more, self._cpu[more])

    def _make_room(self, worker: Indices, server: NDArray[np.uint8], taken: Seconds) -> None:
        """Notes answers, in the order in which they were taken, for what the window holds back."""
        for number in range(self.traffic.case.servers):
            mine = np.flatnonzero(server == number)
            if not mine.size:
                continue
            places = np.flatnonzero(self.traffic.grid.owner == number)
            who = worker[mine]
            first = np.flatnonzero(np.r_[True, who[1:] != who[:-1]])
            lengths = np.diff(np.r_[first, who.size])
            rank = np.arange(who.size) - np.repeat(first, lengths)
            known = np.count_nonzero(self._room[np.ix_(who[first], places)] < NEVER, axis=1)
            self._room[who, places[rank + np.repeat(known, lengths)]] = taken[mine]

    def _begin(self, workers: Indices, start: Seconds) -> None:
        """``workers`` begin their step at ``start``."""
        traffic = self.traffic
        step = traffic.step[workers]
        ready = start + traffic.service.compute[workers, step]
        self.start[workers, step] = start
        self.pushed[workers, step] = ready
        self._encoded[workers] = ready
        self._left[workers] = traffic.chunks
        self.sent[workers] = 0
        self.entered[workers] = 0.0
        self._room[workers] = NEVER
        traffic.soonest[workers] = 0.0
        self._send(workers)
        # Answers are taken when the processor is done with sending.
        self._cpu[workers] = self._encoded[workers]

    def _send(self, workers: Indices) -> None:
        """``workers`` encode and send what the window lets them."""
        traffic, service, grid = self.traffic, self.traffic.service, self.traffic.grid
        fresh = np.arange(traffic.chunks) >= self.sent[workers, None]
        ready = np.zeros(fresh.shape)
        if grid.limited:
            np.copyto(ready, self._room[workers][:, grid.back], where=fresh & (grid.back >= 0))
        sealed = serve(ready, np.where(fresh, service.worker_send, 0.0), self._encoded[workers])
        passing = np.where(fresh, service.push_nic, 0.0)
        left = serve(sealed, passing, self._out[workers])
        fresh &= left < NEVER
        row, chunk = np.nonzero(fresh)
        if not row.size:
            return
        worker, at = workers[row], workers[row] * traffic.chunks + chunk
        enter = (left - passing)[row, chunk] + service.latency
        enter = traffic.through_links(UP, worker, chunk, enter, service.push_link[chunk])
        traffic.enter[at] = enter
        traffic.sealed[at] = sealed[row, chunk]
        self.sent[workers] += np.count_nonzero(fresh, axis=1)
        np.maximum.at(self.entered, worker, enter)
        np.maximum.at(self._encoded, worker, sealed[row, chunk])
        np.maximum.at(self._out, worker, left[row, chunk])
        tail = service.push_nic.min() + service.pull_nic.min() + service.latency
        traffic.not_before(workers, self.entered[workers] + tail)
