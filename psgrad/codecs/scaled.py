"""What the codecs share that write small integers, and a step for each block of them.

The body is float32[ceil(n / block)], the step of each block, then the codes of all elements as
``kernels.bits`` packs them::

    C(v)[i] = step[i // block] code[i]

A block of zeros has step 0. Any other step is a normal number, so small that its largest multiple
is finite. Blocks are counted from the start of the chunk; the last one may be shorter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from psgrad.codecs.base import Bytes, Key, Opened, Workspace
from psgrad.codecs.raw import encode_raw, open_plain, raw_nbytes
from psgrad.codecs.wire import (
    HEADER_NBYTES,
    Flag,
    PayloadHeader,
    body_of,
    read_header,
    write_header,
)
from psgrad.errors import ConfigError, WireError
from psgrad.kernels.bits import GROUP, Coding, pack, packed_nbytes, unpack
from psgrad.kernels.hashing import dither
from psgrad.kernels.hashing import stream as stream_of
from psgrad.kernels.quantize import MAX, largest_step, quantize, spread, steps
from psgrad.layout import Float32

BLOCKS: Final = (16, GROUP)
"""The smallest and the largest block; all are powers of two, so a group has whole blocks."""


class Measure(Protocol):
    """What of a block its step is proportional to: ``block_max`` or ``block_norm``."""

    def __call__(
        self, v: Float32, starts: NDArray[np.intp], out: Float32, scratch: Float32
    ) -> None: ...


@dataclass(frozen=True)
class Form:
    """How a codec's payloads look. Codes are at most ``levels`` in magnitude."""

    code: int
    block: int
    levels: int
    coding: Coding

    @cached_property
    def top(self) -> NDArray[np.float32]:
        """``levels`` as float32[()]."""
        return np.array(self.levels, np.float32)

    @cached_property
    def limit(self) -> NDArray[np.float32]:
        """The largest step; float32[()]."""
        return largest_step(self.levels)

    @cached_property
    def starts(self) -> NDArray[np.intp]:
        """Where the blocks of a group begin."""
        return np.arange(0, GROUP, self.block)

    def blocks(self, n: int) -> int:
        return -(-n // self.block)

    def nbytes(self, n: int) -> int:
        """The size of a payload with steps and codes."""
        return HEADER_NBYTES + 4 * self.blocks(n) + packed_nbytes(n, self.coding)

    def nbytes_max(self, n: int) -> int:
        """The size of a payload of n elements: raw where packing does not make it smaller."""
        return min(self.nbytes(n), raw_nbytes(n))

    def split(self, body: Bytes, n: int) -> tuple[Float32, Bytes]:
        """The steps and the packed codes of a body."""
        at = 4 * self.blocks(n)
        return body[:at].view(np.float32), body[at:]

    def header(self, n: int, nbytes: int, flags: int) -> PayloadHeader:
        """The header over a body of ``nbytes``."""
        return PayloadHeader(self.code, n, n, nbytes, 0, flags, 0, self.block.bit_length() - 1)

    def finish(self, out: Bytes, n: int, scales: Float32) -> int:
        """Writes the header of the payload with these steps; returns the payload's size."""
        if np.count_nonzero(scales):
            nbytes, flags = self.nbytes(n) - HEADER_NBYTES, 0
        else:
            nbytes, flags = 0, int(Flag.ZERO)
        write_header(out, self.header(n, nbytes, flags))
        return HEADER_NBYTES + nbytes

    def open(self, payload: Bytes, n: int) -> Opened:
        """Checks a payload, as ``Codec.open`` does."""
        header = read_header(payload, self.code, n)
        plain = open_plain(payload, header)
        if plain is not None:
            return plain
        nbytes = self.nbytes(n) - HEADER_NBYTES
        if nbytes >= 4 * n or header != self.header(n, nbytes, header.flags):
            raise WireError(f"a packed payload of {n} elements should not have {header}")
        body = body_of(payload, header, nbytes)
        step, packed = self.split(body, n)
        top = np.maximum.reduce(step.view(np.uint32))  # of bits: negative ones and NaN are largest
        if top > self.limit.view(np.uint32):
            raise WireError(f"the step of a block is not in 0..{self.limit:g}")
        opened = OpenedScaled(self, step, packed, n)
        if top.view(np.float32) > MAX / self.coding.radix:
            opened.check_codes()
        return opened


@dataclass(frozen=True)
class OpenedScaled:
    """Steps and codes of n elements, in the payload."""

    form: Form
    step: Float32
    packed: Bytes
    n: int

    def add_to(self, out: Float32, start: int, share: np.float32, first: bool) -> None:
        for begin in range(0, out.size, GROUP):
            part = out[begin : begin + GROUP]
            values = part if first else np.empty_like(part)
            self._read(values, start + begin, share)
            if not first:
                np.add(part, values, out=part)

    def check_codes(self) -> None:
        """Raises ``WireError`` for a code beyond ``levels``: its product might be infinite."""
        for start in range(0, self.n, GROUP):
            codes = self._codes(start)
            if max(int(codes.max()), -int(codes.min())) > self.form.levels:
                raise WireError(f"a code is not in -{self.form.levels}..{self.form.levels}")

    def _read(self, values: Float32, start: int, share: np.float32) -> None:
        """values[m] = share C(v)[start : start + m], inside of one group."""
        block, m = self.form.block, values.size
        np.copyto(values, self._codes(start)[:m])
        first = start // block
        step = self.step[first : first + self.form.blocks(m)] * share
        whole = m - m % block
        rows = values[:whole].reshape(-1, block)
        np.multiply(rows, step[: len(rows), None], out=rows)
        if whole < m:
            np.multiply(values[whole:], step[-1], out=values[whole:])

    def _codes(self, start: int) -> NDArray[np.int8]:
        """The codes of the group that begins at ``start``."""
        coding, m = self.form.coding, min(GROUP, self.n - start)
        at = packed_nbytes(start, coding)
        packed = self.packed[at : at + packed_nbytes(m, coding)]
        if coding.digits == 1:
            return packed.view(np.int8)
        codes = np.empty(m, np.int8)
        unpack(packed, coding, codes, np.empty(2 * packed.size, np.uint8))
        return codes


class _Room(NamedTuple):
    """Scratch for a group of m elements."""

    starts: NDArray[np.intp]  # [blocks]: where they begin; not scratch
    measure: Float32  # [blocks]
    wide: Float32  # [blocks * block]
    each: Float32  # [m]: the begin of ``wide``, which has the step of each element
    values: Float32  # [m]
    noise: Float32 | None  # [m]
    words: NDArray[np.uint32]  # [m + 2]

    @classmethod
    def of(cls, form: Form, m: int, stochastic: bool, work: Workspace) -> _Room:
        blocks = form.blocks(m)
        end = blocks * form.block
        floats = work.take("scaled.floats", 3 * end + blocks, np.float32)
        words = work.take("scaled.words", m + 2 if stochastic else 0, np.uint32)
        return cls(
            form.starts[:blocks],
            floats[3 * end :],
            floats[:end],
            floats[:m],
            floats[end : end + m],
            floats[2 * end : 2 * end + m] if stochastic else None,
            words,
        )


def encode_scaled(
    form: Form,
    measure: Measure,
    x: Float32,
    residual: Float32 | None,
    out: Bytes,
    noise: Key | None,
    work: Workspace,
) -> int:
    """Writes code = round(v / step + noise), with step = measure(block of v) / levels.

    ``noise`` is the key of ``hashing.dither``; None: none is added. x + residual must be finite.
    Returns the payload's size.
    """
    n = x.size
    nbytes = form.nbytes(n)
    if nbytes >= raw_nbytes(n):
        return encode_raw(form.code, x, residual, out)
    at = HEADER_NBYTES + 4 * form.blocks(n)
    scales = out[HEADER_NBYTES:at].view(np.float32)
    stream = stream_of(noise.seed, noise.worker, noise.step) if noise is not None else 0
    room = _Room.of(form, min(n, GROUP), noise is not None, work)
    block = 0
    for start in range(0, n, GROUP):
        v = x[start : start + GROUP]
        m = v.size
        if m != room.values.size:
            room = _Room.of(form, m, noise is not None, work)
        if residual is not None:
            kept = residual[start : start + GROUP]
            v = np.add(kept, v, out=kept)  # in its place: one array less that wants the cache
        step = scales[block : block + room.starts.size]
        block += step.size
        measure(v, room.starts, room.measure, room.values)
        steps(room.measure, form.top, form.limit, step)
        spread(step, form.block, room.wide)
        if np.count_nonzero(room.measure) < step.size:
            step[room.measure == 0] = 0
        if noise is not None and room.noise is not None:
            dither(stream, noise.start + start, room.noise, room.words)
        quantize(v, room.each, room.noise, room.values)
        if residual is not None:
            np.multiply(room.values, room.each, out=room.each)
            np.subtract(v, room.each, out=v)
        end = at + packed_nbytes(m, form.coding)
        pack(room.values, form.coding, out[at:end])
        at = end
    return form.finish(out, n, scales)


def check_block(codec: str, block: int) -> None:
    """Raises ``ConfigError`` for a block that is not a power of two, too small or too large."""
    low, high = BLOCKS
    if not low <= block <= high or block & (block - 1):
        raise ConfigError(
            f"{codec}: block must be a power of two from {low} to {high}, got {block}; "
            "256 is a good one"
        )
