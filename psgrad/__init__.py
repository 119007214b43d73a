"""psgrad: a parameter server for training over MPI. See ``psgrad.run``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from psgrad import crash
from psgrad.version import __version__

if TYPE_CHECKING:
    from psgrad.errors import Preempted, PsgradError
    from psgrad.layout import SegmentOptions
    from psgrad.local import LocalSteps
    from psgrad.optimizers import FTRL, SGD, AdaGrad, Adam, AdamW, Momentum, Nesterov, RMSProp
    from psgrad.schedules import Constant, Cosine, StepDecay, Warmup
    from psgrad.session import Session, run
    from psgrad.worker import Worker

_HOMES = {
    "psgrad.errors": ("Preempted", "PsgradError"),
    "psgrad.layout": ("SegmentOptions",),
    "psgrad.local": ("LocalSteps",),
    "psgrad.optimizers": (
        "SGD", "Momentum", "Nesterov", "Adam", "AdamW", "AdaGrad", "RMSProp", "FTRL",
    ),
    "psgrad.schedules": ("Constant", "Warmup", "StepDecay", "Cosine"),
    "psgrad.session": ("Session", "run"),
    "psgrad.worker": ("Worker",),
}  # fmt: skip

__all__ = [
    "FTRL",
    "SGD",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "LocalSteps",
    "Momentum",
    "Nesterov",
    "Preempted",
    "PsgradError",
    "RMSProp",
    "SegmentOptions",
    "Session",
    "StepDecay",
    "Warmup",
    "Worker",
    "__version__",
    "run",
]


def __getattr__(name: str) -> Any:
    # Public names load on first use: `psgrad --help` must not wait for NumPy.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'psgrad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


crash.install()
