"""How long a step's computation takes in a simulated run: ``pareto:mean=0.01,alpha=1.5``.

===========================  =====================================================================
``constant:seconds=S``       every step takes S
``exponential:mean=M``       exponentially distributed
``pareto:mean=M,alpha=A``    now and then a straggler; alpha is 1.5 unless given, and the variance
                             infinite where it is at most 2
``...;slow:factor=F``        all that times F; ``worker=W``: of one worker; ``start=I,stop=J``: for
                             a while, in steps I to J - 1
===========================  =====================================================================

Workers are worker indices, from 0; steps count from 1; times are in seconds. Several ``slow`` may
follow, each on top of the one before.

A pace is a frozen value and its ``seconds`` a pure function: the number for (seed, worker, step) is
a hash (``kernels.hashing``), so it does not matter who asks, in what order or how often.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from psgrad.errors import ConfigError, unknown_name
from psgrad.kernels.hashing import stream

_PACE: Final = 0x70616365  # sets these numbers apart from what codecs draw for the same worker


class Pace(Protocol):
    """A model of compute time."""

    def seconds(self, worker: int, step: int) -> float:
        """How long ``worker`` computes for its step ``step``."""
        ...


@dataclass(frozen=True)
class Constant:
    """Every step takes ``each_s``, which may be 0."""

    each_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.each_s < math.inf:
            raise ConfigError(
                f"pace constant: seconds must be a finite number of at least 0, got {self.each_s:g}"
            )

    def seconds(self, worker: int, step: int) -> float:
        return self.each_s


@dataclass(frozen=True)
class Exponential:
    """P(time > t) = exp(-t / mean). Of n workers the slowest takes mean (1 + 1/2 + ... + 1/n)."""

    mean_s: float
    seed: int = 0

    def __post_init__(self) -> None:
        _check("exponential", "mean", self.mean_s, 0)

    def seconds(self, worker: int, step: int) -> float:
        return -self.mean_s * math.log(_tail(self.seed, worker, step))


@dataclass(frozen=True)
class Pareto:
    """P(time > t) = (least / t)^alpha for t above least = mean (alpha - 1) / alpha."""

    mean_s: float
    alpha: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        _check("pareto", "mean", self.mean_s, 0)
        _check("pareto", "alpha", self.alpha, 1, "with less there is no mean; try 1.5")

    def seconds(self, worker: int, step: int) -> float:
        least_s = self.mean_s * (self.alpha - 1) / self.alpha
        return least_s * float(_tail(self.seed, worker, step) ** (-1 / self.alpha))


@dataclass(frozen=True)
class Slow:
    """``factor`` times ``pace``: for ``worker``, or all; in steps ``start`` to ``stop`` - 1."""

    pace: Pace
    factor: float
    worker: int | None = None
    start: int = 1
    stop: float = math.inf

    def __post_init__(self) -> None:
        _check("slow", "factor", self.factor, 0)
        if not self.start < self.stop:
            raise ConfigError(
                f"pace slow: stop must be above start ({self.start:g}), got {self.stop:g}; the "
                "step stop is the first that is not slow"
            )

    def seconds(self, worker: int, step: int) -> float:
        hit = self.worker in (None, worker) and self.start <= step < self.stop
        return self.pace.seconds(worker, step) * (self.factor if hit else 1.0)


# What each kind takes: required keys, then optional ones.
_KEYS: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = MappingProxyType(
    {
        "constant": (("seconds",), ()),
        "exponential": (("mean",), ()),
        "pareto": (("mean",), ("alpha",)),
        "slow": (("factor",), ("worker", "start", "stop")),
    }
)


def parse(text: str, seed: int = 0) -> Pace:
    """The pace that ``text`` describes; raises ``ConfigError`` where it makes no sense."""
    pace: Pace | None = None
    for part in text.split(";"):
        kind, values = _read(text, part)
        if (kind == "slow") != (pace is not None):
            raise ConfigError(
                f"pace {text!r}: one pace comes first, then slow where it is wanted, such as "
                "constant:seconds=0.01;slow:worker=3,factor=5"
            )
        if kind == "constant":
            pace = Constant(values["seconds"])
        elif kind == "exponential":
            pace = Exponential(values["mean"], seed)
        elif kind == "pareto":
            pace = Pareto(values["mean"], values.get("alpha", 1.5), seed)
        else:
            assert pace is not None, "slow is not the first"
            pace = _slow(text, pace, values)
    assert pace is not None, "there is at least one part"
    return pace


def _slow(text: str, pace: Pace, values: Mapping[str, float]) -> Slow:
    for key, least in (("worker", 0), ("start", 1), ("stop", 1)):
        value = values.get(key, least)
        if not (value >= least and float(value).is_integer()):
            raise ConfigError(
                f"pace {text!r}: {key} must be a whole number of at least {least}, got {value:g}"
            )
    worker = int(values["worker"]) if "worker" in values else None
    return Slow(
        pace, values["factor"], worker, int(values.get("start", 1)), values.get("stop", math.inf)
    )


def _read(text: str, part: str) -> tuple[str, dict[str, float]]:
    """Kind and keys of one part of ``text``."""
    kind, _, rest = part.strip().partition(":")
    if kind not in _KEYS:
        raise ConfigError(f"pace {text!r}: {unknown_name('pace', kind, _KEYS)}")
    required, optional = _KEYS[kind]
    known = (*required, *optional)
    values: dict[str, float] = {}
    for item in rest.split(","):
        key, _, number = item.strip().partition("=")
        if key not in known:
            raise ConfigError(f"pace {text!r}: {unknown_name(f'key of {kind}', key, known)}")
        try:
            values[key] = float(number)
        except ValueError:
            raise ConfigError(f"pace {text!r}: {key} must be a number, got {number!r}") from None
    missing = [key for key in required if key not in values]
    if missing:
        raise ConfigError(f"pace {text!r}: {kind} needs {', '.join(missing)}")
    return kind, values


def _check(kind: str, name: str, value: float, above: float, more: str = "") -> None:
    if not above < value < math.inf:
        raise ConfigError(
            f"pace {kind}: {name} must be a finite number above {above:g}, got {value:g}"
            + (f"; {more}" if more else "")
        )


def _tail(seed: int, worker: int, step: int) -> float:
    """A number from (0, 1], evenly spaced: the share of times that are longer."""
    return ((stream(stream(seed, _PACE, 0), worker, step) >> 11) + 1) * 2.0**-53
