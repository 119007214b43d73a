"""What the sparse codecs share: how the values that are kept are written, and how they add up."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from psgrad.codecs.base import Bytes, Workspace
from psgrad.codecs.indices import Indices
from psgrad.errors import ConfigError, WireError
from psgrad.kernels.halves import PIECE, from_bf16, to_bf16
from psgrad.kernels.quantize import block_max
from psgrad.layout import Float32

FLOAT32: Final = 1
BF16: Final = 2
INT8: Final = 3
VALUES: Final = MappingProxyType({"float32": FLOAT32, "bf16": BF16, "int8": INT8})
"""What values may be written as, and the byte in the payload header that says so."""

BLOCK_LOG2: Final = 7
"""128 int8 values share a float32 scale: 0.25 bits a value. 64 would be 0.5 and 4% more exact."""
LEVELS: Final = 127
SCALES: Final = (1.1754944e-38, 2.6793884e36)
"""What a scale may be: the smallest normal number; the largest one with 127 times it finite."""
_BLOCK: Final = 1 << BLOCK_LOG2


def check_ratio(name: str, ratio: float) -> None:
    """Raises ``ConfigError`` for a ratio outside of (0, 1], and guesses at a percentage."""
    if not 0 < ratio <= 1:
        hint = f"; did you mean {ratio / 100:g}?" if 1 < ratio <= 100 else ""
        raise ConfigError(f"{name} ratio must be in (0, 1], got {ratio:g}{hint}")


def count(ratio: float, n: int) -> int:
    """k = max(1, round(ratio n)), and 0 of nothing."""
    return min(n, max(1, round(ratio * n)))


def values_nbytes(kind: int, k: int) -> int:
    """The size of k values."""
    if kind == INT8:
        return 4 * -(-k // _BLOCK) + k
    return (4 if kind == FLOAT32 else 2) * k


def write_values(values: Float32, kind: int, out: Bytes, work: Workspace) -> Float32 | None:
    """Writes float32[k] to ``out[:values_nbytes(kind, k)]``; returns what a reader will get.

    None: the same. bf16 is rounded to the nearest, ties to even, and stays finite; int8 is
    round(v / s) with s = max |v| / 127 over each block, but at least the smallest normal number.
    """
    out = out[: values_nbytes(kind, values.size)]
    if kind == FLOAT32:
        np.copyto(out.view(np.float32), values)
        return None
    return _write_bf16(values, out, work) if kind == BF16 else _write_int8(values, out, work)


def read_values(body: Bytes, kind: int, k: int) -> Float32:
    """The k values, all finite. Raises ``WireError``."""
    if body.size != values_nbytes(kind, k):
        raise WireError(f"{k} values have {values_nbytes(kind, k)} bytes, got {body.size}")
    if kind == INT8:
        return _read_int8(body, k)
    if kind == FLOAT32:
        values = body.view(np.float32)
    else:
        values = np.zeros(k, np.float32)
        from_bf16(body.view(np.uint16), values)
    if not np.isfinite(values).all():
        raise WireError("a value is not finite")
    return values


def _write_bf16(values: Float32, out: Bytes, work: Workspace) -> Float32:
    halves = out.view(np.uint16)
    sent = work.take("sparse.sent", values.size, np.float32)
    scratch = work.take("sparse.scratch", PIECE, np.uint32)
    for start in range(0, values.size, PIECE):
        part = slice(start, start + PIECE)
        to_bf16(values[part], halves[part], sent[part], scratch[: sent[part].size], True)
    return sent


def _write_int8(values: Float32, out: Bytes, work: Workspace) -> Float32:
    k = values.size
    rows = -(-k // _BLOCK)
    padded = work.take("sparse.sent", rows * _BLOCK, np.float32)
    padded[:k] = values
    padded[k:] = 0
    scales = np.zeros(rows, np.float32)
    scratch = work.take("sparse.scratch", padded.size, np.uint32).view(np.float32)
    block_max(padded, np.arange(0, padded.size, _BLOCK), scales, scratch)
    scales /= np.float32(LEVELS)
    np.maximum(scales, np.float32(SCALES[0]), out=scales)
    np.minimum(scales, np.float32(SCALES[1]), out=scales)
    blocks = padded.reshape(rows, _BLOCK)
    column = scales[:, None]
    blocks /= column
    np.rint(blocks, out=blocks)
    out[: 4 * rows] = scales.view(np.uint8)
    np.copyto(out[4 * rows :].view(np.int8), padded[:k], casting="unsafe")
    blocks *= column
    return padded[:k]


def _read_int8(body: Bytes, k: int) -> Float32:
    scales = body[: body.size - k].view(np.float32)
    codes = body[body.size - k :].view(np.int8)
    smallest, largest = SCALES
    if not ((scales >= smallest) & (scales <= largest)).all():
        raise WireError(f"a scale is not in {smallest:g}..{largest:g}")
    if k and codes.min() < -LEVELS:
        raise WireError(f"a value is below {-LEVELS} scales")
    values = codes.astype(np.float32)
    values *= np.repeat(scales, _BLOCK)[:k]
    return values


@dataclass(frozen=True)
class OpenedSparse:
    """Values at strictly increasing indices, and zeros elsewhere."""

    where: Indices
    values: Float32

    def add_to(self, out: Float32, start: int, share: np.float32, first: bool) -> None:
        begin, end = self.where.searchsorted((start, start + out.size))
        here = self.where[begin:end] - start
        if first:
            out.fill(0.0)
            out[here] = self.values[begin:end] * share
        else:
            out[here] += self.values[begin:end] * share  # an index is in a payload only once
