"""What a chunk puts into a checkpoint, and how it goes on from one: named arrays and JSON.

Each chunk stands for itself, so a checkpoint of any number of servers serves any number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from psgrad import stored
from psgrad.chunk_state import ChunkState, Push
from psgrad.codecs.base import write_into
from psgrad.cuts import Marks
from psgrad.errors import CheckpointError, shown
from psgrad.layout import Float32
from psgrad.messages import NO_RATE, Flag, Header, Kind
from psgrad.update import Gradient

PARKED: Final = ("worker", "clock", "weight", "rate", "carries")
"""What is written of a push that waits."""


class Source(Protocol):
    """A checkpoint, as far as state is read from it."""

    def tensor(self, name: str) -> NDArray[Any]:
        """The array of this name; raises ``CheckpointError`` where there is none."""
        ...


def save(state: ChunkState, marks: Marks, keep: Callable[[str, Float32], None]) -> dict[str, Any]:
    """Hands each array of a chunk to ``keep``, which copies it, and returns the rest as JSON.

    Pushes that wait for the staleness bound are a part of it, those behind a marker are not.
    """
    where = f"chunk/{state.chunk.index}"
    keep(f"{where}/params", state.params)
    for name, slot in state.slots.items():
        keep(f"{where}/slot/{name}", slot)
    if state.estimate is not None:
        keep(f"{where}/estimate", state.estimate)
    record: dict[str, Any] = {
        "version": state.version,
        "position": state.position,
        "rate": state.rate,
        "slots": sorted(state.slots),
        "reference": None,
        "parked": [],
    }
    if state.references is not None and (shared := state.references.for_all()) is not None:
        keep(f"{where}/reference", shared.values)
        record["reference"] = shared.version
    for push in _before(state, marks):
        h = push.header
        record["parked"].append([h.worker, h.clock, h.weight, h.rate, push.grad is not None])
        if push.grad is not None:
            keep(f"{where}/parked/{h.worker}/{h.clock}", _dense(push.grad, state.chunk.size))
    return record


def load(state: ChunkState, record: Mapping[str, Any], source: Source) -> list[Push]:
    """Takes over what ``save`` made of this chunk; returns the pushes that waited, in order.

    Raises ``CheckpointError`` for arrays of another chunk or another optimizer.
    """
    where = f"chunk/{state.chunk.index}"
    slots, parked = stored.field(record, "slots", where), stored.field(record, "parked", where)
    version = stored.field(record, "reference", where)
    if slots != sorted(state.slots):
        raise CheckpointError(
            f"{where} was saved with optimizer state {shown(slots)}, this run's optimizer has "
            f"{sorted(state.slots)}; resume with the optimizer of the saved run"
        )
    if not isinstance(parked, list):
        raise CheckpointError(f"parked of {where} must be a list, got {shown(parked)}")
    state.version = stored.count(record, "version", where)
    state.position = stored.number(record, "position", where)
    state.rate = stored.number(record, "rate", where)
    _read(source, f"{where}/params", state.params)
    for name, slot in state.slots.items():
        _read(source, f"{where}/slot/{name}", slot)
    if state.estimate is not None:
        _read(source, f"{where}/estimate", state.estimate)
    if state.references is not None and version is not None:
        values = np.zeros(state.chunk.size, np.float32)
        _read(source, f"{where}/reference", values)
        state.references.resume(values, stored.count(record, "reference", where))
    state.ready = True
    return [_parked(state, source, entry) for entry in parked]


def _before(state: ChunkState, marks: Marks) -> Iterator[Push]:
    """Parked pushes that no marker holds back, in the order in which they may be applied."""
    pushes = [push for queue in state.parked.values() for push in queue]
    for push in sorted(pushes, key=lambda push: (push.header.clock, push.header.worker)):
        if not marks.holds(push.header.worker, push.header.clock):
            yield push


def _parked(state: ChunkState, source: Source, entry: Any) -> Push:
    where = f"a parked push of chunk/{state.chunk.index}"
    if not isinstance(entry, list) or len(entry) != len(PARKED):
        raise CheckpointError(f"{where} must have {', '.join(PARKED)}, got {shown(entry)}")
    said = dict(zip(PARKED, entry, strict=True))
    worker, clock = stored.count(said, "worker", where), stored.count(said, "clock", where)
    weight, carries = stored.number(said, "weight", where), said["carries"]
    if type(carries) is not bool or carries is not (weight > 0):
        raise CheckpointError(f"{where} has weight {weight:g} and carries {shown(carries)}")
    rate = stored.number(said, "rate", where, NO_RATE)
    if NO_RATE < rate < 0:
        raise CheckpointError(f"{where} has the learning rate {rate:g}")
    header = Header(
        Kind.PUSH,
        worker=worker,
        chunk=state.chunk.index,
        clock=clock,
        weight=weight,
        rate=rate,
        flags=Flag.QUIET | Flag.SHARED,  # nobody waits for an answer, and no pool lent the memory
    )
    if not carries:
        return Push(header, None)
    grad = np.zeros(state.chunk.size, np.float32)
    _read(source, f"chunk/{state.chunk.index}/parked/{worker}/{clock}", grad)
    return Push(header, grad)


def _dense(grad: Gradient, n: int) -> Float32:
    if isinstance(grad, np.ndarray):
        return grad
    dense = np.zeros(n, np.float32)
    write_into(grad, dense)
    return dense


def _read(source: Source, name: str, out: Float32) -> None:
    values = source.tensor(name)
    if values.dtype != np.float32 or values.shape != out.shape:
        raise CheckpointError(
            f"{name} is {values.dtype}{list(values.shape)}, expected float32{list(out.shape)}: "
            "resume with the parameters and the chunk_bytes of the saved run"
        )
    np.copyto(out, values)
