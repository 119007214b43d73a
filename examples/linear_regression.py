import numpy as np

import psgrad


def main(worker: psgrad.Worker) -> None:
    rng = np.random.default_rng(worker.rank)  # every worker has samples of its own
    x = rng.standard_normal((1000, 5), dtype=np.float32)
    y = x @ np.arange(1, 6, dtype=np.float32)
    params = worker.register({"w": np.zeros(5, np.float32)})
    for _ in range(100):
        worker.step({"w": x.T @ (x @ params["w"] - y) / len(x)})
    if worker.rank == 0:
        print("w =", params["w"].round(3))


psgrad.run(main, servers=1, staleness=3, optimizer=psgrad.SGD(0.1))
