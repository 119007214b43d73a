"""What a model tells while it computes, so that communication can hide behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Hook(Protocol):
    """Takes the names of a layer's parameters."""

    def __call__(self, names: Sequence[str]) -> object: ...


def nothing(names: Sequence[str]) -> None:
    """The hook of whom it does not concern."""


@dataclass(frozen=True)
class Hooks:
    """Called between layers, with the names of a layer's parameters.

    ``needs`` comes before a layer's parameters are read for the first time, the first layer first;
    ``done`` when its gradients are final, the last layer first. With a worker these are
    ``worker.wait`` and ``worker.ready``; by default nobody is told.
    """

    needs: Hook = nothing
    done: Hook = nothing
