"""What each rank of tests/test_elastic.py runs where it is a script: a way to lose worker 1."""

import os
import signal
import sys

import numpy as np

import psgrad

STEPS = 60


def main(worker):
    params = worker.register({"w": np.full(5000, 1.0, np.float32)})
    for step in range(STEPS):
        if worker.rank == 1 and step == STEPS // 2:
            PLANTED[sys.argv[1]](worker)
        worker.step({"w": params["w"].copy()})
    worker.leave()
    worker.barrier()
    worker.pull()
    return worker.survivors, worker.lost, worker.clock, float(np.abs(params["w"]).max())


def killed(worker):
    os.kill(os.getpid(), signal.SIGKILL)


def raises(worker):
    raise ValueError("planted")


def exits(worker):
    sys.exit(3)


def returns(worker):
    """Says that it is done, and is gone at once."""
    sys.exit()


PLANTED = {f.__name__: f for f in (killed, raises, exits, returns)}

done = psgrad.run(
    main, servers=2, staleness=2, optimizer=psgrad.SGD(0.05), fault_tolerant=True, window=2
)
if done is not None:
    survivors, lost, clock, largest = done
    print(
        f"survivors {list(survivors)} lost {lost} clock {clock} shrunk {largest < 0.1}", flush=True
    )
