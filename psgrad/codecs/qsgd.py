"""``qsgd``: stochastic levels of the norm of a block (Alistarh et al., NIPS 2017).

With s levels and the Euclidean norm N of a block, C(v)[i] = (N / s) floor(s v[i] / N + u), with u
uniform in [0, 1): unbiased, and E |C(v) - v|^2 <= min(d / s^2, sqrt(d) / s) |v|^2 for blocks of d.

Feedback needs that bound to be about 1 or less: with 7 levels, blocks up to 64 or so. Beyond it the
residual grows without end, where without feedback only the noise is larger.

Where it differs from the paper: codes have a fixed size instead of Elias' coding, the norm is
raised by 2^-16 so that its rounding cannot put a level above s, and u has 15 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from psgrad.codecs.base import Bytes, Key, Opened, Workspace
from psgrad.codecs.scaled import Form, check_block, encode_scaled
from psgrad.errors import ConfigError
from psgrad.kernels.bits import BYTES, CRUMBS, NIBBLES, Coding
from psgrad.kernels.quantize import block_norm
from psgrad.layout import Float32


def _coding(levels: int) -> Coding:
    """The smallest one that holds a sign and a level."""
    return CRUMBS if levels == 1 else NIBBLES if levels <= 7 else BYTES


@dataclass(frozen=True)
class QSGD:
    """``levels`` of 1, up to 7, or up to 127 take 2, 4 or 8 bits."""

    name: ClassVar[str] = "qsgd"
    code: ClassVar[int] = 5
    summary: ClassVar[str] = "stochastic levels of the norm of each block, unbiased"
    unbiased: ClassVar[bool] = True

    levels: int = 7
    block: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 127:
            raise ConfigError(
                f"qsgd: levels must be from 1 to 127, got {self.levels}; 7 fill 4 bits"
            )
        check_block(self.name, self.block)

    @cached_property
    def _form(self) -> Form:
        return Form(self.code, self.block, self.levels, _coding(self.levels))

    def nbytes_max(self, n: int) -> int:
        return self._form.nbytes_max(n)

    def encode(
        self, x: Float32, residual: Float32 | None, out: Bytes, key: Key, work: Workspace
    ) -> int:
        return encode_scaled(self._form, block_norm, x, residual, out, key, work)

    def open(self, payload: Bytes, n: int) -> Opened:
        return self._form.open(payload, n)
