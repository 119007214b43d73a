"""Gradient descent, plain and with momentum. The notation is that of ``psgrad.optimizers``."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np

from psgrad.optimizers.base import F4, Options, Slots, couple


@dataclass(frozen=True)
class SGD(Options):
    """Stochastic gradient descent: w ← w - η g.

    No momentum: that is ``Momentum(0.1, momentum=0.9)`` or :class:`Nesterov`.
    """

    learning_rate: float = 0.1

    def apply(
        self, params: F4, grad: F4, slots: Slots, step: int, rate: float, decay: float, scratch: F4
    ) -> None:
        couple(params, grad, decay, scratch[0])
        grad *= np.float32(rate)
        params -= grad


@dataclass(frozen=True)
class Momentum(Options):
    """Heavy-ball momentum (Polyak 1964): v ← μ v + g, w ← w - η v.

    As in PyTorch, dampening 0: η is outside v, so a new rate acts at once; Polyak has it inside.
    """

    learning_rate: float = 0.01
    _: KW_ONLY
    momentum: float = 0.9

    slots: ClassVar[tuple[str, ...]] = ("velocity",)

    def apply(
        self, params: F4, grad: F4, slots: Slots, step: int, rate: float, decay: float, scratch: F4
    ) -> None:
        velocity = slots["velocity"]
        couple(params, grad, decay, scratch[0])
        velocity *= np.float32(self.momentum)
        velocity += grad
        np.multiply(velocity, np.float32(rate), out=grad)
        params -= grad


@dataclass(frozen=True)
class Nesterov(Options):
    """Nesterov momentum (Sutskever et al. 2013): v ← μ v + g, w ← w - η (g + μ v).

    As in PyTorch, w is the point that the paper looks ahead to, and η is outside v.
    """

    learning_rate: float = 0.01
    _: KW_ONLY
    momentum: float = 0.9

    slots: ClassVar[tuple[str, ...]] = ("velocity",)

    def apply(
        self, params: F4, grad: F4, slots: Slots, step: int, rate: float, decay: float, scratch: F4
    ) -> None:
        velocity, tmp = slots["velocity"], scratch[0]
        couple(params, grad, decay, tmp)
        velocity *= np.float32(self.momentum)
        velocity += grad
        np.multiply(velocity, np.float32(self.momentum), out=tmp)
        grad += tmp
        grad *= np.float32(rate)
        params -= grad
