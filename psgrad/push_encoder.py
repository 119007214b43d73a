"""How gradients leave a worker: feedback, then the codec, then zstd; all of it one worker's state.

What a worker has to keep of its pushes is here: what feedback holds back, and the memory that the
payloads under way lie in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from psgrad.codecs import Bytes, Codec, Compression, Key, Workspace
from psgrad.codecs.feedback import make
from psgrad.codecs.zstd import ZstdStage
from psgrad.layout import Chunk, Float32, Layout


class PushEncoder:
    """The gradients of worker ``worker``, in a run with a codec for pushes."""

    def __init__(
        self,
        compression: Compression,
        codec: Codec,
        layout: Layout,
        trained: Sequence[Chunk],
        seed: int,
        worker: int,
        now: Callable[[], float],
    ) -> None:
        self._codec = codec
        self._seed = seed
        self._worker = worker
        self._step = 0
        self._work = Workspace()
        self._zstd = ZstdStage(compression.zstd, now)
        self._feedback = make(compression.feedback, layout.size)
        # Buffers are averaged, not accumulated: an error in one would not be made good.
        self._encoded = {
            chunk.index: np.zeros(codec.nbytes_max(chunk.size), np.uint8)
            for chunk in trained
            if not layout.segments[chunk.segment].options.buffer
        }

    def begin(self, step: int, rate: float) -> None:
        """Before the first chunk of a step; ``rate`` is the learning rate that it will have."""
        self._step = step
        self._feedback.begin(rate)

    def encode(self, chunk: Chunk, grad: Float32, link_rate: float) -> Bytes | None:
        """The payload of a chunk's gradient; None where it goes as bare float32.

        It lies in the chunk's own memory, until the chunk's next one.
        """
        out = self._encoded.get(chunk.index)
        if out is None:
            return None
        key = Key(self._seed, self._worker, self._step, chunk.start)
        nbytes = self._feedback.encode(self._codec, chunk, grad, out, key, self._work)
        return out[: self._zstd.apply(out[:nbytes], link_rate)]

    def kept(self, chunk: Chunk) -> Float32 | None:
        """What of the chunk was never sent, if anything: the memory itself."""
        if chunk.index not in self._encoded:
            return None
        residual = self._feedback.residual(chunk)
        return residual if residual is not None and residual.any() else None
