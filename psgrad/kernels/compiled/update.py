"""Sum and step in one pass over memory, by numba: what plain SGD makes of a round.

Each element goes through the float32 operations of the NumPy way (``update.Updater``), in the same
order: products are added in the order of the workers, and the rate comes last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import types  # type: ignore[import-not-found,import-untyped,unused-ignore]

from psgrad.kernels.chunks import Float32
from psgrad.kernels.compiled.jit import IN_F4, OUT_F4, U8, check_sizes, compiled

_S = types.float32
MOST = 4
"""The most gradients that are summed in one pass; every number of them has a loop of its own."""


@compiled(OUT_F4, _S, IN_F4, _S)
def _one(params: Float32, rate: np.float32, a: Float32, sa: np.float32) -> None:
    for i in range(U8(params.size)):
        params[i] -= rate * (a[i] * sa)


@compiled(OUT_F4, _S, IN_F4, _S, IN_F4, _S)
def _two(
    params: Float32, rate: np.float32, a: Float32, sa: np.float32, b: Float32, sb: np.float32
) -> None:
    for i in range(U8(params.size)):
        params[i] -= rate * (a[i] * sa + b[i] * sb)


@compiled(OUT_F4, _S, IN_F4, _S, IN_F4, _S, IN_F4, _S)
def _three(
    params: Float32, rate: np.float32, a: Float32, sa: np.float32, b: Float32, sb: np.float32,
    c: Float32, sc: np.float32,
) -> None:  # fmt: skip
    for i in range(U8(params.size)):
        params[i] -= rate * ((a[i] * sa + b[i] * sb) + c[i] * sc)


@compiled(OUT_F4, _S, IN_F4, _S, IN_F4, _S, IN_F4, _S, IN_F4, _S)
def _four(
    params: Float32, rate: np.float32, a: Float32, sa: np.float32, b: Float32, sb: np.float32,
    c: Float32, sc: np.float32, d: Float32, sd: np.float32,
) -> None:  # fmt: skip
    for i in range(U8(params.size)):
        params[i] -= rate * (((a[i] * sa + b[i] * sb) + c[i] * sc) + d[i] * sd)


_LOOPS = (_one, _two, _three, _four)


def sgd(
    params: Float32, grads: Sequence[Float32], shares: Sequence[np.float32], rate: np.float32
) -> bool:
    if not 0 < len(grads) <= MOST:
        return False
    check_sizes(all(grad.size == params.size for grad in grads))
    pairs = [part for pair in zip(grads, shares, strict=True) for part in pair]
    _LOOPS[len(grads) - 1](params, rate, *pairs)
    return True
