"""A parameter server as one writes it in an afternoon: mpi4py, whole arrays, blocking calls."""

from __future__ import annotations

import mpi4py
import numpy as np
from mpi4py import MPI

from peers.case import Case
from peers.contract import BLOCK, RATE, Trace, descend, drive, gathered, gradient, parse, report
from psgrad.bench.machine import library

SERVER = 0


def serve(comm: MPI.Intracomm, case: Case) -> None:
    """Rank 0: a gradient of each worker in, the parameters out to each."""
    workers = range(1, comm.size)
    params = np.full(case.n, 0, np.float32)
    grads = [np.full(case.n, 0, np.float32) for _ in workers]
    scratch = np.zeros(BLOCK, np.float32)
    for _ in range(case.warm_up + case.steps):
        MPI.Request.Waitall([comm.Irecv(grads[w - 1], w) for w in workers])
        descend(params, grads, RATE / len(grads), scratch)
        MPI.Request.Waitall([comm.Isend(params, w) for w in workers])


def work(comm: MPI.Intracomm, case: Case) -> Trace:
    """The other ranks: the gradient out, the parameters in."""
    grad = gradient(comm.rank - 1, case.n)
    params = np.full(case.n, 0, np.float32)

    def step() -> None:
        comm.Send(grad, SERVER)
        comm.Recv(params, SERVER)

    return drive(step, lambda: params, case)


def main() -> None:
    """One rank."""
    found = parse()
    comm = MPI.COMM_WORLD
    trace = None
    if comm.rank != SERVER:
        trace = work(comm, found.case)
    else:
        serve(comm, found.case)
    traces = gathered(comm, trace)
    if traces is not None:
        versions = {
            "mpi": library(MPI.Get_library_version()),
            "mpi4py": mpi4py.__version__,
        }
        report(found.system, found.case, traces, versions)


if __name__ == "__main__":
    main()
