"""How the workers of a run go on from a checkpoint, as many as there are now.

With as many workers as before, each goes on where it was. One that had left goes on at the slowest
clock, and leaves again if it has nothing to do.

Where the number is another one, N before and M now, all begin at the slowest clock, and what was
held back must not be lost and not be pushed twice. In sync mode an update is the mean over workers,
weighted by samples, so each worker goes on with the weighted mean of the residuals; otherwise each
push is an update of its own, and each worker goes on with 1/M of their sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from psgrad.checkpoint import MANIFEST, Checkpoint, found, newest, step_of, verify
from psgrad.checkpointing import AUTO, CheckpointOptions
from psgrad.cuts import LAST
from psgrad.errors import CheckpointError, ConfigError, LayoutError, shown
from psgrad.layout import Chunk, Float32, Layout, difference
from psgrad.messages import NO_RATE
from psgrad.options import Options
from psgrad.roles import Roles
from psgrad.shard_state import Source
from psgrad.stored import count, field, keys_as_counts, mapping, number, whole
from psgrad.worker_state import unpack

MOST_WORKERS: Final = 1 << 20
ENCODER: Final = "encoder"
ESTIMATE: Final = "feedback.estimate"  # EF21's: the servers hold the plain mean of all of them


class Found(NamedTuple):
    """Where a run is to go on from, empty for the start, and what there is to say of it."""

    path: str = ""
    said: tuple[str, ...] = ()


def find(options: CheckpointOptions) -> Found:
    """The checkpoint that ``options.resume`` asks for, every byte of it looked at.

    Raises ``CheckpointError`` where there is none, unless the newest one was asked for.
    """
    if not options.resume:
        _check_fresh(options)
        return Found()
    folder = Path(options.folder if options.resume == AUTO else options.resume)
    if step_of(folder.name) is not None or (folder / MANIFEST).is_file():
        verify(folder)
        _check_later(folder, options)
        return Found(str(folder))
    checkpoint, skipped = newest(folder)
    if checkpoint is not None:
        return Found(str(checkpoint.path), tuple(skipped))
    if options.resume != AUTO or skipped:
        raise CheckpointError(
            f"there is no valid checkpoint in {folder}" + "".join(f"; {line}" for line in skipped)
        )
    return Found(said=(f"there is no checkpoint in {folder} yet: the run begins at its start",))


def _check_fresh(options: CheckpointOptions) -> None:
    """Refuses to begin anew beside the checkpoints of another run: they would count as newer."""
    there = found(Path(options.folder)) if options.every else []
    if there:
        raise ConfigError(
            f"checkpoint_dir {options.folder} holds {there[0].name} of a run before; go on from it "
            "with resume auto, or give another folder"
        )


def _check_later(path: Path, options: CheckpointOptions) -> None:
    """Refuses to write beside checkpoints that would count as newer than what is written."""
    step = step_of(path.name)
    if not options.every or step is None or Path(options.folder).resolve() != path.parent.resolve():
        return
    later = [other.name for other in found(path.parent) if (step_of(other.name) or 0) > step]
    if later:
        raise ConfigError(
            f"resume {path}: {', '.join(sorted(later))} in the same folder would count as newer "
            "than what this run writes; give another checkpoint_dir, or remove them"
        )


def open_checkpoint(path: str, options: Options, roles: Roles) -> Resuming:
    """The checkpoint at ``path``, for this run; raises ``CheckpointError`` or ``ConfigError``."""
    try:
        checkpoint = Checkpoint.open(Path(path))
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror}; all ranks must see the folder of checkpoints"
        ) from error
    resuming = Resuming(checkpoint, roles.workers, options.staleness == 0)
    if resuming.chunk_bytes != options.chunk_bytes:
        raise ConfigError(
            f"chunk_bytes is {options.chunk_bytes}, checkpoint {resuming.number} was made with "
            f"{resuming.chunk_bytes}; resume with that"
        )
    return resuming


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run goes on from: its number, and how many workers made it.

    ``clocks`` are those at which workers go on, as many as there are now. ``states`` are those of
    the parts that were kept: worker -> name -> state, as far as they were written; vectors over all
    parameters are None.
    """

    number: int
    workers: int
    clocks: Mapping[int, int]
    states: Mapping[int, Mapping[str, Any]]


class Resuming:
    """A checkpoint, and this run's ``workers``. Raises ``CheckpointError`` for one that is none."""

    def __init__(self, checkpoint: Checkpoint, workers: int, together: bool) -> None:
        """``together``: an update is a mean over workers, as in sync mode."""
        self.number = checkpoint.manifest.step
        self._stored = checkpoint
        self._workers = workers
        self._together = together
        self._name = f"checkpoint {self.number}"
        state, name = checkpoint.manifest.state, self._name
        whole(self.number, f"the number of {name}", LAST)
        self.before = count(state, "workers", name, MOST_WORKERS, least=1)
        self.chunk_bytes = count(state, "chunk_bytes", name)
        self.learning_rate = number(state, "learning_rate", name)
        self.chunk_records = mapping(field(state, "chunks", name), f"chunks of {name}")
        try:
            self.layout = Layout.from_record(field(state, "layout", name))
        except LayoutError as error:
            raise CheckpointError(f"{name}: {shown(str(error), 200)}") from error
        last = self.before - 1
        clocks = keys_as_counts(state, "clocks", name, last)
        self._clocks = {w: whole(c, f"a clock of {name}", LAST) for w, c in clocks.items()}
        if not self._clocks:
            raise CheckpointError(f"{name} has no worker")
        self._records = {
            worker: _checked(record, f"worker {worker} of {name}")
            for worker, record in keys_as_counts(state, "worker_states", name, last).items()
        }

    @cached_property
    def _chunks(self) -> tuple[Chunk, ...]:
        """The grid: not before the layout was compared, as it may be one of any size."""
        return self.layout.chunks(self.chunk_bytes)

    @property
    def same_number(self) -> bool:
        """Whether there are as many workers as before."""
        return self._workers == self.before

    @property
    def source(self) -> Source:
        """Where arrays are."""
        return self._stored

    def clock_of(self, worker: int) -> int:
        """The clock at which ``worker`` goes on."""
        slowest = min(self._clocks.values())
        return self._clocks.get(worker, slowest) if self.same_number else slowest

    def differs(self, layout: Layout) -> str | None:
        """In what parameters differ from those of the checkpoint, in words; None: in nothing."""
        text = difference(self.layout, layout)
        return None if text is None else f"checkpoint {self.number} does not fit: this run {text}"

    def record_of(self, worker: int) -> Mapping[str, Any]:
        """What ``worker``, or one of those before it, had said of itself; may be empty."""
        return self._records.get(worker if self.same_number else worker % self.before, {})

    def kept(self, worker: int, name: str) -> Any:
        """The state of the part ``name`` that ``worker`` kept; None where there is none.

        Vectors over all parameters are None in it where the worker had left.
        """
        kept = self.record_of(worker).get("kept", {})
        if not self.same_number or name not in kept:
            return None
        there = worker in self._clocks  # who had left has no rows
        row = (lambda row: self._row(worker, row)) if there else _no_row
        return unpack(kept[name], row, f"kept.{name}")

    def all_kept(self, worker: int) -> dict[str, Any]:
        """The states of all parts that ``worker`` kept, by name."""
        return {name: self.kept(worker, name) for name in self.record_of(worker).get("kept", {})}

    def encoder_state(
        self, worker: int, mine: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """What the encoder of ``worker``, which has the state ``mine`` now, goes on with.

        Raises ``ConfigError`` for a state of another encoder.
        """
        record = self.record_of(worker)
        saved = record.get(ENCODER, {})
        if self.same_number:
            if worker not in self._clocks:  # it had left: nothing was held back
                return dict(mine)
            return {
                name: unpack(value, lambda row: self._row(worker, row), f"{ENCODER}.{name}")
                for name, value in saved.items()
            }
        if record and saved.keys() != mine.keys():
            raise ConfigError(
                f"the saved state has {', '.join(sorted(saved)) or 'nothing'}, this run's encoder "
                f"has {', '.join(sorted(mine)) or 'nothing'}"
            )
        merged: dict[str, NDArray[Any]] = {}
        for name, array in mine.items():
            if array.shape == (self.layout.size,) and array.dtype == np.float32:
                merged[name] = self._merged(name)
                continue
            value: Any = unpack(saved[name], _no_row) if name in saved else None
            fits = isinstance(value, np.ndarray) and value.shape == array.shape
            # Such as thresholds: a good guess, or a new one.
            merged[name] = value if fits and value.dtype == array.dtype else array
        return merged

    @property
    def resumed(self) -> Resumed:
        """The same as scripts see it."""
        states = {
            worker: unpack(record.get("kept", {}), _no_row)
            for worker, record in self._records.items()
        }
        clocks = {worker: self.clock_of(worker) for worker in range(self._workers)}
        return Resumed(self.number, self.before, clocks, states)

    def _merged(self, name: str) -> Float32:
        """A row of all workers before, as each of now goes on with it."""
        out = np.zeros(self.layout.size, np.float32)
        for worker, share in self._shares(plain=name == ESTIMATE).items():
            out += np.float32(share) * self._row(worker, f"{ENCODER}.{name}")
        return out

    def _shares(self, plain: bool) -> dict[int, float]:
        """By what the row of each worker before is multiplied."""
        live = sorted(self._clocks)
        if plain:
            return {worker: 1 / len(live) for worker in live}
        if not self._together:
            return dict.fromkeys(live, 1 / self._workers)
        weights = [float(self._records.get(w, {}).get("weight", 1.0)) for w in live]
        total = math.fsum(weights)
        return {
            worker: weight / total if total > 0 else 1 / len(live)
            for worker, weight in zip(live, weights, strict=True)
        }

    def _row(self, worker: int, name: str) -> Float32:
        out = np.zeros(self.layout.size, np.float32)
        read_row(self._stored, self._chunks, worker, name, out)
        return out


def _checked(record: Any, what: str) -> Mapping[str, Any]:
    """What a worker had said of itself, as far as psgrad itself goes on from it."""
    said = mapping(record, what)
    for part in ("guard", ENCODER, "kept"):
        mapping(said.get(part, {}), f"{part} of {what}")
    if "weight" in said:
        number(said, "weight", what)
    if "rate" in said and NO_RATE < number(said, "rate", what, NO_RATE) < 0:
        raise CheckpointError(f"rate of {what} must be at least 0, got {said['rate']}")
    return said


def read_row(source: Source, chunks: Iterable[Chunk], worker: int, name: str, out: Float32) -> None:
    """Row ``name`` of ``worker`` into ``out[n]``; raises ``CheckpointError``."""
    for chunk in chunks:
        where = f"chunk/{chunk.index}/worker/{worker}/{name}"
        values = source.tensor(where)
        if values.shape != (chunk.size,) or values.dtype != np.float32:
            raise CheckpointError(
                f"{where} is {values.dtype}{list(values.shape)}, expected float32[{chunk.size}]"
            )
        out[chunk.start : chunk.stop] = values


def _no_row(name: str) -> None:
    return None
