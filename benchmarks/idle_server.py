"""How much of a core a waiting rank costs: ``psgrad run --np 3 -- benchmarks/idle_server.py``.

The workers sleep for 5 s, then take one step each 100 ms for 5 s. Each rank prints the processor
time of its process, as a percentage of a core, in half-second samples of both parts.
"""

from __future__ import annotations

import itertools
import resource
import threading

import numpy as np

import psgrad

PART_S = 5.0
STEP_S = 0.1
SAMPLE_S = 0.5


def main(worker: psgrad.Worker) -> None:
    """Silence, then a trickle."""
    params = worker.register({"w": np.zeros(100_000, np.float32)})
    worker.barrier()
    worker.sleep(PART_S)
    worker.barrier()
    for _ in range(round(PART_S / STEP_S)):
        worker.sleep(STEP_S)
        worker.step({"w": params["w"]})


def watch(readings: list[float], over: threading.Event) -> None:
    """Appends this process's processor time, in seconds, every half second."""
    while not over.wait(SAMPLE_S):
        usage = resource.getrusage(resource.RUSAGE_SELF)
        readings.append(usage.ru_utime + usage.ru_stime)


def report(readings: list[float]) -> str:
    """Median and range of both parts, without the samples at their edges."""
    shares = [100 * (b - a) / SAMPLE_S for a, b in itertools.pairwise(readings)]
    parts = {"silent": shares[2:8], f"a step each {STEP_S} s": shares[11:17]}
    return ", ".join(
        f"{name} {np.median(part):.1f}% ({min(part):.1f}-{max(part):.1f})"
        for name, part in parts.items()
    )


if __name__ == "__main__":
    readings: list[float] = []
    over = threading.Event()
    watcher = threading.Thread(target=watch, args=(readings, over), daemon=True)
    watcher.start()
    psgrad.run(main, staleness=None)
    over.set()
    watcher.join()
    from mpi4py import MPI

    print(f"rank {MPI.COMM_WORLD.rank}: {report(readings)} of a core")
