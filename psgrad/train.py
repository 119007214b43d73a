"""The built-in trainer: what ``psgrad train`` runs on every rank."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from psgrad import data, faults, runfolder
from psgrad.arrays import Arrays
from psgrad.config import Config, Source, Tables, resolve
from psgrad.data import Batches, Dataset, DatasetOptions, IndexArray
from psgrad.errors import DataError
from psgrad.kernels import Kernels
from psgrad.kernels import load as load_kernels
from psgrad.layout import Layout, assign, balance
from psgrad.metrics import Journal, Sink
from psgrad.models import MODELS
from psgrad.optimizers import OPTIMIZERS
from psgrad.progress import Progress, Snapshot
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
    }
)
EVALUATION_BATCH: Final = 1024
SMOOTHING: Final = 0.9  # of loss and accuracy in the progress line


def configure(sources: list[Source]) -> Config:
    """The configuration of a training run from its sources, the later ones winning."""
    return resolve(sources, TABLES, DatasetOptions)


@dataclass(frozen=True)
class WorkerData:
    """The samples of one worker, and the test samples that worker 0 evaluates on."""

    dataset: Dataset
    mine: IndexArray
    test: IndexArray


def train(
    configuration: Callable[[], Config], stamp: str, comm: MPI.Intracomm | None = None
) -> None:
    """Trains as one rank of ``comm``. ``configuration`` is called once the ranks can agree on its
    errors; ``stamp``, a date and time, names the run folder."""
    with Session(comm) as session:
        config = session.agree(configuration)
        session.compare(config.flat())
        roles = session.agree(lambda: Roles(session.size, config.servers))
        planted = session.agree(lambda: [faults.parse(text, roles) for text in config.inject])
        loaded = session.agree(lambda: load_data(config, roles, session.rank))
        kernels = session.agree(lambda: load_kernels(_device(config, roles, session.rank)))
        name = config.run_dir or runfolder.default_name(config, stamp)
        folder = Path(session.first(name))
        session.agree(lambda: runfolder.create(folder, config) if session.rank == 0 else None)
        role = roles.name(session.rank)
        first_worker = session.rank == roles.rank_of(0)
        journal = Journal(
            folder, f"{role}-{session.rank}", session.transport.now, metrics=first_worker
        )

        def main(worker: Worker) -> None:
            assert loaded is not None, "workers have data"
            Trainer(config, worker, loaded, kernels, planted, folder, journal).run(session.rank)

        session.run(
            main,
            servers=config.servers,
            staleness=config.bound,
            optimizer=config.optimizer.value,
            schedule=config.schedule.value,
            segments=config.segments,
            clip_norm=config.clip_norm,
            chunk_bytes=config.chunk_bytes,
            window=config.window,
            sink=journal,
        )
        journal.close()


def load_data(config: Config, roles: Roles, rank: int) -> WorkerData | None:
    """The data of the worker on ``rank``; None on a server."""
    if roles.is_server(rank):
        return None
    dataset = data.load(config.dataset)
    training, test = data.split(dataset, config.dataset.test_fraction, config.seed)
    if not len(training):
        raise DataError(f"{config.dataset.name}: no samples are left to train on")
    scheme = config.dataset.partition
    shares = data.partition(dataset.labels, training, roles.workers, scheme, config.seed)
    return WorkerData(dataset, shares[roles.worker_of(rank)], test)


def _device(config: Config, roles: Roles, rank: int) -> str:
    return "cpu" if roles.is_server(rank) else config.device


class Compute:
    """Gradients on the worker's device, from and into the transport's memory.

    On the CPU the model works on that memory itself; on a GPU, on copies there.
    """

    def __init__(self, config: Config, worker: Worker, kernels: Kernels) -> None:
        self._model = config.model.value
        self._kernels = kernels
        self._on_host = kernels.device == "cpu"
        self._worker = worker
        self._params = self._device_twin(worker.params)
        self._grads = self._device_twin(worker.grads)

    def gradient(self, dataset: Dataset, micro_batches: list[IndexArray]) -> tuple[float, int, int]:
        """Fills ``worker.grads`` with the gradient of the mean loss over all micro-batches.

        Returns that mean loss, the number classified correctly and the number of samples.
        """
        self.refresh()
        samples = sum(len(indices) for indices in micro_batches)
        loss, correct = 0.0, 0
        for i, indices in enumerate(micro_batches):
            share = len(indices) / samples
            x, y = (self._kernels.asarray(part) for part in dataset.batch(indices))
            one_loss, one_correct = self._model.loss_and_grad(
                self._params, x, y, self._grads, self._kernels, scale=share, accumulate=i > 0
            )
            loss += share * one_loss
            correct += one_correct
        if not self._on_host:
            for name, grad in self._grads.items():
                self._kernels.copy_to_host(grad, self._worker.grads[name])
        return loss, correct, samples

    def refresh(self) -> None:
        """Takes over parameters that a pull has changed."""
        if not self._on_host:
            for name, param in self._params.items():
                self._kernels.copy_to_device(self._worker.params[name], param)

    def evaluate(self, dataset: Dataset, indices: IndexArray) -> tuple[float, float]:
        """Mean loss and accuracy on the samples ``indices``; NaN for no samples."""
        self.refresh()
        loss, correct = 0.0, 0
        for start in range(0, len(indices), EVALUATION_BATCH):
            batch = dataset.batch(indices[start : start + EVALUATION_BATCH])
            x, y = (self._kernels.asarray(part) for part in batch)
            part_loss, part_correct = self._model.evaluate(self._params, x, y, self._kernels)
            loss, correct = loss + part_loss, correct + part_correct
        n = len(indices)
        return (loss / n, correct / n) if n else (float("nan"), float("nan"))

    def _device_twin(self, arrays: Arrays) -> Mapping[str, Any]:
        if self._on_host:
            return arrays
        return {name: self._kernels.asarray(array) for name, array in arrays.items()}


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
    ) -> None:
        self._config = config
        self._worker = worker
        self._data = loaded
        self._kernels = kernels
        self._planted = planted
        self._folder = folder
        self._sink = sink
        self._samples = 0

    def run(self, mpi_rank: int) -> None:
        """Trains, and on worker 0 evaluates, saves and reports."""
        config, worker, dataset = self._config, self._worker, self._data.dataset
        model = config.model.value
        worker.register(model.init(dataset.features, dataset.classes, config.seed))
        compute = Compute(config, worker, self._kernels)
        if worker.rank == 0:
            sys.stderr.write(self._opening() + "\n")
            sys.stderr.flush()
        start = worker.now()
        last = self._epochs(compute, mpi_rank)
        worker.leave()
        totals = worker.mean(
            {"samples": self._samples, "steps": worker.clock, "skipped": worker.skipped}
        )
        seconds = worker.now() - start
        if worker.rank == 0:
            worker.pull()
            totals = {key: value * worker.size for key, value in totals.items()}
            self._report(compute.evaluate(dataset, self._data.test), totals, seconds, last)
        worker.barrier()

    def _epochs(self, compute: Compute, mpi_rank: int) -> Snapshot | None:
        """All steps of this worker; the last snapshot, None without any data."""
        config, worker = self._config, self._worker
        progress = self._progress()
        loss_now = accuracy_now = 0.0
        snapshot = None
        for epoch, micro_batches in self._steps():
            began = worker.now()
            loss, correct, samples = compute.gradient(self._data.dataset, micro_batches)
            faults.apply(self._planted, worker, mpi_rank, worker.now() - began)
            worker.step(weight=samples)
            self._samples += samples
            accuracy = correct / samples
            keep = SMOOTHING if worker.clock > 1 else 0.0
            loss_now = keep * loss_now + (1 - keep) * loss
            accuracy_now = keep * accuracy_now + (1 - keep) * accuracy
            self._sink.record(
                "step", epoch=epoch, step=worker.clock, loss=loss, accuracy=accuracy,
                staleness=worker.staleness, learning_rate=worker.learning_rate,
            )  # fmt: skip
            # Worker 0 knows the others by the updates that its chunks have had.
            pushes = worker.updates * (worker.size if config.bound == 0 else 1)
            share = pushes / worker.clock
            snapshot = Snapshot(
                epoch, config.epochs, worker.clock, self._samples * share,
                int(worker.wire_nbytes * share), loss_now, accuracy_now, worker.staleness,
            )  # fmt: skip
            progress.show(snapshot)
        if snapshot is not None:
            progress.show(snapshot, last=True)
        return snapshot

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

    def _progress(self) -> Progress:
        style = self._config.progress if self._worker.rank == 0 else "off"
        return Progress(sys.stderr, style, self._worker.now)

    def _opening(self) -> str:
        config, worker, layout = self._config, self._worker, self._worker.layout
        mode = {0: "sync", None: "async"}.get(config.bound, f"ssp, staleness {config.bound}")
        return (
            f"psgrad {__version__}: {config.model.name} with {layout.size:,} parameters on "
            f"{Path(config.dataset.name).name}, {_count(config.servers, 'server')}, "
            f"{_count(worker.size, 'worker')}, {mode}\n"
            f"shard balance (max/mean bytes) {_balance(layout, config):.3f}, "
            f"run folder {self._folder}"
        )

    def _report(
        self,
        test: tuple[float, float],
        totals: Mapping[str, float],
        seconds: float,
        last: Snapshot | None,
    ) -> None:
        config, worker = self._config, self._worker
        servers = worker.server_stats()
        params = worker.params
        digest = hashlib.sha256()
        for name in params:
            digest.update(np.ascontiguousarray(params[name]).tobytes())
        summary: dict[str, Any] = {
            "test_accuracy": test[1],
            "test_loss": test[0],
            "steps": round(totals["steps"]),
            "skipped_steps": round(totals["skipped"]),
            "seconds": seconds,
            "samples_per_second": totals["samples"] / seconds,
            "mode": config.mode,
            "staleness_bound": config.bound,
            "staleness_max": max(s["staleness_max"] for s in servers),
            "workers": worker.size,
            "servers": config.servers,
            "shard_balance": _balance(worker.layout, config),
            "bytes_pushed": sum(s["bytes_pushed"] for s in servers),
            "bytes_pulled": sum(s["bytes_pulled"] for s in servers),
            "params_sha256": digest.hexdigest(),
            "psgrad_version": __version__,
        }
        self._sink.record("summary", **summary)
        runfolder.save_model(self._folder, params)
        runfolder.save_summary(self._folder, summary)
        sys.stderr.write(closing(summary, self._folder) + "\n")
        sys.stderr.flush()
        if config.json:
            sys.stdout.write(json.dumps(summary) + "\n")
            sys.stdout.flush()


def closing(summary: Mapping[str, Any], folder: Path) -> str:
    """The summary for a person."""
    pushed, pulled = summary["bytes_pushed"] / 1e6, summary["bytes_pulled"] / 1e6
    bound = "none" if summary["staleness_bound"] is None else summary["staleness_bound"]
    lines = [
        f"test accuracy  {summary['test_accuracy']:.4f} (loss {summary['test_loss']:.4f})",
        f"wall time      {summary['seconds']:.2f} s, {summary['steps']} steps, "
        f"{summary['samples_per_second']:,.0f} samples/s",
        f"bytes moved    {pushed:.1f} MB pushed, {pulled:.1f} MB pulled",
        f"staleness      at most {summary['staleness_max']} seen, bound {bound}",
        f"run folder     {folder}",
    ]
    if summary["skipped_steps"]:
        lines.append(f"skipped        {summary['skipped_steps']} steps were not finite")
    return "\n".join(lines)


def _balance(layout: Layout, config: Config) -> float:
    chunks = layout.chunks(config.chunk_bytes)
    return balance(chunks, assign(chunks, config.servers), config.servers)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
