"""Small checkpoints for the tests: two servers, three arrays, content that says its step."""

from __future__ import annotations

import dataclasses

import numpy as np

from psgrad.checkpoint import Store
from psgrad.layout import Layout, SegmentOptions

CHUNK_BYTES = 64
SHAPES = {"w": (7, 5), "file": (3,), "bias/b": ()}


def layout():
    arrays = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    return Layout.of(arrays, [SegmentOptions("bias/*", weight_decay=0.0)])


def flat(step):
    """The parameters at ``step``: all different, and those of no other step."""
    return np.arange(layout().size, dtype=np.float32) + np.float32(1000 * step)


def tensors(step, server, servers=2):
    """What ``server`` writes: the chunks that it owns."""
    made = {}
    for chunk in layout().chunks(CHUNK_BYTES):
        if chunk.index % servers == server:
            params = flat(step)[chunk.start : chunk.stop]
            made[f"chunk/{chunk.index}/params"] = params
            made[f"chunk/{chunk.index}/slot/m"] = -params
    return made


def state(**changes):
    return {
        "clocks": {"0": 100, "1": 102, "2": 101},
        "servers": 2,
        "workers": 3,
        "layout": dataclasses.asdict(layout()),
        "chunk_bytes": CHUNK_BYTES,
        "mode": "ssp",
        "saved_at": "2026-11-22T17:00:00Z",
        **changes,
    }


def save(folder, step, keep=9, **changes):
    """Writes and commits a checkpoint of ``step``; returns its folder."""
    if not folder.exists():
        folder.mkdir(parents=True)
    store = Store(folder, keep)
    records = [store.write(step, f"server-{i}.safetensors", tensors(step, i)) for i in range(2)]
    return store.commit(step, records, state(**changes))


def content_of(checkpoint):
    """The step that the content of a checkpoint says, all of it alike."""
    step = checkpoint.manifest.step
    written = {**tensors(step, 0), **tensors(step, 1)}
    assert checkpoint.names() == written.keys()
    for name, tensor in written.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), tensor)
    return step
