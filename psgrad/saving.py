"""A server's part in checkpoints: it copies its shard at the cut, and has it written meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from psgrad import control
from psgrad.checkpoint.store import Store
from psgrad.checkpoint.writer import Writer
from psgrad.chunk_state import Reply
from psgrad.committing import Committing
from psgrad.cuts import Announcement, Cut
from psgrad.errors import ProtocolError
from psgrad.intake import PUSH_KINDS
from psgrad.layout import Float32
from psgrad.messages import Flag, Header, Kind
from psgrad.shard import Shard


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
        self._rows: dict[int, dict[tuple[int, int], Float32]] = {}  # worker -> (chunk, row)
        # Of each worker, for each of its markers: the checkpoint's number, tensors by name.
        self._marked: dict[int, deque[tuple[int, dict[str, Float32]]]] = {}
        self._first_s: float | None = None  # when the first marker of the open cut came
        self._refused: list[dict[str, Any]] = []

    @property
    def busy(self) -> bool:
        """Whether there will be more to report."""
        return self._writer.busy or bool(self._refused)

    def row(self, header: Header, values: Float32) -> None:
        """A part of a worker's own state, before its marker."""
        self._rows.setdefault(header.worker, {})[header.chunk, header.version] = values

    def marked(self, worker: int, number: int, rows: list[str], now_s: float) -> None:
        """A worker has sent its marker, and ``rows`` are the names of what came before it."""
        if self._first_s is None:
            self._first_s = now_s
        came = self._rows.pop(worker, {})
        most = max((row for _, row in came), default=-1)
        if most >= len(rows):
            raise ProtocolError(
                f"worker {worker} sent row {most} of its state and named {len(rows)} rows"
            )
        tensors = {
            f"chunk/{chunk}/worker/{worker}/{rows[row]}": values
            for (chunk, row), values in came.items()
        }
        self._marked.setdefault(worker, deque()).append((number, tensors))

    def refuse(self, number: int, reason: str) -> None:
        """There will be no part of this checkpoint."""
        self._take_rows(number)
        self._refused.append(_report(number, reason))

    def copy(self, shard: Shard, cut: Cut, now: Callable[[], float]) -> None:
        """Copies the shard, which stands at ``cut``, and has the copy written."""
        start_s = now()
        first_s, self._first_s = self._first_s, None
        if first_s is not None:
            waited = start_s - first_s
            self.saved.checkpoint_wait_s = max(self.saved.checkpoint_wait_s, waited)
        if self._writer.busy:
            self.refuse(cut.number, "the one before it is still being written")
            return
        tensors: dict[str, Float32] = {}

        def keep(name: str, array: Float32) -> None:
            memory = self._copies.get(name)
            if memory is None:
                memory = self._copies[name] = np.empty_like(array)
            np.copyto(memory, array)
            tensors[name] = memory

        chunks = shard.save(keep)
        tensors.update(self._take_rows(cut.number))
        self.saved.checkpoint_copy_s = max(self.saved.checkpoint_copy_s, now() - start_s)
        self._writer.submit(lambda: self._write(cut.number, tensors, chunks))

    def _take_rows(self, number: int) -> dict[str, Float32]:
        """What the workers that have marked this checkpoint sent with it; nothing of it stays."""
        found: dict[str, Float32] = {}
        for queue in self._marked.values():
            while queue and queue[0][0] <= number:
                at, tensors = queue.popleft()
                found.update(tensors if at == number else {})
        return found

    def reports(self) -> list[dict[str, Any]]:
        """What the coordinator is to be told, once each."""
        due, self._refused = self._refused, []
        report = self._writer.poll()
        return due if report is None else [*due, report]

    def _write(
        self, number: int, tensors: Mapping[str, Float32], chunks: Mapping[str, Any]
    ) -> dict[str, Any]:
        """In the writer's thread."""
        try:
            record = self._store.write(number, self._file, tensors)
        except OSError as error:
            return _report(number, f"{self._file}: {error.strerror or error}")
        return {**_report(number, None), "file": asdict(record), "chunks": dict(chunks)}


def _report(number: int, error: str | None) -> dict[str, Any]:
    return {"number": number, "error": error, "file": None, "chunks": {}}


class Checkpoints:
    """The checkpoints of a run, as one server sees them; the coordinator has ``committing``."""

    def __init__(self, saving: ServerSaving, committing: Committing | None, together: bool) -> None:
        """``together``: all workers cut at one clock, as in sync mode."""
        self._saving = saving
        self._committing = committing
        self._together = together

    @property
    def busy(self) -> bool:
        """Whether something of a checkpoint is still to be done."""
        return self._saving.busy or (self._committing is not None and self._committing.busy)

    def registered(self, about: Mapping[str, Any], clocks: Mapping[int, int]) -> None:
        """Workers are at ``clocks``; manifests say ``about`` of the run."""
        if self._committing is not None:
            self._committing.registered(about, clocks)

    def see(
        self, shard: Shard, header: Header, payload: Any, now: Callable[[], float]
    ) -> list[Reply]:
        """A message of a worker has come, and been handled: the answers that are due by a cut."""
        if header.kind is Kind.STATE:
            self._saving.row(header, payload)
        elif header.kind is Kind.MARK:
            rows, state = control.marker(payload)
            shard.mark(header.worker, header.sequence, header.clock)
            self._saving.marked(header.worker, header.sequence, rows, now())
            if self._committing is not None:
                self._committing.marked(header.worker, header.sequence, state)
        elif header.kind is Kind.LEAVE:
            if self._committing is not None:
                state = control.last_state(payload)
                self._committing.saw(header.worker, header.clock)
                self._committing.marked(header.worker, 0, state)
        else:
            return []
        return self.cut_if_complete(shard, now)

    def cut_if_complete(self, shard: Shard, now: Callable[[], float]) -> list[Reply]:
        """Makes the cut that is open, if nothing is missing; the answers that are due then."""
        cut = shard.cut()
        if cut is None:
            return []
        self._copy(shard, cut, now)
        return shard.resume()

    def announce(self, header: Header, now_s: float) -> Announcement | None:
        """A message about a chunk has come: the cut that is due now, if one is."""
        if self._committing is None:
            return None
        pushed = header.kind in PUSH_KINDS and not header.flags & Flag.OPEN
        if pushed or header.kind is Kind.SETTLE:  # of an open step, nobody has looked at the clock
            self._committing.saw(header.worker, header.clock)
        return self._committing.announce(now_s)

    def _copy(self, shard: Shard, cut: Cut, now: Callable[[], float]) -> None:
        if self._committing is not None:
            self._committing.opened(cut)
        if self._together and len(set(cut.clocks.values())) > 1:
            # Announced to workers that had gone on, or of groups that never were in step.
            where = ", ".join(f"worker {w} at {clock}" for w, clock in cut.clocks.items())
            self._saving.refuse(cut.number, f"workers were not in step: {where}")
        else:
            self._saving.copy(shard, cut, now)

    def take(self, report: Mapping[str, Any]) -> None:
        """A server's report has come to the coordinator."""
        if self._committing is None:
            raise ProtocolError("only the coordinator takes reports of checkpoints")
        self._committing.take(report)

    def advance(self) -> tuple[list[dict[str, Any]], str | None]:
        """Reports for the coordinator, and what is to be logged."""
        reports = self._saving.reports()
        if self._committing is None:
            return reports, None
        for report in reports:
            self._committing.take(report)
        return [], self._committing.advance()

    def stats(self) -> dict[str, Any]:
        """Counters, by name."""
        committed = {} if self._committing is None else asdict(self._committing.committed)
        return {**asdict(self._saving.saved), **committed}
