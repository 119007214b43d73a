"""What an optimizer is, what all of them share, and the steps that several of them take."""

from __future__ import annotations

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
class Options:
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


def couple(params: F4, grad: F4, decay: float, tmp: F4) -> None:
    """g ← g + λ w."""
    if decay:
        np.multiply(params, np.float32(decay), out=tmp)
        grad += tmp


def average(mean: F4, value: F4, keep: float) -> None:
    """mean ← keep mean + (1 - keep) value; destroys ``value``."""
    mean *= np.float32(keep)
    value *= np.float32(1.0 - keep)
    mean += value


def descend(params: F4, direction: F4, squares: F4, rate: float, eps: float, tmp: F4) -> None:
    """w ← w - η direction / (sqrt(squares) + eps)."""
    np.sqrt(squares, out=tmp)
    tmp += np.float32(eps)
    np.divide(direction, tmp, out=tmp)
    tmp *= np.float32(rate)
    params -= tmp
