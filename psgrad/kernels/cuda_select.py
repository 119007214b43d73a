"""The largest magnitudes on a GPU: the twin of ``kernels.select``, the same sets bit for bit.

Arrays are C-contiguous on the device. Work is queued on the current stream; what says how many
were found waits for it.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import cupy
import numpy as np

from psgrad.kernels import Array
from psgrad.kernels.cuda_launch import launch
from psgrad.kernels.select import TINY

BUCKETS: Final = 2048
THREADS: Final = 256
TILE: Final = 16 * THREADS
MAX_BLOCKS: Final = 1024
"""Enough to fill any GPU; each has 8 KiB of counters, and strides over the rest."""
ROUNDS: Final = ((20, 11), (10, 10), (0, 10))
"""(shift, bits) of the digits of a magnitude, 31 bits in all."""


class Found(NamedTuple):
    """``where``, int64, rises; ``values``, float32, are those of v there."""

    where: Array
    values: Array


def top_k(v: Array, k: int, add: Array | None = None) -> Found:
    """Exactly the k largest |v|, with 1 <= k <= n < 2^31; v[n] += add[n] first where it is given.

    Among equal magnitudes the lowest indices win. v and add are float32[n], finite. Does not wait.

    Raises ValueError for another k, or sizes that do not go together.
    """
    if not 1 <= k <= v.size:
        raise ValueError(f"k must be from 1 to {v.size}, got {k}")
    _check(v, add)
    state = cupy.zeros(2, np.uint32)
    counts = cupy.zeros(BUCKETS, np.uint32)
    state[1] = k
    grid = min(math.ceil(v.size / (4 * THREADS)), MAX_BLOCKS)
    for shift, bits in ROUNDS:
        added = add if shift == ROUNDS[0][0] else None
        launch(
            "select",
            "count_digits",
            (grid,),
            (THREADS,),
            v,
            _or_null(added),
            counts,
            state,
            np.int64(v.size),
            np.int32(shift),
            np.int32(bits),
        )
        launch("select", "pick_digit", (1,), (THREADS,), counts, state, np.int32(shift))
    found, _ = _collect(v, None, state, k)
    return found


def reaching(v: Array, low: np.float32, most: int, add: Array | None = None) -> Found:
    """All |v| that reach ``low``, zeros never; where they are more than ``most``, the best of them.

    v[n] += add[n] first where that is given. One pass over memory, and waits for how many there
    are; where they are more than ``most``, an exact selection follows.

    Raises ValueError for sizes that do not go together.
    """
    _check(v, add)
    bits = int(np.maximum(low, TINY).view(np.uint32))
    # What is larger than the number before it reaches it; and no ties of that one are wanted.
    state = cupy.asarray(np.array([bits - 1, 0], np.uint32))
    found, counts = _collect(v, add, state, most)
    total = int(counts[0])
    if total > most:
        return top_k(v, most)
    return Found(found.where[:total], found.values[:total])


def _collect(v: Array, add: Array | None, state: Array, room: int) -> tuple[Found, Array]:
    """What stands in ``collect`` of select.cu; counts[0] says how many there are."""
    found = Found(cupy.empty(room, np.int64), cupy.empty(room, np.float32))
    tiles = math.ceil(v.size / TILE)
    counts = cupy.zeros(2, np.uint32)
    if tiles:
        launch(
            "select",
            "collect",
            (tiles,),
            (THREADS,),
            v,
            _or_null(add),
            state,
            found.where,
            found.values,
            cupy.zeros(tiles, np.uint64),
            counts,
            np.int64(v.size),
            np.int64(room),
        )
    return found, counts


def _check(v: Array, add: Array | None) -> None:
    if add is not None and add.size != v.size:
        raise ValueError(f"v and add must have the same size, got {v.size} and {add.size}")
    if v.size >= 1 << 31:
        raise ValueError(f"a vector must have less than 2^31 elements, got {v.size}: cut it")


def _or_null(array: Array | None) -> Array:
    return np.uint64(0) if array is None else array
