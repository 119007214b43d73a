"""The magnitudes from which on top-k sends: for each chunk, or one for a whole step's gradient.

A threshold is the magnitude that k of n elements would reach, by a sample of which 1024 should (all
of them where k is smaller), as Aji and Heafield (EMNLP 2017) and Lin et al. (ICLR 2018) sample it.
``scope=global`` samples in every step. With ``select=threshold`` a threshold is kept over steps:
where k' elements were sent instead of k it is multiplied by

    (k' / k)^(1 / ln(n / k))

which is right for magnitudes with an exponential tail: there n exp(-t/b) reach t. It is sampled
anew after 64 steps, and at once when k' was below k/2 or reached 2k, where chunks are cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from psgrad.codecs.base import Bytes, Codec
from psgrad.codecs.choice import Look, State, load
from psgrad.codecs.topk import Settled, TopK
from psgrad.codecs.wire import stored
from psgrad.kernels.select import magnitude_of_rank
from psgrad.layout import Chunk

KEPT: Final = 64  # steps
SAMPLED: Final = 1024  # elements of a sample that should reach the threshold: k' is within 3% or so


class Thresholds:
    """One worker's thresholds. A *group* is what shares one: a chunk, or all chunks."""

    def __init__(self, codec: TopK, chunks: Sequence[Chunk]) -> None:
        together = codec.scope == "global"
        self._codec = codec
        self._groups = [list(chunks)] if together and chunks else [[chunk] for chunk in chunks]
        self._group_of = {c.index: i for i, group in enumerate(self._groups) for c in group}
        self._low = np.zeros(len(self._groups), np.float32)
        self._left = np.zeros(len(self._groups), np.int64)  # steps that the threshold is kept
        self._sent = np.zeros(len(self._groups), np.int64)  # elements, in this step
        self._wanted = np.zeros(len(self._groups), np.int64)

    def begin(self, step: int, look: Look) -> None:
        """Settles the threshold of each group."""
        for i, group in enumerate(self._groups):
            n = sum(chunk.size for chunk in group)
            k = self._codec.count(n, step)
            self._adapt(i, n)
            if self._left[i] == 0:
                self._low[i] = self._sample(group, n, k, look)
                self._left[i] = KEPT if self._codec.select == "threshold" else 1
            self._left[i] -= 1
            self._sent[i] = 0
            self._wanted[i] = k

    def codec(self, chunk: Chunk, link_rate: float) -> Codec:
        return Settled.of(self._codec, low=float(self._low[self._group_of[chunk.index]]))

    def note(self, chunk: Chunk, payload: Bytes, seconds: float) -> None:
        self._sent[self._group_of[chunk.index]] += stored(payload)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        return {"low": self._low, "left": self._left, "sent": self._sent, "wanted": self._wanted}

    def load_state_dict(self, state: State) -> None:
        load(self.state_dict(), state)

    def _adapt(self, i: int, n: int) -> None:
        """Moves a threshold that stays by what it made of the last step."""
        sent, wanted = int(self._sent[i]), int(self._wanted[i])
        if not wanted or self._left[i] == 0:
            return
        if not wanted <= 2 * sent < 4 * wanted:
            self._left[i] = 0
        elif wanted < n:
            self._low[i] *= (sent / wanted) ** (1 / max(1.0, math.log(n / wanted)))

    def _sample(self, group: Sequence[Chunk], n: int, k: int, look: Look) -> np.float32:
        """A magnitude that about k of the n elements reach."""
        every = max(1, k // SAMPLED)
        every -= 1 - every % 2  # odd: rows are powers of two
        sample = np.concatenate([look(chunk, slice(None, None, every)) for chunk in group])
        return magnitude_of_rank(sample, max(1, round(sample.size * k / n)))
