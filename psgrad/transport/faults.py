"""Faults of a simulated run, as values: what goes wrong, for which messages or ranks, and when.

Those of the network make messages late and never break a link's order: a message that is late holds
up those behind it. Which messages a share hits is drawn from the run's seed, each fault for itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeAlias

from psgrad.errors import ConfigError
from psgrad.messages import Kind


@dataclass(frozen=True)
class Messages:
    """Which messages: of these links and kinds, sent from ``start_s`` until ``stop_s``.

    None stands for all ranks and all kinds. ``share`` is the probability that one of them is hit.
    """

    source: int | None = None
    dest: int | None = None
    kinds: Collection[Kind] | None = None
    share: float = 1.0
    start_s: float = 0.0
    stop_s: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share must be a probability, from 0 to 1, got {self.share}")
        if self.kinds is not None:
            object.__setattr__(self, "kinds", frozenset(self.kinds))

    def meets(self, source: int, dest: int, kind: Kind, now_s: float) -> bool:
        """Whether a message sent now is one of them."""
        return (
            self.source in (None, source)
            and self.dest in (None, dest)
            and (self.kinds is None or kind in self.kinds)
            and self.start_s <= now_s < self.stop_s
        )


@dataclass(frozen=True)
class Delay:
    """Messages are late by ``seconds`` and a number from [0, ``spread_s``) more.

    With a spread, messages of different links overtake one another.
    """

    seconds: float = 0.0
    spread_s: float = 0.0
    of: Messages = Messages()

    def __post_init__(self) -> None:
        _check_seconds("Delay: seconds", self.seconds)
        _check_seconds("Delay: spread_s", self.spread_s)


@dataclass(frozen=True)
class Drop:
    """Messages are lost, and sent again after ``timeout_s``, until one comes through.

    ``of.share`` is the probability of each loss. Sending again holds no NIC.
    """

    timeout_s: float
    of: Messages

    def __post_init__(self) -> None:
        _check_seconds("Drop: timeout_s", self.timeout_s)
        if self.of.share == 1:
            raise ConfigError("Drop: share must be below 1, or nothing ever arrives; try 0.1")


@dataclass(frozen=True)
class Duplicate:
    """Messages come twice, the second time ``after_s`` later or as soon as they can after that.

    The second one is a message of its own, behind others of its link that have come meanwhile.
    """

    after_s: float = 0.0
    of: Messages = Messages()

    def __post_init__(self) -> None:
        _check_seconds("Duplicate: after_s", self.after_s)


@dataclass(frozen=True)
class Partition:
    """From ``start_s`` until ``stop_s`` nothing gets from ``ranks`` to the others or back.

    What would come in meanwhile is held back until it heals; for ever where ``stop_s`` is infinite.
    """

    ranks: Collection[int]
    start_s: float
    stop_s: float
    others: Collection[int] | None = None  # all others

    def __post_init__(self) -> None:
        _check_seconds("Partition: start_s", self.start_s)
        if not self.start_s < self.stop_s:
            raise ConfigError(
                f"Partition: stop_s must be after start_s ({self.start_s}), got {self.stop_s}"
            )
        object.__setattr__(self, "ranks", frozenset(self.ranks))
        if self.others is not None:
            object.__setattr__(self, "others", frozenset(self.others))

    def parts(self, source: int, dest: int) -> bool:
        """Whether the link crosses it."""
        return (source in self.ranks and self._beyond(dest)) or (
            dest in self.ranks and self._beyond(source)
        )

    def _beyond(self, rank: int) -> bool:
        return rank not in self.ranks if self.others is None else rank in self.others


@dataclass(frozen=True)
class Kill:
    """``rank`` ends without a word: at a time, or as it makes its ``call``-th call, from 1.

    Calls are those of its transport that send or wait: ``exchange``, ``subgroup``, ``connect``,
    ``send``, ``receive``, ``sleep``, ``flush``, ``close``. What has left its NIC still arrives; the
    rest is lost. With ``tolerated``, time and calls count from its ``tolerate`` on: before, nobody
    goes on without it.
    """

    rank: int
    at_s: float | None = None
    call: int | None = None
    tolerated: bool = False

    def __post_init__(self) -> None:
        if (self.at_s is None) == (self.call is None):
            raise ConfigError("Kill: give at_s, a time, or call, a number; one of them")
        if self.at_s is not None:
            _check_seconds("Kill: at_s", self.at_s)
        if self.call is not None and self.call < 1:
            raise ConfigError(f"Kill: call must be at least 1, got {self.call}")


Fault: TypeAlias = Delay | Drop | Duplicate | Partition | Kill


def _check_seconds(name: str, seconds: float) -> None:
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"{name} must be a finite number of at least 0, got {seconds}")
