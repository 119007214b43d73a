"""``sign``: the sign of each element, and the mean magnitude of its block.

C(v)[i] = sign(v[i]) mean |v| over the block, the scaled sign of Karimireddy et al. (ICML 2019), by
block instead of by layer. For a block of d elements |v - C(v)|^2 = |v|_2^2 - |v|_1^2 / d, so C is a
contraction; it is biased, and to be used with error feedback. The sign of 0 is +, of -0 is -.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from psgrad.codecs.base import Bytes, Key, Opened, Workspace
from psgrad.codecs.raw import encode_raw, raw_nbytes
from psgrad.codecs.scaled import Form, check_block
from psgrad.codecs.wire import HEADER_NBYTES
from psgrad.kernels.bits import GROUP, SIGNS, pack_signs, packed_nbytes
from psgrad.kernels.quantize import block_mean, copy_signs, spread
from psgrad.layout import Float32


@dataclass(frozen=True)
class Sign:
    """1 bit, and 32 / ``block`` for the scale."""

    name: ClassVar[str] = "sign"
    code: ClassVar[int] = 7
    summary: ClassVar[str] = "the sign of each element, and the mean magnitude of each block"
    unbiased: ClassVar[bool] = False

    block: int = 512

    def __post_init__(self) -> None:
        check_block(self.name, self.block)

    @cached_property
    def _form(self) -> Form:
        return Form(self.code, self.block, 1, SIGNS)

    def nbytes_max(self, n: int) -> int:
        return self._form.nbytes_max(n)

    def encode(
        self, x: Float32, residual: Float32 | None, out: Bytes, key: Key, work: Workspace
    ) -> int:
        form, n = self._form, x.size
        nbytes = form.nbytes(n)
        if nbytes >= raw_nbytes(n):
            return encode_raw(self.code, x, residual, out)
        scales, packed = form.split(out[HEADER_NBYTES:nbytes], n)
        size = min(n, GROUP)
        wide = work.take("sign.wide", form.blocks(size) * self.block, np.float32)
        scratch = work.take("sign.scratch", size, np.float32)
        negative = work.take("sign.negative", size, np.bool_)
        for start in range(0, n, GROUP):
            v = x[start : start + GROUP]
            m = v.size
            if residual is not None:
                kept = residual[start : start + GROUP]
                v = np.add(kept, v, out=kept)
            at = packed_nbytes(start, SIGNS)
            pack_signs(v, packed[at : at + packed_nbytes(m, SIGNS)], negative[:m])
            first = start // self.block
            mean = scales[first : first + form.blocks(m)]
            block_mean(v, form.starts[: mean.size], mean, scratch[:m])
            if residual is not None:
                spread(mean, self.block, wide[: mean.size * self.block])
                copy_signs(wide[:m], v, scratch[:m])
                np.subtract(v, scratch[:m], out=v)
        return form.finish(out, n, scales)

    def open(self, payload: Bytes, n: int) -> Opened:
        return self._form.open(payload, n)
