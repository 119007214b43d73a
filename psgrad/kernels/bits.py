"""Small signed integers packed into bytes, and back.

n codes are cut into groups of 32 Ki. In a group of m codes, with d of them to a byte, there are
p = ceil(m / d) bytes, and byte j holds the codes j, j + p, j + 2p, ... as the digits of a number in
base ``radix``, the first one lowest, each plus ``radix // 2``. So a group is d planes of p codes
that lie side by side in memory, and packing is arithmetic on whole planes. Codes beyond the end of
the last group are 0.

=========  =====  ===  ===========  =========================================================
coding     radix    d  codes        bits a code
=========  =====  ===  ===========  =========================================================
BYTES        256    1  -128..127    8; stored as int8, nothing added
NIBBLES       16    2  -8..7        4
CRUMBS         4    4  -2..1        2
TRITS          3    5  -1..1        1.6; bytes are 0..242, beyond that the last digit may be 2
SIGNS          2    8  -1, 1        1; byte j holds the codes 8j..8j+7, lowest bit first, 1 for -1
=========  =====  ===  ===========  =========================================================
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Int8 = NDArray[np.int8]
Uint8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]

GROUP: Final = 32 << 10
"""Codes whose planes lie together; what one call of ``pack`` or ``unpack`` takes at most."""


class Coding(NamedTuple):
    """A row of the table above."""

    radix: int
    digits: int

    @property
    def bias(self) -> int:
        """``radix // 2`` in every digit."""
        ones = (int(self.radix**self.digits) - 1) // (self.radix - 1)
        return self.radix // 2 * ones


BYTES: Final = Coding(256, 1)
NIBBLES: Final = Coding(16, 2)
CRUMBS: Final = Coding(4, 4)
TRITS: Final = Coding(3, 5)
SIGNS: Final = Coding(2, 8)

# By radix, as arrays without dimensions: a call with them is 0.13 us faster than with scalars.
_PLANAR: Final = (NIBBLES, CRUMBS, TRITS)
_RADIX: Final = {coding.radix: np.array(coding.radix, np.float32) for coding in _PLANAR}
_BIAS: Final = {coding.radix: np.array(coding.bias, np.float32) for coding in _PLANAR}


def packed_nbytes(n: int, coding: Coding) -> int:
    """The bytes of n codes."""
    groups, rest = divmod(n, GROUP)
    return groups * -(-GROUP // coding.digits) - (-rest // coding.digits)


def pack(codes: Float32, coding: Coding, out: Uint8) -> None:
    """Writes one group, float32[m], to ``out[packed_nbytes(m, coding)]``; not for SIGNS.

    Codes are whole numbers in the range of the table; they are not checked, and they are lost.
    """
    m, p = codes.size, out.size
    if coding.digits == 1:
        np.copyto(out.view(np.int8), codes, casting="unsafe")
        return
    # Horner's rule from the last plane down, each in the place of the one before it. Floats are
    # exact here, and so only a byte of codes has to be converted at a time, not every code.
    radix = _RADIX[coding.radix]
    at = (m - 1) // p * p
    above = codes[at:]
    while at:
        at -= p
        plane = codes[at : at + p]
        np.multiply(above, radix, out=above)
        np.add(plane[: above.size], above, out=plane[: above.size])
        above = plane
    np.add(above, _BIAS[coding.radix], out=above)
    np.copyto(out, above, casting="unsafe")


def unpack(packed: Uint8, coding: Coding, out: Int8, scratch: Uint8) -> None:
    """The inverse: one group, int8[m], from ``packed[packed_nbytes(m, coding)]``.

    ``scratch`` has at least 2 packed_nbytes(m, coding) elements. Any bytes give codes within the
    range of the table, but for the last code of a byte of TRITS, which may be 2.
    """
    planes = out.view(np.uint8)
    if coding.digits == 1:
        np.copyto(planes, packed)
    elif coding.digits == 8:
        np.copyto(planes, np.unpackbits(packed, count=out.size, bitorder="little"))
        np.multiply(out, np.int8(-2), out=out)
        np.add(out, np.int8(1), out=out)
    else:
        _unpack_planes(packed, coding, planes, scratch)
        np.subtract(out, np.int8(coding.radix // 2), out=out)


def unpacked(packed: Uint8, coding: Coding, m: int) -> Int8:
    """The codes of one group, int8[m]: new, but for BYTES, whose codes are what is packed."""
    if coding.digits == 1:
        return packed.view(np.int8)
    codes = np.empty(m, np.int8)
    unpack(packed, coding, codes, np.empty(2 * packed.size, np.uint8))
    return codes


def _unpack_planes(packed: Uint8, coding: Coding, planes: Uint8, scratch: Uint8) -> None:
    radix, p = np.uint8(coding.radix), packed.size
    rest, above, spare = packed, scratch[:p], scratch[p : 2 * p]
    for start in range(0, (coding.digits - 1) * p, p):
        plane = planes[start : start + p]
        np.floor_divide(rest, radix, out=above)
        np.multiply(above[: plane.size], radix, out=plane)
        np.subtract(rest[: plane.size], plane, out=plane)
        rest, above, spare = above, spare, above
    last = planes[(coding.digits - 1) * p :]
    np.copyto(last, rest[: last.size])


def pack_signs(v: Float32, out: Uint8, scratch: NDArray[np.bool_]) -> None:
    """Writes the sign bits of one group, float32[m], in the coding SIGNS; -0 is negative.

    ``scratch`` has m elements.
    """
    np.signbit(v, out=scratch)
    np.copyto(out, np.packbits(scratch, bitorder="little"))
