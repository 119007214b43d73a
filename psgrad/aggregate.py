"""Robust aggregates: what takes the place of the mean of a synchronous round, ``--aggregate``.

With W gradients of which any f may be arbitrary (Byzantine), one of them moves a mean anywhere.

==================  ============================================================================
``median``          of each coordinate, for f < W/2: W >= 3 (Yin et al., ICML 2018)
``trimmed-mean:f``  of each coordinate the mean without its f largest and its f smallest values:
                    W >= 2f + 1 (Yin et al., ICML 2018)
``krum:f``          the gradient with the smallest sum of squared distances to its W - f - 2
                    nearest others: W >= 2f + 3 (Blanchard et al., NeurIPS 2017)
==================  ============================================================================

For the first two, coordinate by coordinate: sort the W - f honest values x_0 <= x_1 <= ...; the
value of rank k among all W lies between x_(k-f) and x_k, whatever the others are. So the median,
and the mean of ranks f to W - f - 1, never leave the range of the honest values (but for rounding).

Krum is computed **for each chunk by itself**. In the paper one gradient is chosen for the whole
step; a server sees only its chunks, so chunks may come from different workers, and the choice
depends on the chunk grid. What the paper proves of a vector holds of each chunk as the vector.

Weights are ignored: a worker states its own. NaN counts as +infinity, so a gradient that is not
finite is one of the f. The arithmetic is in ``aggregator``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from psgrad.errors import ConfigError, unknown_name

Float64 = NDArray[np.float64]


class Aggregate(Protocol):
    """One rule. A frozen dataclass; what it takes, if anything, is ``f``."""

    name: ClassVar[str]

    @property
    def spec(self) -> str:
        """What ``parse`` makes it of."""
        ...

    @property
    def least(self) -> int:
        """The fewest gradients with which it keeps its promise."""
        ...

    def most(self, count: int) -> str | None:
        """The spec of the same rule that ``count`` workers are enough for, if there is one."""
        ...


@dataclass(frozen=True)
class Median:
    """The middle value, or the mean of the two in the middle."""

    name: ClassVar[str] = "median"
    spec: ClassVar[str] = "median"
    least: ClassVar[int] = 3

    def most(self, count: int) -> str | None:
        return None

    def ranks(self, count: int) -> range:
        """Which of the ranks 0 (smallest) to ``count`` - 1 it is the mean of."""
        return range((count - 1) // 2, count // 2 + 1)


@dataclass(frozen=True)
class TrimmedMean:
    """The mean of what is left without the f largest and the f smallest."""

    name: ClassVar[str] = "trimmed-mean"
    f: int

    @property
    def spec(self) -> str:
        return f"{self.name}:{self.f}"

    @property
    def least(self) -> int:
        return 2 * self.f + 1

    def most(self, count: int) -> str | None:
        return None if count < 3 else f"{self.name}:{(count - 1) // 2}"

    def ranks(self, count: int) -> range:
        """As ``Median.ranks``."""
        return range(self.f, count - self.f)


@dataclass(frozen=True)
class Krum:
    """The one that has the most others nearby."""

    name: ClassVar[str] = "krum"
    f: int

    @property
    def spec(self) -> str:
        return f"{self.name}:{self.f}"

    @property
    def least(self) -> int:
        return 2 * self.f + 3

    def most(self, count: int) -> str | None:
        return None if count < 5 else f"{self.name}:{(count - 3) // 2}"

    def choose(self, distances: Float64) -> int:
        """The row of the symmetric distances[W, W], squared; of equals the first."""
        count = len(distances)
        others = np.where(np.isnan(distances), np.inf, distances)  # infinity from infinity
        np.fill_diagonal(others, np.inf)
        others.sort(axis=1)
        return int(np.argmin(others[:, : count - self.f - 2].sum(axis=1)))


AGGREGATES: Final[Mapping[str, type[Median | TrimmedMean | Krum]]] = MappingProxyType(
    {kind.name: kind for kind in (Median, TrimmedMean, Krum)}
)
"""The names of the command line, beside ``mean``."""


def parse(text: str) -> Aggregate | None:
    """The rule that ``text`` specifies, such as ``trimmed-mean:2``; None for ``mean``.

    Raises ``ConfigError`` for an unknown name (with the nearest), or an f that is not a whole
    number of at least 1.
    """
    name, colon, argument = text.strip().partition(":")
    if name != "mean" and name not in AGGREGATES:
        raise ConfigError(unknown_name("aggregate", name, ("mean", *AGGREGATES)))
    kind = AGGREGATES.get(name)
    if kind is None or kind is Median:
        if colon:
            raise ConfigError(f"aggregate {text!r}: {name} takes no option; write {name}")
        return None if kind is None else Median()
    number = argument.strip().removeprefix("f=")
    digits = number.isascii() and number.isdigit() and len(number) < 10  # Python limits more
    if not (digits and int(number) >= 1):
        raise ConfigError(
            f"aggregate {text!r}: f, how many workers may be wrong, must be a whole number of at "
            f"least 1, got {number!r}; write {name}:1, or use mean"
        )
    return kind(int(number))  # type: ignore[call-arg]  # Median has gone


def check(text: str, staleness: int | None, feedback: str) -> Aggregate | None:
    """``parse``; raises ``ConfigError`` also for what it cannot be used with."""
    rule = parse(text)
    if rule is not None and staleness != 0:
        raise ConfigError(
            f"aggregate {rule.spec} needs rounds, sync mode (staleness 0), got staleness "
            f"{staleness}; use mode sync, or aggregate mean"
        )
    if rule is not None and feedback == "ef21":
        raise ConfigError(
            f"aggregate {rule.spec} needs gradients, feedback ef21 pushes differences to an "
            "estimate of their mean; use feedback ef, or aggregate mean"
        )
    return rule


def check_workers(rule: Aggregate, count: int, of: str = "") -> None:
    """Raises ``ConfigError`` where ``count`` workers are too few, ``of`` a segment for instance."""
    if count < rule.least:
        raise ConfigError(
            f"aggregate {rule.spec} needs at least {rule.least} workers{_bound(rule)}, got "
            f"{count}{of}; start more, or use {rule.most(count) or 'aggregate mean'}"
        )


def _bound(rule: Aggregate) -> str:
    return {"trimmed-mean": " (2f + 1)", "krum": " (2f + 3)"}.get(rule.name, "")
