"""``int8`` and ``int4``: each block by its largest magnitude.

With L levels, 127 or 7, the step of a block is max |v| / L and the codes are round(v / step). The
body is that of ``codecs.scaled``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final

from psgrad.codecs.base import Bytes, Key, Opened, Workspace
from psgrad.codecs.scaled import Form, check_block, encode_scaled
from psgrad.errors import ConfigError, unknown_name
from psgrad.kernels.bits import BYTES, NIBBLES, Coding
from psgrad.kernels.quantize import block_max
from psgrad.layout import Float32

ROUNDINGS: Final = ("nearest", "stochastic")


class _Int:
    """What int8 and int4 share."""

    block: int
    rounding: str

    name: ClassVar[str]
    code: ClassVar[int]
    _levels: ClassVar[int]
    _coding: ClassVar[Coding]

    def __post_init__(self) -> None:
        check_block(self.name, self.block)
        if self.rounding not in ROUNDINGS:
            raise ConfigError(unknown_name(f"rounding of {self.name}", self.rounding, ROUNDINGS))

    @property
    def unbiased(self) -> bool:
        return self.rounding == "stochastic"

    @cached_property
    def _form(self) -> Form:
        return Form(self.code, self.block, self._levels, self._coding)

    def nbytes_max(self, n: int) -> int:
        return self._form.nbytes_max(n)

    def encode(
        self, x: Float32, residual: Float32 | None, out: Bytes, key: Key, work: Workspace
    ) -> int:
        noise = key if self.rounding == "stochastic" else None
        return encode_scaled(self._form, block_max, x, residual, out, noise, work)

    def open(self, payload: Bytes, n: int) -> Opened:
        return self._form.open(payload, n)


@dataclass(frozen=True)
class Int8(_Int):
    """Codes -127..127 with step = max |v| / 127 over each block.

    |v - C(v)| <= step / 2 with ``rounding`` nearest, the default; with stochastic it is below one
    step, and C(v) is unbiased.
    """

    name: ClassVar[str] = "int8"
    code: ClassVar[int] = 3
    summary: ClassVar[str] = "8 bits and a scale for each block, by its largest magnitude"
    _levels: ClassVar[int] = 127
    _coding: ClassVar[Coding] = BYTES

    block: int = 256
    rounding: str = "nearest"


@dataclass(frozen=True)
class Int4(_Int):
    """Codes -7..7 with step = max |v| / 7 over each block; else as ``Int8``."""

    name: ClassVar[str] = "int4"
    code: ClassVar[int] = 4
    summary: ClassVar[str] = "4 bits and a scale for each block, by its largest magnitude"
    _levels: ClassVar[int] = 7
    _coding: ClassVar[Coding] = NIBBLES

    block: int = 64
    rounding: str = "nearest"
