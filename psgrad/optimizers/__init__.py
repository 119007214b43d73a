"""The optimizers that run on the servers: frozen options, ``init``, and ``apply`` in place.

An optimizer is a value. ``init`` gives the state of n parameters as named float32 vectors, and
``apply`` moves one block of parameters by one gradient. Every operation is element by element and
is rounded on its own, so the result is the same, bit for bit, however a vector is cut into blocks.

Notation: w parameters, g gradient, t ``step``, λ ``decay``, η ``rate`` (the learning rate after
its schedule and scale), all products element by element. Weight decay is coupled, g ← g + λ w
before anything else, everywhere but in :class:`AdamW`.

Where PyTorch has the optimizer the formula is the one it documents, so rates and options carry
over; momentum has classes of its own here instead of being an option of :class:`SGD`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from psgrad.optimizers.adaptive import AdaGrad, Adam, AdamW, RMSProp
from psgrad.optimizers.base import F4, Optimizer, Slots
from psgrad.optimizers.ftrl import FTRL
from psgrad.optimizers.momentum import SGD, Momentum, Nesterov

__all__ = [
    "F4",
    "FTRL",
    "OPTIMIZERS",
    "SGD",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Momentum",
    "Nesterov",
    "Optimizer",
    "RMSProp",
    "Slots",
]

OPTIMIZERS: Final[Mapping[str, type[Optimizer]]] = MappingProxyType(
    {
        "sgd": SGD,
        "momentum": Momentum,
        "nesterov": Nesterov,
        "adam": Adam,
        "adamw": AdamW,
        "adagrad": AdaGrad,
        "rmsprop": RMSProp,
        "ftrl": FTRL,
    }
)
