"""The event simulator's timeline of a ``Case``: real workers and servers, one message at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from psgrad.optimizers import SGD
from psgrad.scale.flow import Timeline, play
from psgrad.session import Session
from psgrad.transport.simulated import Simulation

BEGIN_S = 16.0  # when registration is over for certain


def timelines(case) -> tuple[Timeline, Timeline]:
    """Of the model, and of the event simulator with the same network and pace."""
    model = play(case)
    start, pushed, answered = np.zeros((3, case.workers, case.steps))
    staleness = np.zeros((case.workers, case.steps), np.int64)

    def main(worker):
        worker.register({"p": np.zeros(case.n, np.float32)})
        worker.barrier()
        worker.sleep(BEGIN_S - worker.now())  # the model's workers begin at the same moment
        me = worker.rank
        for i in range(case.steps):
            start[me, i] = worker.now()
            seconds = case.pace.seconds(me, i + 1)
            if seconds:
                worker.sleep(seconds)
            pushed[me, i] = worker.now()
            worker.step()
            answered[me, i], staleness[me, i] = worker.now(), worker.staleness

    def program(transport):
        with Session(transport=transport) as session:
            session.run(
                main,
                servers=case.servers,
                staleness=case.staleness,
                optimizer=SGD(0.1),
                chunk_bytes=case.chunk_bytes,
                window=case.window,
            )

    Simulation(case.servers + case.workers, case.network).run(program)
    return model, replace(
        model,
        start=start - BEGIN_S,
        pushed=pushed - BEGIN_S,
        answered=answered - BEGIN_S,
        staleness=staleness,
    )
