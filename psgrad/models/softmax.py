"""Softmax regression: an MLP without hidden layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from psgrad.kernels import Array, Kernels
from psgrad.models.hooks import Hooks
from psgrad.models.mlp import MLP


@dataclass(frozen=True)
class Softmax:
    """Multinomial logistic regression: one dense layer, no options. See `psgrad.models.Model`."""

    window: ClassVar[int] = 0

    def init(self, features: int, classes: int, seed: int) -> dict[str, NDArray[np.float32]]:
        """Glorot weights and a zero bias."""
        return MLP(()).init(features, classes, seed)

    def loss_and_grad(
        self,
        params: Mapping[str, Array],
        x: Array,
        y: Array,
        grads: Mapping[str, Array],
        kernels: Kernels,
        *,
        scale: float = 1.0,
        accumulate: bool = False,
        hooks: Hooks | None = None,
    ) -> tuple[float, int]:
        """Mean loss and rows right; see `psgrad.models.Model`."""
        return MLP(()).loss_and_grad(
            params, x, y, grads, kernels, scale=scale, accumulate=accumulate, hooks=hooks
        )

    def evaluate(
        self, params: Mapping[str, Array], x: Array, y: Array, kernels: Kernels
    ) -> tuple[float, int]:
        """Summed loss and rows right; see `psgrad.models.Model`."""
        return MLP(()).evaluate(params, x, y, kernels)
