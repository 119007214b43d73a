"""Random numbers without a state: a 32-bit hash of (seed, worker, step, element).

Element e of a stream has the number h(e), whoever asks and in what pieces, so a chunk draws the
same numbers whatever the chunk grid. Two workers, or two steps, never share a stream: with a shared
one the noise of quantizers no longer averages out over the workers.

The key is 64 bits, mixed on the host, once for each call (the finalizer of SplitMix64, Steele et
al., OOPSLA 2014)::

    stream = mix64(mix64(mix64(seed) ^ worker) ^ step)
    k1, k0 = the high and low half of mix64(stream + (e >> 32))

What is done for each element is arithmetic modulo 2^32, the same on a GPU: a Weyl sequence, then
Wellons' finalizer triple32, with the second half of the key after its first multiplication ::

    x = 0x9E3779B9 e + k0
    x = (x ^ x >> 17) 0xED5AD4BB + k1
    x = (x ^ x >> 11) 0xAC4C1B51
    x = (x ^ x >> 15) 0x31848BAB
    h = x ^ x >> 14

With two multiplications the differences of neighbours are uneven by 2%.

Not for cryptography. Integers beyond their 64 bits wrap; elements are below 2^63.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Uint32 = NDArray[np.uint32]

PIECE: Final = 32 << 10
"""Elements that are worked on at a time; ``scratch`` needs no more."""

_MASK32: Final = (1 << 32) - 1
_MASK64: Final = (1 << 64) - 1
_WEYL: Final = 0x9E3779B9
# Arrays without dimensions: a call with them is 0.13 us faster than with NumPy's scalars.
_FACTORS: Final = tuple(np.array(f, np.uint32) for f in (0xED5AD4BB, 0xAC4C1B51, 0x31848BAB))
_SHIFTS: Final = tuple(np.array(bits, np.uint32) for bits in (17, 11, 15, 14))
_ODD_HALVES: Final = np.array(0x0001_0001, np.uint32)
_TO_HALF: Final = np.array(2.0**-16, np.float32)


def _weyl_sequence() -> Uint32:
    sequence = np.arange(PIECE, dtype=np.uint32)
    sequence *= np.uint32(_WEYL)
    sequence.flags.writeable = False
    return sequence


_SEQUENCE: Final = _weyl_sequence()


def stream(seed: int, worker: int, step: int) -> int:
    """The key of one worker's numbers at one step."""
    return _mix64(_mix64(_mix64(seed) ^ worker) ^ step)


def uniform32(stream: int, start: int, out: Uint32, scratch: Uint32) -> None:
    """out[i] = h(start + i), uniform over all uint32, for i in 0..n-1.

    ``scratch`` has at least min(n, PIECE) elements.
    """
    done, n = 0, out.size
    while done < n:
        high, low = (start + done) >> 32, (start + done) & _MASK32
        size = min(n - done, PIECE, (1 << 32) - low)
        _hash(_mix64(stream + high), low, out[done : done + size], scratch[:size])
        done += size


def dither(stream: int, start: int, out: Float32, scratch: Uint32) -> None:
    """out[i] = noise of element start + i: evenly spaced over (-1/2, 1/2), of mean 0, never a tie.

    An element takes a half of a 32-bit number, so that one hash serves two: with h the number of
    element e >> 1, and r its low 16 bits where e is even, the high ones where it is odd, as an
    int16, the noise is (r | 1) / 2^16. So round(t + noise) is t on average, to 2^-16.

    ``scratch`` has at least n + 2 elements.
    """
    n, first, skip = out.size, start >> 1, start & 1
    count = (n + skip + 1) >> 1
    numbers = scratch[:count]
    uniform32(stream, first, numbers, scratch[count:])
    np.bitwise_or(numbers, _ODD_HALVES, out=numbers)
    np.copyto(out, numbers.view(np.int16)[skip : skip + n])
    np.multiply(out, _TO_HALF, out=out)


def _hash(key: int, low: int, x: Uint32, scratch: Uint32) -> None:
    """x[i] = the number of the element whose low word is ``low`` + i. ``scratch`` is as long."""
    first, second, third = _FACTORS
    shift17, shift11, shift15, shift14 = _SHIFTS
    np.add(_SEQUENCE[: x.size], (low * _WEYL + key) & _MASK32, out=x)
    np.right_shift(x, shift17, out=scratch)
    np.bitwise_xor(x, scratch, out=x)
    np.multiply(x, first, out=x)
    np.add(x, key >> 32, out=x)
    np.right_shift(x, shift11, out=scratch)
    np.bitwise_xor(x, scratch, out=x)
    np.multiply(x, second, out=x)
    np.right_shift(x, shift15, out=scratch)
    np.bitwise_xor(x, scratch, out=x)
    np.multiply(x, third, out=x)
    np.right_shift(x, shift14, out=scratch)
    np.bitwise_xor(x, scratch, out=x)


def _mix64(z: int) -> int:
    """A bijection of 64 bits: each bit of z flips each bit of the result half of the time."""
    z = (z + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)
