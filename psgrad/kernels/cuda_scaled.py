"""Scaled integers on a GPU: the twin of ``kernels.plain`` for whole chunks, in one launch each.

Steps and codes are those of the CPU, byte for byte, where a step is the largest magnitude of a block
(int8, int4, ternary). ``block_norm`` and ``block_mean`` are sums, here in float64: scales of sign and
steps of qsgd agree within a relative 2^-16, signs exactly, codes of qsgd within 1.

Arrays are C-contiguous on the device. Nothing waits: work is queued on the current stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import cupy
import numpy as np

from psgrad.kernels import Array
from psgrad.kernels.bits import GROUP, packed_nbytes
from psgrad.kernels.chunks import Blocks, Noise
from psgrad.kernels.cuda_launch import launch
from psgrad.kernels.quantize import block_max, block_mean, block_norm

MEASURES: Final = (block_max, block_norm, block_mean)
"""By their numbers in scaled.cu."""
SPAN: Final = 128  # elements that a warp loads at a time
TILE: Final = 4096  # elements of a thread block, where codes are whole bytes or signs
KEPT: Final = 4  # SPANs that fit the registers of a warp
THREADS: Final = 256
MASK64: Final = (1 << 64) - 1


class Codes(NamedTuple):
    """A payload's body on the device: steps[blocks] float32, and codes as ``kernels.bits`` packs.

    Both may lie in one buffer, as on the wire; codes at any address.
    """

    steps: Array
    packed: Array


def encode_scaled(
    form: Blocks,
    measure: Any,
    x: Array,
    residual: Array | None,
    out: Codes,
    noise: Noise | None,
    found: Array,
) -> None:
    """``ChunkKernels.encode_scaled`` in one pass over memory; with ``block_mean``, codec sign's.

    ``found``, uint32[1], becomes 1 where a step is not 0 and is left alone otherwise: a payload
    whose steps are all 0 has no body. Without a residual x is read only.

    Raises ValueError for arrays whose sizes do not go together.
    """
    n, coding = x.size, form.coding
    _check(
        out.steps.size == form.blocks(n)
        and out.packed.size == packed_nbytes(n, coding)
        and (residual is None or residual.size == n)
    )
    if not n:
        return
    planes = 1 < coding.digits < 8
    tile = GROUP if planes else max(form.block, TILE)
    rounds = max(1, form.block // SPAN)
    family = "planes" if planes else "bytes" if coding.digits == 1 else "signs"
    stream, start = (noise.stream & MASK64, noise.start) if noise is not None else (0, 0)
    launch(
        "scaled",
        f"encode_{family}_{rounds if rounds <= KEPT else 0}",
        (math.ceil(n / tile),),
        (2 * THREADS if planes else THREADS,),
        x,
        np.uint64(0) if residual is None else residual,
        out.steps,
        out.packed,
        found,
        np.int64(n),
        np.int32(form.block.bit_length() - 1),
        np.int32(tile),
        np.int32(coding.digits),
        np.int32(coding.radix),
        np.float32(form.top),
        np.float32(form.limit),
        np.int32(MEASURES.index(measure)),
        np.int32(noise is not None),
        np.uint64(stream),
        np.int64(start),
    )


def add_payloads(
    form: Blocks, payloads: Sequence[Codes], shares: Sequence[np.float32], out: Array, first: bool
) -> None:
    """out[n] += shares[0] C(v_0) + shares[1] C(v_1) + ..., in this order, in one pass.

    With ``first`` out[n] is that sum; there is at least one payload then. Bit for bit what
    ``plain.add_scaled`` gives, payload after payload. Payloads must stay as they are until the
    work is done.

    Raises ValueError for arrays whose sizes do not go together.
    """
    n, coding = out.size, form.coding
    steps, codes = form.blocks(n), packed_nbytes(n, coding)
    _check(
        len(payloads) == len(shares)
        and (not first or len(payloads) > 0)
        and all(p.steps.size >= steps and p.packed.size >= codes for p in payloads)
    )
    if not n or not payloads:
        return
    table = np.array([[p.steps.data.ptr, p.packed.data.ptr] for p in payloads], np.uint64)
    launch(
        "scaled",
        "add_payloads",
        (math.ceil(n / (4 * THREADS)),),
        (THREADS,),
        out,
        cupy.asarray(table),
        cupy.asarray(np.array(shares, np.float32)),
        np.int32(len(payloads)),
        np.int64(n),
        np.int32(form.block.bit_length() - 1),
        np.int32(coding.digits),
        np.int32(coding.radix),
        np.int32(first),
    )


def _check(fits: bool) -> None:
    if not fits:
        raise ValueError("arrays do not have the sizes that go together")
