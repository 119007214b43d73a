"""A training loop taken apart: push and pull, learning rate, uneven data, options by parameter.

    psgrad run --np 4 -- python examples/custom_loop.py

Synchronous softmax regression on the bundled digits. Worker 1 has twice as many samples as worker
0, worker 2 three times as many: the workers with less data are done earlier, and say so.
"""

from collections.abc import Mapping

import numpy as np

import psgrad
from psgrad import data

Arrays = Mapping[str, np.ndarray]

EPOCHS = 30
BATCH = 16
DROP_AT = 300  # steps with the full learning rate


def share(indices: np.ndarray, worker: psgrad.Worker) -> np.ndarray:
    """One part of ``indices`` for worker 0, two for worker 1, ... and none left over."""
    ends = np.cumsum(np.arange(worker.size) + 1)
    cuts = len(indices) * ends // ends[-1]
    return np.split(np.random.default_rng(1).permutation(indices), cuts[:-1])[worker.rank]


def fill_gradients(params: Arrays, x: np.ndarray, y: np.ndarray, grads: Arrays) -> float:
    """Writes the gradient of the mean cross-entropy into ``grads``; returns the mean loss."""
    logits = x @ params["weight"] + params["bias"]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    loss = -np.log(p[rows, y]).mean()
    p[rows, y] -= 1
    p /= len(y)
    np.matmul(x.T, p, out=grads["weight"])
    p.sum(axis=0, out=grads["bias"])
    return float(loss)


def main(worker: psgrad.Worker) -> None:
    digits = data.load(data.DatasetOptions("digits"))
    train, test = data.split(digits, 0.2, seed=1)
    mine = share(train, worker)
    worker.register({"weight": np.zeros((64, 10), np.float32), "bias": np.zeros(10, np.float32)})

    loss = np.nan
    batches = data.Batches(mine, BATCH, seed=1, worker=worker.rank, epochs=EPOCHS)
    for _, indices in batches:
        x, y = digits.batch(indices)
        # worker.params and worker.grads are views into the memory that is received into and sent
        # from. A gradient written there is not copied again.
        loss = fill_gradients(worker.params, x, y, worker.grads)
        # The new rate travels with the next push and acts from that step on. In synchronous mode
        # all workers that set a rate at one step must set the same.
        if worker.clock == DROP_AT:
            worker.set_lr(0.1)
        # The weight is the number of samples behind the gradient, so a short last batch counts
        # for less in the mean of the round. push() returns when worker.grads may be written again;
        # what does not need new parameters could be done between here and pull().
        worker.push(weight=len(indices))
        # Waits until the round is closed, and refreshes worker.params in place.
        worker.pull()

    # This worker is out of data. The rounds of the others close without it from now on.
    worker.leave()
    # When all workers have come here, all have left: the last round is closed.
    worker.barrier()
    # A worker that has left can still pull.
    worker.pull()
    steps = np.zeros(worker.size, int)
    worker.comm.Gather(np.array([worker.clock]), steps)  # comm: mpi4py's, of the workers alone
    x, y = digits.batch(test)
    right = (x @ worker.params["weight"] + worker.params["bias"]).argmax(axis=1) == y
    mean = worker.mean({"loss": loss, "accuracy": right.mean()})
    if worker.rank == 0:
        print(f"steps by worker {steps.tolist()}, last rate {worker.learning_rate:g}")
        print(f"last training loss {mean['loss']:.4f}, test accuracy {mean['accuracy']:.4f}")


psgrad.run(
    main,
    servers=1,
    staleness=0,
    optimizer=psgrad.SGD(0.5, weight_decay=1e-4),
    segments=[psgrad.SegmentOptions("bias", weight_decay=0.0)],  # biases do not decay
)
