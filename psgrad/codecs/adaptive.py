"""``adaptive``: for each chunk the codec that is through first, of those that say enough.

The candidates are float32, bf16, int8, int4 and topk. From time to time a worker tries them all on
pieces of the chunk: that gives the bytes and the relative error |v - C(v)|^2 / |v|^2. Of those
whose error is at most the limit, it takes the one with the smallest

    (seconds to encode) + (bytes) / (link rate)

Seconds of the candidates in use are those measured in use, those of the others are measured on the
pieces; the link rate is that of the last large pull (``ServerLinks.link_rate``). Float32 is a
candidate, so above the break-even rate compression is off; as long as no rate is known it is off
too. Agarwal et al. (MLSys 2021) switch between two ratios by how the gradient's norm moves; here
the limit on the error says when a gradient is too flat for top-k. Which codec is used depends on
measured times, so a run does not repeat bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from psgrad.codecs.base import Bytes, Codec, Key, Opened, Workspace
from psgrad.codecs.blocks import Int4, Int8
from psgrad.codecs.choice import Look, State, load
from psgrad.codecs.halves import BF16
from psgrad.codecs.raw import Raw, raw_nbytes
from psgrad.codecs.sparse import check_ratio
from psgrad.codecs.topk import TopK
from psgrad.codecs.wire import HEADER_NBYTES, code_of
from psgrad.errors import ConfigError, WireError, shown
from psgrad.layout import Chunk, Float32

PIECES: Final = 16  # of a chunk, that candidates are tried on
PIECE: Final = 4096  # elements: whole blocks of every codec, and enough to be timed
TRIED_EVERY: Final = 32  # steps
FASTER: Final = 0.9  # of the present codec's time: what another has to beat
SMOOTHING: Final = 0.5  # of measured seconds


@dataclass(frozen=True)
class Adaptive:
    """``error`` limits |v - C(v)|^2 / |v|^2; ``ratio`` is that of the topk among the candidates.

    By itself, without a clock and a link, it takes the fewest bytes.
    """

    name: ClassVar[str] = "adaptive"
    code: ClassVar[int] = 10  # never on the wire: payloads are those of the candidates
    summary: ClassVar[str] = "for each chunk the fastest one on this link, of those exact enough"
    unbiased: ClassVar[bool] = False

    error: float = 0.8
    ratio: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.error < 1:
            raise ConfigError(
                f"the error of adaptive must be in [0, 1), got {self.error:g}; it is relative to "
                "the gradient, squared: 0.8 keeps a fifth of its energy"
            )
        check_ratio("adaptive", self.ratio)

    @cached_property
    def candidates(self) -> tuple[Codec, ...]:
        """What there is to choose from; the first is off."""
        return (Raw(), BF16(), Int8(), Int4(), TopK(self.ratio, "bf16"))

    def nbytes_max(self, n: int) -> int:
        return raw_nbytes(n)

    def encode(
        self, x: Float32, residual: Float32 | None, out: Bytes, key: Key, work: Workspace
    ) -> int:
        v = x if residual is None else x + residual
        sample = np.concatenate([v[piece] for piece in _pieces(v.size)])
        tried = Trial.of(self.candidates, sample, lambda: 0.0, work)
        allowed = tried.error <= self.error
        best = int(np.argmin(np.where(allowed, tried.nbytes, np.inf)))
        return self.candidates[best].encode(x, residual, out, key, work)

    def open(self, payload: Bytes, n: int) -> Opened:
        code = code_of(payload)
        for codec in self.candidates:
            if codec.code == code:
                return codec.open(payload, n)
        raise WireError(f"codec {code} is not among those of adaptive")


@dataclass(frozen=True)
class Trial:
    """What candidates did with a piece of a gradient; float64[candidates], for one element."""

    nbytes: NDArray[np.float64]
    error: NDArray[np.float64]
    seconds: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        candidates: Sequence[Codec],
        v: Float32,
        now: Callable[[], float],
        work: Workspace,
    ) -> Trial:
        """Encodes v[n] with each of them."""
        n = v.size
        energy = _energy(v) or 1.0
        nbytes, error, seconds = np.zeros((3, len(candidates)))
        for i, codec in enumerate(candidates):
            out = work.take("adaptive.out", codec.nbytes_max(n), np.uint8)
            kept = work.take("adaptive.kept", n, np.float32)
            for _ in range(2):  # the first time is not what it takes in a run
                kept.fill(0.0)
                begin = now()
                nbytes[i] = codec.encode(v, kept, out, Key(0, 0, 1 << 30, 0), work) - HEADER_NBYTES
                seconds[i] = now() - begin
            error[i] = _energy(kept) / energy
        return cls(nbytes / n, error, seconds / n)


class FastestChoice:
    """One worker's choice among the candidates; ``now`` is its clock in seconds."""

    def __init__(self, codec: Adaptive, chunks: Sequence[Chunk], now: Callable[[], float]) -> None:
        self._limit = codec.error
        self._candidates = codec.candidates
        self._now = now
        self._work = Workspace()
        self._row = {chunk.index: i for i, chunk in enumerate(chunks)}
        self._chunks = tuple(chunks)
        shape = (len(chunks), len(self._candidates))
        self._nbytes, self._error = np.zeros(shape), np.zeros(shape)
        self._seconds = np.zeros(len(self._candidates))  # for one element; 0: not known
        self._used = np.zeros(len(chunks), np.int64)

    def begin(self, step: int, look: Look) -> None:
        """Tries the candidates, on each chunk at a step of its own."""
        for i, chunk in enumerate(self._chunks):
            if step == 1 or (step + i) % TRIED_EVERY == 0:
                sample = np.concatenate([look(chunk, piece) for piece in _pieces(chunk.size)])
                trial = Trial.of(self._candidates, sample, self._now, self._work)
                self._nbytes[i], self._error[i] = trial.nbytes, trial.error
                # What is in use is measured in use.
                idle = np.ones(len(self._seconds), np.bool_)
                idle[self._used] = self._seconds[self._used] == 0
                self._seconds[idle] = trial.seconds[idle]

    def codec(self, chunk: Chunk, link_rate: float) -> Codec:
        i = self._row[chunk.index]
        used = 0
        if link_rate > 0:
            cost = self._seconds + self._nbytes[i] / link_rate
            cost = np.where(self._error[i] <= self._limit, cost, np.inf)
            best, used = int(np.argmin(cost)), int(self._used[i])
            if cost[best] < FASTER * cost[used]:
                used = best
        self._used[i] = used
        return self._candidates[used]

    def note(self, chunk: Chunk, payload: Bytes, seconds: float) -> None:
        i = self._row[chunk.index]
        used, each = self._used[i], seconds / chunk.size
        self._seconds[used] += SMOOTHING * (each - self._seconds[used])
        self._nbytes[i, used] = (payload.size - HEADER_NBYTES) / chunk.size

    def state_dict(self) -> dict[str, NDArray[Any]]:
        return {
            "nbytes": self._nbytes,
            "error": self._error,
            "seconds": self._seconds,
            "used": self._used,
        }

    def load_state_dict(self, state: State) -> None:
        used = state.get("used")
        if isinstance(used, np.ndarray) and not np.isin(used, range(len(self._candidates))).all():
            raise ConfigError(
                f"codec state uses candidates {shown(used)}, there are {len(self._candidates)}"
            )
        load(self.state_dict(), state)


def _energy(v: Float32) -> float:
    """|v|^2, in float64: squares of large numbers are no float32."""
    return float(np.square(v, dtype=np.float64).sum())


def _pieces(n: int) -> list[slice]:
    """Where the pieces of a chunk of n elements are: all of it, if it is short."""
    if n <= PIECES * PIECE:
        return [slice(0, n)]
    starts = [i * (n - PIECE) // (PIECES - 1) for i in range(PIECES)]
    return [slice(start, start + PIECE) for start in starts]
