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

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, Field, dataclass, fields
from numbers import Real
from types import MappingProxyType
from typing import Any, ClassVar, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from psgrad.errors import ConfigError

F4: TypeAlias = NDArray[np.float32]
Slots: TypeAlias = Mapping[str, F4]


class Optimizer(Protocol):
    """What a shard needs: options as a frozen dataclass, state as vectors, one update in place."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    slots: ClassVar[tuple[str, ...]]  # names of the float32 state vectors, one element a parameter
    scratch_rows: ClassVar[int]  # how many rows of scratch ``apply`` uses

    def __init__(self, learning_rate: float = ..., **options: float) -> None: ...

    @property
    def learning_rate(self) -> float:
        """The base rate, which schedules and scales multiply."""

    @property
    def weight_decay(self) -> float:
        """The base weight decay, which a segment may override."""

    def init(self, n: int) -> dict[str, F4]:
        """The state of ``n`` parameters that have had no update."""

    def apply(
        self, params: F4, grad: F4, slots: Slots, step: int, rate: float, decay: float, scratch: F4
    ) -> None:
        """Update ``params`` and ``slots`` in place; destroys ``grad``; allocates no vector.

        ``params``, ``grad`` and each slot are [n] float32, ``scratch`` is [``scratch_rows``, n]
        float32, contiguous along n, of any content; none may overlap. ``step`` counts the updates
        from 1, this one included. A ``rate`` of 0 leaves ``params`` as they are.
        """


# Options that are more than "at least 0": their range [low, high), and the same in words. 1e-30 is
# well inside float32, whose smallest numbers would become the 0 that divides a 0.
_MAX: Final = float(np.finfo(np.float32).max)
_NOT_NEGATIVE: Final = (0.0, _MAX, "at least 0 and finite")
_LIMITS: Final[Mapping[str, tuple[float, float, str]]] = MappingProxyType(
    {
        **dict.fromkeys(("momentum", "beta1", "beta2", "alpha"), (0.0, 1.0, "in [0, 1)")),
        **dict.fromkeys(("eps", "beta"), (1e-30, _MAX, "at least 1e-30 and finite")),
    }
)


@dataclass(frozen=True)
class _Options:
    """What all optimizers share: two options, the check of every option, a state of zeros."""

    learning_rate: float
    _: KW_ONLY
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ()
    scratch_rows: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Make every option a Python float within its limits; ``ConfigError`` if that cannot be."""
        for option in fields(self):
            value = getattr(self, option.name)
            low, high, words = _LIMITS.get(option.name, _NOT_NEGATIVE)
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if not is_number or not low <= value < high:
                must = f"must be {words}" if is_number else f"must be a number {words}"
                raise ConfigError(
                    f"{type(self).__name__}: {option.name} {must}, got {value!r}; "
                    f"the default is {option.default}"
                )
            object.__setattr__(self, option.name, float(value))

    def init(self, n: int) -> dict[str, F4]:
        return {name: np.zeros(n, dtype=np.float32) for name in self.slots}


def _couple(params: F4, grad: F4, decay: float, tmp: F4) -> None:
    """g ← g + λ w."""
    if decay:
        np.multiply(params, np.float32(decay), out=tmp)
        grad += tmp


def _average(mean: F4, value: F4, keep: float) -> None:
    """mean ← keep mean + (1 - keep) value; destroys ``value``."""
    mean *= np.float32(keep)
    value *= np.float32(1.0 - keep)
    mean += value


def _descend(params: F4, direction: F4, squares: F4, rate: float, eps: float, tmp: F4) -> None:
    """w ← w - η direction / (sqrt(squares) + eps)."""
    np.sqrt(squares, out=tmp)
    tmp += np.float32(eps)
    np.divide(direction, tmp, out=tmp)
    tmp *= np.float32(rate)
    params -= tmp


@dataclass(frozen=True)
class SGD(_Options):
    """Stochastic gradient descent: w ← w - η g.

    No momentum: that is ``Momentum(0.1, momentum=0.9)`` or :class:`Nesterov`.
    """

    learning_rate: float = 0.1

    def apply(
        self, params: F4, grad: F4, slots: Slots, step: int, rate: float, decay: float, scratch: F4
    ) -> None:
        _couple(params, grad, decay, scratch[0])
        grad *= np.float32(rate)
        params -= grad


@dataclass(frozen=True)
class Momentum(_Options):
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
        _couple(params, grad, decay, scratch[0])
        velocity *= np.float32(self.momentum)
        velocity += grad
        np.multiply(velocity, np.float32(rate), out=grad)
        params -= grad


@dataclass(frozen=True)
class Nesterov(_Options):
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
        _couple(params, grad, decay, tmp)
        velocity *= np.float32(self.momentum)
        velocity += grad
        np.multiply(velocity, np.float32(self.momentum), out=tmp)
        grad += tmp
        grad *= np.float32(rate)
        params -= grad


@dataclass(frozen=True)
class Adam(_Options):
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
        _couple(params, grad, decay, tmp)
        np.multiply(grad, grad, out=tmp)
        _average(mean, grad, self.beta1)
        _average(squares, tmp, self.beta2)
        # Both bias corrections as scalars: numerator and denominator times sqrt(1 - β2^t).
        root = math.sqrt(1.0 - self.beta2**step)
        corrected = rate * root / (1.0 - self.beta1**step)
        _descend(params, mean, squares, corrected, self.eps * root, tmp)


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
class AdaGrad(_Options):
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
        _couple(params, grad, decay, tmp)
        np.multiply(grad, grad, out=tmp)
        squares += tmp
        _descend(params, grad, squares, rate, self.eps, tmp)


@dataclass(frozen=True)
class RMSProp(_Options):
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
        _couple(params, grad, decay, tmp)
        np.multiply(grad, grad, out=tmp)
        _average(squares, tmp, self.alpha)
        _descend(params, grad, squares, rate, self.eps, tmp)


@dataclass(frozen=True)
class FTRL(_Options):
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
        _couple(params, grad, decay, z)
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
