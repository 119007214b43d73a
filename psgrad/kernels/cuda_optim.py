"""Optimizers on a GPU: one launch an update, the bits of ``psgrad.optimizers``.

``params``, ``grad`` and slots are float32[n], C-contiguous on the device; unlike the CPU's these
leave ``grad`` alone. Work is queued on the current stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from psgrad.kernels import Array
from psgrad.kernels.cuda_launch import launch

THREADS: Final = 256
MAX_BLOCKS: Final = 1 << 16


def sgd(params: Array, grad: Array, rate: float, decay: float) -> None:
    _update("sgd", (params, grad), rate, decay)


def momentum(
    params: Array, grad: Array, velocity: Array, rate: float, decay: float, keep: float
) -> None:
    _update("momentum", (params, grad, velocity), rate, decay, keep)


def nesterov(
    params: Array, grad: Array, velocity: Array, rate: float, decay: float, keep: float
) -> None:
    _update("nesterov", (params, grad, velocity), rate, decay, keep)


def adam(
    params: Array,
    grad: Array,
    mean: Array,
    squares: Array,
    step: int,
    rate: float,
    decay: float,
    beta1: float,
    beta2: float,
    eps: float,
    decoupled: bool = False,
) -> None:
    """Adam; with ``decoupled`` AdamW. ``step`` counts from 1."""
    root = math.sqrt(1.0 - beta2**step)
    corrected = rate * root / (1.0 - beta1**step)
    shrink = 1.0 - rate * decay if decoupled else 1.0
    coupled = 0.0 if decoupled else decay
    moments = (beta1, 1.0 - beta1, beta2, 1.0 - beta2)
    _update("adam", (params, grad, mean, squares), corrected, coupled, *moments, eps * root, shrink)


def adagrad(
    params: Array, grad: Array, squares: Array, rate: float, decay: float, eps: float
) -> None:
    _update("adagrad", (params, grad, squares), rate, decay, eps)


def rmsprop(
    params: Array,
    grad: Array,
    squares: Array,
    rate: float,
    decay: float,
    alpha: float,
    eps: float,
) -> None:
    _update("rmsprop", (params, grad, squares), rate, decay, alpha, 1.0 - alpha, eps)


def _update(name: str, arrays: Sequence[Array], *constants: float) -> None:
    """Raises ValueError for arrays of different sizes."""
    n = arrays[0].size
    if any(array.size != n for array in arrays):
        raise ValueError("arrays do not have the sizes that go together")
    if n:
        grid = min(math.ceil(n / (4 * THREADS)), MAX_BLOCKS)
        numbers = [np.float32(constant) for constant in constants]
        launch("optim", name, (grid,), (THREADS,), *arrays, np.int64(n), *numbers)
