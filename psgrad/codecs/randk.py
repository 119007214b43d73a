"""``randk``: k elements by chance, whose indices need not travel (after Konečný et al., 2016).

The n elements are cut into k strata, 0..n-1 at floor(j n / k), and each sends one element that
the hash of ``kernels.hashing`` draws: number j of the chunk's stream, times the length L of the
stratum, shifted down by 32 bits. So the indices rise and differ, who has the key draws them again
in O(k), and an element is sent with probability 1/L, L being n/k or next to it. (Konečný et al.
draw from all subsets of k elements; the errors below are the same.)

Without error feedback what is sent is L v_i: the mean of C(v) is v, and the mean of |C(v) - v|^2 is
sum (L_i - 1) v_i^2, about (n/k - 1) |v|^2. With a residual it is v_i as it is, which leaves
(1 - k/n) |v|^2 on average: scaled up, error feedback would not converge.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from psgrad.codecs.base import Bytes, Key, Opened, Workspace
from psgrad.codecs.indices import Indices
from psgrad.codecs.raw import encode_raw, open_plain, raw_nbytes
from psgrad.codecs.sparse import FLOAT32, OpenedSparse, check_ratio, count, read_values
from psgrad.codecs.wire import (
    HEADER_NBYTES,
    Flag,
    PayloadHeader,
    body_of,
    read_header,
    write_header,
)
from psgrad.errors import WireError
from psgrad.kernels.hashing import PIECE, stream, uniform32
from psgrad.layout import Float32

_DRAW: Final = struct.Struct("<QQI")  # stream, start, whether values are scaled
SCALED: Final = 1
LARGEST: Final = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class RandK:
    """One element of each of k = max(1, round(ratio n)) strata; unbiased without a residual."""

    name: ClassVar[str] = "randk"
    code: ClassVar[int] = 9
    summary: ClassVar[str] = "elements drawn by chance, without indices"
    unbiased: ClassVar[bool] = True

    ratio: float = 0.01

    def __post_init__(self) -> None:
        check_ratio("rand-k", self.ratio)

    def nbytes_max(self, n: int) -> int:
        return min(self._packed_nbytes(n), raw_nbytes(n))

    def encode(
        self, x: Float32, residual: Float32 | None, out: Bytes, key: Key, work: Workspace
    ) -> int:
        n = x.size
        if self._packed_nbytes(n) >= raw_nbytes(n):
            return encode_raw(self.code, x, residual, out)
        k = count(self.ratio, n)
        numbers = stream(key.seed, key.worker, key.step)
        where, lengths = _draw(numbers, key.start, n, k, work)
        body = out[HEADER_NBYTES : HEADER_NBYTES + _DRAW.size + 4 * k]
        values = body[_DRAW.size :].view(np.float32)
        if residual is None:
            scaled = x[where] * lengths  # float64
            np.clip(scaled, -LARGEST, LARGEST, out=scaled)
            np.copyto(values, scaled, casting="same_kind")
        else:
            np.add(residual, x, out=residual)
            np.copyto(values, residual[where])
            residual[where] = 0
        if not values.any():
            write_header(out, PayloadHeader(self.code, n, 0, 0, flags=Flag.ZERO))
            return HEADER_NBYTES
        _DRAW.pack_into(body.data, 0, numbers, key.start, SCALED if residual is None else 0)
        write_header(out, PayloadHeader(self.code, n, k, body.size, FLOAT32))
        return HEADER_NBYTES + body.size

    def open(self, payload: Bytes, n: int) -> Opened:
        header = read_header(payload, self.code, n)
        plain = open_plain(payload, header)
        if plain is not None:
            return plain
        if not header.k or (header.values, header.indices, header.block) != (FLOAT32, 0, 0):
            raise WireError(f"not the header of a rand-k payload: {header}")
        body = body_of(payload, header, _DRAW.size + 4 * header.k)
        values = read_values(body[_DRAW.size :], FLOAT32, header.k)
        numbers, start, scaled = _DRAW.unpack_from(body.data)
        if start >= 1 << 63 or scaled > SCALED:
            raise WireError(f"a rand-k payload starts at {start} with flag {scaled}")
        return OpenedSparse(_draw(numbers, start, n, header.k, Workspace())[0], values)

    def _packed_nbytes(self, n: int) -> int:
        return HEADER_NBYTES + _DRAW.size + 4 * count(self.ratio, n)


def _draw(
    numbers: int, start: int, n: int, k: int, work: Workspace
) -> tuple[Indices, NDArray[np.uint64]]:
    """One index of each stratum, rising, and the lengths of the strata."""
    drawn = work.take("randk.drawn", k, np.uint32)
    uniform32(numbers, start, drawn, work.take("randk.scratch", min(k, PIECE), np.uint32))
    bounds = np.arange(k + 1, dtype=np.uint64)
    bounds *= np.uint64(n)
    bounds //= np.uint64(k)
    lengths = bounds[1:] - bounds[:-1]
    where = drawn * lengths
    where >>= np.uint64(32)
    where += bounds[:-1]
    return where.astype(np.int64), lengths
