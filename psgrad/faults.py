"""Faults planted on purpose, for experiments: ``slow:rank=3,factor=5``.

==============================  ===========================================================
``slow:rank=R,factor=F``        rank R takes F times as long to compute a gradient
``nan:rank=R,step=S``           rank R's gradient of step S has a NaN (``steps=N``: of N
                                steps)
``fail:rank=R,step=S``          rank R raises RuntimeError before its step S
``signflip:rank=R,factor=F``    rank R pushes each gradient times -F
``stop:rank=R,step=S``          rank R asks before its step S that the run stops, as a signal would
==============================  ===========================================================

Ranks are MPI ranks, as ``mpirun`` counts them; steps count from 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from psgrad.errors import ConfigError, unknown_name
from psgrad.roles import Roles
from psgrad.worker import Worker

# What each kind takes: required keys, then optional ones with their value.
_KEYS: Final[Mapping[str, tuple[tuple[str, ...], Mapping[str, float]]]] = MappingProxyType(
    {
        "slow": (("rank", "factor"), {}),
        "nan": (("rank", "step"), {"steps": 1.0}),
        "fail": (("rank", "step"), {}),
        "signflip": (("rank", "factor"), {}),
        "stop": (("rank", "step"), {}),
    }
)

KINDS: Final = tuple(_KEYS)
IN_GRADIENTS: Final = frozenset({"nan", "signflip"})
"""What is planted in a gradient that is complete, before any of it has left."""


@dataclass(frozen=True)
class Fault:
    """One planted fault of one rank."""

    kind: str
    rank: int
    factor: float = 1.0
    step: int = 0
    steps: int = 0


def parse(text: str, roles: Roles) -> Fault:
    """The fault that ``text`` describes; raises ``ConfigError`` where it makes no sense."""
    kind, _, rest = text.partition(":")
    if kind not in _KEYS:
        raise ConfigError(f"inject {text!r}: {unknown_name('fault', kind, _KEYS)}")
    required, optional = _KEYS[kind]
    values = dict(optional)
    for part in rest.split(","):
        key, _, number = part.partition("=")
        if key not in (*required, *optional):
            known = (*required, *optional)
            raise ConfigError(f"inject {text!r}: {unknown_name(f'key of {kind}', key, known)}")
        try:
            values[key] = float(number)
        except ValueError:
            raise ConfigError(f"inject {text!r}: {key} must be a number, got {number!r}") from None
    missing = [key for key in required if key not in values]
    if missing:
        raise ConfigError(f"inject {text!r}: {kind} needs {', '.join(missing)}")
    if values["rank"] not in roles.worker_ranks:
        raise ConfigError(
            f"inject {text!r}: rank must be a worker, {roles.worker_ranks.start} to "
            f"{roles.worker_ranks[-1]}, got {values['rank']:g}"
        )
    factor = values.get("factor", 1.0)
    if not (math.isfinite(factor) and factor >= 1):
        raise ConfigError(f"inject {text!r}: factor must be finite and at least 1, got {factor}")
    for key in ("step", "steps"):
        count = values.get(key, 1.0)
        if not (count >= 1 and count.is_integer()):
            raise ConfigError(
                f"inject {text!r}: {key} must be a whole number of at least 1, got {count:g}"
            )
    return Fault(
        kind,
        int(values["rank"]),
        factor,
        int(values.get("step", 0)),
        int(values.get("steps", 0)),
    )


def apply(faults: Sequence[Fault], worker: Worker, mpi_rank: int, compute_s: float) -> None:
    """Plants the faults of this rank between its gradient and its push.

    ``compute_s`` is how long the gradient took: a slow rank sleeps the rest of its time.
    """
    step = worker.clock + 1
    for fault in faults:
        if fault.rank != mpi_rank:
            continue
        if fault.kind == "slow":
            worker.sleep((fault.factor - 1) * compute_s)
        elif fault.kind == "nan" and fault.step <= step < fault.step + fault.steps:
            next(iter(worker.grads.values())).flat[0] = np.nan
        elif fault.kind == "signflip":
            for grad in worker.grads.values():
                grad *= np.float32(-fault.factor)
        elif fault.kind == "stop" and fault.step == step:
            worker.ask_to_stop(f"planted stop at step {step}")
        elif fault.kind == "fail" and fault.step == step:
            raise RuntimeError(f"planted failure at step {step}")
