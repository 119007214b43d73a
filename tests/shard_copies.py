"""What the tests of checkpoints share: a shard, messages to it, and a checkpoint in memory."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np

from psgrad.chunk_state import Rules
from psgrad.cuts import Cut
from psgrad.errors import CheckpointError
from psgrad.layout import Layout
from psgrad.messages import NO_RATE, Header, Kind
from psgrad.optimizers import SGD
from psgrad.schedules import Constant
from psgrad.shard import Shard

LAYOUT = Layout.of({"w": np.zeros((4, 6), np.float32), "b": np.zeros(7, np.float32)})
CHUNK_BYTES = 64
CHUNKS = LAYOUT.chunks(CHUNK_BYTES)


def values(*key):
    """A flat vector that depends on ``key`` alone."""
    return np.random.default_rng(key).standard_normal(LAYOUT.size).astype(np.float32)


def shard_of(bound=None, workers=2, optimizer=None, schedule=None, ready=True, **rules):
    made = Shard(
        LAYOUT,
        CHUNKS,
        range(workers),
        Rules(optimizer or SGD(0.1), schedule or Constant(), bound, **rules),
    )
    if ready:
        for chunk in CHUNKS:
            header = Header(Kind.INIT, worker=0, chunk=chunk.index)
            made.handle(header, values(0)[chunk.start : chunk.stop].copy())
    return made


def push(shard, worker, clock, weight=1.0, rate=NO_RATE, grads=None):
    """All chunks; returns the answers."""
    flat = values(1, worker, clock) if grads is None else grads
    return [
        reply
        for chunk in CHUNKS
        for reply in shard.handle(
            Header(Kind.PUSH, worker=worker, chunk=chunk.index, clock=clock, weight=weight,
                   rate=rate),
            flat[chunk.start : chunk.stop].copy() if weight else None,
        )
    ]  # fmt: skip


def flat(shard):
    return np.concatenate([shard.chunks[chunk.index].params for chunk in CHUNKS])


class Memory:
    """A checkpoint that is not on disk. ``state`` is that of its manifest."""

    def __init__(self, tensors, state=None, step=7):
        self.tensors = tensors
        self.manifest = SimpleNamespace(step=step, state=state)

    def tensor(self, name):
        if name not in self.tensors:
            raise CheckpointError(f"no tensor {name!r}")
        return self.tensors[name].copy()


def saved(shard):
    """(records, checkpoint), as they would be read."""
    tensors = {}
    records = shard.save(lambda name, array: tensors.update({name: array.copy()}))
    return json.loads(json.dumps(records, allow_nan=False)), Memory(tensors)


def cut_at(clock, workers, number=None):
    return Cut(clock if number is None else number, dict.fromkeys(workers, clock))
