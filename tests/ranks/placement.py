"""Ranks of two machines, as far as psgrad knows: where its servers are. HOSTS, such as aaabb."""

from __future__ import annotations

import sys

import numpy as np
from mpi4py import MPI

import psgrad
from psgrad.transport.mpi import MpiTransport

HOSTS = sys.argv[1]
MINE = MPI.COMM_WORLD.rank
MpiTransport.host = property(lambda transport: HOSTS[MINE])


def main(worker: psgrad.Worker) -> list[int]:
    worker.register({"w": np.zeros(4000, np.float32)})
    worker.grads["w"] = np.ones(4000, np.float32)
    for _ in range(3):
        worker.step()
    assert (worker.params["w"] == -3.0).all()
    assert worker.comm.size == worker.size
    return [worker.rank, worker.node_rank]


if __name__ == "__main__":
    options = {"servers": 2, "optimizer": psgrad.SGD(1.0), "chunk_bytes": 4096}
    spread = psgrad.run(main, **options)
    first = psgrad.run(main, placement="first", **options)
    sys.stdout.write(f"{MINE} {spread} {first}\n")
