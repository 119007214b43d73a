"""The k largest magnitudes of a vector, exactly, in little more than one pass over it.

The set is that of a full sort by (|v| descending, index ascending): among equal magnitudes the
lowest indices win. Magnitudes are ordered as the integers that their bits are, so denormals count
whatever the mode of the floating-point unit, and -0 is 0.

A sample gives a magnitude that at least k elements very likely reach; one scan in blocks that stay
in cache collects those that do, and a partition of the few candidates does the rest. Where the
sample was wrong the scan costs more, and nothing else: too many candidates are cut to the best k on
the way, too few start a scan that takes all elements for candidates.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from psgrad.kernels import chunks
from psgrad.kernels.chunks import Float32, Positions, Scratch

BLOCK: Final = 1 << 16  # elements of one step of the scan: what it touches stays in cache
DIRECT: Final = 1 << 15  # a vector up to this size is partitioned as a whole
SAMPLE: Final = 1 << 12  # elements that an estimate looks at, at least
MARGIN: Final = 3.0  # sigma by which the estimate is lowered: 1 scan in 700 has to be repeated
TINY: Final = np.float32(1.4e-45)  # the smallest number above 0
_MAGNITUDE: Final = np.int32(0x7FFF_FFFF)


class Selected(NamedTuple):
    """``where`` rises; ``values`` are those of v there. Both may be scratch."""

    where: Positions
    values: Float32


def top_k(v: Float32, k: int, scratch: Scratch, add: Float32 | None = None) -> Selected:
    """Exactly the k largest |v|, with 1 <= k <= n; v[n] += add[n] first where that is given.

    v and add are float32[n], finite. Scratch and temporaries are O(k + BLOCK).
    """
    if v.size <= DIRECT:
        return _direct(v, k, scratch, add)
    found = _scan(v, add, _sampled(v, add, k, MARGIN, SAMPLE), k, scratch)
    if found.where.size < k:
        found = _scan(v, None, np.float32(0), k, scratch)
    return _cut(found, k, scratch)


def above_threshold(v: Float32, k: int, scratch: Scratch, add: Float32 | None = None) -> Selected:
    """About k of the largest |v|: those above a threshold that a sample says; never more than 2k.

    None are zero; there may be none at all. Up to DIRECT elements, and in all else, as ``top_k``.
    """
    if v.size <= DIRECT:
        found = _direct(v, k, scratch, add)
        (kept,) = found.values.nonzero()
        return Selected(found.where[kept], found.values[kept])
    return reaching(v, _sampled(v, add, k, 0.0, 4 * SAMPLE), 2 * k, scratch, add)


def reaching(
    v: Float32, low: np.float32, most: int, scratch: Scratch, add: Float32 | None = None
) -> Selected:
    """All |v| that reach ``low``, zeros never; where they are more than ``most``, the best of them.

    v[n] += add[n] first where that is given.
    """
    return _cut(_scan(v, add, max(low, TINY), most, scratch), most, scratch)


def magnitude_of_rank(v: Float32, k: int) -> np.float32:
    """The k-th largest |v| of v[n], with 1 <= k <= n."""
    magnitudes = np.abs(v)
    magnitudes.partition(v.size - k)
    return np.float32(magnitudes[v.size - k])


def _direct(v: Float32, k: int, scratch: Scratch, add: Float32 | None) -> Selected:
    if add is not None:
        np.add(v, add, out=v)
    where = _best(v, k, scratch)
    return Selected(where, v[where])


def _sampled(v: Float32, add: Float32 | None, k: int, margin: float, at_least: int) -> np.float32:
    """A magnitude that k elements reach; that fewer do is as likely as ``margin`` sigma.

    The size of the sample balances what it costs against what spare candidates cost.
    """
    n = v.size
    step = n // max(at_least, int(2.0 * (n * k) ** (1 / 3))) | 1  # odd: rows are powers of two
    sample = v[::step] if add is None else v[::step] + add[::step]
    magnitudes = np.abs(sample)
    expected = magnitudes.size * k / n
    rank = int(expected + margin * expected**0.5 + margin) + 1
    if rank >= magnitudes.size:
        return np.float32(0)
    magnitudes.partition(magnitudes.size - rank)
    return np.float32(magnitudes[-rank])


def _scan(v: Float32, add: Float32 | None, low: np.float32, k: int, scratch: Scratch) -> Selected:
    """All whose magnitude reaches ``low``, but for some that are not among the best k."""
    room = k + k // 2 + 2 * BLOCK
    where = scratch.take("select.where", room, np.int64)
    values = scratch.take("select.value", room, np.float32)
    kernels = chunks.fastest()
    end = 0
    for start in range(0, v.size, BLOCK):
        part = v[start : start + BLOCK]
        if end + part.size > room:
            best = _cut(Selected(where[:end], values[:end]), k, scratch)
            with np.errstate(over="ignore"):  # beyond the largest number there is nothing
                low = np.nextafter(np.abs(best.values).min(), np.float32(np.inf))
            where[:k], values[:k] = best  # later equals of the smallest lose to these
            end = k
        added = None if add is None else add[start : start + BLOCK]
        end = kernels.collect(part, added, low, start, where, values, end, scratch)
    return Selected(where[:end], values[:end])


def _cut(found: Selected, k: int, scratch: Scratch) -> Selected:
    """The best k of candidates that are in the order of their indices."""
    if found.where.size <= k:
        return found
    kept = _best(found.values, k, scratch)
    return Selected(found.where[kept], found.values[kept])


def _best(values: Float32, k: int, scratch: Scratch) -> Positions:
    """Where the k of largest magnitude are, rising; of equal ones the first."""
    n = values.size
    if k >= n:
        return np.arange(n)
    magnitudes = scratch.take("select.magnitude", n, np.int32)
    sorting = scratch.take("select.partition", n, np.int32)
    np.bitwise_and(values.view(np.int32), _MAGNITUDE, out=magnitudes)
    np.copyto(sorting, magnitudes)
    sorting.partition(n - k)
    smallest = sorting[n - k]
    where: Positions = (magnitudes >= smallest).nonzero()[0]
    surplus = where.size - k
    if surplus:
        (equal,) = (magnitudes[where] == smallest).nonzero()
        where = np.delete(where, equal[-surplus:])
    return where
