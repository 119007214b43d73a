"""What every rank trains, whoever moves the gradients: model, data, batches, and the loop itself.

Both trainers take the same steps from the same parameters on the same batches, and what they took
is written down the same way. Only ``step`` and ``barrier`` are theirs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from psgrad import data
from psgrad.data import Batches, DatasetOptions
from psgrad.kernels import load
from psgrad.models import MLP, Hooks

TEST_FRACTION: Final = 0.2
EPOCHS: Final = 1_000_000  # more than there are steps


@dataclass(frozen=True)
class Task:
    """One run: what is trained, how long, and what is measured meanwhile.

    ``timed`` steps after the first ``warmup`` ones are what time, bytes and processor time are of.
    After them, if ``evaluate_every`` is not 0, worker 0 looks at the accuracy now and then.
    """

    hidden: tuple[int, ...] = (2010, 2010)  # 4,192,870 parameters on the digits: 16 MiB
    batch_size: int = 8
    learning_rate: float = 0.05
    seed: int = 1
    workers: int = 3
    warmup: int = 5
    timed: int = 15
    steps: int = 20
    evaluate_every: int = 0

    @classmethod
    def from_json(cls, text: str) -> Task:
        """What ``to_json`` has written."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**{**fields, "hidden": tuple(fields["hidden"])})

    def to_json(self) -> str:
        """For a command line."""
        return json.dumps(asdict(self))


class Lesson:
    """One worker's model and its batches."""

    def __init__(self, task: Task, worker: int) -> None:
        self.kernels = load("cpu")
        self.dataset = data.load(DatasetOptions())
        labels = self.dataset.labels
        train, self._test = data.split(self.dataset, TEST_FRACTION, task.seed)
        shares = data.partition(labels, train, task.workers, "iid", task.seed)
        # Each worker goes through its share in batches of one size: all gradients weigh the same.
        share = shares[worker][: len(shares[-1]) // task.batch_size * task.batch_size]
        self._batches = Batches(share, task.batch_size, task.seed, worker, EPOCHS)
        self.model = MLP(task.hidden)
        self.initial = self.model.init(self.dataset.features, self.dataset.classes, task.seed)

    def batch(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The next x[b, features] and labels[b]."""
        _, indices = next(self._batches)
        return self.dataset.batch(indices)

    def gradient(
        self,
        params: Mapping[str, NDArray[np.float32]],
        grads: Mapping[str, NDArray[np.float32]],
        hooks: Hooks,
    ) -> None:
        """Fills ``grads`` from the next batch; ``hooks`` are told of each layer."""
        x, y = self.batch()
        self.model.loss_and_grad(params, x, y, grads, self.kernels, hooks=hooks)

    def accuracy(self, params: Mapping[str, NDArray[np.float32]]) -> float:
        """On the test samples."""
        x, y = self.dataset.batch(self._test)
        return self.model.evaluate(params, x, y, self.kernels)[1] / len(y)


@dataclass
class Diary:
    """What one worker has seen. ``curve`` has (step, accuracy), of worker 0."""

    step_s: list[float] = field(default_factory=list)
    compute_s: list[float] = field(default_factory=list)  # of it, before anything is sent; 0: none
    curve: list[tuple[int, float]] = field(default_factory=list)
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")


def train(
    task: Task,
    step: Callable[[], float],
    barrier: Callable[[], None],
    read: Callable[[], dict[str, Any]] | None,
    accuracy: Callable[[], float],
) -> Diary:
    """Takes all steps and measures.

    ``step`` returns how many of its seconds went before the exchange; ``read``, of worker 0 alone,
    reads the counters of the whole network.
    """
    diary = Diary()

    def together(act: Callable[[], None]) -> None:
        barrier()
        if read is not None:
            act()
        barrier()

    def note(where: dict[str, Any]) -> None:
        if read is not None:
            where.update(read())

    for i in range(1, task.steps + 1):
        if i == task.warmup + 1:
            together(lambda: note(diary.before))
        start = time.perf_counter()
        diary.compute_s.append(step())
        diary.step_s.append(time.perf_counter() - start)
        ripe = i >= task.warmup + task.timed
        if i == task.warmup + task.timed:
            together(lambda: note(diary.after))
        if task.evaluate_every and ripe and (i % task.evaluate_every == 0 or i == task.steps):
            together(lambda now=i: diary.curve.append((now, accuracy())))  # type: ignore[misc]
    return diary
