"""What runs on a server rank: its server, and where servers have replicas, one of those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psgrad.checkpoint.store import Store
from psgrad.checkpoint.writer import ToldWriter, Writer
from psgrad.committing import Committing
from psgrad.control import Stopped
from psgrad.cuts import CutPlan
from psgrad.hosting import Host
from psgrad.metrics import Sink
from psgrad.options import Options
from psgrad.preemption import Preemption
from psgrad.processes import Process
from psgrad.record import Recorder
from psgrad.replicas import Carry, End, Hosted, Voice
from psgrad.resuming import Resuming
from psgrad.roles import Roles
from psgrad.saving import Checkpoints, ServerSaving
from psgrad.server import Server
from psgrad.shard import Shard
from psgrad.transport import Transport
from psgrad.watchdog import Watchdog


@dataclass(frozen=True)
class Serving:
    """A server rank before it begins. ``writer`` makes what writes files beside the run."""

    transport: Transport
    roles: Roles
    options: Options
    run: int
    sink: Sink
    shard: type[Shard]
    recorder: Recorder | None
    resuming: Resuming | None
    warn: Callable[[str], None]
    writer: Callable[[], Writer[Any]]
    preemption: Preemption | None
    watchdog: Watchdog | None = None
    inspected: Sequence[Process | None] | None = None

    def serve(self) -> tuple[Stopped | None, bool]:
        """Answers until the main of every worker has returned.

        Returns why the run was stopped before that, if it was, and whether this rank is to say it.
        """
        if self.options.replicas:
            host = Host(
                self.transport,
                self.roles,
                self.run,
                self._host,
                self.writer,
                self.warn,
                self.preemption,
            )
            host.serve()
            return host.stopped, host.leads
        writers = self.writer(), self.writer()
        checkpoints = self._checkpoints(self.transport.rank, writers, self.warn)
        rank, warn, told = self.transport.rank, self.warn, self.preemption
        server = self._server(self.transport, self.sink, self.recorder, checkpoints, warn, told)
        server.watch(self.watchdog, self.inspected)
        server.serve()
        return server.stopped, rank == 0

    def _host(self, server: int, live: bool, carry: Carry) -> Hosted:
        """The program of ``server``, for this rank: its own one, or a replica."""
        end = End(self.transport, server, self.roles.servers, live, carry)
        voice = Voice(self.sink, self.warn, live)
        parts, commits = (ToldWriter[Any](self.writer() if live else None) for _ in range(2))
        checkpoints = self._checkpoints(server, (parts, commits), voice.warn)
        recorder = self.recorder if live else None
        program = self._server(end, voice, recorder, checkpoints, voice.warn)
        return Hosted(end, program, (parts, commits), voice)

    def _server(
        self,
        transport: Transport,
        sink: Sink,
        recorder: Recorder | None,
        checkpoints: Checkpoints | None,
        warn: Callable[[str], None],
        preemption: Preemption | None = None,
    ) -> Server:
        return Server(
            transport,
            self.roles,
            self.options,
            self.run,
            sink,
            self.shard,
            recorder,
            checkpoints,
            self.resuming,
            warn,
            preemption,
        )

    def _checkpoints(
        self,
        server: int,
        writers: tuple[Writer[Any], Writer[Any]],
        warn: Callable[[str], None],
    ) -> Checkpoints | None:
        """How ``server`` makes checkpoints, if there are any in this run."""
        parts, commits = writers
        wanted, bound = self.options.checkpoints, self.options.staleness
        if not wanted.every:
            return None
        store, committing = Store(Path(wanted.folder), wanted.keep), None
        if server == 0:
            number = 0 if self.resuming is None else self.resuming.number
            plan = CutPlan(wanted.every, bound, {}, number)
            committing = Committing(store, commits, plan, self.roles.servers, warn)
        return Checkpoints(ServerSaving(store, parts, server), committing, bound == 0)
