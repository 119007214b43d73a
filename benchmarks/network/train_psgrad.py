"""One rank of psgrad's runs: ``train_psgrad.py PLACE.json``, under mpiexec.

The script is what a user's would be, but for the counters that worker 0 reads.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import psgrad  # noqa: E402
from network import counters  # noqa: E402
from network.task import Lesson, Task, train  # noqa: E402
from psgrad.bench.machine import library  # noqa: E402
from psgrad.kernels import chunks  # noqa: E402
from psgrad.models import Hooks  # noqa: E402
from psgrad.transport.mpi import load_mpi  # noqa: E402


def main(place: Path) -> None:
    """Runs what ``place`` describes and leaves this worker's diary beside it."""
    plan = json.loads(place.read_text(encoding="utf-8"))
    task = Task.from_json(json.dumps(plan["task"]))
    chunks.fastest()
    mpi = load_mpi()
    world = mpi.COMM_WORLD
    found = np.zeros(world.size, np.int64)
    world.Allgather(np.array([os.getpid()], np.int64), found)
    pids = dict(zip(plan["ranks"], found.tolist(), strict=True))
    read = partial(counters.read, plan["switch"], plan["hosts"], pids)

    def work(worker: psgrad.Worker) -> None:
        lesson = Lesson(task, worker.rank)
        params = worker.register(lesson.initial)

        def step() -> float:
            if plan["overlap"]:
                lesson.gradient(worker.params, worker.grads, Hooks(worker.wait, worker.ready))
                worker.step_async()
                return 0.0
            start = time.perf_counter()
            lesson.gradient(worker.params, worker.grads, Hooks())
            computed = time.perf_counter() - start
            worker.step()
            return computed

        def barrier() -> None:
            worker.wait()
            worker.barrier()

        diary = train(
            task,
            step,
            barrier,
            read if worker.rank == 0 else None,
            lambda: lesson.accuracy(params),
        )
        start = worker.now()
        worker.leave()  # what feedback has kept back is pushed
        worker.pull(dense=True)
        diary.facts.update(closing_s=worker.now() - start, notice=worker.notice)
        if worker.rank == 0:
            diary.facts.update(
                final_accuracy=lesson.accuracy(params),
                parameters=worker.layout.size,
                host=mpi.Get_processor_name(),
                mpi=library(mpi.Get_library_version()),
                stats=worker.server_stats(),
            )
        diary.save(place.parent / f"worker-{worker.rank}.json")

    psgrad.run(work, staleness=0, optimizer=psgrad.SGD(task.learning_rate), **plan["options"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
