"""One worker's training run, from its first parameters to its summary."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from psgrad import faults, runfolder, stored, summary
from psgrad.compute import Compute, WorkerData
from psgrad.config import Config
from psgrad.crash import FORWARD_S
from psgrad.data import Batches, IndexArray, partition
from psgrad.kernels import Kernels
from psgrad.local import LocalSteps
from psgrad.metrics import Sink, to_json
from psgrad.models.hooks import Hooks
from psgrad.pace import Pace
from psgrad.progress import Progress, Snapshot
from psgrad.worker import Worker

SMOOTHING: Final = 0.9  # of loss and accuracy in the progress line


class Tally:
    """What a worker counts of its training; a part of its checkpoints."""

    def __init__(self, worker: Worker) -> None:
        self.steps = 0  # those with a gradient, of which several may be one push
        self.samples = 0
        self.loss = 0.0  # smoothed, as is accuracy
        self.accuracy = 0.0
        self._worker = worker
        self._before = -worker.clock  # pushes of the runs before, less the clock at the start

    @property
    def pushes(self) -> int:
        """How many steps were pushed."""
        return self._before + self._worker.clock

    def add(self, samples: int, loss: float, accuracy: float) -> None:
        """One more step."""
        keep = SMOOTHING if self.steps else 0.0
        self.steps += 1
        self.samples += samples
        self.loss = keep * self.loss + (1 - keep) * loss
        self.accuracy = keep * self.accuracy + (1 - keep) * accuracy

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Counts what several workers have counted; raises ``CheckpointError``."""
        steps, samples, pushes = (
            sum(stored.count(state, key, "a tally") for state in states)
            for key in ("steps", "samples", "pushes")
        )
        self.steps, self.samples = steps, samples
        self._before += pushes

    def state_dict(self) -> dict[str, Any]:
        """How things are when the push that begins now is done."""
        return {
            "steps": self.steps,
            "samples": self.samples,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "pushes": self.pushes + 1,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state of ``state_dict``; raises ``CheckpointError`` for another one."""
        loss, accuracy = (
            stored.real(stored.field(state, key, "a tally"), f"{key} of a tally")
            for key in ("loss", "accuracy")
        )
        self.merge([state])
        self.loss, self.accuracy = loss, accuracy


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
        self._batches = Batches(
            loaded.mine,
            config.batch_size,
            config.seed,
            worker.rank,
            config.epochs,
            samples=len(loaded.dataset),
        )

    def run(self, mpi_rank: int) -> None:
        """Trains, and on worker 0 evaluates, saves and reports."""
        config, worker, dataset = self._config, self._worker, self._data.dataset
        model = config.model.value
        worker.register(model.init(dataset.features, dataset.classes, config.seed))
        self._tally = Tally(worker)
        learner = self._learner()
        self._resume(learner)
        before = self._tally.samples
        compute = Compute(model, learner, self._kernels)
        if worker.rank == 0:
            self._show(summary.opening(config, worker, self._folder))
        start = worker.now()
        self._epochs(compute, learner, mpi_rank)
        tally, pushes = self._tally, self._tally.pushes
        worker.leave()  # may push once more: what feedback has kept back
        totals = worker.mean(
            {
                "samples": tally.samples - before,
                "steps": pushes,
                "skipped": learner.skipped,
            }
        )
        seconds = worker.now() - start
        if worker.is_first:
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
        planted = any(fault.kind in faults.IN_GRADIENTS for fault in self._planted)
        early = Hooks(worker.wait) if planted else Hooks(worker.wait, worker.ready)
        hooks = early if overlap else Hooks()
        tally = self._tally
        snapshot: Snapshot | None = None
        steps = self._batches.groups(config.accumulate)
        for step, (epoch, micro_batches) in enumerate(steps, start=self._tally.steps + 1):
            began = worker.now()
            loss, correct, samples = compute.gradient(self._data.dataset, micro_batches, hooks)
            if self._pace is not None:
                worker.sleep(self._pace.seconds(worker.rank, step))
            faults.apply(self._planted, worker, mpi_rank, worker.now() - began)
            tally.add(samples, loss, correct / samples)  # before it: checkpoints are behind steps
            if overlap:
                worker.step_async(weight=samples)
            else:
                learner.step(weight=samples)
            self._sink.record(
                "step", epoch=epoch + 1, step=step, loss=loss, accuracy=correct / samples,
                staleness=worker.staleness, learning_rate=learner.learning_rate,
            )  # fmt: skip
            # Worker 0 knows the others by the updates that its chunks have had.
            pushes = worker.updates * (worker.size if config.bound == 0 else 1)
            share = pushes / worker.clock if worker.clock else float(worker.size)
            snapshot = Snapshot(
                epoch, config.epochs, step, tally.samples * share,
                int(worker.wire_nbytes * share), tally.loss, tally.accuracy, worker.staleness,
            )  # fmt: skip
            self._progress.show(snapshot)
        if overlap and worker.clock:
            worker.wait()
        if isinstance(learner, LocalSteps):
            learner.exchange()
        if snapshot is not None:
            self._progress.show(snapshot, last=True)

    def _resume(self, learner: Worker | LocalSteps) -> None:
        """Has all that this training needs go into checkpoints, and goes on from the one given."""
        worker = self._worker
        worker.keep("tally", self._tally)
        if isinstance(learner, LocalSteps):
            worker.keep("local", learner)
        same = worker.keep("batches", self._batches)
        resumed = worker.resumed
        if resumed is None or same:
            return
        states = [resumed.states.get(w, {}) for w in range(resumed.workers)]
        self._batches.take_over(*self._leftovers([state.get("batches") for state in states]))
        if worker.rank == 0:  # what is counted once
            self._tally.merge([state["tally"] for state in states if "tally" in state])

    def _leftovers(self, cursors: Sequence[Any]) -> tuple[int, dict[int, IndexArray]]:
        """The first epoch that is not done, and this worker's share of what is left of each."""
        config, data = self._config, self._data
        scheme = config.dataset.partition
        others = []
        shares = partition(data.dataset.labels, data.training, len(cursors), scheme, config.seed)
        for worker, (share, cursor) in enumerate(zip(shares, cursors, strict=True)):
            batches = Batches(
                share,
                config.batch_size,
                config.seed,
                worker,
                config.epochs,
                samples=len(data.dataset),
            )
            if cursor is not None:
                batches.load_state_dict(cursor)
            others.append(batches)
        first, last = min(b.epoch for b in others), max(b.epoch for b in others)
        left = {}
        for epoch in range(first, min(last + 1, config.epochs)):
            union = np.concatenate([batches.rest(epoch) for batches in others])
            parts = partition(data.dataset.labels, union, self._worker.size, scheme, config.seed)
            left[epoch] = parts[self._worker.rank]
        return first, left

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
