"""FTRL-Proximal: weights that are exactly 0 where their gradients do not speak against it.

The notation is that of ``psgrad.optimizers``.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np

from psgrad.optimizers.base import F4, Options, Slots, couple


@dataclass(frozen=True)
class FTRL(Options):
    """FTRL-Proximal for sparse weights (McMahan et al. 2013, algorithm 1); η is the paper's α.

    n ← n + g², D = (β + sqrt(n)) / η + l2, z = g + s - D w, s ← clip(z, -l1, l1),
    w ← (s - z) / D, which is exactly 0 where abs(z) <= l1.

    For a constant η and w = 0 at the start this is the paper's algorithm, whose z is s - D w here:
    the state is s, the part of z that w does not tell. So a new η changes later steps only (the
    paper's σ with the sum 1 / η), where a stored z would rescale every weight at once, and weights
    that do not start at 0 are kept. l1 and l2 act once on the sum of all losses, as in the paper;
    λ is coupled and acts in every step. At η = 0 only n changes.
    """

    learning_rate: float = 0.1
    _: KW_ONLY
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("square_sum", "subgradient")
    scratch_rows: ClassVar[int] = 2

    def apply(
        self, params: F4, grad: F4, slots: Slots, step: int, rate: float, decay: float, scratch: F4
    ) -> None:
        squares, sub = slots["square_sum"], slots["subgradient"]
        z, curvature = scratch[0], scratch[1]  # z and D of the docstring
        couple(params, grad, decay, z)
        np.multiply(grad, grad, out=z)
        squares += z
        if rate == 0.0:
            return
        np.sqrt(squares, out=curvature)
        curvature += np.float32(self.beta + rate * self.l2)
        curvature *= np.float32(1.0 / rate)
        if self.l1 == 0.0:  # then s = 0 and z never needs to be known
            grad /= curvature
            params -= grad
            return
        grad += sub
        np.multiply(params, curvature, out=z)
        np.subtract(grad, z, out=z)
        np.clip(z, np.float32(-self.l1), np.float32(self.l1), out=sub)
        # (s - z) / D as a difference to w: without a gradient a weight keeps its very bits.
        grad -= sub
        grad /= curvature
        params -= grad
        # A product with 0 or 1: an assignment under a mask takes twenty times as long.
        kept = curvature.view(np.bool_)[: params.size]
        np.not_equal(z, sub, out=kept)
        np.copyto(z, kept)
        params *= z
