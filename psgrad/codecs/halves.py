"""``fp16`` and ``bf16``: the nearest number of 16 bits, ties to even.

The body is uint16[n]. fp16 has 11 significant bits down to 2^-14, then steps of 2^-24 (6e-8), and
ends at 65504; bf16 has 8 bits over the whole range of float32. Beyond the end both saturate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from psgrad.codecs.base import Bytes, Key, Opened, Workspace
from psgrad.codecs.raw import encode_raw, open_plain
from psgrad.codecs.wire import (
    HEADER_NBYTES,
    Flag,
    PayloadHeader,
    body_of,
    read_header,
    write_header,
)
from psgrad.errors import WireError
from psgrad.kernels import chunks, halves
from psgrad.kernels.halves import Half
from psgrad.layout import Float32

Uint16 = NDArray[np.uint16]


@dataclass(frozen=True)
class OpenedHalves:
    """Sixteen bits an element, none of them infinite or NaN."""

    kind: Half
    values: Uint16

    def add_to(self, out: Float32, start: int, share: np.float32, first: bool) -> None:
        codes = self.values[start : start + out.size]
        chunks.fastest().add_half(self.kind, codes, share, out, first)


class _Half:
    """What fp16 and bf16 share."""

    code: ClassVar[int]
    unbiased: ClassVar[bool] = False

    _kind: ClassVar[Half]

    def nbytes_max(self, n: int) -> int:
        return HEADER_NBYTES + 2 * n

    def encode(
        self, x: Float32, residual: Float32 | None, out: Bytes, key: Key, work: Workspace
    ) -> int:
        n = x.size
        if n == 0:
            return encode_raw(self.code, x, residual, out)
        codes = out[HEADER_NBYTES : HEADER_NBYTES + 2 * n].view(np.uint16)
        found = chunks.fastest().encode_half(self._kind, x, residual, codes, work)
        nbytes, flags = (2 * n, 0) if found else (0, Flag.ZERO)
        write_header(out, PayloadHeader(self.code, n, n, nbytes, flags=flags))
        return HEADER_NBYTES + nbytes

    def open(self, payload: Bytes, n: int) -> Opened:
        header = read_header(payload, self.code, n)
        plain = open_plain(payload, header)
        if plain is not None:
            return plain
        if header[1:] != PayloadHeader(self.code, n, n, 2 * n, flags=header.flags)[1:] or not n:
            raise WireError(f"a payload of {n} 16-bit floats has the header {header}")
        values = body_of(payload, header, 2 * n).view(np.uint16)
        if values.size != n or not halves.is_finite(values, self._kind.infinity):
            raise WireError(f"{n} 16-bit floats expected, got {values.size}, or not all are finite")
        return OpenedHalves(self._kind, values)


@dataclass(frozen=True)
class FP16(_Half):
    """|v - C(v)| <= max(2^-11 |v|, 2^-25) up to 65504."""

    name: ClassVar[str] = "fp16"
    code: ClassVar[int] = 1
    summary: ClassVar[str] = "IEEE half precision: 11 bits, but only from 6e-8 to 65504"

    _kind: ClassVar[Half] = halves.FP16


@dataclass(frozen=True)
class BF16(_Half):
    """|v - C(v)| <= max(2^-9 |v|, 2^-134)."""

    name: ClassVar[str] = "bf16"
    code: ClassVar[int] = 2
    summary: ClassVar[str] = "bfloat16: 8 bits over the whole range of float32"

    _kind: ClassVar[Half] = halves.BF16
