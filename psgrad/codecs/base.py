"""What every codec is: a frozen value that turns a gradient chunk into bytes and back.

With v = x + residual, ``encode`` writes a payload that stands for C(v) and leaves
residual = v - C(v), in one pass over blocks that stay in cache. ``open`` gives the payload back as
something that can be added, block by block, to a sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from psgrad.layout import Float32

Bytes: TypeAlias = NDArray[np.uint8]

BLOCK: Final = 32 << 10
"""Elements that are worked on at a time; four such arrays of float32 fit an L2 cache of 1 MiB."""


@dataclass(frozen=True)
class Key:
    """What randomness depends on, and nothing else: two workers never share a stream.

    ``start`` is where the chunk begins in the flat vector, so element i of the chunk draws with
    (seed, worker, step, start + i) whatever the chunk grid.
    """

    seed: int
    worker: int
    step: int
    start: int


class Workspace:
    """Scratch arrays by name, grown when needed and kept: the second call allocates nothing."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def take(self, name: str, n: int, dtype: Any) -> NDArray[Any]:
        """``n`` elements of scratch; content is arbitrary, and is lost at the next such call."""
        array = self._arrays.get(name)
        if array is None or array.size < n or array.dtype != dtype:
            array = np.zeros(n, dtype)
            self._arrays[name] = array
        return array[:n]


class Opened(Protocol):
    """A payload that has been checked: adding it up cannot fail any more."""

    def add_to(self, out: Float32, start: int, share: np.float32, first: bool) -> None:
        """out[m] += share * C(v)[start : start + m]; with ``first``, out[m] = that product.

        Blocks come in any order; ``start`` is a multiple of ``BLOCK`` (32 Ki elements).
        """
        ...


def write_into(opened: Opened, out: Float32) -> None:
    """out[n] = C(v), the whole chunk."""
    for start in range(0, out.size, BLOCK):
        opened.add_to(out[start : start + BLOCK], start, np.float32(1), first=True)


def add_into(opened: Opened, out: Float32) -> None:
    """out[n] += C(v), the whole chunk."""
    for start in range(0, out.size, BLOCK):
        opened.add_to(out[start : start + BLOCK], start, np.float32(1), first=False)


class Codec(Protocol):
    """One way to write a chunk. A frozen dataclass; its fields are the options of the spec."""

    name: ClassVar[str]
    """As in ``codecs.CODECS`` and on the command line."""
    code: ClassVar[int]
    """The codec's byte in the payload header; never used again for another one."""
    summary: ClassVar[str]
    """One line for ``psgrad codecs``."""

    @property
    def unbiased(self) -> bool:
        """Whether without a residual the mean of C(v) over all keys is v, for any n and v.

        That is up to rounding: of float32, and of noise that has 2^-16 of a step. A codec for which
        it is always or never so has a class variable.
        """
        ...

    def nbytes_max(self, n: int) -> int:
        """The most bytes that a payload of ``n`` elements has, its header included."""
        ...

    def encode(
        self, x: Float32, residual: Float32 | None, out: Bytes, key: Key, work: Workspace
    ) -> int:
        """Writes the payload of x[n] (+ residual[n]) to ``out[:nbytes_max(n)]``; returns its size.

        ``residual`` is updated in place; ``x`` is not changed. Allocates nothing of size O(n)
        after the first call. x must be finite.
        """
        ...

    def open(self, payload: Bytes, n: int) -> Opened:
        """Checks a payload of ``n`` elements; raises ``WireError`` when it is not sound.

        Nothing larger than ``n`` allows is allocated, whatever the payload says. The payload's
        memory must stay as it is while the result is in use.
        """
        ...
