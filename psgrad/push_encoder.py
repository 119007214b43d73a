"""How gradients leave a worker: feedback, then a codec, then zstd.

What a worker has to keep of its pushes is here: what feedback holds back, what the choice of codecs
has learned, and the memory that the payloads under way lie in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psgrad.codecs import Bytes, Codec, Compression, Key, Workspace, choice
from psgrad.codecs.adaptive import Adaptive
from psgrad.codecs.feedback import make
from psgrad.codecs.zstd import ZstdStage
from psgrad.errors import DataError
from psgrad.layout import Chunk, Float32, Layout
from psgrad.record import Recorder


class PushEncoder:
    """The gradients of worker ``worker``; ``codec`` is that of the run's pushes."""

    def __init__(
        self,
        compression: Compression,
        codec: Codec,
        layout: Layout,
        trained: Sequence[Chunk],
        seed: int,
        worker: int,
        now: Callable[[], float],
        recorder: Recorder | None = None,
    ) -> None:
        # Buffers are averaged, not accumulated: an error in one would not be made good.
        chunks = [c for c in trained if not layout.segments[c.segment].options.buffer]
        self.used: dict[str, int] = {}
        """How many chunks each codec has encoded, by name."""
        # What a choice by clock can come to; other choices follow from the data.
        self._measured = codec.candidates if isinstance(codec, Adaptive) else ()
        self._recorder = recorder
        self._seed = seed
        self._worker = worker
        self._step = 0
        self._now = now
        self._work = Workspace()
        self._zstd = ZstdStage(compression.zstd, now)
        self._feedback = make(compression.feedback, layout.size)
        self._choice = choice(codec, layout, chunks, now)
        self._memory = {c.index: np.zeros(codec.nbytes_max(c.size), np.uint8) for c in chunks}

    def begin(self, step: int, rate: float, grads: Float32) -> None:
        """Before the first chunk of a step is encoded.

        ``rate`` is the learning rate that it will have, ``grads`` the flat gradient.
        """
        self._step = step
        self._feedback.begin(rate)
        self._choice.begin(
            step,
            lambda chunk, where: self._feedback.look(chunk, grads[chunk.start : chunk.stop], where),
        )

    def encode(self, chunk: Chunk, grad: Float32, link_rate: float) -> Bytes | None:
        """The payload of a chunk's gradient; None where it goes as bare float32.

        It lies in the chunk's own memory, until the chunk's next one.
        """
        out = self._memory.get(chunk.index)
        if out is None:
            return None
        codec = self._choice.codec(chunk, link_rate)
        if self._recorder is not None and self._measured:
            code = self._recorder.chose(chunk.index, codec.code)
            codec = self._candidate(code)
        key = Key(self._seed, self._worker, self._step, chunk.start)
        start = self._now()
        nbytes = self._feedback.encode(codec, chunk, grad, out, key, self._work)
        self._choice.note(chunk, out[:nbytes], self._now() - start)
        self.used[codec.name] = self.used.get(codec.name, 0) + 1
        return out[: self._zstd.apply(out[:nbytes], link_rate)]

    def _candidate(self, code: int) -> Codec:
        for codec in self._measured:
            if codec.code == code:
                return codec
        raise DataError(f"the record has chosen codec {code}, which this run does not have")

    def kept(self, chunk: Chunk) -> Float32 | None:
        """What of the chunk was never sent, if anything: the memory itself."""
        if chunk.index not in self._memory:
            return None
        residual = self._feedback.residual(chunk)
        return residual if residual is not None and residual.any() else None

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """All that a restart needs, by name: the memory itself."""
        parts = {"feedback": self._feedback.state_dict(), "choice": self._choice.state_dict()}
        return {f"{part}.{name}": a for part, state in parts.items() for name, a in state.items()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Takes over a state of ``state_dict``; raises ``ConfigError`` for another one's."""
        for part, owner in (("feedback", self._feedback), ("choice", self._choice)):
            prefix = part + "."
            owner.load_state_dict(
                {k.removeprefix(prefix): a for k, a in state.items() if k.startswith(prefix)}
            )
