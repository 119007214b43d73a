"""A model of one's own: a two-layer network in plain NumPy, trained on the bundled digits.

    psgrad run --np 4 -- python examples/own_model.py

psgrad needs float32 arrays by name and a gradient for each; the model is none of its business.
"""

from collections.abc import Mapping

import numpy as np

import psgrad
from psgrad import data

Arrays = Mapping[str, np.ndarray]


def forward(params: Arrays, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.maximum(x @ params["w1"] + params["b1"], 0)  # [b, 64]
    logits = hidden @ params["w2"] + params["b2"]  # [b, 10]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return hidden, p / p.sum(axis=1, keepdims=True)


def gradients(params: Arrays, x: np.ndarray, y: np.ndarray) -> Arrays:
    hidden, dz = forward(params, x)
    dz[np.arange(len(y)), y] -= 1  # the gradient of cross-entropy: softmax - onehot
    dz /= len(y)
    dh = (dz @ params["w2"].T) * (hidden > 0)
    return {"w1": x.T @ dh, "b1": dh.sum(axis=0), "w2": hidden.T @ dz, "b2": dz.sum(axis=0)}


def main(worker: psgrad.Worker) -> None:
    digits = data.load(data.DatasetOptions("digits"))
    train, test = data.split(digits, 0.2, seed=1)
    # Every worker trains on a share of its own, and at the end tests on one.
    my_train, my_test = (
        data.partition(digits.labels, part, worker.size, "iid", seed=1)[worker.rank]
        for part in (train, test)
    )
    rng = np.random.default_rng(1)  # worker 0's values are the ones that count
    params = worker.register(
        {
            "w1": 0.2 * rng.standard_normal((64, 64), dtype=np.float32),
            "b1": np.zeros(64, np.float32),
            "w2": 0.2 * rng.standard_normal((64, 10), dtype=np.float32),
            "b2": np.zeros(10, np.float32),
        }
    )
    for _, indices in data.Batches(my_train, 32, seed=1, worker=worker.rank, epochs=20):
        worker.step(gradients(params, *digits.batch(indices)))

    worker.leave()  # nobody waits for this worker's pushes any longer
    worker.barrier()  # now all have pushed all,
    worker.pull()  # and this is the final model
    x, y = digits.batch(my_test)
    right = (forward(params, x)[1].argmax(axis=1) == y).mean()
    accuracy = worker.mean({"accuracy": right}, weight=len(y))["accuracy"]
    if worker.rank == 0:
        print(f"test accuracy {accuracy:.4f}")


psgrad.run(main, servers=1, staleness=3, optimizer=psgrad.SGD(0.1))
