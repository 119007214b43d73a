"""A parameter server of Ray actors, through Ray's object store.

A worker actor takes the parameters and returns its next gradient; the server actor takes a gradient
of each worker and returns the parameters. All steps are handed to Ray at once, so that it never
waits for this program.
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

import numpy as np
import ray

from peers.case import Case
from peers.contract import BLOCK, RATE, Float32, Trace, descend, gradient, parse, report, wrong

STORE_NBYTES = 256 << 20  # the least; arrays come on top
ARRAYS = 3  # of each worker and of the server, in the object store at the same time


class Server:
    """The parameters."""

    def __init__(self, case: Case) -> None:
        self.params = np.full(case.n, 0, np.float32)
        self.scratch = np.zeros(BLOCK, np.float32)

    def update(self, *grads: Float32) -> Float32:
        """One round."""
        descend(self.params, grads, RATE / len(grads), self.scratch)
        return self.params


class Worker:
    """One worker: its gradient, and what it has seen of the parameters."""

    def __init__(self, worker: int, case: Case) -> None:
        self.case = case
        self.mine = gradient(worker, case.n)
        self.taken = 0
        self.ends: list[float] = []
        self.errors: list[str] = []

    def start(self) -> Float32:
        """The first gradient."""
        return self.mine

    def step(self, params: Float32) -> Float32:
        """Holds new parameters; the next gradient."""
        now, case = time.perf_counter(), self.case
        self.taken += 1
        if self.taken >= case.warm_up:
            self.ends.append(now)
        if self.taken in (1, case.warm_up + case.steps):
            error = wrong(params, case, self.taken)
            self.errors += [] if error is None else [error]
        return self.mine

    def trace(self) -> Trace:
        """What it saw."""
        return Trace(self.ends, self.errors[0] if self.errors else None)


def play(case: Case) -> list[Trace]:
    """All steps of a server and its workers."""
    server: Any = ray.remote(Server).remote(case)
    workers: list[Any] = [ray.remote(Worker).remote(w, case) for w in range(case.workers)]
    grads = [worker.start.remote() for worker in workers]
    for _ in range(case.warm_up + case.steps):
        params = server.update.remote(*grads)
        grads = [worker.step.remote(params) for worker in workers]
    del params, grads
    traces: list[Trace] = ray.get([worker.trace.remote() for worker in workers])
    return traces


def main() -> None:
    """Starts Ray on this machine alone, and reports."""
    found = parse()
    case = found.case
    with tempfile.TemporaryDirectory() as folder:
        ray.init(
            num_cpus=case.workers + 1,
            include_dashboard=False,
            object_store_memory=STORE_NBYTES + ARRAYS * (case.workers + 1) * case.nbytes,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address="127.0.0.1",
            _temp_dir=os.path.realpath(folder),
        )
        try:
            traces = play(case)
        finally:
            ray.shutdown()
    report(found.system, case, traces, {"ray": ray.__version__})


if __name__ == "__main__":
    main()
