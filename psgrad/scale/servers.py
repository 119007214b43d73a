"""The servers of the cost model: pushes come in, are taken, wait at the gate, are answered."""

from __future__ import annotations

import numpy as np

from psgrad.scale.queues import Indices, Lines, Seconds
from psgrad.scale.traffic import NEVER, Traffic

DOWN = 1  # the direction of links, as ``Traffic.through_links`` counts


class Servers:
    """All servers: when each is busy until, and what each chunk's gate knows of each step."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        case = traffic.case
        messages = case.workers * traffic.chunks
        self.reply = np.full(messages, NEVER)
        """When an answer is ready to leave."""
        self.last_taken, self.last_reply = np.zeros((2, case.workers, case.steps))
        """When the chunk that is sent last was taken, and when it was answered."""
        self._took = np.zeros(messages)  # was taken at
        self._held = np.full(messages, NEVER)  # the same, while it waits at the gate
        self._in, self._cpu, self._out = np.zeros((3, case.servers))
        self._taken = np.zeros((traffic.chunks, case.steps), np.int64)
        self._taken_s = np.zeros((traffic.chunks, case.steps))  # the last one so far
        self._gate = np.full((traffic.chunks, case.steps), NEVER)  # open from then on

    def take_pushes(self, until: float) -> None:
        """Takes what comes to NICs before ``until``, and answers it where the gate is open."""
        traffic, service = self.traffic, self.traffic.service
        at = np.flatnonzero(traffic.enter <= until)
        if not at.size:
            return
        lines = Lines.of(traffic.owner[at % traffic.chunks], traffic.enter[at], traffic.sealed[at])
        at = at[lines.order]
        came = traffic.enter[at]
        traffic.enter[at] = NEVER
        worker, chunk = np.divmod(at, traffic.chunks)
        step = traffic.step[worker]
        passed = lines.pass_through(came, service.push_nic[chunk], self._in)
        arrived = np.maximum(passed, came + service.push_link[chunk])
        work = service.server_take[chunk]
        if traffic.case.staleness == 0:
            self._close_rounds(chunk, int(step[0]), work)
        done = lines.pass_through(arrived, work, self._cpu)
        traffic.note(0, done - came)
        self._took[at] = done
        last = np.flatnonzero(chunk == traffic.chunks - 1)
        self.last_taken[worker[last], step[last]] = done[last]
        if traffic.case.staleness is None:
            self._answer(at, worker, done)
        else:
            self._knock(at, worker, chunk, step, done)

    def send_answers(self, until: float) -> None:
        """Sends the answers that are ready before ``until``."""
        traffic, service = self.traffic, self.traffic.service
        at = np.flatnonzero(self.reply <= until)
        if not at.size:
            return
        # Pushes that one gate lets through are answered in the order in which they were taken; in
        # sync mode, where they are a round, in that of the workers.
        ties = self._took[at] if traffic.case.staleness else None
        lines = Lines.of(traffic.owner[at % traffic.chunks], self.reply[at], ties)
        at = at[lines.order]
        ready = self.reply[at]
        self.reply[at] = NEVER
        worker, chunk = np.divmod(at, traffic.chunks)
        left = lines.pass_through(ready, service.pull_nic[chunk], self._out)
        down = left - service.pull_nic[chunk] + service.latency
        down = traffic.through_links(DOWN, worker, chunk, down, service.pull_link[chunk])
        traffic.down[at] = down
        traffic.note(1, down - ready)
        traffic.not_before(worker, down + service.pull_nic.min())
        last = np.flatnonzero(chunk == traffic.chunks - 1)
        self.last_reply[worker[last], traffic.step[worker[last]]] = ready[last]

    def _close_rounds(self, chunk: Indices, step: int, work: Seconds) -> None:
        """Adds the work of an update to that of the push, among these, that completes a round."""
        chunks, workers = self.traffic.chunks, self.traffic.case.workers
        count = np.bincount(chunk, minlength=chunks)
        final = np.zeros(chunks, np.intp)
        final[chunk] = np.arange(chunk.size)
        complete = np.flatnonzero((count > 0) & (self._taken[:, step] + count == workers))
        work[final[complete]] += self.traffic.service.close[complete]

    def _knock(
        self, at: Indices, worker: Indices, chunk: Indices, step: Indices, done: Seconds
    ) -> None:
        """Pushes come to the gate, ``done``: what they open, and which of them get through."""
        case = self.traffic.case
        bound = case.staleness or 0
        key = chunk * case.steps + step
        np.add.at(self._taken.ravel(), key, 1)
        np.maximum.at(self._taken_s.ravel(), key, done)
        opened = np.flatnonzero((self._taken == case.workers) & (self._gate == NEVER))
        self._gate.ravel()[opened] = self._taken_s.ravel()[opened]
        for where in opened:
            self._release(*divmod(int(where), case.steps))
        gate = np.where(step < bound, 0.0, self._gate[chunk, np.maximum(step - bound, 0)])
        through = gate < NEVER
        self._held[at[~through]] = done[~through]
        self.traffic.not_before(worker[~through], done[~through])
        self._answer(at[through], worker[through], np.maximum(done, gate)[through])

    def _release(self, chunk: int, step: int) -> None:
        """The gate of ``chunk`` has opened for those who wait for ``step``."""
        traffic = self.traffic
        held = self._held.reshape(-1, traffic.chunks)[:, chunk]
        bound = traffic.case.staleness or 0
        worker = np.flatnonzero((held < NEVER) & (traffic.step == step + bound))
        ready = np.maximum(held[worker], self._gate[chunk, step])
        held[worker] = NEVER
        self._answer(worker * traffic.chunks + chunk, worker, ready)

    def _answer(self, at: Indices, worker: Indices, ready: Seconds) -> None:
        service = self.traffic.service
        # In sync mode the server turns to one worker after the other.
        ready = ready - (self.traffic.case.workers - 1 - worker) * service.tell
        self.reply[at] = ready
        self.traffic.not_before(worker, ready + (service.latency + service.pull_nic.min()))
