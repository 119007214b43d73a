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
from typing import Final

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
from psgrad.kernels import chunks
from psgrad.kernels.bits import GROUP, Coding, packed_nbytes, unpacked
from psgrad.kernels.chunks import Measure, Noise
from psgrad.kernels.hashing import stream
from psgrad.kernels.quantize import MAX, largest_step
from psgrad.layout import Float32

BLOCKS: Final = (16, GROUP)
"""The smallest and the largest block; all are powers of two, so a group has whole blocks."""


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
            nbytes, flags = 0, Flag.ZERO
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
        form, kernels = self.form, chunks.fastest()
        for begin in range(0, out.size, GROUP):
            part, at = out[begin : begin + GROUP], start + begin
            steps = self.step[at // form.block :]
            packed = self.packed[packed_nbytes(at, form.coding) :]
            size = min(GROUP, self.n - at)
            kernels.add_scaled(form, steps, packed, size, share, part, first)

    def check_codes(self) -> None:
        """Raises ``WireError`` for a code beyond ``levels``: its product might be infinite."""
        coding, levels = self.form.coding, self.form.levels
        for start in range(0, self.n, GROUP):
            m, at = min(GROUP, self.n - start), packed_nbytes(start, coding)
            codes = unpacked(self.packed[at : at + packed_nbytes(m, coding)], coding, m)
            if max(int(codes.max()), -int(codes.min())) > levels:
                raise WireError(f"a code is not in -{levels}..{levels}")


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
    dither = None
    if noise is not None:
        dither = Noise(stream(noise.seed, noise.worker, noise.step), noise.start)
    steps, packed = form.split(out[HEADER_NBYTES:nbytes], n)
    chunks.fastest().encode_scaled(form, measure, x, residual, steps, packed, dither, work)
    return form.finish(out, n, steps)


def check_block(codec: str, block: int) -> None:
    """Raises ``ConfigError`` for a block that is not a power of two, too small or too large."""
    low, high = BLOCKS
    if not low <= block <= high or block & (block - 1):
        raise ConfigError(
            f"{codec}: block must be a power of two from {low} to {high}, got {block}; "
            "256 is a good one"
        )
