"""Optimizers that divide by the root of a sum or a mean of squared gradients.

The notation is that of ``psgrad.optimizers``.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np

from psgrad.optimizers.base import F4, Options, Slots, average, couple, descend


@dataclass(frozen=True)
class Adam(Options):
    """Adam (Kingma and Ba 2015, algorithm 1), λ coupled.

    m ← β1 m + (1 - β1) g, v ← β2 v + (1 - β2) g²,
    w ← w - η (m / (1 - β1^t)) / (sqrt(v / (1 - β2^t)) + eps).
    """

    learning_rate: float = 0.001
    _: KW_ONLY
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    slots: ClassVar[tuple[str, ...]] = ("mean", "square_mean")

    def apply(
        self, params: F4, grad: F4, slots: Slots, step: int, rate: float, decay: float, scratch: F4
    ) -> None:
        mean, squares, tmp = slots["mean"], slots["square_mean"], scratch[0]
        couple(params, grad, decay, tmp)
        np.multiply(grad, grad, out=tmp)
        average(mean, grad, self.beta1)
        average(squares, tmp, self.beta2)
        # Both bias corrections as scalars: numerator and denominator times sqrt(1 - β2^t).
        root = math.sqrt(1.0 - self.beta2**step)
        corrected = rate * root / (1.0 - self.beta1**step)
        descend(params, mean, squares, corrected, self.eps * root, tmp)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).

    w ← (1 - η λ) w, then :class:`Adam`'s step with the gradient alone. As in PyTorch λ is
    multiplied by the whole rate η; the paper multiplies it by the schedule's factor only.
    """

    _: KW_ONLY
    weight_decay: float = 0.01

    def apply(
        self, params: F4, grad: F4, slots: Slots, step: int, rate: float, decay: float, scratch: F4
    ) -> None:
        if decay:
            params *= np.float32(1.0 - rate * decay)
        super().apply(params, grad, slots, step, rate, 0.0, scratch)


@dataclass(frozen=True)
class AdaGrad(Options):
    """AdaGrad, diagonal (Duchi et al. 2011): n ← n + g², w ← w - η g / (sqrt(n) + eps).

    n starts at ``initial_accumulator``. The paper's composite regulariser is left out.
    """

    learning_rate: float = 0.01
    _: KW_ONLY
    eps: float = 1e-10
    initial_accumulator: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("square_sum",)

    def init(self, n: int) -> dict[str, F4]:
        return {"square_sum": np.full(n, self.initial_accumulator, dtype=np.float32)}

    def apply(
        self, params: F4, grad: F4, slots: Slots, step: int, rate: float, decay: float, scratch: F4
    ) -> None:
        squares, tmp = slots["square_sum"], scratch[0]
        couple(params, grad, decay, tmp)
        np.multiply(grad, grad, out=tmp)
        squares += tmp
        descend(params, grad, squares, rate, self.eps, tmp)


@dataclass(frozen=True)
class RMSProp(Options):
    """RMSProp (Tieleman and Hinton 2012), uncentred and without momentum.

    v ← α v + (1 - α) g², w ← w - η g / (sqrt(v) + eps). The lecture has no eps.
    """

    learning_rate: float = 0.001
    _: KW_ONLY
    alpha: float = 0.99
    eps: float = 1e-8

    slots: ClassVar[tuple[str, ...]] = ("square_mean",)

    def apply(
        self, params: F4, grad: F4, slots: Slots, step: int, rate: float, decay: float, scratch: F4
    ) -> None:
        squares, tmp = slots["square_mean"], scratch[0]
        couple(params, grad, decay, tmp)
        np.multiply(grad, grad, out=tmp)
        average(squares, tmp, self.alpha)
        descend(params, grad, squares, rate, self.eps, tmp)
