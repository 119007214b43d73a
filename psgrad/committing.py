"""The coordinator's part in checkpoints: when one is due, and when all parts of it are safe.

::

    announce -> every server copies at the cut and writes -> its report comes here -> commit

A checkpoint that cannot be written costs durability and nothing else: it is said, what there is of
it is removed, and the newest valid one stays.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from psgrad.checkpoint.files import FileRecord
from psgrad.checkpoint.store import Store
from psgrad.checkpoint.writer import Writer
from psgrad.control import Stopped
from psgrad.cuts import LAST, Announcement, Cut, CutPlan
from psgrad.errors import CheckpointError, ProtocolError


@dataclass
class Committed:
    """Checkpoints of this run."""

    checkpoints: int = 0
    checkpoints_failed: int = 0
    checkpoint_newest: int = 0  # its number; of the one that the run began with, if of none later


@dataclass
class _Open:
    """A checkpoint that is being written: what has come of it."""

    cut: Cut
    workers: dict[str, Any]
    incomplete: set[int] = field(default_factory=set)  # workers that not all files have
    files: list[FileRecord] = field(default_factory=list)
    chunks: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    missing: int = 0

    @property
    def clocks(self) -> dict[int, int]:
        """Of the workers whose markers have come to every server: one may have died in between."""
        return {w: clock for w, clock in self.cut.clocks.items() if w not in self.incomplete}


class Committing:
    """The checkpoints of a run; ``warn`` says something to people."""

    def __init__(
        self,
        store: Store,
        writer: Writer[dict[str, Any]],
        plan: CutPlan,
        servers: int,
        warn: Callable[[str], None],
    ) -> None:
        self.committed = Committed(checkpoint_newest=plan.number)
        self.stopped: Stopped | None = None
        """What became of the last cut, where the run was to stop behind one."""
        self._reason = ""
        self._store = store
        self._writer = writer
        self._plan = plan
        self._servers = servers
        self._opened = plan.number  # the last cut
        self._about: Mapping[str, Any] = {}
        self._warn = warn
        # Of markers, the oldest first: a worker may be at its next one, or have left, already.
        self._marked: defaultdict[int, deque[Any]] = defaultdict(deque)
        self._left: dict[int, Any] = {}
        self._open: dict[int, _Open] = {}
        self._early: list[Mapping[str, Any]] = []  # reports of what is not open here yet
        self._whole: list[_Open] = []  # all has come, nothing is done about it yet

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is still on its way."""
        return bool(self._open or self._early or self._whole) or self._writer.busy

    def registered(self, about: Mapping[str, Any], clocks: Mapping[int, int]) -> None:
        """Workers are at ``clocks``; manifests say ``about`` of the run."""
        self._about = about
        self._plan.clocks.update(clocks)

    def announce(self, now_s: float) -> Announcement | None:
        """The cut that is to be made now, if one is due."""
        return self._plan.announce(now_s)

    def stop(self, reason: str) -> None:
        """The next cut that can be announced is the last one; the first ``reason`` is kept."""
        self._reason = self._reason or reason
        self._plan.stopping = True

    def apart(self) -> None:
        """In sync mode, too, workers may be at clocks of their own."""
        self._plan.apart = True

    def saw(self, worker: int, clock: int) -> None:
        """A push has come."""
        self._plan.saw(worker, clock)

    def marked(self, worker: int, record: Any) -> None:
        """A worker has sent its own state, with its marker."""
        self._marked[worker].append(record)

    def left(self, worker: int, record: Any) -> None:
        """A worker has left, with its last state."""
        self._plan.left(worker)
        self._left[worker] = record

    def lose(self, worker: int) -> None:
        """A worker has died: it is in no cut to come."""
        self._plan.left(worker)
        self._marked.pop(worker, None)

    def hold(self, held: bool) -> None:
        """Whether no cut may begin."""
        self._plan.held = held

    def may_admit(self, clock: int) -> bool:
        """Whether no cut is under way, nor may be at ``clock``."""
        return self._plan.may_admit(clock)

    def admit(self, worker: int, clock: int, is_alone: bool) -> None:
        """A worker has come in, at ``clock``; ``is_alone``: the cut that was announced is none."""
        self._plan.joined(worker, clock)
        if is_alone:
            self._plan.under_way = False

    def opened(self, cut: Cut) -> None:
        """All markers have come: every server writes its part from now on."""
        self._plan.opened(cut)
        marked = {worker: self._marked[worker].popleft() for worker in cut.clocks}
        records = {**self._left, **marked}
        workers = {str(worker): records[worker] for worker in sorted(records)}
        self._open[cut.number] = _Open(cut, workers, missing=self._servers)
        early, self._early = self._early, []
        for report in early:
            self.take(report)

    def take(self, report: Mapping[str, Any]) -> None:
        """A server has written its part, or could not."""
        number = report["number"]
        part = self._open.get(number)
        if part is None:  # there, the last marker came earlier than here
            if not self._opened < number <= LAST:
                raise ProtocolError(
                    f"a server reports checkpoint {number}, the last cut was {self._opened}"
                )
            self._early.append(report)
            return
        part.missing -= 1
        if report["error"] is None:
            part.files.append(FileRecord(**report["file"]))
            part.chunks.update(report["chunks"])
            part.incomplete |= part.cut.clocks.keys() - set(report["workers"])
        else:
            part.errors.append(report["error"])
        if not part.missing:
            self._whole.append(self._open.pop(number))

    def advance(self) -> str | None:
        """Has what is whole committed; returns what there is to log."""
        said = None
        if (result := self._writer.poll()) is not None:
            said = self._note(result)
        if self._whole and not self._writer.busy:
            part = self._whole.pop(0)
            self._writer.submit(lambda: self._commit(part))
        return said

    def give_up(self) -> None:
        """No more reports will come: what not every server has a part of is no checkpoint.

        A worker may have died between its markers, when nobody else was left to mark.
        """
        for number in sorted({*self._open, *(report["number"] for report in self._early)}):
            self._store.abandon(number)
            self._note({"number": number, "error": "a worker has died while it was made"})
        self._open.clear()
        self._early.clear()

    def _commit(self, part: _Open) -> dict[str, Any]:
        """In the writer's thread."""
        number, problem = part.cut.number, part.errors[0] if part.errors else None
        if problem is None and not part.clocks:
            problem = "the workers that it is of have died"
        if problem is None and self.stopped is not None:
            problem = "the run has stopped"  # of workers that had gone on, others are not in it
        if problem is None:
            clocks = {str(worker): clock for worker, clock in part.clocks.items()}
            state = {
                **self._about, "clocks": clocks, "worker_states": part.workers,
                "chunks": part.chunks,
            }  # fmt: skip
            try:
                self._store.commit(number, part.files, state)
            except (OSError, CheckpointError) as error:
                problem = getattr(error, "strerror", None) or str(error)
            except (ValueError, RecursionError) as error:
                problem = f"its state is no JSON: {error}"
        if problem is not None:
            self._store.abandon(number)
        return {"number": number, "error": problem}

    def _note(self, result: Mapping[str, Any]) -> str:
        number, error = result["number"], result["error"]
        self._plan.under_way = False
        newest = self.committed.checkpoint_newest
        if number == self._plan.last and self.stopped is None:
            self.stopped = Stopped(self._reason, number, number if error is None else newest, error)
        if error is None:
            self.committed.checkpoints += 1
            self.committed.checkpoint_newest = number
            return f"checkpoint {number} is safe"
        self.committed.checkpoints_failed += 1
        if number == self._plan.last:  # the end of the run says it
            return f"checkpoint {number} was not written: {error}"
        there_is = f"the newest one is {newest}" if newest else "there is none yet"
        said = f"checkpoint {number} was not written: {error}; training goes on, {there_is}"
        self._warn(said)
        return said
