"""What servers do with the differences that local updates push, and what cannot go together.

The worker's side, and the papers, are in ``local``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from types import MappingProxyType
from typing import Final

from psgrad.config import Config
from psgrad.errors import ConfigError
from psgrad.optimizers import SGD, Momentum, Nesterov, Optimizer


@dataclass(frozen=True)
class OuterSGD(SGD):
    """SGD on differences: with rate 1 and in sync mode, the mean of the workers' copies."""

    learning_rate: float = 1.0


@dataclass(frozen=True)
class OuterMomentum(Momentum):
    """Momentum on differences: slow momentum, with the paper's rate and a momentum of its range."""

    learning_rate: float = 1.0
    _: KW_ONLY
    momentum: float = 0.6


@dataclass(frozen=True)
class OuterNesterov(Nesterov):
    """Nesterov momentum on differences, with the rate and the momentum of DiLoCo."""

    learning_rate: float = 0.7
    _: KW_ONLY
    momentum: float = 0.9


OUTER: Final[Mapping[str, type[Optimizer]]] = MappingProxyType(
    {"sgd": OuterSGD, "momentum": OuterMomentum, "nesterov": OuterNesterov}
)
"""By name; the first is the default."""


def check(config: Config) -> None:
    """Raises ``ConfigError`` for keys of local updates that cannot be, or not together."""
    check_numbers(config.local_steps, config.elastic)
    outer = config.outer
    if outer is None:
        return
    if not config.local and outer.value != OuterSGD():
        raise ConfigError(
            f"outer is for local updates, got outer {outer.name} with local_steps 1; set "
            "local_steps to 2 or more, or leave outer out"
        )
    if config.elastic:
        check_elastic(config.bound, outer.value, config.feedback)


def check_numbers(steps: int, elastic: float) -> None:
    """Raises ``ConfigError`` for a number of local steps or an elasticity that cannot be."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(
            f"local_steps must be a whole number of at least 1, got {steps!r}; 1 pushes every step"
        )
    if not 0 <= elastic < 1:
        raise ConfigError(
            f"elastic must be at least 0 and below 1, got {elastic}; 0 is off, 0.9 / (number of "
            "workers) is a place to start"
        )


def check_elastic(staleness: int | None, optimizer: Optimizer, feedback: str) -> None:
    """Raises ``ConfigError`` where servers would not move by just what an elastic push carries."""
    if staleness == 0:
        raise ConfigError(
            "elastic needs mode ssp or async, got sync, where the centre moves by the mean of all "
            "pushes and not by each; use --mode async, or local_steps without elastic"
        )
    plain = isinstance(optimizer, SGD) and optimizer.learning_rate == 1.0
    if not plain or optimizer.weight_decay:
        raise ConfigError(
            "elastic needs servers that add what is pushed, outer sgd with learning rate 1 and "
            f"weight decay 0, got {optimizer}; leave outer out (in a script: psgrad.SGD(1.0))"
        )
    if feedback == "dgc":
        raise ConfigError("elastic needs pushes without momentum, got feedback dgc; use ef")
