"""What messages of a ``Case`` take, and where they are: what servers and workers of the cost model
have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from psgrad.pace import Constant
from psgrad.scale.model import Case, Grid
from psgrad.scale.queues import Indices, Lines, Seconds

NEVER: Final = np.inf
POLLING: Final = 0.05  # of a core, as an idle server was measured to take
LAST: Final = float(np.finfo(np.float64).max)  # a time before NEVER


@dataclass(frozen=True)
class Service:
    """Seconds: ``compute[workers, steps]``, all else for each of the K chunks in sending order.

    ``close`` is the work of an update in sync mode, which the last push of a round brings with it,
    and ``tell`` the part of it that each answer takes, one worker after the other; otherwise
    ``server_take`` has all the work of a push.
    """

    compute: Seconds
    latency: float
    push_nic: Seconds
    pull_nic: Seconds
    push_link: Seconds
    pull_link: Seconds
    worker_send: Seconds
    worker_take: Seconds
    server_take: Seconds
    close: Seconds
    tell: float

    @classmethod
    def of(cls, case: Case, grid: Grid) -> Service:
        """What the costs, the network and the pace of ``case`` come to."""
        costs, network = case.costs, case.network
        size: Seconds = grid.size.astype(np.float64)  # for mypy and NumPy 1 alike
        computing, working, serving = crowding(case)
        half = working * costs.worker_message_s / 2
        send = half + working * costs.encode_s * size
        take = half + working * (costs.receive_s * grid.pull + costs.decode_s * size)
        # What the window holds back is sent right after the answer that makes room for it.
        late = np.flatnonzero(grid.back >= 0)
        take[grid.back[late]] += send[late]
        send[late] = 0.0
        tell = serving * costs.server_message_s / 2
        update = serving * (costs.apply_s + costs.reply_s) * size
        add = serving * costs.accumulate_s * size
        received = tell + serving * costs.receive_s * grid.push
        together = case.staleness == 0
        return cls(
            computing * (compute_times(case) + costs.judge_s * case.n),
            network.latency_s,
            grid.push / network.nic_rate,
            grid.pull / network.nic_rate,
            grid.push / network.bandwidth,
            grid.pull / network.bandwidth,
            send,
            take,
            received if together else received + add + update + tell,
            update + case.workers * (add + tell) if together else 0 * update,
            tell if together else 0.0,
        )

    def server_seconds(self, workers: int) -> Seconds:
        """Processor seconds of a server for each chunk of one step of one worker."""
        return self.server_take + self.close / workers

    def alone_s(self) -> float:
        """About as long as a step takes that nothing disturbs."""
        moving = max(self.push_nic.sum(), self.pull_nic.sum(), self.worker_send.sum())
        return float(self.compute.mean() + 2 * self.latency + moving)


def crowding(case: Case) -> tuple[float, float, float]:
    """How many times longer processors take because ranks share the cores of one machine: for a
    worker's computation, for the rest of its work, and for a server's.

    While workers compute servers wait. While gradients and parameters move both work: servers, for
    which workers wait, have a core each where there are more cores than servers; else all ranks
    share evenly. Where there are more ranks than cores, ranks that wait take ``POLLING`` of a core
    each: they look for messages now and then.
    """
    workers, servers, ranks = case.workers, case.servers, case.workers + case.servers
    if case.cores is None or ranks <= case.cores:
        return 1.0, 1.0, 1.0
    cores = max(case.cores - POLLING * ranks, 0.5 * case.cores)
    for_servers = servers if cores > servers else cores * servers / ranks
    for_workers = cores - for_servers
    return max(1.0, workers / cores), max(1.0, workers / for_workers), servers / for_servers


def compute_times(case: Case) -> Seconds:
    """Seconds of each worker's computation for each step: [workers, steps]."""
    if isinstance(case.pace, Constant):
        return np.full((case.workers, case.steps), case.pace.each_s)
    seconds = case.pace.seconds
    steps = range(1, case.steps + 1)
    return np.array([[seconds(worker, step) for step in steps] for worker in range(case.workers)])


class Traffic:
    """Messages between workers and servers, and what each worker is at.

    Arrays over workers and chunks are flat: entry w K + k is chunk k of worker w, in the order in
    which chunks are sent. No worker has more than one message about a chunk under way. Times are
    infinite for what has not got to a place, or has left it.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.grid = Grid.of(case)
        self.service = Service.of(case, self.grid)
        self.chunks = self.grid.chunks
        self.owner = self.grid.owner.astype(np.uint8)
        self.enter = np.full(case.workers * self.chunks, NEVER)
        """When a push comes to its server's NIC."""
        self.sealed = np.zeros(case.workers * self.chunks)
        """When it was handed to the worker's NIC."""
        self.down = np.full(case.workers * self.chunks, NEVER)
        """When an answer comes to its worker's NIC."""
        self.step = np.zeros(case.workers, np.intp)
        """Which step a worker is at, from 0."""
        self.soonest = np.zeros(case.workers)
        """Before when its step cannot be over."""
        self._slow_links = case.network.bandwidth < case.network.nic_rate
        self._links = np.zeros((2, case.workers * case.servers))
        self._queueing = [0.0, 0.0, 0.0]

    @property
    def queueing_s(self) -> float:
        """How long a chunk spends in queues, of late."""
        return sum(self._queueing)

    def note(self, part: int, seconds: Seconds) -> None:
        """Keeps a mean of one of three parts of ``queueing_s``, over one step of all workers."""
        share = min(1.0, seconds.size / self.enter.size)
        self._queueing[part] += share * (float(seconds.mean()) - self._queueing[part])

    def not_before(self, worker: Indices, time: Seconds) -> None:
        """``worker``'s step cannot be over before ``time``. The workers may repeat."""
        np.maximum.at(self.soonest, worker, time)

    def through_links(
        self, direction: int, worker: Indices, chunk: Indices, ready: Seconds, service: Seconds
    ) -> Seconds:
        """When messages come to the far end of their links, where they would at ``ready``."""
        if not self._slow_links:  # a NIC lets nothing through that would have to wait there
            return ready
        lines = Lines.of(worker * self.case.servers + self.owner[chunk], ready)
        service = service[lines.order]
        out = np.empty_like(ready)
        passed = lines.pass_through(ready[lines.order], service, self._links[direction])
        out[lines.order] = passed - service
        return out
