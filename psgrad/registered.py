"""A worker's arrays, once the parameters are known: the flat vectors, their views, their chunks."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from psgrad.arrays import Arrays
from psgrad.errors import LayoutError, ProtocolError, unknown_name
from psgrad.guard import StepGuard
from psgrad.layout import Chunk, Float32, Layout, assign
from psgrad.options import Options
from psgrad.sharing import WorkerMemory


@dataclass(frozen=True)
class Registered:
    """What exists from ``register`` on. ``params`` and ``grads`` are views of the flat vectors."""

    layout: Layout
    owner: tuple[int, ...]  # of each chunk: the server
    chunks: tuple[Chunk, ...]
    trained: tuple[Chunk, ...]  # what this worker pushes, in the order in which it does
    memory: WorkerMemory
    params: Arrays
    grads: Arrays
    guard: StepGuard

    @classmethod
    def of(
        cls, layout: Layout, options: Options, servers: int, worker: int, memory: WorkerMemory
    ) -> Registered:
        """The arrays of ``worker`` in ``memory``."""
        chunks = layout.chunks(options.chunk_bytes)
        groups = {s.index: s.options.members for s in layout.segments}
        mine = [c for c in chunks if (g := groups[c.segment]) is None or worker in g]
        seen = memory.params.view()
        if options.compression.differences is not None:
            # What a difference is added to must be what the servers think it is.
            seen.flags.writeable = False
        trained_segments = {chunk.segment for chunk in mine}
        segments = [s for s in layout.segments if s.index in trained_segments]
        return cls(
            layout,
            assign(chunks, servers),
            chunks,
            tuple(mine),
            memory,
            Arrays(layout.views(seen)),
            Arrays(layout.views(memory.grads)),
            StepGuard(layout, segments, options.clip_norm),
        )

    def params_of(self, index: int) -> Float32:
        """The parameters of a chunk: where pulls are received.

        Raises ``ProtocolError`` for a chunk that there is not.
        """
        chunk = self._chunk(index)
        return self.memory.params[chunk.start : chunk.stop]

    def take_shared(self, index: int) -> int:
        """Takes over the parameters of a chunk in shared memory; how many bytes, 0 for in vain."""
        chunk = self._chunk(index)
        return chunk.nbytes if self.memory.received(chunk) else 0

    def _chunk(self, index: int) -> Chunk:
        if index >= len(self.chunks):
            raise ProtocolError(f"a server sends chunk {index}, there are {len(self.chunks)}")
        return self.chunks[index]

    def grads_of(self, chunk: Chunk) -> Float32:
        """The gradient of a chunk: what pushes send."""
        return self.memory.grads[chunk.start : chunk.stop]

    def flattened(self, values: Mapping[str, Any]) -> Float32:
        """Initial values of all parameters, as a flat vector."""
        flat = np.zeros(self.layout.size, np.float32)
        for name, view in self.layout.views(flat).items():
            np.copyto(view, np.asarray(values[name]))
        return flat

    def set_grads(self, values: Mapping[str, ArrayLike]) -> None:
        """Takes over a gradient; raises ``LayoutError`` where one of a parameter is missing."""
        missing = self.chunks_of.keys() - values.keys()
        if missing:
            first = next(name for name in self.chunks_of if name in missing)
            raise LayoutError(f"step() needs a gradient for each parameter, {first!r} is missing")
        for name, value in values.items():
            self.grads[name] = value

    @cached_property
    def chunks_of(self) -> dict[str, range]:
        """The chunks that hold a part of each parameter."""
        starts = [chunk.start for chunk in self.chunks]
        return {
            t.name: range(
                bisect_right(starts, t.start) - 1 if t.stop > t.start else 0,
                bisect_left(starts, t.stop) if t.stop > t.start else 0,
            )
            for t in self.layout.tensors
        }

    def indices_of(self, name: str) -> range:
        """``chunks_of[name]``; raises ``LayoutError`` for a name that there is not."""
        try:
            return self.chunks_of[name]
        except KeyError:
            raise LayoutError(unknown_name("parameter", name, self.chunks_of)) from None

    def touched_by(self, names: Iterable[str] | None) -> list[Chunk]:
        """The chunks that hold a part of the parameters ``names``; None: all chunks."""
        if names is None:
            return list(self.chunks)
        touched = {index for name in names for index in self.indices_of(name)}
        return [self.chunks[index] for index in sorted(touched)]
