"""A dense layer: its names, its first weights, its gradient.

With z = x W + b, and dz the gradient of z, dW = x^T dz and db = the column sums of dz.
"""

from __future__ import annotations

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


def he(seed: int, layer: int, fan_in: int, fan_out: int) -> NDArray[np.float32]:
    """Weights [fan_in, fan_out], normal with deviation sqrt(2 / fan_in): He et al. 2015.

    It keeps the variance where half of the units are zero; gelu is close enough to share it.
    """
    unit = np.random.default_rng([seed, layer]).standard_normal((fan_in, fan_out), dtype=np.float32)
    return np.float32(np.sqrt(2.0 / fan_in)) * unit


def dense_grad(
    x: Array,
    dz: Array,
    weight_grad: Array,
    bias_grad: Array,
    kernels: Kernels,
    accumulate: bool,
) -> None:
    """weight_grad[in, out] = x[b, in]^T dz[b, out] and bias_grad[out] = sum_b dz; or += them."""
    if accumulate:
        weight_grad += kernels.matmul(x.T, dz)
        bias_grad += dz.sum(axis=0)
    else:
        kernels.matmul(x.T, dz, out=weight_grad)
        kernels.xp.sum(dz, axis=0, out=bias_grad)


def mean_scale(x: Array, scale: float) -> float:
    """What turns the gradient of the summed loss of x[b, features] into that of scale * mean."""
    if len(x) == 0:
        raise DataError("a batch must have at least 1 row, got 0")
    return scale / len(x)
