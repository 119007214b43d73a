"""One worker's training run, from its first parameters to its summary."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

from psgrad import faults, runfolder, summary
from psgrad.compute import Compute, WorkerData
from psgrad.config import Config
from psgrad.crash import FORWARD_S
from psgrad.data import Batches, IndexArray
from psgrad.kernels import Kernels
from psgrad.local import LocalSteps
from psgrad.metrics import Sink, to_json
from psgrad.models.hooks import Hooks
from psgrad.pace import Pace
from psgrad.progress import Progress, Snapshot
from psgrad.worker import Worker

SMOOTHING: Final = 0.9  # of loss and accuracy in the progress line


class Trainer:
    """One worker's training run, from its first parameters to its summary."""

    def __init__(
        self,
        config: Config,
        worker: Worker,
        loaded: WorkerData,
        kernels: Kernels,
        planted: list[faults.Fault],
        folder: Path,
        sink: Sink,
        progress: Progress,
        pace: Pace | None,
        show: Callable[[str], None],
    ) -> None:
        self._config = config
        self._worker = worker
        self._data = loaded
        self._kernels = kernels
        self._planted = planted
        self._folder = folder
        self._sink = sink
        self._progress = progress
        self._pace = pace
        self._show = show
        self._samples = 0

    def run(self, mpi_rank: int) -> None:
        """Trains, and on worker 0 evaluates, saves and reports."""
        config, worker, dataset = self._config, self._worker, self._data.dataset
        model = config.model.value
        worker.register(model.init(dataset.features, dataset.classes, config.seed))
        learner = self._learner()
        compute = Compute(model, learner, self._kernels)
        if worker.rank == 0:
            self._show(summary.opening(config, worker, self._folder))
        start = worker.now()
        self._epochs(compute, learner, mpi_rank)
        steps = worker.clock
        worker.leave()  # may push once more: what feedback has kept back
        totals = worker.mean({"samples": self._samples, "steps": steps, "skipped": learner.skipped})
        seconds = worker.now() - start
        if worker.rank == 0:
            worker.pull(dense=True)
            totals = {key: value * worker.size for key, value in totals.items()}
            test = compute.evaluate(worker.params, dataset, self._data.test)
            self._report(summary.closing(config, worker, test, totals, seconds))
        worker.barrier()

    def _learner(self) -> Worker | LocalSteps:
        """What takes the gradients: the worker, or its local steps."""
        config = self._config
        if not config.local:
            return self._worker
        return LocalSteps(
            self._worker,
            config.optimizer.value,
            config.local_steps,
            schedule=config.schedule.value,
            segments=config.segments,
            clip_norm=config.clip_norm,
            elastic=config.elastic,
        )

    def _epochs(self, compute: Compute, learner: Worker | LocalSteps, mpi_rank: int) -> None:
        """All steps of this worker."""
        config, worker = self._config, self._worker
        overlap = config.overlap == "on"
        # A fault is planted in gradients that are complete: then none of them has left before.
        planted = any(fault.kind == "nan" for fault in self._planted)
        early = Hooks(worker.wait) if planted else Hooks(worker.wait, worker.ready)
        hooks = early if overlap else Hooks()
        loss_now = accuracy_now = 0.0
        snapshot: Snapshot | None = None
        for step, (epoch, micro_batches) in enumerate(self._steps(), start=1):
            began = worker.now()
            loss, correct, samples = compute.gradient(self._data.dataset, micro_batches, hooks)
            if self._pace is not None:
                worker.sleep(self._pace.seconds(worker.rank, step))
            faults.apply(self._planted, worker, mpi_rank, worker.now() - began)
            if overlap:
                worker.step_async(weight=samples)
            else:
                learner.step(weight=samples)
            self._samples += samples
            accuracy = correct / samples
            keep = SMOOTHING if step > 1 else 0.0
            loss_now = keep * loss_now + (1 - keep) * loss
            accuracy_now = keep * accuracy_now + (1 - keep) * accuracy
            self._sink.record(
                "step", epoch=epoch + 1, step=step, loss=loss, accuracy=accuracy,
                staleness=worker.staleness, learning_rate=learner.learning_rate,
            )  # fmt: skip
            # Worker 0 knows the others by the updates that its chunks have had.
            pushes = worker.updates * (worker.size if config.bound == 0 else 1)
            share = pushes / worker.clock if worker.clock else float(worker.size)
            snapshot = Snapshot(
                epoch, config.epochs, step, self._samples * share,
                int(worker.wire_nbytes * share), loss_now, accuracy_now, worker.staleness,
            )  # fmt: skip
            self._progress.show(snapshot)
        if overlap and worker.clock:
            worker.wait()
        if isinstance(learner, LocalSteps):
            learner.exchange()
        if snapshot is not None:
            self._progress.show(snapshot, last=True)

    def _steps(self) -> Iterator[tuple[int, list[IndexArray]]]:
        """(epoch, micro-batches) of each step; a step never spans two epochs."""
        config = self._config
        batches = Batches(
            self._data.mine, config.batch_size, config.seed, self._worker.rank, config.epochs
        )
        for epoch in range(config.epochs):
            left = batches.per_epoch
            while left:
                group = [indices for _, indices in islice(batches, min(left, config.accumulate))]
                left -= len(group)
                yield epoch, group

    def _report(self, record: Mapping[str, Any]) -> None:
        """``record``, the summary, goes to files and to who looks on."""
        self._sink.record("summary", summary=record)
        runfolder.save_model(self._folder, self._worker.params)
        runfolder.save_summary(self._folder, record)
        self._show(runfolder.closing(record, self._folder))
        if self._config.json:
            # Two streams: without a pause the launcher may pass the lines above on after this one.
            self._worker.sleep(FORWARD_S)
            sys.stdout.write(to_json(record) + "\n")
            sys.stdout.flush()
