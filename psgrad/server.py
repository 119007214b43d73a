"""The server's program: receive -> shard -> reply, until every worker is done."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from psgrad import control
from psgrad.admitting import Admitted, Admitting
from psgrad.chunk_state import Counters, Reply
from psgrad.commits import Round
from psgrad.control import Past, Stopped
from psgrad.coordinator import Coordinator, Outcome
from psgrad.crash import warn
from psgrad.cuts import Announcement
from psgrad.errors import CheckpointError, ConfigError, ProtocolError, RankLostError
from psgrad.guard import is_finite
from psgrad.halting import Stopping
from psgrad.inspector import Inspector
from psgrad.intake import CHUNK_KINDS, PUSH_KINDS, Intake
from psgrad.layout import Float32, Layout, assign
from psgrad.leases import Leases
from psgrad.messages import HEADER_NBYTES, Flag, Header, Kind, Verdict, encode_json
from psgrad.metrics import Sink
from psgrad.numbering import Numbering
from psgrad.open_steps import OpenSteps
from psgrad.opening import about, clocks_of, load, refusal, rules_of, share_of
from psgrad.options import Options
from psgrad.outbox import Outbox
from psgrad.pools import GradientPool
from psgrad.preemption import Preemption
from psgrad.processes import Process
from psgrad.record import Recorder
from psgrad.registration import differing
from psgrad.resuming import Resuming
from psgrad.roles import Roles
from psgrad.rounds import Rounds
from psgrad.saving import Checkpoints
from psgrad.seats import Seats
from psgrad.shard import Shard
from psgrad.sharing import ServerSharing
from psgrad.stall import Told, View
from psgrad.transport import Buffer, Transport
from psgrad.transport.shared import SharingError
from psgrad.watchdog import Watchdog

WRITING_S: Final = 0.02  # how often a server looks whether a file is written


class Server:
    """One server rank. Rank 0 is the coordinator too."""

    def __init__(
        self,
        transport: Transport,
        roles: Roles,
        options: Options,
        run: int,
        sink: Sink,
        shard: type[Shard] = Shard,
        recorder: Recorder | None = None,
        checkpoints: Checkpoints | None = None,
        resuming: Resuming | None = None,
        warn: Callable[[str], None] = warn,
        preemption: Preemption | None = None,
    ) -> None:
        self.is_over = False
        """Whether all servers know that all workers are done or gone."""
        self._transport = transport
        self._roles = roles
        self._options = options
        self._run = run
        self._sink = sink
        self._compression = options.compression
        self._running = set(range(roles.workers))
        self._now_s = 0.0  # of the turn
        self._is_done = False  # whether the coordinator knows that all workers are, here
        self._finished = 0  # workers whose main has returned
        self._ended: set[int] = set()  # servers for which all workers are done or gone
        self._first = 0  # the worker that gives first values
        self._leases = Leases(options.lease, -math.inf)
        leads = options.fault_tolerant and transport.rank == 0
        self._beat_s = self._leases.beat_s if leads else None
        self._coordinator = Coordinator.of(self._running) if transport.rank == 0 else None
        self._registrations: dict[int, Layout | str] = {}  # of workers that wait for an answer
        self._digest = 0
        self._kind_of_shard = shard
        self._recorder = recorder
        self._shard: Shard | None = None
        self._balance = 1.0
        self._notice = ""  # of the registration, for people
        self._bytes_pushed = 0  # with their headers
        self._gradients = GradientPool()
        numbering = Numbering()
        self._seats = Seats.of(roles)
        self._intake = Intake(
            roles, self._seats, run, self._compression.push, self._gradients, numbering
        )
        self._sharing = ServerSharing(options, roles, transport.rank)
        self._outbox = Outbox(
            transport, roles, self._seats, options, numbering, self._sharing, recorder
        )
        self._admitting = Admitting(transport.rank, run, roles, self._seats, self._outbox)
        self._rounds = Rounds(transport.rank, roles.servers, run, self._outbox)
        self._checkpoints = checkpoints
        self._resuming = resuming
        self._warn = warn
        self._stopping = Stopping(preemption)
        self._watchdog: Watchdog | None = None
        self._inspector: Inspector | None = None
        self._open = OpenSteps()
        self._layout: Layout | None = None

    @property
    def beat_s(self) -> float | None:
        """A turn is wanted at least so often, message or not; None: with each message is enough."""
        return self._beat_s

    @property
    def stopped(self) -> Stopped | None:
        """Why the run was stopped before its workers were done; None: it was not."""
        return self._stopping.stopped

    def watch(self, watchdog: Watchdog | None, processes: Sequence[Process | None] | None) -> None:
        """Before ``serve``: what looks at this process, and, on the coordinator, at a run that
        stands still; ``processes`` are those of all ranks."""
        self._watchdog = watchdog
        if self._transport.rank == 0 and processes is not None:
            limits = self._options.stall, self._options.stall_abort
            now_s = self._transport.now()
            self._inspector = Inspector(
                self._roles, self._run, self._outbox, *limits, processes, now_s
            )
            self._inspector.seats = self._seats

    def serve(self) -> None:
        """Answers until the main of every worker has returned."""
        self._transport.connect([r for r in range(self._roles.size) if self._hears(r)])
        steady_s, saving = self._patience_s, self._checkpoints
        while not self.is_over:
            busy = saving is not None and saving.busy
            message = self._transport.receive(self.place, WRITING_S if busy else steady_s)
            if self._watchdog is not None:
                self._watchdog.alive()
            if self._inspector is not None:
                self._inspect(self._inspector, message)
            self.turn(message, self._transport.now(), self._stopping.news())
        self.close()

    def place(self, peer: int, header: Header) -> Buffer:
        """Where the payload of a message is to be received."""
        return self._intake.place(peer, header)

    def turn(self, message: tuple[int, Header] | None, now_s: float, reason: str = "") -> None:
        """Takes a message, if one has come; it is ``now_s``.

        ``reason`` is why the run is to stop, if this rank was told so. What a server does and sends
        follows from its turns and from what its writers say, and from nothing else: one that is
        told the same does the same.
        """
        self._now_s = now_s
        if self._checkpoints is not None:
            self._advance_checkpoints(self._checkpoints)
            if reason:
                self._stop(self._checkpoints, f"{reason} at rank {self._transport.rank}")
        if self._beat_s is not None:
            self._evict_silent(message)
        if message is not None:
            self._take(*message)
        if not self._goes_on and not self._is_saving():
            self._end_together()

    def forget_places(self) -> None:
        """Payloads that have a place and have not been taken will come once more."""
        self._intake.forget_places()

    def close(self) -> None:
        """All is over: raises ``ProtocolError`` where something was left undone."""
        if self._options.fault_tolerant:
            for reply in [] if self._shard is None else self._shard.give_up():
                self._reply(reply)
        self._sharing.close()
        if self._shard is not None and (blocked := self._shard.blocked()):
            raise ProtocolError("the run ended with unanswered messages: " + "; ".join(blocked))
        if self._open.workers:
            raise ProtocolError(f"the run ended with open steps of workers {self._open.workers}")
        if self._gradients.lent:
            raise ProtocolError(f"the run ended with {self._gradients.lent} buffers still in use")

    @property
    def _patience_s(self) -> float | None:
        """How long this server waits for a message before it looks after something else, while no
        file is written."""
        waits = [self._beat_s, self._stopping.watch_s]
        if self._inspector is not None:
            waits.append(self._inspector.watch_s)
        return min((seconds for seconds in waits if seconds is not None), default=None)

    def _inspect(self, inspector: Inspector, message: tuple[int, Header] | None) -> None:
        """On the coordinator: looks whether anything moves, and says what stands still."""
        now = self._transport.now()
        if message is not None:
            inspector.heard(*message, now)
        if not inspector.is_quiet(now):
            return
        running = sorted(self._running)
        if not inspector.is_due(now, running) and not inspector.is_over(now):
            return
        assert self._coordinator is not None, "only it has an inspector"
        some, whole = inspector.conclude(now, running, self._view(), *self._coordinator.waiting())
        for line in whole:
            self._sink.log(line)
        self._warn("\n".join(some))

    def _view(self) -> View:
        """What this server knows of who waits for whom."""
        if self._shard is None:
            return View(missing=tuple(sorted(self._running - self._registrations.keys())))
        return View.of(self._shard.unanswered(), self._shard.pushed())

    def _say_doing(self) -> None:
        """Tells the coordinator what this server is doing."""
        told = Told("takes messages", tuple(traceback.format_stack()[:-2]), self._view())
        payload = encode_json(told.record())
        rank = self._transport.rank
        header = Header(Kind.DOING, run=self._run, sequence=rank, nbytes=len(payload))
        self._outbox.post(0, header, payload)

    def _take(self, peer: int, header: Header) -> None:
        """A whole message of ``peer`` has come."""
        if header.kind is Kind.LOST and self._is_done:
            self._ended.add(peer)
            return
        if header.kind is Kind.LOST:
            self._lose_rank(peer)
            return
        new, payload = self._intake.take(peer, header)
        if not new:
            return
        if header.kind is Kind.FINISH and self._roles.is_server(peer):
            if header.sequence >= self._admitting.number:  # else it was said before it knew
                self._ended.add(peer)
            return
        if not self._roles.is_server(peer):
            if self._seats.seat_of(peer) is None:
                self._admitting.take(peer, header, payload, self._layout)
                self._admit_who_may()
                return
            if self._admitting.heard(peer, header.kind) and self._checkpoints is not None:
                self._checkpoints.hold(False)
        if self._recorder is not None:
            self._recorder.took(peer, header)
        self._handle(header, payload)

    @property
    def _goes_on(self) -> bool:
        """Whether workers are running or, where none is done, somebody may take their place."""
        hopes = self._admitting.decides is not None and self._admitting.hopes
        return bool(self._running) or (hopes and not self._finished)

    def _is_saving(self) -> bool:
        """Whether something of a checkpoint is still to be done."""
        saving = self._checkpoints
        if saving is None or not saving.busy:
            return False
        if not self._running and len(self._ended) == self._roles.servers - 1:
            saving.give_up()
        return saving.busy

    def _end_together(self) -> None:
        """All workers are done or gone here; ends when they are for each server.

        They do not learn of a loss at one time, and for those that go on, a server that ends is one
        that has died.
        """
        others = {rank for rank in self._roles.server_ranks if rank != self._transport.rank}
        done = Header(Kind.FINISH, run=self._run, sequence=self._admitting.number)
        if not self._options.fault_tolerant:
            self.is_over = True
        elif self._transport.rank == 0:
            self.is_over = others <= self._ended
            for server in sorted(others if self.is_over else ()):
                self._outbox.post(server, done)
        else:
            if not self._is_done:
                self._outbox.post(0, done)
            self._is_done = True
            self.is_over = 0 in self._ended

    def _handle(self, header: Header, payload: Any) -> None:
        kind, worker = header.kind, header.worker
        if kind in CHUNK_KINDS and self._shard is not None:
            self._serve_chunk(self._shard, header, payload)
        elif kind is Kind.REGISTER:
            self._registrations[worker] = control.registration(payload, worker)
            self._register_if_all_came()
        elif kind is Kind.MEET:
            self._meet(header, payload)
        elif kind is Kind.STATS:
            self._outbox.tell(
                worker, header._replace(kind=Kind.STATS_ARE), encode_json(self._stats())
            )
        elif kind is Kind.FINISH:
            if payload:
                self._stopping.stopped = control.stopped(payload)
            self._finish(worker)
        elif kind is Kind.SHARE:
            self._share(worker, payload)
        elif kind is Kind.ALIVE:
            return
        elif kind is Kind.ASK:
            self._say_doing()
        elif kind is Kind.DOING:
            if self._inspector is None:
                raise ProtocolError("a rank says what it is doing, nobody has asked here")
            self._inspector.answered(header.sequence, Told.from_payload(payload))
        elif kind is Kind.STOP:
            if self._checkpoints is None:
                raise ProtocolError("a rank asks for a stop, this run has no checkpoints")
            self._stop(self._checkpoints, control.stop(payload))
        elif kind is Kind.EVICTED:
            if worker in self._running:
                self._lose_worker(worker, f"worker {worker} was shut out by the coordinator")
        elif kind is Kind.COMPLETE:
            complete = Round(header.clock, control.workers(payload, kind))
            committed = self._rounds.take(header.sequence, complete, header.incarnation)
            if committed is not None:
                self._commit(committed)
        elif kind is Kind.COMMIT:
            self._commit(Round(header.clock, control.workers(payload, kind)))
        elif kind is Kind.ADMIT:
            self._admit(self._admitting.read(header, payload))
        elif kind is Kind.WRITTEN:
            if self._checkpoints is None:
                raise ProtocolError("a server reports a checkpoint, this run has none")
            self._checkpoints.take(control.written(payload))
        elif self._shard is None:
            raise ProtocolError(f"worker {worker} sends {kind.name} before its registration")
        elif kind in (Kind.STATE, Kind.MARK):
            if self._checkpoints is None:
                raise ProtocolError(f"worker {worker} marks a checkpoint, this run has none")
        elif kind is Kind.SETTLE:
            self._settle(self._shard, header, payload)
        else:
            self._serve_chunk(self._shard, header, payload)
        if self._checkpoints is not None and self._shard is not None:
            self._see_checkpoints(self._checkpoints, self._shard, header, payload)
        if self._shard is not None and self._seats.holder(worker) is not None:
            self._report_round(self._shard)  # a cut may have let the rest of it in
        self._check_rendezvous()
        self._admit_who_may()

    def _serve_chunk(self, shard: Shard, header: Header, payload: Any) -> None:
        if header.flags & Flag.SHARED:
            payload = self._shared_gradient(shard, header)
            self._bytes_pushed += payload.nbytes
        if header.kind in CHUNK_KINDS:
            self._bytes_pushed += HEADER_NBYTES + header.nbytes
        if header.flags & Flag.ENCODED and payload is not None:
            codec, size = self._compression.push, shard.chunks[header.chunk].chunk.size
            assert codec is not None, "_chunk_memory has looked"
            payload = self._gradients.open(payload, size, codec)
        if header.flags & Flag.OPEN:
            if header.kind is not Kind.STEP:
                raise ProtocolError(f"worker {header.worker} opens a step by {header.kind.name}")
            self._open.add(header, payload)
            # A look at it here, where there is time, saves the worker one where there is none.
            sound = not isinstance(payload, np.ndarray) or is_finite(payload)
            verdict = Verdict.NONE if sound else Verdict.SKIPPED
            answer = header._replace(kind=Kind.RECEIVED, verdict=verdict, flags=0)
            self._outbox.tell(header.worker, answer)
            return
        for reply in shard.handle(header, payload):
            self._reply(reply)
        if header.kind is Kind.LEAVE:
            self._sink.log(f"worker {header.worker} left at clock {header.clock}")
            self._admitting.close()
            self._outbox.tell(header.worker, Header(Kind.LEFT, run=self._run, worker=header.worker))

    def _report_round(self, shard: Shard) -> None:
        """Tells the coordinator of a round that is complete here, where it waits for that."""
        complete = shard.complete_round()
        committed = None if complete is None else self._rounds.report(complete, self._now_s)
        if committed is not None:
            self._commit(committed)

    def _commit(self, committed: Round) -> None:
        shard = self._shard
        if shard is None:
            raise ProtocolError("a round is committed before the registration")
        self._rounds.closed(self._now_s)
        for reply in shard.commit(committed):
            self._reply(reply)
        if self._checkpoints is not None:
            for reply in self._checkpoints.cut_if_complete(shard, self._transport.now):
                self._reply(reply)
        self._report_round(shard)

    def _see_checkpoints(
        self, checkpoints: Checkpoints, shard: Shard, header: Header, payload: Any
    ) -> None:
        """What a message of a worker means for checkpoints, and what is due because of it."""
        for reply in checkpoints.see(shard, header, payload, self._transport.now):
            self._reply(reply)
        self._announce(checkpoints.announce(header, self._now_s))

    def _announce(self, cut: Announcement | None) -> None:
        if cut is None:
            return
        flags = Flag.LAST if cut.last else 0
        header = Header(Kind.CUT, run=self._run, sequence=cut.number, clock=cut.clock, flags=flags)
        for worker in sorted(self._running):
            self._outbox.tell(worker, header._replace(worker=worker))

    def _stop(self, checkpoints: Checkpoints, reason: str) -> None:
        """The run is to stop behind a checkpoint: the coordinator has that made."""
        if self._transport.rank != 0:
            payload = encode_json({"reason": reason})
            self._outbox.post(0, Header(Kind.STOP, run=self._run, nbytes=len(payload)), payload)
            return
        self._sink.log(f"asked to stop by {reason}")
        self._admitting.close()
        self._announce(checkpoints.stop(reason, self._now_s))

    def _advance_checkpoints(self, checkpoints: Checkpoints) -> None:
        before = checkpoints.stopped
        reports, said = checkpoints.advance()
        if said is not None:
            self._sink.log(said)
            self._announce(checkpoints.due(self._now_s))  # it may have waited for this
        if checkpoints.stopped is not None and before is None:
            for worker in sorted(self._running):
                header = Header(Kind.STOPPED, run=self._run, worker=worker)
                self._outbox.tell(worker, header, encode_json(checkpoints.stopped._asdict()))
        for report in reports:
            payload = encode_json(report)
            header = Header(Kind.WRITTEN, run=self._run, nbytes=len(payload))
            self._outbox.post(0, header, payload)

    def _hears(self, rank: int) -> bool:
        """Whether this server listens to ``rank``: to workers, and the coordinator to all."""
        mine = self._transport.rank
        return rank != mine and (0 in (mine, rank) or not self._roles.is_server(rank))

    def _settle(self, shard: Shard, end: Header, payload: Any) -> None:
        """A worker's open step has ended: its chunks are pushes now, or empty ones."""
        scale = np.float32(control.scale(payload)) if end.nbytes else None
        # Workers on this node's CPU compute meanwhile, and threads would take their cores. Those
        # elsewhere or on a GPU need none here, but are not told apart. An exception ends the job.
        shard.share_work(False)
        for header, grad in self._open.settle(end):
            shared = header.flags & Flag.SHARED
            if end.weight == 0 and grad is not None:
                if not shared:
                    self._gradients.give_back(grad)
                header, grad = header._replace(flags=header.flags & ~Flag.SHARED), None
            elif (
                scale is not None
                and isinstance(grad, np.ndarray)
                and not (shared or shard.chunks[header.chunk].options.buffer)
            ):
                grad *= scale
            for reply in shard.handle(header, grad):
                self._reply(reply)
        shard.share_work(True)

    def _lose_rank(self, rank: int) -> None:
        """The transport says that ``rank`` has died."""
        name = f"rank {rank} ({self._roles.name(rank)}, {self._roles.host(rank)})"
        if rank in self._ended:
            return
        if self._roles.is_server(rank):
            raise RankLostError(
                f"{name} is gone, and its part of the parameters with it; go on from the newest "
                "checkpoint: psgrad run --restarts does"
            )
        seat = self._seats.seat_of(rank)
        self._admitting.lose(rank)
        if seat is None:
            self._intake.forget(rank)
            self._check_somebody(f"{name} is gone")
            self._admit_who_may()
        elif seat.worker in self._running:
            self._lose_worker(seat.worker, f"{name} is gone", is_dead=True)

    def _evict_silent(self, message: tuple[int, Header] | None) -> None:
        """Shuts out workers that say nothing for longer than their lease."""
        now_s = self._now_s
        if message is not None and not self._roles.is_server(message[0]):
            seat, header = self._seats.seat_of(message[0]), message[1]
            if seat is not None and seat.incarnation == header.incarnation:
                clock = header.clock if header.kind in PUSH_KINDS else 0
                self._leases.heard(seat.worker, clock, now_s)
        for worker, silent_s in self._leases.over(self._running, now_s).items():
            rank = self._seats.rank_of(worker)
            self._outbox.tell(worker, Header(Kind.FENCED, run=self._run, worker=worker))
            self._lose_worker(
                worker,
                f"rank {rank} (worker, {self._roles.host(rank)}) was silent for {silent_s:.1f} s "
                "and is shut out",
            )

    def _lose_worker(self, worker: int, why: str, is_dead: bool = False) -> None:
        """A worker is out of the run: what of it is not applied never will be."""
        rank = self._seats.rank_of(worker)
        self._seats.vacate(worker)
        if is_dead or not self._options.rejoin:
            self._transport.drop(rank)
            self._intake.forget(rank)
        else:  # it may send for a while, and come back
            self._transport.forsake(rank)
            self._intake.fence(rank)
        self._admitting.lose(rank)
        self._admitting.vacate(worker)
        self._sharing.forget(worker)
        self._leases.forget(worker)
        for header, grad in self._open.drop(worker):
            if grad is not None and not header.flags & Flag.SHARED:
                self._gradients.give_back(grad)
        self._running.discard(worker)
        said = f"{why}; {len(self._running)} workers go on"
        self._sink.log(said)
        if self._coordinator is not None:
            self._warn(said)
            for server in self._roles.server_ranks[1:]:
                self._outbox.post(server, Header(Kind.EVICTED, run=self._run, worker=worker))
        self._registrations.pop(worker, None)
        clock = 0 if self._shard is None else self._shard.clock_of(worker)
        if self._shard is not None:
            for reply in self._shard.drop(worker):
                self._reply(reply)
            if self._checkpoints is not None:
                for reply in self._checkpoints.lose(worker, self._shard, self._transport.now):
                    self._reply(reply)
            if worker == self._first and self._running:
                self._ask_for_first_values(self._shard)
            self._report_round(self._shard)
        self._check_somebody(why)
        self._register_if_all_came()
        if self._coordinator is not None:
            self._send_outcomes(self._coordinator.lose(worker, clock))
        self._check_rendezvous()
        self._admit_who_may()

    def _check_somebody(self, why: str) -> None:
        if not (self._running or self._finished or self._hopes):
            raise RankLostError(f"{why}, and it was the last worker")

    @property
    def _hopes(self) -> bool:
        """Whether somebody may take the place of the last worker, as far as is known here."""
        options = self._options
        return (options.rejoin or options.spares > 0) and self._admitting.hopes

    def _admit_who_may(self) -> None:
        """On the coordinator: has one in that is ready, where a worker is lost."""
        shard, decides, coordinator = self._shard, self._admitting.decides, self._coordinator
        if shard is None or decides is None or coordinator is None:
            return
        self._admitting.promise()
        if not decides.is_ready:
            return
        calm = self._checkpoints is None or self._checkpoints.may_admit(shard.entry_clock(0))
        if (self._running and not calm) or (chosen := decides.admit()) is None:
            return
        rank, seat = chosen
        # Alone it goes on where that worker was.
        clock = shard.entry_clock(coordinator.lost[seat.worker])
        admitted = Admitted(self._admitting.number + 1, rank, seat, clock)
        self._admitting.announce(admitted)
        self._admit(admitted)

    def _admit(self, admitted: Admitted) -> None:
        """A rank is a worker from now on."""
        shard, (number, rank, seat, clock) = self._shard, admitted
        if shard is None:
            self._admitting.put_off(admitted)
            return
        worker = seat.worker
        self._admitting.number = number
        self._seats.admit(rank, seat)
        is_alone = not self._running
        self._running.add(worker)
        self._ended.clear()
        self._is_done = False
        self._rounds.admit(number)
        for reply in shard.admit(worker, clock):
            self._reply(reply)
        if self._checkpoints is not None:
            self._checkpoints.admit(worker, clock, is_alone)
            self._checkpoints.hold(not self._admitting.is_calm)
        said = f"rank {rank} ({self._roles.host(rank)}) is worker {worker} from clock {clock} on"
        self._sink.log(said)
        past = Past()
        if self._coordinator is not None:
            self._warn(f"{said}; {len(self._running)} workers go on")
            self._leases.heard(worker, 0, self._now_s)
            self._coordinator.admit(worker, clock)
            past = self._coordinator.past_of(worker)
        self._answer_registration(worker, clock, control.past_record(past))
        if is_alone and not shard.is_ready:
            self._ask_for_first_values(shard)

    def _answer_registration(self, worker: int, clock: int, past: dict[str, Any]) -> None:
        """Tells a worker that comes in later what others learned at the start, or since then."""
        answer = {
            "first": -1,
            "error": None,
            "notice": "",
            "server": self._transport.rank,
            "params": self._sharing.handle,
            "past": past,
        }
        header = Header(
            Kind.REGISTERED, Verdict.APPLIED, self._run, self._digest, worker, clock=clock
        )
        self._outbox.tell(worker, header, encode_json(answer))

    def _ask_for_first_values(self, shard: Shard) -> None:
        """The worker that was to give them is gone: the next one gives those that have not come."""
        self._first = min(self._running)
        want = Header(Kind.INIT, run=self._run, layout=self._digest, worker=self._first)
        for index, state in shard.chunks.items():
            if not state.ready:
                self._outbox.tell(
                    self._first, want._replace(segment=state.chunk.segment, chunk=index)
                )

    def _reply(self, reply: Reply) -> None:
        if reply.released is not None and not reply.header.flags & Flag.SHARED:
            # First values come once, and so does what is flushed bare beside a codec.
            again = reply.header.clock > 0 and self._compression.push is None
            self._gradients.give_back(reply.released, keep=again)
        self._outbox.answer(reply)

    def _register_if_all_came(self) -> None:
        came = self._registrations
        if self._shard is not None or not came or not self._running <= set(came):
            return
        first, *others = sorted(came)
        self._first = first
        problem, layout = differing(came), came[first]
        if problem is None and isinstance(layout, Layout):
            problem = self._open_shard(layout, [first, *others])
        verdict = Verdict.APPLIED if problem is None else Verdict.REFUSED
        answer = {
            "first": first,
            "error": problem,
            "notice": self._notice,
            "server": self._transport.rank,
            "params": self._sharing.handle,
        }
        for worker in [first, *others]:
            header = Header(Kind.REGISTERED, verdict, self._run, self._digest, worker)
            self._outbox.tell(worker, header, encode_json(answer))
        came.clear()  # whoever was refused may come again
        for admitted in self._admitting.put_off_so_far():
            self._admit(admitted)

    def _open_shard(self, layout: Layout, workers: Sequence[int]) -> str | None:
        """Takes its chunks of ``layout``; returns why it cannot, in words."""
        transport, options = self._transport, self._options
        problem, self._notice = refusal(options, layout, self._roles, workers, self._resuming)
        if self._notice:
            self._sink.log(self._notice)
        if problem is not None:
            return problem
        mine = share_of(layout, options, self._roles, transport.rank)
        beside = len(self._roles.servers_beside(transport.rank))
        try:
            rules = rules_of(options, options.threads(transport.cores, beside))
            # A worker that was done before it registered never pushes: nobody waits for it.
            shard = self._kind_of_shard(layout, mine.chunks, workers, rules)
            load(shard, self._resuming, options, workers)
        except MemoryError:
            return (
                f"server {transport.rank} has no memory for {mine.nbytes} bytes; use more servers"
            )
        except CheckpointError as error:
            return str(error)
        self._shard = shard
        clocks = clocks_of(self._resuming, workers)
        if rules.committed and transport.rank == 0:
            owners = assign(layout.chunks(options.chunk_bytes), self._roles.servers)
            self._rounds.open(owners, min(clocks.values()))
        self._balance, self._layout, self._digest = mine.balance, layout, layout.digest
        if self._checkpoints is not None:
            said = about(options, self._roles, layout)
            apart = any(segment.options.members is not None for segment in layout.segments)
            self._checkpoints.registered(self._shard, said, clocks, apart)
        self._intake.open(self._shard.chunks, self._digest)
        if trouble := self._sharing.open(layout):
            self._sink.log(f"parameters go by message: {trouble}")
        if self._sharing.place is not None:
            self._shard.move(*self._sharing.place)
        self._sink.log(
            f"shard of {mine.nbytes} bytes in {len(mine.chunks)} of {mine.of} chunks, "
            f"balance (max/mean over servers) {mine.balance:.3f}"
        )
        return None

    def _share(self, worker: int, payload: Any) -> None:
        """A worker of this node offers its memory."""
        if self._shard is None or self._layout is None:
            raise ProtocolError(f"worker {worker} sends SHARE before its registration")
        offer = control.fields(payload, Kind.SHARE, grads=control.TEXT, params=control.TEXT)
        alone = self._sharing.place is None
        error = None
        try:
            self._sharing.accept(worker, self._layout, offer["grads"], offer["params"])
        except SharingError as reason:
            error = str(reason)
            self._sink.log(f"worker {worker} goes by message: {error}")
        if alone and self._sharing.place is not None:
            self._shard.move(*self._sharing.place)
        answer = {"server": self._transport.rank, "error": error}
        self._outbox.tell(
            worker, Header(Kind.SHARED, run=self._run, worker=worker), encode_json(answer)
        )

    def _shared_gradient(self, shard: Shard, header: Header) -> Float32:
        grads = self._sharing.grads_of(header.worker)
        if grads is None or header.kind is not Kind.STEP or header.chunk not in shard.chunks:
            raise ProtocolError(f"worker {header.worker} shares no gradient of {header.chunk}")
        chunk = shard.chunks[header.chunk].chunk
        return grads[chunk.start : chunk.stop]

    def _meet(self, header: Header, payload: Any) -> None:
        if self._coordinator is None:
            raise ProtocolError("only the coordinator takes a rendezvous")
        part = control.part(payload)
        self._send_outcomes(self._coordinator.meet(header.worker, header.sequence, part))

    def _check_rendezvous(self) -> None:
        """Ends the run where workers wait for each other: one here, one for the other's push."""
        if self._coordinator is None or self._shard is None:
            return
        come, missing = self._coordinator.waiting()
        if not come:
            return
        for worker, pushers in self._shard.waiting().items():
            if worker in missing and (held := come & pushers):
                other = min(held)
                raise ConfigError(
                    f"worker {worker} waits for the next step of worker {other}, which waits at "
                    f"mean() or barrier() for worker {worker}; call worker.leave() where a "
                    f"worker's data ends, or give all workers the same number of steps"
                )

    def _finish(self, worker: int) -> None:
        self._running.discard(worker)
        self._finished += 1
        self._admitting.close()
        if self._options.fault_tolerant:
            self._outbox.tell(worker, Header(Kind.LEFT, run=self._run, worker=worker))
        self._registrations.pop(worker, None)
        self._sink.log(f"worker {worker} is done")
        self._register_if_all_came()
        if self._coordinator is not None:
            self._send_outcomes(self._coordinator.finish(worker))

    def _send_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.worker not in self._running:  # it has stopped while it waited
                continue
            header = Header(
                Kind.MET, run=self._run, worker=outcome.worker, sequence=outcome.sequence
            )
            self._outbox.tell(outcome.worker, header, encode_json(outcome.result))

    def _stats(self) -> dict[str, Any]:
        counters = self._shard.counters if self._shard is not None else Counters()
        return {
            **asdict(counters),
            "bytes_pushed": self._bytes_pushed,
            "bytes_pulled": self._outbox.bytes_pulled,
            "balance": self._balance,
            "repeated": self._intake.repeated,
            "fenced": self._intake.fenced,
            **({"commit_wait_s": self._rounds.wait_s} if self._options.commits else {}),
            **({} if self._checkpoints is None else self._checkpoints.stats()),
        }
