"""A server's part in checkpoints: it copies its shard at the cut, and has it written meanwhile."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from psgrad import control
from psgrad.checkpoint.store import Store
from psgrad.checkpoint.writer import Writer
from psgrad.chunk_state import Reply
from psgrad.committing import Committing
from psgrad.control import Stopped
from psgrad.cuts import Announcement, Cut
from psgrad.errors import ProtocolError
from psgrad.intake import PUSH_KINDS
from psgrad.layout import Float32
from psgrad.messages import Flag, Header, Kind
from psgrad.shard import Shard

Rows: TypeAlias = dict[tuple[int, int], Float32]  # (chunk, row) -> its part


@dataclass
class Saved:
    """What checkpoints have cost a server so far, the longest one of each."""

    checkpoint_copy_s: float = 0.0  # nothing else happens meanwhile
    checkpoint_wait_s: float = 0.0  # from the first marker to the last: who came first waits


class ServerSaving:
    """The part of the server on ``rank`` in the checkpoints of ``store``."""

    def __init__(self, store: Store, writer: Writer[dict[str, Any]], rank: int) -> None:
        self.saved = Saved()
        self._store = store
        self._writer = writer
        self._file = f"server-{rank}.safetensors"
        self._copies: dict[str, Float32] = {}  # of the last snapshot: memory to be used again
        self._rows: dict[int, Rows] = {}  # of each worker: what came before its next marker
        # Names and rows of markers, the oldest first: a worker may be at its next one already.
        self._marked: defaultdict[int, deque[tuple[list[str], Rows]]] = defaultdict(deque)
        self._first_s: float | None = None  # when the first marker of the open cut came
        self._refused: list[dict[str, Any]] = []

    @property
    def busy(self) -> bool:
        """Whether there will be more to report."""
        return self._writer.busy or bool(self._refused)

    def row(self, header: Header, values: Float32) -> None:
        """A part of a worker's own state, before its marker."""
        self._rows.setdefault(header.worker, {})[header.chunk, header.version] = values

    def marked(self, worker: int, rows: list[str], now_s: float) -> None:
        """A worker has sent its marker, and ``rows`` are the names of what came before it."""
        if self._first_s is None:
            self._first_s = now_s
        came = self._rows.pop(worker, {})
        if any(row >= len(rows) for _, row in came):
            raise ProtocolError(
                f"worker {worker} sent {len(came)} parts of rows and named {len(rows)} rows"
            )
        self._marked[worker].append((rows, came))

    def forget(self, worker: int) -> None:
        """``worker`` is gone: it is in no checkpoint to come."""
        self._rows.pop(worker, None)
        self._marked.pop(worker, None)

    def copy(
        self,
        shard: Shard,
        cut: Cut,
        now: Callable[[], float],
        problem: str | None = None,
        last: bool = False,
    ) -> None:
        """Copies the shard, which stands at ``cut``, and has the copy written.

        With a ``problem`` there will be no part of this checkpoint. The ``last`` one waits for the
        one before it, if that is still being written.
        """
        start_s = now()
        first_s, self._first_s = self._first_s, None
        rows = {worker: self._marked[worker].popleft() for worker in cut.clocks}
        if first_s is not None:
            waited = start_s - first_s
            self.saved.checkpoint_wait_s = max(self.saved.checkpoint_wait_s, waited)
        if any(self._marked.values()):
            self._first_s = start_s  # the next cut is open
        if last and self._writer.busy:
            self._writer.finish()
            report = self._writer.poll()
            self._refused += [] if report is None else [report]
        if problem is None and self._writer.busy:
            problem = "the one before it is still being written"
        if problem is not None:
            self._refused.append(_report(cut.number, problem))
            return
        tensors, chunks = self._snapshot(shard)
        for worker, (names, mine) in rows.items():
            for (chunk, row), values in mine.items():
                tensors[f"chunk/{chunk}/worker/{worker}/{names[row]}"] = values
        self.saved.checkpoint_copy_s = max(self.saved.checkpoint_copy_s, now() - start_s)
        self._writer.submit(lambda: self._write(cut, tensors, chunks))

    def reserve(self, shard: Shard) -> None:
        """Touches the memory of a snapshot, which the first one would have to wait for."""
        self._snapshot(shard)

    def _snapshot(self, shard: Shard) -> tuple[dict[str, Float32], dict[str, Any]]:
        tensors: dict[str, Float32] = {}
        memories, self._copies = self._copies, {}

        def keep(name: str, array: Float32) -> None:
            memory = memories.get(name)
            if memory is None:
                memory = np.empty_like(array)
            np.copyto(memory, array)
            tensors[name] = self._copies[name] = memory

        return tensors, shard.save(keep)

    def reports(self) -> list[dict[str, Any]]:
        """What the coordinator is to be told, once each."""
        due, self._refused = self._refused, []
        report = self._writer.poll()
        return due if report is None else [*due, report]

    def _write(
        self, cut: Cut, tensors: Mapping[str, Float32], chunks: Mapping[str, Any]
    ) -> dict[str, Any]:
        """In the writer's thread."""
        try:
            record = self._store.write(cut.number, self._file, tensors)
        except OSError as error:
            return _report(cut.number, f"{self._file}: {error.strerror or error}")
        workers = list(cut.clocks)
        done = _report(cut.number, None)
        return {**done, "file": asdict(record), "chunks": dict(chunks), "workers": workers}


def _report(number: int, error: str | None) -> dict[str, Any]:
    return {"number": number, "error": error, "file": None, "chunks": {}, "workers": []}


class Checkpoints:
    """The checkpoints of a run, as one server sees them; the coordinator has ``committing``."""

    def __init__(self, saving: ServerSaving, committing: Committing | None, together: bool) -> None:
        """``together``: all workers cut at one clock, as in sync mode."""
        self._saving = saving
        self._committing = committing
        self._together = together
        self._reports: list[dict[str, Any]] = []  # of this server, for the coordinator
        self._last: int | None = None  # the number of the cut behind which the run stops

    @property
    def busy(self) -> bool:
        """Whether something of a checkpoint is still to be done."""
        mine = self._saving.busy or bool(self._reports)
        return mine or (self._committing is not None and self._committing.busy)

    def registered(
        self,
        shard: Shard,
        about: Mapping[str, Any],
        clocks: Mapping[int, int],
        apart: bool = False,
    ) -> None:
        """Workers are at ``clocks``; manifests say ``about`` of the run.

        ``apart``: there are groups of workers, each at clocks of its own also in sync mode.
        """
        self._saving.reserve(shard)
        if self._committing is not None:
            self._committing.registered(about, clocks)
            if apart:
                self._committing.apart()

    def see(
        self, shard: Shard, header: Header, payload: Any, now: Callable[[], float]
    ) -> list[Reply]:
        """A message of a worker has come, and been handled: the answers that are due by a cut."""
        if header.kind is Kind.STATE:
            self._saving.row(header, payload)
        elif header.kind is Kind.MARK:
            rows, state = control.marker(payload)
            if header.flags & Flag.LAST:
                self._last = header.sequence
            shard.mark(header.worker, header.sequence, header.clock)
            self._saving.marked(header.worker, rows, now())
            if self._committing is not None:
                self._committing.marked(header.worker, state)
        elif header.kind is Kind.LEAVE:
            if self._committing is not None:
                state = control.last_state(payload)
                self._committing.saw(header.worker, header.clock)
                self._committing.left(header.worker, state)
        else:
            return []
        return self.cut_if_complete(shard, now)

    def lose(self, worker: int, shard: Shard, now: Callable[[], float]) -> list[Reply]:
        """``worker`` is gone, and ``shard`` knows: the answers that are due by a cut."""
        self._saving.forget(worker)
        if self._committing is not None:
            self._committing.lose(worker)
        return self.cut_if_complete(shard, now)

    def admit(self, worker: int, clock: int, is_alone: bool) -> None:
        """``worker`` has come in, at ``clock``: it is in the cuts to come. ``is_alone``: nobody
        else is there, who could be in one that is open."""
        if self._committing is not None:
            self._committing.admit(worker, clock, is_alone)

    def may_admit(self, clock: int) -> bool:
        """On the coordinator: whether no cut is or may be under way that a worker that comes in at
        ``clock`` would be in on one server and not on another."""
        return self._committing is None or self._committing.may_admit(clock)

    def hold(self, held: bool) -> None:
        """On the coordinator: whether no cut may begin, because a worker comes in."""
        if self._committing is not None:
            self._committing.hold(held)

    def cut_if_complete(self, shard: Shard, now: Callable[[], float]) -> list[Reply]:
        """Makes the cut that is open, if nothing is missing, and so with the next; the answers
        that are due then."""
        replies = []
        while (cut := shard.cut()) is not None:
            self._copy(shard, cut, now)
            replies += shard.resume()
            self._reports += self._saving.reports()
        return replies

    def announce(self, header: Header, now_s: float) -> Announcement | None:
        """A message about a chunk has come: the cut that is due now, if one is."""
        if self._committing is None:
            return None
        pushed = header.kind in PUSH_KINDS and not header.flags & Flag.OPEN
        if pushed or header.kind is Kind.SETTLE:  # of an open step, nobody has looked at the clock
            self._committing.saw(header.worker, header.clock)
            if header.kind is Kind.PUSH and not header.flags & Flag.QUIET:
                self._committing.apart()
        return self.due(now_s)

    def due(self, now_s: float) -> Announcement | None:
        """The cut that is to be made now, if one is, on the coordinator."""
        return None if self._committing is None else self._committing.announce(now_s)

    def stop(self, reason: str, now_s: float) -> Announcement | None:
        """The coordinator is to end the run behind a cut because of ``reason``: the cut, where it
        can be made at once; else a later ``announce`` has it."""
        if self._committing is None:
            raise ProtocolError("only the coordinator stops a run")
        self._committing.stop(reason)
        return self.due(now_s)

    @property
    def stopped(self) -> Stopped | None:
        """What became of the last cut of a run that was to stop, on the coordinator."""
        return None if self._committing is None else self._committing.stopped

    def _copy(self, shard: Shard, cut: Cut, now: Callable[[], float]) -> None:
        if self._committing is not None:
            self._committing.opened(cut)
        problem = None
        if self._together and (len(set(cut.clocks.values())) > 1 or not shard.is_between_rounds):
            # Announced to workers that had gone on, or of groups that never were in step.
            where = ", ".join(f"worker {w} at {clock}" for w, clock in cut.clocks.items())
            problem = f"workers were not in step: {where}"
        self._saving.copy(shard, cut, now, problem, last=cut.number == self._last)

    def take(self, report: Mapping[str, Any]) -> None:
        """A server's report has come to the coordinator."""
        if self._committing is None:
            raise ProtocolError("only the coordinator takes reports of checkpoints")
        self._committing.take(report)

    def advance(self) -> tuple[list[dict[str, Any]], str | None]:
        """Reports for the coordinator, and what is to be logged."""
        reports, self._reports = [*self._reports, *self._saving.reports()], []
        if self._committing is None:
            return reports, None
        for report in reports:
            self._committing.take(report)
        return [], self._committing.advance()

    def give_up(self) -> None:
        """Nothing more will come, of a worker or a server: what is not whole never will be."""
        if self._committing is not None and not (self._saving.busy or self._reports):
            self._committing.give_up()

    def stats(self) -> dict[str, Any]:
        """Counters, by name."""
        committed = {} if self._committing is None else asdict(self._committing.committed)
        return {**asdict(self._saving.saved), **committed}
