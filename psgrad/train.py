"""The built-in trainer: what ``psgrad train`` runs on every rank."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from psgrad import aggregate, faults, outer, runfolder, summary
from psgrad.codecs import Compression
from psgrad.compute import Compute, WorkerData, load_data
from psgrad.config import Config, Source, Tables, resolve
from psgrad.crash import FORWARD_S
from psgrad.data import Batches, DatasetOptions, IndexArray
from psgrad.kernels import Kernels
from psgrad.kernels import load as load_kernels
from psgrad.local import LocalSteps
from psgrad.metrics import Journal, Sink, to_json
from psgrad.models import MODELS
from psgrad.models.hooks import Hooks
from psgrad.optimizers import OPTIMIZERS
from psgrad.options import check_chunk_bytes
from psgrad.outer import OUTER
from psgrad.pace import Pace
from psgrad.progress import Progress, Snapshot
from psgrad.record import Recorder
from psgrad.roles import Roles
from psgrad.schedules import SCHEDULES
from psgrad.session import Session
from psgrad.version import __version__
from psgrad.worker import Worker

if TYPE_CHECKING:
    from mpi4py import MPI

TABLES: Final[Tables] = MappingProxyType(
    # The first entry of a table is the default.
    {
        "model": MODELS,
        "optimizer": {"adam": OPTIMIZERS["adam"], **OPTIMIZERS},
        "schedule": {"constant": SCHEDULES["constant"], **SCHEDULES},
        "outer": OUTER,
    }
)
NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
SMOOTHING: Final = 0.9  # of loss and accuracy in the progress line


def configure(sources: list[Source]) -> Config:
    """The configuration of a training run from its sources, the later ones winning."""
    config = resolve(sources, TABLES, DatasetOptions)
    # What these refuse would be refused by the ranks, later.
    check_chunk_bytes(config.chunk_bytes)
    Compression.of(config.codec, config.pull_codec, config.feedback, config.zstd)
    aggregate.check(config.aggregate, config.bound, config.feedback)
    outer.check(config)
    return config


def train(
    configuration: Callable[[], Config],
    stamp: str,
    terminal: bool = False,
    about: Mapping[str, Any] = NOTHING,
    comm: MPI.Intracomm | None = None,
) -> None:
    """Trains as one rank of ``comm``. ``configuration`` is called once the ranks can agree on its
    errors; ``stamp``, a date and time, names the run folder; ``terminal``: a person looks on."""
    with Session(comm) as session:
        train_in(session, configuration, stamp, terminal, about=about)


def train_in(
    session: Session,
    configuration: Callable[[], Config],
    stamp: str,
    terminal: bool = False,
    pace: Pace | None = None,
    about: Mapping[str, Any] = NOTHING,
    choices: Sequence[int] | None = None,
    show: Callable[[str], None] | None = None,
) -> None:
    """Trains as one rank of ``session``.

    With ``pace``, that is how long computing takes. ``about`` is what a record is to say of this
    process; ``choices`` are the codecs of a record that this run repeats; ``show`` takes what is
    for a person (default: to stderr).
    """
    config = session.agree(configuration)
    session.compare(config.flat())
    roles = session.agree(lambda: Roles(session.size, config.servers))
    planted = session.agree(lambda: [faults.parse(text, roles) for text in config.inject])
    loaded = session.agree(lambda: load_data(config, roles, session.rank))
    kernels = session.agree(lambda: load_kernels(_device(config, roles, session.rank)))
    made = session.agree(lambda: runfolder.create(config, stamp) if session.rank == 0 else Path())
    folder = Path(session.first(str(made)))
    first_worker = session.rank == roles.rank_of(0)
    name = f"{roles.name(session.rank)}-{session.rank}"

    def main(worker: Worker) -> None:
        assert loaded is not None, "workers have data"
        style = config.progress if first_worker else "off"
        if style == "auto":
            style = "line" if terminal else "plain"
        progress = Progress(sys.stderr, style, worker.now)
        trainer = Trainer(
            config, worker, loaded, kernels, planted, folder, journal, progress, pace, show or _show
        )
        trainer.run(session.rank)

    with ExitStack() as stack:
        now = session.transport.now
        journal = stack.enter_context(closing(Journal(folder, name, now, metrics=first_worker)))
        recorder = None
        if config.record:
            file = stack.enter_context(runfolder.open_record(folder, session.rank))
            place = {"rank": session.rank, "size": session.size, "psgrad_version": __version__}
            recorder = Recorder(file, {**about, **place}, choices)
        session.run(
            main,
            servers=config.servers,
            staleness=config.bound,
            **_of_servers(config),
            chunk_bytes=config.chunk_bytes,
            window=config.window,
            reference_bytes=config.reference_bytes,
            shared_memory=config.shared_memory,
            server_threads=config.server_threads,
            codec=config.codec,
            pull_codec=config.pull_codec,
            feedback=config.feedback,
            zstd=config.zstd,
            seed=config.seed,
            aggregate=config.aggregate,
            sink=journal,
            recorder=recorder,
        )


def _of_servers(config: Config) -> dict[str, Any]:
    """The options of ``Session.run`` that local updates need for themselves."""
    if not config.local or config.outer is None:
        return {
            "optimizer": config.optimizer.value,
            "schedule": config.schedule.value,
            "segments": config.segments,
            "clip_norm": config.clip_norm,
        }
    # They stay segments, but scale and decay act in the workers' steps.
    plain = [replace(s, learning_rate_scale=1.0, weight_decay=None) for s in config.segments]
    return {"optimizer": config.outer.value, "segments": plain}


def _device(config: Config, roles: Roles, rank: int) -> str:
    return "cpu" if roles.is_server(rank) else config.device


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
        planted = any(fault.kind in faults.IN_GRADIENTS for fault in self._planted)
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


def _show(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
