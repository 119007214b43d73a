"""``none``: float32 as it is. Also how any codec writes a chunk that it would only make larger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from psgrad.codecs.base import Bytes, Key, Opened, Workspace
from psgrad.codecs.wire import HEADER_NBYTES, Flag, PayloadHeader, read_header, write_header
from psgrad.errors import WireError
from psgrad.layout import Float32


def raw_nbytes(n: int) -> int:
    """The size of a raw payload."""
    return HEADER_NBYTES + 4 * n


def encode_raw(code: int, x: Float32, residual: Float32 | None, out: Bytes) -> int:
    """Writes x + residual exactly; the residual becomes 0."""
    body = out[HEADER_NBYTES : raw_nbytes(x.size)].view(np.float32)
    if residual is None:
        np.copyto(body, x)
    else:
        np.add(x, residual, out=body)
        residual.fill(0.0)
    write_header(out, PayloadHeader(code, x.size, x.size, 4 * x.size, flags=Flag.RAW))
    return raw_nbytes(x.size)


@dataclass(frozen=True)
class OpenedRaw:
    """Float32 values that lie in the payload."""

    values: Float32

    def add_to(self, out: Float32, start: int, share: np.float32, first: bool) -> None:
        part = self.values[start : start + out.size]
        if first:
            np.multiply(part, share, out=out)
        else:
            out += part * share


class OpenedZero:
    """Nothing but zeros."""

    def add_to(self, out: Float32, start: int, share: np.float32, first: bool) -> None:
        if first:
            out.fill(0.0)


def open_plain(payload: Bytes, header: PayloadHeader) -> Opened | None:
    """What the flags alone say: zeros or raw values; None for a codec's own body."""
    if header.flags & Flag.ZERO:
        if header.flags != Flag.ZERO or header.nbytes:
            raise WireError(f"an all-zero payload has no body, got {header.nbytes} bytes")
        return OpenedZero()
    if header.flags & Flag.RAW:
        if header.flags != Flag.RAW or header.nbytes != 4 * header.n:
            raise WireError(f"a raw payload of {header.n} elements declares {header.nbytes} bytes")
        return OpenedRaw(payload[HEADER_NBYTES:].view(np.float32))
    return None


@dataclass(frozen=True)
class Raw:
    """C(v) = v."""

    name: ClassVar[str] = "none"
    code: ClassVar[int] = 0
    summary: ClassVar[str] = "float32 as it is"
    unbiased: ClassVar[bool] = True

    def nbytes_max(self, n: int) -> int:
        return raw_nbytes(n)

    def encode(
        self, x: Float32, residual: Float32 | None, out: Bytes, key: Key, work: Workspace
    ) -> int:
        return encode_raw(self.code, x, residual, out)

    def open(self, payload: Bytes, n: int) -> Opened:
        opened = open_plain(payload, read_header(payload, self.code, n))
        if opened is None:
            raise WireError("codec 'none' has raw payloads only")
        return opened
