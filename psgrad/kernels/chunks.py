"""What codecs do to all elements of a chunk, behind one contract.

``kernels.plain`` is NumPy and the specification. ``kernels.compiled`` is the same by numba, which
goes over memory once where NumPy goes over its blocks a dozen times; results are equal, bit for
bit. ``fastest`` says which of them a process uses.

Arrays are C-contiguous. What is only read may be read-only, and bytes of a payload may lie anywhere
in memory, at odd addresses too.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from psgrad.kernels.bits import Coding
from psgrad.kernels.halves import Half

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]
Uint16 = NDArray[np.uint16]
Positions = NDArray[np.int64]


class Scratch(Protocol):
    """Where arrays live between calls."""

    def take(self, name: str, n: int, dtype: Any) -> NDArray[Any]:
        """``n`` elements of arbitrary content, lost at the next call with that name."""
        ...


class Measure(Protocol):
    """What of a block its step is proportional to: ``block_max`` or ``block_norm``."""

    def __call__(
        self, v: Float32, starts: NDArray[np.intp], out: Float32, scratch: Float32
    ) -> None: ...


class Blocks(Protocol):
    """How a chunk is cut into blocks, and what their elements become."""

    @property
    def block(self) -> int:
        """Elements of a block: a power of two from 16 to ``bits.GROUP``."""

    @property
    def coding(self) -> Coding: ...

    @property
    def top(self) -> NDArray[np.float32]:
        """The largest code, float32[()]."""

    @property
    def limit(self) -> NDArray[np.float32]:
        """The largest step: ``quantize.largest_step`` of ``top``."""

    @property
    def starts(self) -> NDArray[np.intp]:
        """Where the blocks of a group begin."""

    def blocks(self, n: int) -> int:
        """How many blocks n elements have."""
        ...


class Noise(NamedTuple):
    """``hashing.dither`` of a stream; ``start`` is the number of the chunk's first element."""

    stream: int
    start: int


class ChunkKernels(Protocol):
    """What both modules offer."""

    @property
    def name(self) -> str:
        """``numpy``, or numba with its version."""

    def encode_scaled(
        self,
        form: Blocks,
        measure: Measure,
        x: Float32,
        residual: Float32 | None,
        steps: Float32,
        packed: Uint8,
        noise: Noise | None,
        scratch: Scratch,
    ) -> None:
        """code[i] = round(v[i] / step + noise), with step = measure(block of v) / top.

        v = x[n] + residual[n], finite. Writes steps[blocks(n)], 0 for a block of zeros, and the
        codes as ``bits`` packs them; leaves residual = v - step code.
        """

    def add_scaled(
        self,
        form: Blocks,
        steps: Float32,
        packed: Uint8,
        size: int,
        share: np.float32,
        out: Float32,
        first: bool,
    ) -> None:
        """out[m] += share step code, of the first m codes of one group that has ``size``.

        With ``first`` out[m] is that product. ``steps`` and ``packed`` begin with the group's.
        """

    def encode_half(
        self, kind: Half, x: Float32, residual: Float32 | None, out: Uint16, scratch: Scratch
    ) -> bool:
        """out[n] = v = x[n] + residual[n] in 16 bits; leaves residual = v - out.

        Returns whether any of them is not zero.
        """

    def add_half(
        self, kind: Half, codes: Uint16, share: np.float32, out: Float32, first: bool
    ) -> None:
        """out[m] += share codes[m]; with ``first`` out[m] is that product. Codes are finite."""

    def collect(
        self,
        v: Float32,
        add: Float32 | None,
        low: np.float32,
        start: int,
        where: Positions,
        values: Float32,
        end: int,
        scratch: Scratch,
    ) -> int:
        """Appends to where[:end] and values[:end] what of v[m] has a magnitude of at least ``low``.

        v[m] += add[m] first where that is given. Positions are counted from ``start``; m more
        have room. Returns the new end.
        """

    def sgd(
        self,
        params: Float32,
        grads: Sequence[Float32],
        shares: Sequence[np.float32],
        rate: np.float32,
    ) -> bool:
        """params[n] -= rate (shares[0] grads[0] + shares[1] grads[1] + ...), in this order.

        In one pass over memory, rounded as if each operation had been an array's. False where
        there is no such pass for this number of gradients: then nothing has been done.
        """


@cache
def fastest() -> ChunkKernels:
    """The compiled kernels where numba is installed, else NumPy's.

    The first call imports numba, and compiles where its cache is empty: seconds. Numba that is
    installed but cannot be used gives a RuntimeWarning, and NumPy's kernels.
    """
    from psgrad.kernels import plain

    try:
        import psgrad.kernels.compiled as compiled
    except ModuleNotFoundError as error:
        if error.name == "numba":
            return plain
        raise
    except Exception as error:
        # Not only ImportError: numba that does not fit this Python, NumPy or CPU may fail anywhere.
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(
            f"kernels run on NumPy, numba cannot be used: {reason}", RuntimeWarning, stacklevel=2
        )
        return plain
    return compiled
