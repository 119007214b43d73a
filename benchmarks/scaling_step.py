"""One rank of ``benchmarks/scaling.py``: steps of a perceptron on random data.

Arguments: width, batch, steps, and the file that worker 0 writes its figures to.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import psgrad
from psgrad.kernels import load
from psgrad.models import MLP

RATE = 1e-6  # random labels: what is learned does not matter, that it stays finite does


def main(worker: psgrad.Worker) -> None:
    width, batch, steps = (int(text) for text in sys.argv[1:4])
    model, kernels = MLP((width, width)), load("cpu")
    params = worker.register(model.init(width, 10, seed=1))
    rng = np.random.default_rng(worker.rank)
    x = rng.standard_normal((batch, width), dtype=np.float32)
    y = rng.integers(0, 10, batch)

    def compute() -> None:
        model.loss_and_grad(params, x, y, worker.grads, kernels)

    def step() -> None:
        compute()
        worker.step()

    def timed(call: Callable[[], None], times: int) -> list[float]:
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return seconds

    timed(step, 5)
    alone: list[float] = []
    for turn in range(worker.size):  # one after the other: what a core of its own would give
        worker.comm.Barrier()
        if turn == worker.rank == 0:
            alone = timed(compute, steps)
        worker.barrier()
    together = timed(step, steps)
    if worker.rank == 0:
        record = {"workers": worker.size, "compute_s": alone, "step_s": together}
        record["parameters"] = int(worker.layout.size)
        Path(sys.argv[4]).write_text(json.dumps(record))


psgrad.run(main, optimizer=psgrad.SGD(RATE))
