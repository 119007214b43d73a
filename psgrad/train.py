"""The built-in trainer: what ``psgrad train`` runs on every rank."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from psgrad import aggregate, faults, loss_scale, outer, preemption, runfolder
from psgrad.checkpointing import AUTO
from psgrad.codecs import Compression
from psgrad.compute import load_data
from psgrad.config import Config, Source, Tables, resolve
from psgrad.cuts import Every
from psgrad.data import DatasetOptions
from psgrad.errors import ConfigError
from psgrad.kernels import gpus
from psgrad.kernels import load as load_kernels
from psgrad.metrics import Journal
from psgrad.models import MODELS
from psgrad.optimizers import OPTIMIZERS
from psgrad.options import check_chunk_bytes, check_replicas, check_stall
from psgrad.outer import OUTER
from psgrad.pace import Pace
from psgrad.placement import Seat, bind_gpus
from psgrad.progress import Progress
from psgrad.record import Recorder
from psgrad.roles import Roles
from psgrad.schedules import SCHEDULES
from psgrad.session import Session
from psgrad.trainer import Trainer
from psgrad.transport import Transport
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


def configure(sources: list[Source]) -> Config:
    """The configuration of a training run from its sources, the later ones winning."""
    config = resolve(sources, TABLES, DatasetOptions)
    # What these refuse would be refused by the ranks, later.
    check_chunk_bytes(config.chunk_bytes)
    Compression.of(config.codec, config.pull_codec, config.feedback, config.zstd)
    Every.parse(config.checkpoint_every)
    loss_scale.parse(config.loss_scale, config.precision)
    preemption.check(config.stop_signals)
    check_stall(config.stall, config.stall_abort)
    aggregate.check(config.aggregate, config.bound, config.feedback)
    outer.check(config)
    check_replicas(config.replicas, config.servers, config.fault_tolerant, config.shared_memory)
    return config


def train(
    configuration: Callable[[], Config],
    stamp: str,
    terminal: bool = False,
    about: Mapping[str, Any] = NOTHING,
    comm: MPI.Intracomm | None = None,
    transport: Transport | None = None,
    ends_at: float = 0.0,
) -> None:
    """Trains as one rank of ``comm``, or of ``transport`` where there is one already.

    ``configuration`` is called once the ranks can agree on its errors; ``stamp``, a date and time,
    names the run folder; ``terminal``: a person looks on; ``ends_at`` is the unix time at which the
    job is ended, 0 where nobody knows.
    """
    with Session(comm, transport=transport) as session:
        train_in(session, configuration, stamp, terminal, about=about, ends_at=ends_at)


def train_in(
    session: Session,
    configuration: Callable[[], Config],
    stamp: str,
    terminal: bool = False,
    pace: Pace | None = None,
    about: Mapping[str, Any] = NOTHING,
    choices: Sequence[int] | None = None,
    show: Callable[[str], None] | None = None,
    ends_at: float = 0.0,
) -> None:
    """Trains as one rank of ``session``.

    With ``pace``, that is how long computing takes. ``about`` is what a record is to say of this
    process; ``choices`` are the codecs of a record that this run repeats; ``show`` takes what is
    for a person (default: to stderr).
    """
    config = session.agree(configuration)
    session.compare(config.flat())
    if config.log_level == "error":
        session.hush()
    quiet = config.log_level in ("error", "warning")
    if config.resume == AUTO:
        # Rank 0 alone looks: the others may see the folder a moment later.
        done = (runfolder.finished(config) if session.rank == 0 else None) or ""
        if session.first("done" if done else ""):
            if session.rank == 0:
                runfolder.say_finished(config, done)
            return
    roles = session.agree(lambda: Roles(session.size, config.servers, spares=config.spares))
    session.place(config.servers, config.placement)
    planted = session.agree(lambda: [faults.parse(text, roles) for text in config.inject])
    loaded = session.agree(lambda: load_data(config, roles, session.rank))
    gpu = _gpu(session, config, roles)
    kernels = session.agree(lambda: load_kernels(_device(config, roles, session.rank), gpu))
    made = session.agree(lambda: runfolder.create(config, stamp) if session.rank == 0 else Path())
    folder = Path(session.first(str(made)))
    first_worker = session.rank == roles.rank_of(0)
    name = f"{roles.name(session.rank)}-{session.rank}"
    kept = first_worker or (config.metrics == "all" and not roles.is_server(session.rank))
    metrics = runfolder.metrics(roles.worker_of(session.rank)) if kept else ""

    def main(worker: Worker) -> None:
        assert loaded is not None, "workers have data"
        style = config.progress if first_worker and not quiet else "off"
        if style == "auto":
            style = "line" if terminal else "plain"
        progress = Progress(sys.stderr, style, worker.now)
        trainer = Trainer(
            config,
            worker,
            loaded,
            kernels,
            planted,
            folder,
            journal,
            progress,
            pace,
            _hide if quiet else show or _show,
        )
        trainer.run(session.rank)

    with ExitStack() as stack:
        now = session.transport.now
        journal = stack.enter_context(
            closing(
                Journal(
                    folder,
                    name,
                    now,
                    metrics=metrics,
                    append=bool(config.resume),
                    echo=sys.stderr if config.log_level == "debug" else None,
                )
            )
        )
        recorder = None
        if config.record:
            file = stack.enter_context(runfolder.open_record(folder, session.rank))
            place = {"rank": session.rank, "size": session.size, "psgrad_version": __version__}
            recorder = Recorder(file, {**about, **place}, choices)
        written = str(runfolder.checkpoints(folder))
        session.run(
            main,
            servers=config.servers,
            placement=config.placement,
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
            fault_tolerant=config.fault_tolerant,
            lease=config.lease,
            spares=config.spares,
            rejoin=config.rejoin,
            replicas=config.replicas,
            checkpoint_dir=config.checkpoint_dir or written,
            checkpoint_every=config.checkpoint_every,
            checkpoint_keep=config.checkpoint_keep,
            resume=config.resume,
            aggregate=config.aggregate,
            stop_signals=config.stop_signals,
            walltime_margin=config.walltime_margin,
            stall=config.stall,
            stall_abort=config.stall_abort,
            stacks=journal.file,
            ends_at=ends_at,
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


def _gpu(session: Session, config: Config, roles: Roles) -> int | None:
    """Which GPU this rank works on, of those that it sees. Collective.

    Raises ``ConfigError`` on all ranks alike where one would be taken twice.
    """
    ids: tuple[str, ...] = ()
    # Simulated ranks are in one process and have whatever it has.
    if _device(config, roles, session.rank) != "cpu" and not config.simulate:
        with suppress(ConfigError):  # there is none: whether that will do, load_kernels says
            ids = gpus()
    mine = json.dumps([session.transport.host, ids]).encode()
    told = [json.loads(blob) for blob in session.transport.exchange(mine)]
    seats = [
        Seat(host, gpus=tuple(seen), server=roles.is_server(rank))
        for rank, (host, seen) in enumerate(told)
    ]
    return session.agree(lambda: bind_gpus(seats, config.gpu_share))[session.rank]


def _hide(_text: str) -> None:
    """For nobody: the run folder has it."""


def _show(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
