"""``MPI_Allreduce`` of the gradients over the workers, and the update on each of them.

The sum goes into a second array: the gradient stays, as in the other systems. ``--update plain``
is ``params -= rate * total``, as it is mostly written; with ``blocks`` the pieces stay in cache.
"""

from __future__ import annotations

import mpi4py
import numpy as np
from mpi4py import MPI

from peers.contract import BLOCK, RATE, descend, drive, gathered, gradient, parse, report
from psgrad.bench.machine import library


def main() -> None:
    """One rank."""
    found = parse(update=("plain", "blocks"))
    case, comm = found.case, MPI.COMM_WORLD
    grad = gradient(comm.rank, case.n)
    total, params = (np.full(case.n, 0, np.float32) for _ in range(2))
    scratch = np.zeros(BLOCK, np.float32)
    rate = np.float32(RATE / comm.size)

    def plain() -> None:
        nonlocal params
        comm.Allreduce(grad, total)
        params -= rate * total

    def blocks() -> None:
        comm.Allreduce(grad, total)
        descend(params, [total], float(rate), scratch)

    trace = drive(blocks if found.update == "blocks" else plain, lambda: params, case)
    traces = gathered(comm, trace)
    if traces is not None:
        versions = {
            "mpi": library(MPI.Get_library_version()),
            "mpi4py": mpi4py.__version__,
        }
        report(found.system, case, traces, versions)


if __name__ == "__main__":
    main()
