"""A decoder-only transformer: from the tokens up to each one, the next.

h = token[x] + position;  ``layers`` blocks, see `psgrad.models.sublayers.Pass`;  a last layer norm;
logits = h W + b, and the cross-entropy of each token's logits against the token that follows.
Layer norms stand before the layers (Xiong et al., ICML 2020), so that h itself goes through the
blocks unchanged but for what they add, and training needs no warm-up to start.

W is not that of the token embedding. Tied, they would save v * width parameters, little for an
alphabet, and their gradient would be final only when the last layer of the backward pass is done:
untied, the first gradient to be ready leaves first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from psgrad.errors import ConfigError
from psgrad.kernels import Array, Kernels
from psgrad.models.hooks import Hooks
from psgrad.models.layers import check_init, glorot, mean_scale
from psgrad.models.sublayers import AttentionBranch, FeedBranch, Normed, Pass

_BROADER: Final = 4  # the inner width of a block's two dense layers, over the outer one
_EMBEDDING: Final = 0.02  # the deviation of the embeddings


@dataclass(frozen=True)
class Transformer:
    """A language model; see `psgrad.models.Model` for the methods.

    ``layers`` blocks of ``width``, in each ``heads`` of attention of width / heads, over windows of
    ``context`` tokens. Raises ConfigError for a number below 1 or a width that the heads do not
    divide.
    """

    layers: int = 2
    heads: int = 4
    width: int = 128
    context: int = 64

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "width", "context"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.width % self.heads:
            raise ConfigError(
                f"width must be a multiple of heads, {self.heads}, got {self.width}; "
                f"{math.ceil(self.width / self.heads) * self.heads} is the next one"
            )

    @property
    def window(self) -> int:
        """It reads windows of ``context`` tokens."""
        return self.context

    def init(self, features: int, classes: int, seed: int) -> dict[str, NDArray[np.float32]]:
        """Normal embeddings, Glorot weights, zero biases, gains of 1.

        ``features`` is the length of a window and ``classes`` the number of different tokens. The
        weights that write into h are smaller, by sqrt(2 layers): so many branches add to it.
        """
        check_init(features, classes, seed)
        width, params = self.width, {}
        for key, (name, rows) in enumerate((("token", classes), ("position", features))):
            unit = np.random.default_rng([seed, key]).standard_normal((rows, width), np.float32)
            params[f"embed.{name}"] = np.float32(_EMBEDDING) * unit
        quieter = np.float32(1 / math.sqrt(2 * self.layers))
        for block in range(self.layers):
            key = 3 + 4 * block
            params |= _norm(f"block{block}.norm1", width)
            params |= _dense(f"block{block}.qkv", seed, key, width, 3 * width)
            params |= _dense(f"block{block}.project", seed, key + 1, width, width, quieter)
            params |= _norm(f"block{block}.norm2", width)
            inner = _BROADER * width
            params |= _dense(f"block{block}.expand", seed, key + 2, width, inner)
            params |= _dense(f"block{block}.contract", seed, key + 3, inner, width, quieter)
        return params | _norm("norm", width) | _dense("head", seed, 2, width, classes)

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
        """Mean loss and tokens right; see `psgrad.models.Model`."""
        factor = mean_scale(x, scale) / x.shape[1]
        steps = Pass(params, kernels, hooks or Hooks(), grads, accumulate)
        blocks, last, logits = self._forward(steps, x)
        totals = kernels.softmax_cross_entropy(logits, y.reshape(-1), factor)
        dh = steps.dense_backward(logits, last.y, "head")  # the logits have become their gradient
        steps.norm_backward(dh, last, "norm")
        for i, (attention, feed) in reversed(list(enumerate(blocks))):
            steps.feed_backward(dh, f"block{i}", feed)
            steps.attention_backward(dh, f"block{i}", attention)
        steps.embed_backward(dh, x)
        loss, correct = totals.tolist()
        return loss / y.size, int(correct)

    @np.errstate(all="ignore")
    def evaluate(
        self, params: Mapping[str, Array], x: Array, y: Array, kernels: Kernels
    ) -> tuple[float, int]:
        """Summed loss and tokens right; see `psgrad.models.Model`."""
        if not len(x):
            return 0.0, 0
        *_, logits = self._forward(Pass(params, kernels, Hooks(), {}), x)
        loss, correct = kernels.softmax_cross_entropy(logits, y.reshape(-1), 1.0).tolist()
        return loss, int(correct)

    def _forward(
        self, steps: Pass, x: Array
    ) -> tuple[list[tuple[AttentionBranch, FeedBranch]], Normed, Array]:
        """What each block's backward needs, the last layer norm, and the logits [b * t, v]."""
        h = steps.embed(x)  # [b * t, width]
        blocks = []
        for i in range(self.layers):
            attention = steps.attention(h, f"block{i}", len(x), self.heads)
            blocks.append((attention, steps.feed(h, f"block{i}")))
        last = steps.norm(h, "norm")
        return blocks, last, steps.dense(last.y, "head")


def _norm(name: str, width: int) -> dict[str, NDArray[np.float32]]:
    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    return {f"{name}.gain": ones, f"{name}.bias": zeros}


def _dense(
    name: str, seed: int, key: int, fan_in: int, fan_out: int, scale: float | np.float32 = 1
) -> dict[str, NDArray[np.float32]]:
    weight = np.float32(scale) * glorot(seed, key, fan_in, fan_out)
    return {f"{name}.weight": weight, f"{name}.bias": np.zeros(fan_out, np.float32)}
