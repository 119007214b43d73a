"""The payload's own header, 24 bytes, and the optional zstd stage behind it.

========  =====  ============================================================================
field     bytes  meaning
========  =====  ============================================================================
magic         2  ``Pg``
format        1  1
codec         1  ``Codec.code``
values        1  type of the values of a sparse payload: 0 none, 1 float32, 2 bfloat16, 3 int8
flags         1  1 all zero (no body), 2 raw (the body is float32[n]), 4 zstd
indices       1  coding of the indices of a sparse payload, see ``codecs.indices``
block         1  log2 of the elements that share a scale; 0: none
n             4  elements of the chunk
k             4  elements that the payload stores (n where it is dense)
nbytes        4  bytes of the body before zstd
checksum      4  CRC-32 of the header before it and of the body as sent; 0: not computed
========  =====  ============================================================================

Unsigned, little-endian. The message header says which chunk it is, of whom, and when.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final, NamedTuple

import numpy as np
import zstandard

from psgrad.codecs.base import Bytes
from psgrad.errors import WireError

MAGIC: Final = b"Pg"
FORMAT: Final = 1
_HEADER: Final = struct.Struct("<2sBBBBBBIIII")
_CHECKED: Final = _HEADER.size - 4  # bytes before the checksum
HEADER_NBYTES: Final = _HEADER.size


class Flag:
    """How the body is to be read: bits of a plain integer."""

    ZERO: Final = 1
    RAW: Final = 2
    ZSTD: Final = 4


class PayloadHeader(NamedTuple):
    """The fields of the table above, without magic, format and checksum."""

    codec: int
    n: int
    k: int
    nbytes: int
    values: int = 0
    flags: int = 0
    indices: int = 0
    block: int = 0


def write_header(out: Bytes, header: PayloadHeader) -> None:
    """Puts the header before a body that lies in ``out[HEADER_NBYTES:]``; no checksum yet."""
    codec, n, k, nbytes, values, flags, indices, block = header
    _HEADER.pack_into(
        out.data, 0, MAGIC, FORMAT, codec, values, flags, indices, block, n, k, nbytes, 0
    )


def read_header(payload: Bytes, codec: int, n: int) -> PayloadHeader:
    """The header of a payload that should be ``codec``'s, of ``n`` elements.

    Raises ``WireError`` for anything else, a wrong checksum included (0 is not checked).
    """
    if payload.size < HEADER_NBYTES:
        raise WireError(f"a payload has at least {HEADER_NBYTES} bytes, got {payload.size}")
    magic, version, *fields, checksum = _HEADER.unpack_from(payload.data)
    code, values, flags, indices, block, count, k, nbytes = fields
    if magic != MAGIC or version != FORMAT:
        raise WireError(f"expected payload {MAGIC!r} {FORMAT}, got {magic!r} {version}")
    if code != codec or count != n:
        raise WireError(f"expected codec {codec} of {n} elements, got {code} of {count}")
    if k > n or flags > Flag.ZERO | Flag.RAW | Flag.ZSTD:
        raise WireError(f"payload stores {k} of {n} elements with flags {flags}")
    if checksum and checksum != _checksum(payload):
        raise WireError("payload checksum does not match: it was damaged on its way")
    header = PayloadHeader(code, count, k, nbytes, values, flags, indices, block)
    if not flags & Flag.ZSTD and payload.size != HEADER_NBYTES + nbytes:
        raise WireError(f"payload has {payload.size - HEADER_NBYTES} bytes, declares {nbytes}")
    return header


def code_of(payload: Bytes) -> int:
    """Which codec wrote a payload; raises ``WireError`` where there is no header."""
    if payload.size < HEADER_NBYTES:
        raise WireError(f"a payload has at least {HEADER_NBYTES} bytes, got {payload.size}")
    return int(payload[3])


def stored(payload: Bytes) -> int:
    """The elements that a payload stores: the field k."""
    return int(_HEADER.unpack_from(payload.data)[8])


def seal(payload: Bytes) -> None:
    """Writes the checksum, once, for a payload that leaves the node; 0 is written as 1."""
    if not payload[_CHECKED:HEADER_NBYTES].any():
        struct.pack_into("<I", payload.data, _CHECKED, _checksum(payload))


def body_of(payload: Bytes, header: PayloadHeader, nbytes_max: int) -> Bytes:
    """The body before zstd. ``nbytes_max`` bounds what a frame may unpack to."""
    body = payload[HEADER_NBYTES:]
    if not header.flags & Flag.ZSTD:
        return body
    if header.nbytes > nbytes_max:
        raise WireError(f"payload declares {header.nbytes} bytes, the limit is {nbytes_max}")
    try:
        declared = zstandard.frame_content_size(body.data)
        if declared != header.nbytes:
            raise WireError(f"zstd frame of {declared} bytes, header says {header.nbytes}")
        data = zstandard.ZstdDecompressor().decompress(
            body.data, max_output_size=nbytes_max, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise WireError(f"zstd: {error}") from error
    if len(data) != header.nbytes:
        raise WireError(f"zstd frame gave {len(data)} bytes, header says {header.nbytes}")
    return np.frombuffer(data, np.uint8)


def squeeze(payload: Bytes, compressor: zstandard.ZstdCompressor) -> int:
    """Replaces the body by its zstd frame where that is smaller; returns the payload's size.

    Raw values and nothing at all are left alone: they hardly shrink, and are read in place.
    """
    if payload[5] & (Flag.RAW | Flag.ZERO):
        return payload.size
    body = payload[HEADER_NBYTES:]
    frame = compressor.compress(body.data)
    if len(frame) >= body.size:
        return payload.size
    payload[HEADER_NBYTES : HEADER_NBYTES + len(frame)] = np.frombuffer(frame, np.uint8)
    payload[5] |= Flag.ZSTD
    return HEADER_NBYTES + len(frame)


def _checksum(payload: Bytes) -> int:
    head = zlib.crc32(payload[:_CHECKED].data)
    return zlib.crc32(payload[HEADER_NBYTES:].data, head) or 1
