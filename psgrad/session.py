"""Gives each rank its role and runs it: ``psgrad.run``, and ``Session`` for what comes before.

::

    psgrad.run(main, servers=1, staleness=3, optimizer=psgrad.SGD(0.1))

A session compares what the ranks were told before any of them begins, so that a mistake on one is
an error on all, with no rank left waiting. An exception inside ``main`` ends the job: psgrad prints
``rank 2 (worker, host): ValueError: ...`` last and aborts MPI, because the other ranks would wait
for the failed one for ever.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

from psgrad import errors, processes
from psgrad.checkpoint.store import Store
from psgrad.checkpoint.writer import ThreadWriter, Writer
from psgrad.crash import describe, exit_status, say, warn
from psgrad.errors import ConfigError, Preempted, PsgradError, RankLostError
from psgrad.kernels import chunks
from psgrad.layout import SegmentOptions
from psgrad.metrics import Silent, Sink
from psgrad.numbering import Numbering
from psgrad.optimizers import SGD, Optimizer
from psgrad.options import REFERENCE_BYTES, Options
from psgrad.placement import SPREAD, order
from psgrad.preemption import DEFAULT, Preemption
from psgrad.processes import Process
from psgrad.record import Recorder
from psgrad.resuming import Found, Resuming, find, open_checkpoint
from psgrad.roles import Roles
from psgrad.schedules import Constant, Schedule
from psgrad.seats import Seat
from psgrad.serving import Serving
from psgrad.shard import Shard
from psgrad.standby import Standby, work
from psgrad.transport import Transport
from psgrad.transport.mpi import MpiTransport
from psgrad.transport.rerouted import Rerouted
from psgrad.version import __version__
from psgrad.watchdog import Watchdog
from psgrad.worker import Worker

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")

SPOKESMAN_S = 2.0  # the others wait this long for the one that reports an error of all


def run(
    main: Callable[[Worker], T],
    *,
    servers: int = 1,
    placement: str = SPREAD,
    staleness: int | None = 0,
    optimizer: Optimizer | None = None,
    schedule: Schedule | None = None,
    segments: Sequence[SegmentOptions] = (),
    clip_norm: float | None = None,
    chunk_bytes: int = 0,
    window: int = 8,
    reference_bytes: int = REFERENCE_BYTES,
    shared_memory: str = "auto",
    server_threads: int = 0,
    codec: str = "none",
    pull_codec: str = "none",
    feedback: str = "auto",
    zstd: str = "auto",
    seed: int = 0,
    fault_tolerant: bool = False,
    lease: float = 30.0,
    rejoin: bool = False,
    spares: int = 0,
    replicas: int = 0,
    checkpoint_dir: str = "",
    checkpoint_every: str = "",
    checkpoint_keep: int = 2,
    resume: str = "",
    aggregate: str = "mean",
    stop_signals: Sequence[str] = DEFAULT,
    walltime_margin: float = 0.0,
    ends_at: float = 0.0,
    stall: float = 60.0,
    stall_abort: float = 0.0,
    comm: MPI.Intracomm | None = None,
) -> T | None:
    """Runs ``main(worker)`` on every worker rank and serves parameters on the others.

    Every rank of ``comm`` (default COMM_WORLD; it is duplicated, not taken) calls it with the same
    arguments. Returns main's value on workers and None on servers, when all workers are done.
    MPI is started if it does not run yet, and is never finalised here.

    ``placement`` says which ranks the ``servers`` are: ``"spread"``, one of each node in turn, or
    ``"first"``, those that MPI numbers first.

    ``staleness`` is the bound s: 0 synchronous, a number bounded staleness, None asynchronous.
    In synchronous mode a step is one update with the mean of all gradients, weighted by samples;
    otherwise every push is one full optimizer step of its own. ``optimizer`` defaults to
    ``SGD()``; ``segments`` gives tensors their own options; ``clip_norm`` bounds the L2 norm of
    each worker's gradient; ``chunk_bytes`` 0 is the default grid; ``window`` is how many
    unanswered chunks a worker may have at one server; ``reference_bytes`` is the most that a server
    may spend on what workers hold, where pulls travel as differences. With ``shared_memory`` auto,
    ranks on one node share gradients and parameters; in synchronous mode ``worker.params`` is
    the servers' own memory, and read-only. Without a way to do so they send messages; ``"on"``
    makes that an error. ``server_threads`` share a server's arithmetic on large chunks; 0: as many
    as it has cores, at most 8.

    ``codec`` and ``pull_codec`` are specs such as ``"topk:0.01"`` for what gradients and parameters
    travel as, ``feedback`` says what becomes of the part of a gradient that is not sent, ``zstd``
    whether payloads are compressed once more (auto: where that saves time), and ``seed`` keys the
    codecs' randomness.

    With ``fault_tolerant`` training goes on without workers that die, if MPI lets it (``psgrad run
    --elastic``), and without those that are silent for longer than ``lease`` seconds and ten of
    their steps. The last ``spares`` ranks wait until a worker is lost: then main is called there,
    with a worker that has its index. With ``rejoin`` so is it again on a rank that was shut out and
    is awake. Such a worker has an ``incarnation`` above 0, the parameters of now, and the clock
    that the others have come to. With ``replicas`` 1
    each server has a replica on the rank of another one, so any one server may die as well: no push
    that was answered is lost. It needs at least 2 servers.

    With ``checkpoint_every``, a number of steps such as ``"500"`` or of seconds such as ``"600s"``,
    the servers write checkpoints to ``checkpoint_dir`` while training goes on, of which the last
    ``checkpoint_keep`` stay. ``resume`` is ``"auto"`` for the newest valid one there, where there
    is one, or a folder: the run then goes on from it, with any number of servers and workers. See
    ``Worker.keep`` for what scripts have to keep themselves, such as the place in their data.
    ``aggregate`` is what of a synchronous round is applied: ``"mean"``, or ``"median"``,
    ``"trimmed-mean:f"`` or ``"krum:f"``, which some wrong workers cannot steer. These ignore
    weights.

    In a run with checkpoints, a signal of ``stop_signals`` at any rank stops it: all workers take
    part in one more checkpoint (in sync mode, behind the same step), and when that is safe, the
    next ``Worker.step`` and this function raise ``Preempted`` on all ranks. Uncaught, it ends the
    job with status 75. So does the end of the walltime, ``walltime_margin`` seconds before the unix
    time ``ends_at`` (of Slurm: ``SLURM_JOB_END_TIME``), where both are given.

    Where nothing has moved for ``stall`` seconds, the coordinator reports who waits for whom, and
    what each rank is doing; 0: never. After ``stall_abort`` seconds it ends the job; 0: never.

    Raises ``ConfigError`` on every rank alike, before main runs, for a value out of range or
    arguments that differ between ranks. An exception in main ends the whole job.
    """
    with Session(comm) as session:
        return session.run(
            main,
            servers=servers,
            placement=placement,
            staleness=staleness,
            optimizer=SGD() if optimizer is None else optimizer,
            schedule=Constant() if schedule is None else schedule,
            segments=segments,
            clip_norm=clip_norm,
            chunk_bytes=chunk_bytes,
            window=window,
            reference_bytes=reference_bytes,
            shared_memory=shared_memory,
            server_threads=server_threads,
            codec=codec,
            pull_codec=pull_codec,
            feedback=feedback,
            zstd=zstd,
            seed=seed,
            fault_tolerant=fault_tolerant,
            lease=lease,
            rejoin=rejoin,
            spares=spares,
            replicas=replicas,
            checkpoint_dir=checkpoint_dir,
            checkpoint_every=checkpoint_every,
            checkpoint_keep=checkpoint_keep,
            resume=resume,
            aggregate=aggregate,
            stop_signals=stop_signals,
            walltime_margin=walltime_margin,
            ends_at=ends_at,
            stall=stall,
            stall_abort=stall_abort,
        )


class Session:
    """The ranks of one job before they have roles; use it as a context manager."""

    def __init__(
        self,
        comm: MPI.Intracomm | None = None,
        *,
        transport: Transport | None = None,
        shard: type[Shard] = Shard,
        report: Callable[[str], None] = say,
        warn: Callable[[str], None] = warn,
        writer: Callable[[], Writer[dict[str, Any]]] = ThreadWriter,
        inspects: bool | None = None,
    ) -> None:
        """``shard`` is what servers keep parameters in: a checked one, for instance. ``report``
        takes the line that says why this rank ends the job, ``warn`` what goes wrong and does not
        end it. ``writer`` makes what writes files beside the run. ``inspects``: whether somebody
        looks for a run that stands still; by default where ranks are real."""
        self.transport: Transport = MpiTransport(comm) if transport is None else transport
        # Whether this process is one rank, and its signals are its own.
        self._real = isinstance(self.transport, MpiTransport)
        self._inspects = self._real if inspects is None else inspects
        self._shard = shard
        self._report = report
        self._warn = warn
        self._writer = writer

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: object
    ) -> None:
        # After an error of all ranks there may be messages nobody will take: let MPI end with them.
        if kind is None:
            self.transport.close()
        elif issubclass(kind, Preempted):
            self.transport.close(kind.exit_status)

    def hush(self) -> None:
        """From now on only what ends the job is said, not what goes wrong beside it."""
        self._warn = _nothing

    @property
    def rank(self) -> int:
        """This rank, 0 to size - 1."""
        return self.transport.rank

    @property
    def size(self) -> int:
        """How many ranks the job has."""
        return self.transport.size

    def agree(self, attempt: Callable[[], T]) -> T:
        """Runs ``attempt`` on every rank; if it fails on any, all raise the first rank's error.

        Collective. Only a ``PsgradError`` counts as a failure to agree on.
        """
        value: T | None = None
        problem: PsgradError | None = None
        try:
            value = attempt()
        except PsgradError as error:
            problem = error
        mine = b"" if problem is None else f"{type(problem).__name__}\n{problem}".encode()
        texts = [blob.decode() for blob in self.transport.exchange(mine)]
        failed = [rank for rank, text in enumerate(texts) if text]
        if not failed:
            return value  # type: ignore[return-value]  # attempt returned
        name, _, text = texts[failed[0]].partition("\n")
        alike = len({texts[rank] for rank in failed}) == 1
        if len(failed) < self.size and not (alike and len(failed) > 1):
            text = f"rank {failed[0]}: {text}"
        kind: type[PsgradError] = getattr(errors, name, ConfigError)  # on all: one exit status
        shared = kind(text)
        shared.spokesman = self.rank == 0
        raise shared from problem

    def compare(self, description: Mapping[str, Any]) -> None:
        """Raises ``ConfigError`` on every rank, naming the first key that differs and its ranks.

        Collective.
        """
        mine = {"psgrad_version": __version__, **{k: repr(v) for k, v in description.items()}}
        blobs = self.transport.exchange(json.dumps(mine).encode())
        everyone: list[dict[str, str]] = [json.loads(blob) for blob in blobs]
        for key in dict.fromkeys(k for record in everyone for k in record):
            values = [record.get(key, "nothing") for record in everyone]
            if len(set(values)) > 1:
                error = ConfigError(f"{key} differs between ranks: {_by_value(values)}")
                error.spokesman = self.rank == 0
                raise error

    def first(self, text: str) -> str:
        """Rank 0's ``text``, on every rank. Collective."""
        return self.transport.exchange(text.encode() if self.rank == 0 else b"")[0].decode()

    def place(self, servers: int, placement: str) -> None:
        """Orders the ranks so that the first ``servers`` are where ``placement`` wants servers.

        Collective. ``rank`` may be another one then than MPI's; rank 0 stays what it is. Where a
        transport was handed in that is not MPI's, its order stays.
        """
        if not isinstance(self.transport, MpiTransport) or servers == 1:
            return
        hosts = self.transport.exchange(self.transport.host.encode())
        wanted = order([host.decode() for host in hosts], servers, placement)
        if wanted != list(range(self.size)):
            self.transport = self.transport.reordered(wanted)

    def run(
        self,
        main: Callable[[Worker], T],
        *,
        sink: Sink | None = None,
        recorder: Recorder | None = None,
        ends_at: float = 0.0,
        stacks: IO[str] | None = None,
        **options: Any,
    ) -> T | None:
        """``psgrad.run`` within this session.

        ``sink`` takes a server's log lines, ``recorder`` what a replay of the run needs, ``stacks``
        (by default stderr) that of a process which is not in psgrad when nothing moves.
        """
        chosen = self.agree(lambda: Options(**options))
        roles = self.agree(lambda: chosen.roles(self.size))
        self.compare(chosen.describe())
        self.place(chosen.servers, chosen.placement)
        with (
            self._outside(chosen, ends_at) as preemption,
            self._beside(chosen, roles, stacks or sys.stderr) as watchdog,
        ):
            return self._run(main, chosen, roles, preemption, watchdog, sink or Silent(), recorder)

    def _beside(
        self, options: Options, roles: Roles, stacks: IO[str]
    ) -> AbstractContextManager[Watchdog | None]:
        """What looks at this process while it is not in psgrad; not at servers with replicas."""
        hosts = options.replicas and roles.is_server(self.rank)
        if hosts or not (self._real and options.stall):
            return nullcontext()
        return Watchdog(options.stall, stacks)

    def _processes(self, options: Options) -> list[Process | None] | None:
        """Those of all ranks, where somebody wants to know. Collective."""
        if options.replicas or not (self._inspects and options.stall):
            return None
        mine = list(processes.myself()) if self._real else None
        blobs = self.transport.exchange(json.dumps(mine).encode())
        said = [json.loads(blob) for blob in blobs]
        return [None if process is None else Process(*process) for process in said]

    def _outside(
        self, options: Options, ends_at: float
    ) -> AbstractContextManager[Preemption | None]:
        """What may ask this rank to stop: a run without checkpoints ends by signals as ever."""
        if not (self._real and options.checkpoints.every):
            return nullcontext()
        return Preemption(options.stop_signals, ends_at, options.walltime_margin)

    def _run(
        self,
        main: Callable[[Worker], T],
        chosen: Options,
        roles: Roles,
        preemption: Preemption | None,
        watchdog: Watchdog | None,
        sink: Sink,
        recorder: Recorder | None,
    ) -> T | None:
        resuming = self._resuming(chosen, roles)
        run_id = int(self.first(str(uuid.uuid4().int >> 64)))
        hosts = self.transport.exchange(self.transport.host.encode())
        roles = dataclasses.replace(roles, hosts=tuple(host.decode() for host in hosts))
        if chosen.compression.push or chosen.compression.pull:
            self._load_kernels(hosts)
        # A recorded run has to be one that a replay can repeat: nobody asks ranks in between.
        inspected = None if recorder is not None else self._processes(chosen)
        comm = self.transport.subgroup(list(roles.worker_ranks))
        if chosen.fault_tolerant:
            self.transport.tolerate()
        value: T | None = None
        try:
            if roles.is_server(self.rank):
                serving = Serving(
                    self.transport,
                    roles,
                    chosen,
                    run_id,
                    sink,
                    self._shard,
                    recorder,
                    resuming,
                    self._warn,
                    self._writer,
                    preemption,
                    watchdog,
                    inspected,
                )
                stopped, speaks = serving.serve()
            else:
                carrier: Transport = self.transport
                if chosen.replicas:
                    carrier = Rerouted(carrier, roles.servers)
                numbering = Numbering()

                def begin(seat: Seat) -> Worker:
                    group = None if seat.incarnation else comm
                    return Worker(
                        carrier,
                        roles,
                        chosen,
                        run_id,
                        group,
                        recorder,
                        resuming,
                        preemption,
                        watchdog,
                        seat,
                        numbering,
                    )

                standby = Standby(carrier, roles, run_id, numbering)
                spare = self.rank in roles.spare_ranks
                seat = None if spare else Seat(roles.worker_of(self.rank))
                value, stopped = work(main, begin, standby, seat, chosen.rejoin)
                speaks = False
        except BaseException as error:
            if chosen.fault_tolerant and self._is_own(error, roles):
                self._end_worker(error, roles)
            self._end_job(error, roles)
        if stopped is not None:
            preempted = stopped.error
            preempted.spokesman = speaks
            if chosen.fault_tolerant and not speaks:
                # No MPI_Finalize holds ranks back, and the first that ends takes the others along.
                self.transport.sleep(SPOKESMAN_S)
            raise preempted
        return value

    def _resuming(self, options: Options, roles: Roles) -> Resuming | None:
        """The checkpoint to go on from, if one is; tries the folder of new ones. Collective."""
        wanted = options.checkpoints
        found = self.agree(lambda: find(wanted) if self.rank == 0 else Found())
        path = self.first(found.path)
        for line in found.said:
            self._warn(line)
        resuming = self.agree(lambda: open_checkpoint(path, options, roles) if path else None)
        store = Store(Path(wanted.folder), wanted.keep)
        if wanted.every:
            self.agree(lambda: store.prepare() if self.rank == 0 else None)
        return resuming

    def _load_kernels(self, hosts: Sequence[bytes]) -> None:
        """Before anything is timed, and first on one rank of each host: it may have to compile."""
        first = hosts.index(hosts[self.rank]) == self.rank
        if first:
            chunks.fastest()
        self.transport.exchange(b"")
        if not first:
            chunks.fastest()

    def _is_own(self, error: BaseException, roles: Roles) -> bool:
        """Whether ``error`` is that of one worker, without which the others can go on."""
        of_all = isinstance(error, RankLostError) or getattr(error, "spokesman", None) is not None
        return not (roles.is_server(self.rank) or of_all or isinstance(error, KeyboardInterrupt))

    def _end_worker(self, error: BaseException, roles: Roles) -> None:
        """Reports ``error`` and ends this rank alone: the others go on without it."""
        if not isinstance(error, PsgradError):
            traceback.print_exception(error)
        where = f"rank {self.rank} ({roles.name(self.rank)}, {self.transport.host})"
        self._warn(f"{where}: {describe(error)}")
        self.transport.leave(0)  # the run goes on, and its own status is what counts

    def _end_job(self, error: BaseException, roles: Roles) -> NoReturn:
        """Reports ``error`` and takes the other ranks along: they would wait for this one."""
        if not isinstance(error, PsgradError):
            traceback.print_exception(error)
        if not isinstance(error, PsgradError) or error.spokesman is not False:
            where = f"rank {self.rank} ({roles.name(self.rank)}, {self.transport.host})"
            self._report(f"{where}: {describe(error)}")
        else:
            # The rank that reports it aborts at once; this is for the case that it cannot.
            self.transport.sleep(SPOKESMAN_S)
        status = exit_status(error)
        self.transport.abort(status)
        raise SystemExit(status)


def _nothing(_text: str) -> None:
    """Says nothing."""


def _by_value(values: Sequence[str]) -> str:
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return "; ".join(
        f"{value} on rank{'s' if len(where) > 1 else ''} {', '.join(map(str, where))}"
        for value, where in ranks.items()
    )
