"""Softmax regression, and the dense layer that it shares with the MLP.

With z = x W + b and p = softmax(z), the mean cross-entropy over n rows has
d/dz = (p - onehot(y)) / n, d/dW = x^T d/dz and d/db = the column sums of d/dz.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from psgrad.errors import ConfigError, DataError
from psgrad.kernels import Array, Kernels


def weight_name(layer: int) -> str:
    """The name of a layer's weight [in, out]."""
    return f"layer{layer}.weight"


def bias_name(layer: int) -> str:
    """The name of a layer's bias [out]."""
    return f"layer{layer}.bias"


def check_init(features: int, classes: int, seed: int) -> None:
    """Raise ConfigError for what no model can start from."""
    for name, value, least in (
        ("features", features, 1),
        ("classes", classes, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}")


def glorot(seed: int, layer: int, fan_in: int, fan_out: int) -> NDArray[np.float32]:
    """Weights [fan_in, fan_out], uniform in +-sqrt(6 / (fan_in + fan_out)): Glorot and Bengio 2010.

    It keeps the variance of values and of gradients alike where a layer is close to linear.
    """
    limit = np.float32(np.sqrt(6.0 / (fan_in + fan_out)))
    unit = np.random.default_rng([seed, layer]).random((fan_in, fan_out), dtype=np.float32)
    return limit * (2 * unit - 1)


def dense_grad(
    x: Array,
    dz: Array,
    weight_grad: Array,
    bias_grad: Array,
    kernels: Kernels,
    accumulate: bool,
) -> None:
    """weight_grad[in, out] = x[b, in]^T dz[b, out] and bias_grad[out] = sum_b dz; or += them."""
    xp = kernels.xp
    if accumulate:
        weight_grad += xp.matmul(x.T, dz)
        bias_grad += dz.sum(axis=0)
    else:
        xp.matmul(x.T, dz, out=weight_grad)
        xp.sum(dz, axis=0, out=bias_grad)


def mean_scale(x: Array, scale: float) -> float:
    """What turns the gradient of the summed loss of x[b, features] into that of scale * mean."""
    if len(x) == 0:
        raise DataError("a batch must have at least 1 row, got 0")
    return scale / len(x)


@dataclass(frozen=True)
class Softmax:
    """Multinomial logistic regression: one dense layer, no options. See `psgrad.models.Model`."""

    def init(self, features: int, classes: int, seed: int) -> dict[str, NDArray[np.float32]]:
        """Glorot weights and a zero bias."""
        check_init(features, classes, seed)
        return {
            weight_name(0): glorot(seed, 0, features, classes),
            bias_name(0): np.zeros(classes, dtype=np.float32),
        }

    @np.errstate(all="ignore")  # a diverging run is told by its gradients, not by NumPy's warnings
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
    ) -> tuple[float, int]:
        """Mean loss and rows right; see `psgrad.models.Model`."""
        factor = mean_scale(x, scale)
        logits = self._logits(params, x, kernels)
        totals = kernels.softmax_cross_entropy(logits, y, factor)
        dense_grad(x, logits, grads[weight_name(0)], grads[bias_name(0)], kernels, accumulate)
        loss, correct = totals.tolist()
        return loss / len(x), int(correct)

    @np.errstate(all="ignore")
    def evaluate(
        self, params: Mapping[str, Array], x: Array, y: Array, kernels: Kernels
    ) -> tuple[float, int]:
        """Summed loss and rows right; see `psgrad.models.Model`."""
        loss, correct = kernels.softmax_cross_entropy(
            self._logits(params, x, kernels), y, 1.0
        ).tolist()
        return loss, int(correct)

    def _logits(self, params: Mapping[str, Array], x: Array, kernels: Kernels) -> Array:
        z = kernels.xp.matmul(x, params[weight_name(0)])  # [b, features] [features, classes]
        return kernels.bias_activation(z, params[bias_name(0)], "identity")
