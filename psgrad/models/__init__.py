"""The models that come with psgrad, and the contract that any of them keeps.

They are written once over ``kernels.xp`` (NumPy or CuPy) with gradients derived by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from psgrad.kernels import Array, Kernels
from psgrad.models.hooks import Hooks
from psgrad.models.mlp import MLP
from psgrad.models.softmax import Softmax
from psgrad.models.transformer import Transformer

__all__ = ["MLP", "MODELS", "Hooks", "Model", "Softmax", "Transformer"]


class Model(Protocol):
    """A classifier of samples or of their tokens: a frozen dataclass with its user options.

    x[b, features] are the samples of a batch and y[b] their labels. A model with a ``window``
    reads tokens instead: x[b, window] are integers below the number of classes, and y[b, window]
    has a label for each of them. Means and sums of the loss are over all labels.

    ``params`` and ``grads`` map names to arrays of the kernels' device. They may be views into one
    flat vector: a model writes into them and never replaces them. Everything is computed in the
    dtype of the parameters, which samples that are not tokens share; float64 works as well as
    float32. Values that are not finite pass through silently into the loss and the gradients.
    """

    @property
    def window(self) -> int:
        """How many tokens it reads at once; 0: it reads vectors."""

    def init(self, features: int, classes: int, seed: int) -> dict[str, NDArray[np.float32]]:
        """Starting parameters on the host, in the order in which the layers use them.

        Each tensor is drawn from its own stream, keyed by (seed, layer), so it does not depend on
        what else is drawn. Raises ConfigError for a size below 1 or a negative seed.
        """

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
        """The mean cross-entropy of the batch x, y, and how many labels are right.

        Writes scale * d(mean loss)/d(param) into grads[name], or adds it when ``accumulate``.
        Micro-batches of b_k rows, each with scale b_k / sum(b), the first without ``accumulate``
        and the others with it, give the gradient of the whole batch. The returned loss is not
        scaled. ``hooks`` are told layer by layer. Raises DataError for a batch of no rows.
        """

    def evaluate(
        self, params: Mapping[str, Array], x: Array, y: Array, kernels: Kernels
    ) -> tuple[float, int]:
        """The cross-entropy summed over the batch x, y, and how many labels are right."""


MODELS: Final[Mapping[str, type[Model]]] = MappingProxyType(
    {"mlp": MLP, "softmax": Softmax, "transformer": Transformer}
)
"""The names of the command line."""
