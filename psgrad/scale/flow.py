"""Plays a ``Case``: when every worker starts, pushes and is answered, step by step.

A message goes through the queues of ``transport.network`` (NIC out, link, NIC in), and a chunk's
journey is ::

    worker's processor, NIC out -> server's NIC in, processor -> gate -> NIC out
        -> worker's NIC in, processor

Each queue serves first come, first served. The gate is the staleness rule: the answer at clock c
leaves when every worker's push of clock c - s has been taken. With s = 0 that is the end of the
round, which is when the update is made.

There is no heap of events. Time advances in windows, and all that reaches a queue within one is put
in line at once (``queues``). A window ends where the next message that is not known yet could
come to a server: the first that could follow from an answer still under way. So the order in the
queues is exact, except that a window has a least length, a small part of a step (``QUANTUM``):
messages that follow from an answer of the same window may get behind others that came after them.

Not modelled: jitter, links of their own, faults, registration, evaluation, groups, workers that
leave early, memory shared within a node, and what processors do but for ``Costs``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from psgrad.scale.model import Case, Grid
from psgrad.scale.queues import Seconds
from psgrad.scale.servers import Servers
from psgrad.scale.traffic import LAST, NEVER, Service, Traffic
from psgrad.scale.workers import Workers

QUANTUM: Final = 1 / 64  # the least length of a window, as a part of a step that nothing disturbs


@dataclass(frozen=True)
class Timeline:
    """What happened: arrays of [workers, steps], in seconds from the start.

    ``pushed`` is when the first chunk may leave. ``staleness`` is that of the answer for the chunk
    that is sent last: the worker's clock minus the slowest one.
    """

    case: Case
    grid: Grid
    service: Service
    start: Seconds
    pushed: Seconds
    answered: Seconds
    staleness: NDArray[np.int64]
    windows: int


def play(case: Case, quantum: float = QUANTUM) -> Timeline:
    """Plays ``case`` to its end."""
    traffic = Traffic(case)
    servers, workers = Servers(traffic), Workers(traffic)
    volleys = -(-int(np.bincount(traffic.owner).max()) // case.window)
    least_s = traffic.service.alone_s() / volleys
    windows = 0
    while True:
        soonest = min(traffic.enter.min(), servers.reply.min(), traffic.down.min())
        if soonest == NEVER:
            break
        until = soonest + quantum * (least_s + traffic.queueing_s)
        until = max(until, _horizon(traffic, workers, soonest))
        servers.take_pushes(until)
        servers.send_answers(until)
        workers.take_answers(until)
        windows += 1
    assert (traffic.step == case.steps).all(), "somebody waits for ever"
    return Timeline(
        case,
        traffic.grid,
        traffic.service,
        workers.start,
        workers.pushed,
        workers.answered,
        _staleness(servers),
        windows,
    )


def _horizon(traffic: Traffic, workers: Workers, soonest: float) -> float:
    """No message that is not known yet comes to a server before this.

    ``soonest`` is when something happens next. Of each worker that is at a step, from when its step
    can be over, given that the gate opens after the slowest one's push, from then until its next
    push.
    """
    case, service = traffic.case, traffic.service
    active = np.flatnonzero(traffic.step < case.steps)
    at = traffic.step[active]
    over = np.maximum(traffic.soonest[active], soonest)
    if case.staleness is not None:
        entered = np.zeros(case.steps)
        np.maximum.at(entered, at, workers.entered[active])
        gate = np.maximum.accumulate(entered)[np.maximum(at - case.staleness, 0)]
        np.maximum(over, gate + service.latency, out=over, where=at >= case.staleness)
    following = at + 1
    computes = service.compute[active, np.minimum(following, case.steps - 1)]
    begins = np.where(following < case.steps, over + computes + service.latency, LAST)
    if traffic.grid.limited:  # the first answer makes room for another chunk
        held = np.flatnonzero(workers.sent[active] < traffic.chunks)
        sent = np.maximum(workers.pushed[active[held], at[held]], soonest)
        begins[held] = np.minimum(begins[held], sent + service.latency)
    return float(begins.min())


def _staleness(servers: Servers) -> NDArray[np.int64]:
    """Of the chunk that is sent last: clock minus the slowest clock when it was answered."""
    if servers.traffic.case.staleness == 0:  # the round is over, whenever the server comes to it
        return np.zeros(servers.last_reply.shape, np.int64)
    slowest = np.maximum.accumulate(servers.last_taken.max(axis=0))  # has got to each clock at
    clock = np.arange(1, slowest.size + 1)
    reached = np.searchsorted(slowest, servers.last_reply, side="right")
    staleness: NDArray[np.int64] = np.maximum(clock - reached, 0)
    return staleness
