"""One worker's training run, from its first parameters to its summary."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from psgrad import faults, loss_scale, runfolder, summary
from psgrad.compute import Compute, WorkerData
from psgrad.config import Config
from psgrad.crash import FORWARD_S
from psgrad.data import Batches, IndexArray, partition
from psgrad.data.ledger import IDLE, Ledger, Piece
from psgrad.kernels import Kernels
from psgrad.local import LocalSteps
from psgrad.metrics import Sink, to_json
from psgrad.models.hooks import Hooks
from psgrad.pace import Pace
from psgrad.progress import Progress, Snapshot
from psgrad.tally import Tally
from psgrad.worker import Worker

Steps: TypeAlias = Iterable[tuple[int, list[IndexArray]]]
"""(epoch, micro-batches) of each step."""


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
        self._scale = loss_scale.parse(config.loss_scale, config.precision)
        self._cursors: list[Any] = []  # of the checkpoint that this run goes on from
        self._batches = self._batches_of(worker.rank)

    def run(self, mpi_rank: int) -> None:
        """Trains, and on worker 0 evaluates, saves and reports."""
        config, worker, dataset = self._config, self._worker, self._data.dataset
        model = config.model.value
        worker.register(model.init(dataset.features, dataset.classes, config.seed))
        self._tally = Tally(worker)
        learner = self._learner()
        self._resume(learner)
        before = self._tally.samples
        compute = Compute(model, learner, self._kernels, config.precision, self._scale)
        if worker.rank == 0 and not worker.incarnation:
            self._show(summary.opening(config, worker, self._folder))
        start = worker.now()
        if config.fault_tolerant and not config.local:
            for is_first, pieces in self._phases():
                self._train(self._steps_of(pieces, is_first), compute, learner, mpi_rank)
                self._idle(pieces)
        else:
            self._train(self._batches.groups(config.accumulate), compute, learner, mpi_rank)
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
        if worker.survivors[0] == worker.rank:
            worker.pull(dense=True)
            totals = {key: value * len(worker.survivors) for key, value in totals.items()}
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

    def _train(
        self, steps: Steps, compute: Compute, learner: Worker | LocalSteps, mpi_rank: int
    ) -> None:
        """Trains on ``steps``."""
        config, worker = self._config, self._worker
        overlap = config.overlap == "on"
        # A fault is planted in gradients that are complete: then none of them has left before.
        planted = any(fault.kind in faults.IN_GRADIENTS for fault in self._planted)
        early = Hooks(worker.wait) if planted else Hooks(worker.wait, worker.ready)
        hooks = early if overlap else Hooks()
        tally = self._tally
        snapshot: Snapshot | None = None
        for step, (epoch, micro_batches) in enumerate(steps, start=tally.steps + 1):
            began = worker.now()
            loss, accuracy, samples = compute.gradient(self._data.dataset, micro_batches, hooks)
            if self._pace is not None:
                worker.sleep(self._pace.seconds(worker.rank, step))
            faults.apply(self._planted, worker, mpi_rank, worker.now() - began)
            used = {} if self._scale is None else {"loss_scale": self._scale.value}
            if self._scale is not None:  # before the step, as the tally
                self._scale.observe(learner.grads.values())
            tally.add(samples, loss, accuracy)  # before it: checkpoints are behind steps
            if overlap:
                worker.step_async(weight=samples)
            else:
                learner.step(weight=samples)
            self._sink.record(
                "step", epoch=epoch + 1, step=step, samples=samples, loss=loss,
                accuracy=accuracy, staleness=worker.staleness,
                learning_rate=learner.learning_rate, **used,
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
        resumed = worker.resumed
        if resumed is not None:
            states = [resumed.states.get(w, {}) for w in range(resumed.workers)]
            self._cursors = [state.get("batches") for state in states]
            self._batches = self._batches_of(worker.rank)
            if worker.rank == 0 and resumed.workers != worker.size:  # counted once
                self._tally.merge([state["tally"] for state in states if "tally" in state])
        worker.keep("tally", self._tally)
        worker.keep("batches", self._batches)
        if self._scale is not None:
            worker.keep("loss_scale", self._scale)
        if isinstance(learner, LocalSteps):
            worker.keep("local", learner)

    def _batches_of(self, worker: int) -> Batches:
        """What ``worker`` goes through in this run, from its start."""
        config, data, cursors = self._config, self._data, self._cursors
        labels, scheme, seed = data.dataset.labels, config.dataset.partition, config.seed

        def fresh(mine: int, workers: int) -> Batches:
            share = partition(labels, data.training, workers, scheme, seed)[mine]
            n = len(data.dataset)
            return Batches(share, config.batch_size, seed, mine, config.epochs, samples=n)

        batches = fresh(worker, self._worker.size)
        if len(cursors) == self._worker.size:
            if cursors[worker] is not None:
                batches.load_state_dict(cursors[worker])
        elif cursors:
            before = [fresh(w, len(cursors)) for w in range(len(cursors))]
            for other, cursor in zip(before, cursors, strict=True):
                if cursor is not None:
                    other.load_state_dict(cursor)
            first, last = min(b.epoch for b in before), max(b.last_begun for b in before)
            left = {}
            for epoch in range(first, min(last + 1, config.epochs)):
                union = np.concatenate([b.rest(epoch) for b in before])
                left[epoch] = partition(labels, union, self._worker.size, scheme, seed)[worker]
            batches.take_over(first, left)
        return batches

    def _phases(self) -> Iterator[tuple[bool, list[Piece]]]:
        """What this worker does until all meet, again and again, as long as that brings news of
        workers that died or came: then what they have left is dealt out.

        Who comes later begins in the phase in which the others are. Says of each whether it is the
        first of the run.
        """
        worker, counts = self._worker, range(self._worker.size)
        begun = {} if worker.resumed is None else worker.resumed.clocks
        ledger = Ledger.of(
            {w: self._batches_of(w).count(self._config.accumulate) for w in counts},
            {w: begun.get(w, 0) for w in counts},
        )
        for running, spans in worker.past.changes:
            ledger.settle(spans, running)
        if worker.past.meetings > len(worker.past.changes):
            return  # the others have met without news
        is_first, before = not worker.past.changes, worker.past.mine
        while True:
            yield is_first, ledger.todo(worker.rank, worker.clock, before)
            is_first, before = False, ()
            worker.barrier()
            if not worker.changed:
                return
            ledger.settle(worker.spans, worker.survivors)

    def _steps_of(self, pieces: Iterable[Piece], is_first: bool) -> Steps:
        """The steps of ``pieces``; those of the first phase are what checkpoints know of."""
        size = self._config.accumulate
        for source, steps in pieces:
            if source != IDLE:
                batches = self._batches if is_first else self._batches_of(source)
                groups = batches.groups(size)
                yield from islice(groups, steps.start, steps.stop, steps.step)

    def _idle(self, pieces: Iterable[Piece]) -> None:
        """Steps without a gradient, for which others have one."""
        for source, steps in pieces:
            if source == IDLE:
                for _ in steps:
                    self._tally.idle()
                    self._worker.step(weight=0.0)

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
