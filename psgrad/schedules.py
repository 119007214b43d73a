"""Learning-rate schedules: frozen values whose ``factor`` multiplies the base learning rate.

A position is a finite float, at least 0: how many updates came before this one. In sync mode it is
the round; otherwise every applied push adds 1 / (live workers), so it has fractions. A factor is in
[0, 1], defined for every position; beyond the end of its schedule it keeps its last value.

Warm-up over k updates is (position + 1) / k, at most 1 (Goyal et al. 2017, there from a rate that
is not 0): the first update has 1 / k and not 0, the k-th and all later ones have 1. In the other
schedules it is multiplied with what they give, which counts positions from 0 all the same.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import Field, dataclass
from numbers import Real
from types import MappingProxyType
from typing import Any, ClassVar, Final, Protocol

from psgrad.errors import ConfigError


class Schedule(Protocol):
    """Options as a frozen dataclass, and one pure function of the position."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init__(self, **options: float) -> None: ...

    def factor(self, position: float) -> float:
        """What the base learning rate is multiplied by at ``position``, in [0, 1]."""


@dataclass(frozen=True)
class Constant:
    """1 throughout."""

    def factor(self, position: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Warmup:
    """Linear up to 1 over the first ``steps`` updates, then 1."""

    steps: int

    def __post_init__(self) -> None:
        _set_count(self, "steps", 1)

    def factor(self, position: float) -> float:
        return _warm(position, self.steps)


@dataclass(frozen=True)
class StepDecay:
    """``gamma`` to the power floor(position / ``every``), after a warm-up of ``warmup`` updates."""

    every: int
    gamma: float = 0.1
    warmup: int = 0

    def __post_init__(self) -> None:
        _set_count(self, "every", 1)
        _set_fraction(self, "gamma", "1 never lowers the rate, 0.1 divides it by ten")
        _set_count(self, "warmup", 0)
        if self.warmup > self.every:
            raise ConfigError(
                f"StepDecay: warmup must be at most every ({self.every}), got {self.warmup}; "
                "shorten the warm-up so that it ends before the first decay"
            )

    def factor(self, position: float) -> float:
        return _warm(position, self.warmup) * math.pow(self.gamma, position // self.every)


@dataclass(frozen=True)
class Cosine:
    """From 1 down to ``floor`` along half a cosine (Loshchilov and Hutter 2017, no restarts).

    ``floor`` + (1 - ``floor``) (1 + cos(π x)) / 2, where x goes from 0 at position ``warmup`` to 1
    at position ``total``: ``total`` counts all updates, those of the warm-up among them.
    """

    total: int
    floor: float = 0.0
    warmup: int = 0

    def __post_init__(self) -> None:
        _set_count(self, "total", 1)
        _set_fraction(self, "floor", "it is a fraction of the learning rate, 0 unless given")
        _set_count(self, "warmup", 0)
        if self.warmup >= self.total:
            raise ConfigError(
                f"Cosine: warmup must be below total ({self.total}), got {self.warmup}; "
                "total counts the updates of the warm-up too"
            )

    def factor(self, position: float) -> float:
        x = (position - self.warmup) / (self.total - self.warmup)
        x = min(max(x, 0.0), 1.0)
        fall = self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * x))
        return _warm(position, self.warmup) * fall


SCHEDULES: Final[Mapping[str, type[Schedule]]] = MappingProxyType(
    {"constant": Constant, "warmup": Warmup, "step": StepDecay, "cosine": Cosine}
)


def _warm(position: float, steps: int) -> float:
    return (position + 1.0) / steps if position + 1.0 < steps else 1.0


def _set_count(schedule: Schedule, name: str, low: int) -> None:
    """Make an option an int of at least ``low``; ``ConfigError`` if that cannot be."""
    value = getattr(schedule, name)
    try:
        count = low - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = low - 1
    if count < low:
        raise ConfigError(
            f"{type(schedule).__name__}: {name} must be a whole number of updates, "
            f"at least {low}, got {value!r}"
        )
    object.__setattr__(schedule, name, count)


def _set_fraction(schedule: Schedule, name: str, cure: str) -> None:
    """Make an option a float in [0, 1]; ``ConfigError`` if that cannot be."""
    value = getattr(schedule, name)
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0.0 <= value <= 1.0:
        raise ConfigError(
            f"{type(schedule).__name__}: {name} must be a number in [0, 1], got {value!r}; {cure}"
        )
    object.__setattr__(schedule, name, float(value))
