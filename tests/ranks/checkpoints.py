"""A small training with checkpoints: ``checkpoints.py CASE FOLDER JSON``, with options of run.

Worker 0 prints a digest of the parameters at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

import psgrad

CASE, FOLDER, OPTIONS = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
STEPS = 24
EVERY = int(OPTIONS.get("checkpoint_every", 0))


class Steps:
    """How many steps a worker has done."""

    def __init__(self):
        self.done = 0

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


def spoil(worker, step):
    """What happens to the folder meanwhile, or to a rank."""
    if CASE == "signalled" and (worker.rank, step) == (1, 10):
        os.kill(os.getpid(), signal.SIGUSR1)
    if worker.rank != 0:
        return
    if CASE == "removed" and step == 8:
        shutil.rmtree(FOLDER)
        FOLDER.write_text("no folder any more")
    elif CASE == "back again" and step == 8:
        FOLDER.rename(FOLDER.with_name("elsewhere"))
    elif CASE == "back again" and step == 14:
        FOLDER.with_name("elsewhere").rename(FOLDER)
    elif CASE == "full" and step == 8:
        space = os.statvfs(FOLDER)
        (FOLDER / "filler").write_bytes(bytes(space.f_bavail * space.f_frsize))
    elif CASE == "full" and step == 14:
        (FOLDER / "filler").unlink()


def done(worker):
    """How many checkpoints are made, or are given up."""
    stats = worker.server_stats()[0]
    return stats["checkpoints"] + stats["checkpoints_failed"]


def main(worker):
    params = worker.register({"w": np.ones((300, 40), np.float32), "b": np.ones(7, np.float32)})
    steps = Steps()
    worker.keep("steps", steps)
    for step in range(steps.done + 1, STEPS + 1):
        spoil(worker, step)
        steps.done = step
        rng = np.random.default_rng((worker.rank, step))
        grads = {
            name: value * np.float32(0.3) + rng.standard_normal(value.shape).astype(np.float32)
            for name, value in params.items()
        }
        worker.step(grads, weight=1 + (worker.rank + step) % 3)
        if worker.rank == 0 and EVERY and step % EVERY == 0:
            while done(worker) < step // EVERY:  # one after the other, however slow the disk is
                worker.sleep(0.01)
    worker.leave()
    worker.barrier()
    if worker.rank == 0:
        worker.pull(dense=True)
        digest = hashlib.sha256(b"".join(value.tobytes() for value in params.values()))
        stats = worker.server_stats()[0]
        print(json.dumps({
            "sha256": digest.hexdigest(),
            "resumed": None if worker.resumed is None else worker.resumed.number,
            "written": stats.get("checkpoints"), "failed": stats.get("checkpoints_failed"),
        }))  # fmt: skip


psgrad.run(main, optimizer=psgrad.Adam(0.01), chunk_bytes=8192, **OPTIONS)
