"""A multilayer perceptron: dense layers with an activation between them, softmax at the end.

Forward, with h_0 = x:   z_l = h_l W_l,  h_(l+1) = act(z_l + b_l),  the last layer without act.
Backward, from dz = d(loss)/d(logits) = (softmax - onehot) / n, last layer first:
dW_l = h_l^T dz, db_l = the column sums of dz, then dz = (dz W_l^T) * act'(z_(l-1) + b_(l-1)).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from psgrad.errors import ConfigError, unknown_name
from psgrad.kernels import ACTIVATIONS, Array, Kernels
from psgrad.models.hooks import Hooks
from psgrad.models.layers import (
    bias_name,
    check_init,
    dense_grad,
    glorot,
    he,
    mean_scale,
    weight_name,
)


@dataclass(frozen=True)
class MLP:
    """Any number of hidden layers of any width; see `psgrad.models.Model` for the methods.

    ``hidden`` holds the widths, first layer first; a list is turned into a tuple, and an empty one
    makes the model a softmax regression. ``activation`` is relu, tanh or gelu (the tanh form).
    Raises ConfigError for a width below 1 and for an unknown activation.
    """

    hidden: tuple[int, ...] = (256, 128)
    activation: str = "relu"
    window: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, (list, tuple)):
            raise ConfigError(f"hidden must be a list of widths, [256, 128], got {self.hidden!r}")
        for width in self.hidden:
            if not isinstance(width, int) or isinstance(width, bool) or width < 1:
                raise ConfigError(f"hidden widths must be integers of at least 1, got {width!r}")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(unknown_name("activation", self.activation, ACTIVATIONS))
        object.__setattr__(self, "hidden", tuple(self.hidden))

    def init(self, features: int, classes: int, seed: int) -> dict[str, NDArray[np.float32]]:
        """Zero biases; He weights before relu and gelu, Glorot before tanh and for the logits."""
        check_init(features, classes, seed)
        widths = (features, *self.hidden, classes)
        params: dict[str, NDArray[np.float32]] = {}
        for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
            linear = layer == len(self.hidden) or self.activation == "tanh"
            draw = glorot if linear else he
            params[weight_name(layer)] = draw(seed, layer, fan_in, fan_out)
            params[bias_name(layer)] = np.zeros(fan_out, dtype=np.float32)
        return params

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
        hooks: Hooks | None = None,
    ) -> tuple[float, int]:
        """Mean loss and rows right; see `psgrad.models.Model`."""
        hooks = hooks or Hooks()
        factor = mean_scale(x, scale)
        saved, dz = self._forward(params, x, kernels, hooks)
        totals = kernels.softmax_cross_entropy(dz, y, factor)  # the logits become their gradient
        for layer in reversed(range(len(self.hidden) + 1)):
            weight, bias = weight_name(layer), bias_name(layer)
            inputs = saved[layer - 1][1] if layer else x
            dense_grad(inputs, dz, grads[weight], grads[bias], kernels, accumulate)
            hooks.done((weight, bias))
            if layer:
                dz = kernels.matmul(dz, params[weight].T)  # [b, out] [out, in]
                kernels.activation_backward(dz, *saved[layer - 1], self.activation)
        loss, correct = totals.tolist()
        return loss / len(x), int(correct)

    @np.errstate(all="ignore")
    def evaluate(
        self, params: Mapping[str, Array], x: Array, y: Array, kernels: Kernels
    ) -> tuple[float, int]:
        """Summed loss and rows right; see `psgrad.models.Model`."""
        _, logits = self._forward(params, x, kernels, Hooks())
        loss, correct = kernels.softmax_cross_entropy(logits, y, 1.0).tolist()
        return loss, int(correct)

    def _forward(
        self, params: Mapping[str, Array], x: Array, kernels: Kernels, hooks: Hooks
    ) -> tuple[list[tuple[Array, Array]], Array]:
        """What each hidden layer's backward needs, (z, h) [b, width], and the logits."""
        saved = []
        h = x
        for layer in range(len(self.hidden)):
            weight, bias = weight_name(layer), bias_name(layer)
            hooks.needs((weight, bias))
            z = kernels.matmul(h, params[weight])  # [b, in] [in, out]
            h = kernels.bias_activation(z, params[bias], self.activation)
            saved.append((z, h))
        last = len(self.hidden)
        hooks.needs((weight_name(last), bias_name(last)))
        z = kernels.matmul(h, params[weight_name(last)])
        return saved, kernels.bias_activation(z, params[bias_name(last)], "identity")
