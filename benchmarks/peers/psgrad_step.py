"""psgrad: ``--way in-place`` through ``worker.grads`` and ``worker.params``, or ``copied``.

``copied`` is ``worker.step(grads)`` with an array of the program's own, and the parameters copied
into another. Rank 0 is the server. ``--shared-memory on`` fails where there is none.
"""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

import psgrad
from peers.contract import RATE, Float32, Trace, drive, gathered, gradient, parse, report
from psgrad.bench.machine import library
from psgrad.kernels import chunks


def main() -> None:
    """One rank."""
    found = parse(**{"way": ("in-place", "copied"), "shared-memory": ("on", "off")})
    case = found.case

    def work(worker: psgrad.Worker) -> list[Trace] | None:
        worker.register({"w": np.zeros(case.n, np.float32)})
        mine = gradient(worker.rank, case.n)
        copy = np.full(case.n, 0, np.float32)

        def copied() -> None:
            worker.step({"w": mine})
            np.copyto(copy, worker.params["w"])

        def params() -> Float32:
            return copy if found.way == "copied" else worker.params["w"]

        worker.grads["w"] = mine
        trace = drive(copied if found.way == "copied" else worker.step, params, case)
        return gathered(worker.comm, trace)

    traces = psgrad.run(work, optimizer=psgrad.SGD(RATE), shared_memory=found.shared_memory)
    if traces:
        versions = {
            "psgrad": psgrad.__version__,
            "psgrad kernels": chunks.fastest().name,
            "mpi": library(MPI.Get_library_version()),
        }
        report(found.system, case, traces, versions)


if __name__ == "__main__":
    main()
