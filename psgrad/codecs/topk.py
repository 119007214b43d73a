"""``topk``: the elements of largest magnitude, and where they are (Aji and Heafield, EMNLP 2017).

C(v) keeps k = max(1, round(ratio n)) elements of v, so |v - C(v)|^2 <= (1 - k/n) |v|^2: a
contraction, to be used with error feedback. Zeros are not sent, so a payload may store fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from psgrad.codecs import indices
from psgrad.codecs.base import Bytes, Key, Opened, Workspace
from psgrad.codecs.raw import encode_raw, open_plain, raw_nbytes
from psgrad.codecs.sparse import (
    BLOCK_LOG2,
    INT8,
    VALUES,
    OpenedSparse,
    check_ratio,
    count,
    read_values,
    values_nbytes,
    write_values,
)
from psgrad.codecs.wire import (
    HEADER_NBYTES,
    Flag,
    PayloadHeader,
    body_of,
    read_header,
    write_header,
)
from psgrad.errors import ConfigError, WireError, unknown_name
from psgrad.kernels.select import Selected, above_threshold, reaching, top_k
from psgrad.layout import Float32

SELECTIONS: Final = ("exact", "threshold")
SCOPES: Final = ("chunk", "tensor", "global")
WARMUP_RATIO: Final = 0.25


@dataclass(frozen=True)
class TopK:
    """``select``: exact takes the set of a full sort, ties to the lowest index; threshold takes all
    elements above a magnitude that a sample says: about k of them, at most 2k. In a run the
    threshold is kept over steps (``codecs.thresholds``); by itself, a chunk is its own sample.

    ``scope`` is what the ratio is of: each chunk; each tensor, or the part of it that lies in the
    chunk; or the whole gradient of a step, whose large elements may be in few chunks: there k is
    met on average, by a sample. The last two are settled by the worker, ``Settled`` is what it
    hands on; by themselves they mean chunk.

    ``values`` is what they are written as: float32, bf16, or int8 with a scale for 128 of them;
    with feedback the rounding error stays in the residual. Over the first ``warmup`` steps the
    ratio falls exponentially from 0.25 to ``ratio``, as Lin et al. (ICLR 2018) do it in four jumps.
    """

    name: ClassVar[str] = "topk"
    code: ClassVar[int] = 8
    summary: ClassVar[str] = "the elements of largest magnitude, with their indices"

    ratio: float = 0.01
    values: str = "float32"
    select: str = "exact"
    warmup: int = 0
    scope: str = "chunk"

    def __post_init__(self) -> None:
        check_ratio("top-k", self.ratio)
        if self.values not in VALUES:
            raise ConfigError(unknown_name("values of top-k", self.values, VALUES))
        if self.select not in SELECTIONS:
            raise ConfigError(unknown_name("selection of top-k", self.select, SELECTIONS))
        if self.scope not in SCOPES:
            raise ConfigError(unknown_name("scope of top-k", self.scope, SCOPES))
        if self.scope == "tensor" and self.select != "exact":
            raise ConfigError("top-k with scope=tensor takes select=exact")
        if self.warmup < 0:
            raise ConfigError(f"top-k warmup must be at least 0 steps, got {self.warmup}")

    @property
    def unbiased(self) -> bool:
        """Where ``ratio`` and ``values`` say that all is sent as it is.

        With a ratio a little below 1, too, chunks are raw and nothing is lost: that is not counted.
        """
        return self.ratio == 1 and self.values == "float32" and self.scope == "chunk"

    def ratio_at(self, step: int) -> float:
        """The ratio of a step: a pure function, so that a restart goes on as before."""
        if step >= self.warmup or self.ratio >= WARMUP_RATIO:
            return self.ratio
        fall = self.ratio / WARMUP_RATIO
        return float(WARMUP_RATIO * fall ** (max(step, 0) / self.warmup))

    def count(self, n: int, step: int) -> int:
        """How many of n elements are to be sent: k."""
        return count(self.ratio_at(step), n)

    def most(self, n: int, step: int) -> int:
        """The most elements that a payload of n may store."""
        if self.scope == "chunk":
            k = self.count(n, step)
            return k if self.select == "exact" else min(n, 2 * k)
        # Whatever is smaller than raw: a chunk may have more than its share.
        low, high = 0, n
        while low < high:
            middle = (low + high + 1) // 2
            if self._nbytes(n, middle) < raw_nbytes(n):
                low = middle
            else:
                high = middle - 1
        return low

    def nbytes_max(self, n: int) -> int:
        return min(self._nbytes(n, max(1, self.most(n, 0))), raw_nbytes(n))

    def encode(
        self, x: Float32, residual: Float32 | None, out: Bytes, key: Key, work: Workspace
    ) -> int:
        n = x.size
        if self._nbytes(n, max(1, self.most(n, 0))) >= raw_nbytes(n):
            return encode_raw(self.code, x, residual, out)
        if residual is None:
            where, values = self.select_from(x, None, key.step, work)
        else:
            where, values = self.select_from(residual, x, key.step, work)
        if np.count_nonzero(values) < values.size:
            where, values = where[values != 0], values[values != 0]
        if not where.size:
            write_header(out, PayloadHeader(self.code, n, 0, 0, flags=Flag.ZERO))
            return HEADER_NBYTES
        kind = VALUES[self.values]
        body = out[HEADER_NBYTES:]
        sent = write_values(values, kind, body, work)
        if residual is not None:
            residual[where] = 0 if sent is None else values - sent
        split = values_nbytes(kind, where.size)
        coding, nbytes = indices.write(where, n, body[split:], work)
        nbytes += split
        block = BLOCK_LOG2 if kind == INT8 else 0
        write_header(out, PayloadHeader(self.code, n, where.size, nbytes, kind, 0, coding, block))
        return HEADER_NBYTES + nbytes

    def open(self, payload: Bytes, n: int) -> Opened:
        header = read_header(payload, self.code, n)
        plain = open_plain(payload, header)
        if plain is not None:
            return plain
        k, kind = header.k, header.values
        if not k or kind not in VALUES.values():
            raise WireError(f"a top-k payload has {k} values of type {kind}")
        if header.block != (BLOCK_LOG2 if kind == INT8 else 0):
            raise WireError(f"a top-k payload has blocks of 2^{header.block}")
        split = values_nbytes(kind, k)
        body = body_of(payload, header, split + indices.nbytes_max(n, k))
        values = read_values(body[:split], kind, k)
        return OpenedSparse(indices.read(header.indices, body[split:], n, k), values)

    def select_from(self, v: Float32, add: Float32 | None, step: int, work: Workspace) -> Selected:
        """What is sent of v[n], after v += add."""
        pick = top_k if self.select == "exact" else above_threshold
        return pick(v, min(self.count(v.size, step), self.most(v.size, step)), work, add)

    def _nbytes(self, n: int, k: int) -> int:
        """The most bytes that a payload with k indices may need."""
        return HEADER_NBYTES + values_nbytes(VALUES[self.values], k) + indices.nbytes_max(n, k)


@dataclass(frozen=True)
class Settled(TopK):
    """A top-k of one chunk in one step, with what was settled before the first chunk left.

    ``low``: all magnitudes that reach it are sent, the largest ``most`` of them. Else ``starts``,
    where the chunk's tensors begin in it: the ratio is of each.
    """

    low: float = 0.0
    starts: tuple[int, ...] = ()

    @classmethod
    def of(cls, codec: TopK, low: float = 0.0, starts: tuple[int, ...] = ()) -> Settled:
        """``codec`` with what was settled."""
        return cls(codec.ratio, codec.values, codec.select, codec.warmup, codec.scope, low, starts)

    def select_from(self, v: Float32, add: Float32 | None, step: int, work: Workspace) -> Selected:
        n = v.size
        if not self.starts:
            return reaching(v, np.float32(self.low), self.most(n, step), work, add)
        most = self.most(n, 0)
        where = work.take("topk.where", most, np.int64)
        values = work.take("topk.value", most, np.float32)
        end = 0
        for start, stop in zip(self.starts, (*self.starts[1:], n), strict=True):
            part = slice(start, stop)
            k = self.count(stop - start, step)
            found = top_k(v[part], k, work, None if add is None else add[part])
            size = min(found.where.size, most - end)  # tiny tensors may be more than fit
            np.add(found.where[:size], start, out=where[end : end + size])
            values[end : end + size] = found.values[:size]
            end += size
        return Selected(where[:end], values[:end])
