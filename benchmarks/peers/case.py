"""What is measured in one run of a system. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

ITEMSIZE: Final = 4
STEPS_MAX: Final = 1000  # in a run: more would round further than the check allows


@dataclass(frozen=True)
class Case:
    """What is measured, as every system is told it."""

    workers: int
    nbytes: int
    warm_up: int = 5
    steps: int = 20

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if self.nbytes < ITEMSIZE or self.nbytes % ITEMSIZE:
            raise ValueError(
                f"the size must be a multiple of {ITEMSIZE} bytes (float32), got {self.nbytes}"
            )
        if self.warm_up < 2:
            # Workers come from the check of the first step one by one; the second lines them up.
            raise ValueError(f"warm-up must be at least 2 steps, got {self.warm_up}")
        if not 1 <= self.steps <= STEPS_MAX - self.warm_up:
            raise ValueError(
                f"steps must be from 1 to {STEPS_MAX - self.warm_up} after {self.warm_up} of "
                f"warm-up, got {self.steps}"
            )

    @property
    def n(self) -> int:
        """Elements of the gradient and of the parameters."""
        return self.nbytes // ITEMSIZE

    def arguments(self) -> list[str]:
        """The options that :func:`parse` reads."""
        return [f"--{f.name.replace('_', '-')}={getattr(self, f.name)}" for f in fields(self)]
