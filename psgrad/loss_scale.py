"""By what a loss is multiplied, so that its gradients do not vanish in 16 bits on their way back.

Gradients below 3e-8 are 0 in float16, and those above 65504 infinite. A loss times 2^k gives
gradients times 2^k; each is divided by it again, in float32, when it is final: exactly, because it
is a power of two. So the servers hear nothing of it, and each worker may have its own.

A **dynamic** scale finds its size itself (Micikevicius et al., ICLR 2018): a gradient with NaN or
infinity halves it, and so many good ones in a row double it. Such a gradient is a skipped step as
any other (``guard.py``): an empty push, counted, of which nothing is applied.

===============================  =================================================================
``auto``                         dynamic with precision float16, else none
``none``                         1, always
``dynamic:first=65536,``         begins with 2^16, doubles after 2000 good gradients in a row; what
``every=2000``                   is left out is this
``fixed:scale=1024``             2^10, always
===============================  =================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from psgrad import stored
from psgrad.errors import CheckpointError, ConfigError, unknown_name
from psgrad.guard import is_finite
from psgrad.layout import Float32

FIRST: Final = 2.0**16
EVERY: Final = 2000
MOST: Final = 2.0**64  # a scaled loss must be far from the end of float32

# What each kind takes, and what it is unless it is given.
_KEYS: Final[Mapping[str, Mapping[str, float]]] = MappingProxyType(
    {
        "auto": MappingProxyType({}),
        "none": MappingProxyType({}),
        "dynamic": MappingProxyType({"first": FIRST, "every": float(EVERY)}),
        "fixed": MappingProxyType({"scale": FIRST}),
    }
)


class LossScale:
    """The scale of one worker. ``every`` None: it stays what it is."""

    def __init__(self, first: float = FIRST, every: int | None = EVERY) -> None:
        self.value = first
        """The factor of the next loss, a power of two of at least 1."""
        self._every = every
        self._good = 0  # gradients in a row

    def observe(self, grads: Iterable[Float32]) -> None:
        """Looks at one gradient, that of a scaled loss, before it is pushed."""
        if self._every is None:
            return
        if not all(is_finite(grad.reshape(-1)) for grad in grads):
            self.value = max(self.value / 2, 1.0)
            self._good = 0
            return
        self._good += 1
        if self._good == self._every:
            self.value = min(self.value * 2, MOST)
            self._good = 0

    def state_dict(self) -> dict[str, Any]:
        """Scale and count, as they are behind the last gradient."""
        return {"value": self.value, "good": self._good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state of ``state_dict``; raises ``CheckpointError`` for another one."""
        value = stored.number(state, "value", "a loss scale", least=1.0)
        good = stored.count(state, "good", "a loss scale")
        if not _fits(value):
            raise CheckpointError(f"value of a loss scale must be a power of two, got {value:g}")
        if self._every is not None:  # a fixed one is that of the configuration
            self.value, self._good = value, min(good, self._every - 1)


def parse(text: str, precision: str) -> LossScale | None:
    """The scale that ``text`` describes, at its start; None for none.

    Raises ``ConfigError`` where it makes no sense.
    """
    kind, values = _read(text)
    if kind == "auto":
        kind, values = ("dynamic" if precision == "float16" else "none"), _KEYS["dynamic"]
    if kind == "none":
        return None
    for key in values.keys() & {"first", "scale"}:
        if not _fits(values[key]):
            raise ConfigError(
                f"loss_scale {text!r}: {key} must be a power of two from 1 to {MOST:g}, got "
                f"{values[key]:g}; another factor would change the gradients"
            )
    if kind == "fixed":
        return LossScale(values["scale"], None)
    every = values["every"]
    if not (every >= 1 and every.is_integer()):
        raise ConfigError(
            f"loss_scale {text!r}: every must be a whole number of at least 1, got {every:g}"
        )
    return LossScale(values["first"], int(every))


def _read(text: str) -> tuple[str, Mapping[str, float]]:
    kind, colon, rest = text.partition(":")
    if kind not in _KEYS:
        raise ConfigError(f"loss_scale {text!r}: {unknown_name('loss scale', kind, _KEYS)}")
    values = dict(_KEYS[kind])
    for item in rest.split(",") if colon else ():
        key, _, number = item.strip().partition("=")
        if key not in values:
            what = unknown_name(f"key of {kind}", key, values) if values else "it takes no keys"
            raise ConfigError(f"loss_scale {text!r}: {what}")
        try:
            values[key] = float(number)
        except ValueError:
            raise ConfigError(
                f"loss_scale {text!r}: {key} must be a number, got {number!r}"
            ) from None
    return kind, values


def _fits(scale: float) -> bool:
    return 1 <= scale <= MOST and math.frexp(scale)[0] == 0.5
