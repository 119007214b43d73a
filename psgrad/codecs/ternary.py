"""``ternary``: -1, 0 or 1 times the largest magnitude of a block (TernGrad, Wen et al., NIPS 2017).

With S = max |v| over a block, C(v)[i] is S sign(v[i]) with probability |v[i]| / S, and 0 otherwise:
unbiased, and E (C(v)[i] - v[i])^2 = |v[i]| (S - |v[i]|). Five codes share a byte.

Where it differs from the paper: the scale is of a block instead of a layer, and gradients are not
clipped to 2.5 sigma first, which would bias them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from psgrad.codecs.base import Bytes, Key, Opened, Workspace
from psgrad.codecs.scaled import Form, check_block, encode_scaled
from psgrad.kernels.bits import TRITS
from psgrad.kernels.quantize import block_max
from psgrad.layout import Float32


@dataclass(frozen=True)
class Ternary:
    """1.6 bits, and 32 / ``block`` for the scale."""

    name: ClassVar[str] = "ternary"
    code: ClassVar[int] = 6
    summary: ClassVar[str] = "-1, 0 or 1 times a scale for each block, unbiased"
    unbiased: ClassVar[bool] = True

    block: int = 128

    def __post_init__(self) -> None:
        check_block(self.name, self.block)

    @cached_property
    def _form(self) -> Form:
        return Form(self.code, self.block, 1, TRITS)

    def nbytes_max(self, n: int) -> int:
        return self._form.nbytes_max(n)

    def encode(
        self, x: Float32, residual: Float32 | None, out: Bytes, key: Key, work: Workspace
    ) -> int:
        return encode_scaled(self._form, block_max, x, residual, out, key, work)

    def open(self, payload: Bytes, n: int) -> Opened:
        return self._form.open(payload, n)
