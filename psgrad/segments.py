"""Options of a segment: what differs for some of the arrays of a layout."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

from psgrad.errors import ConfigError


@dataclass(frozen=True)
class SegmentOptions:
    """What differs for the tensors whose names match the glob ``match``.

    ``learning_rate_scale`` multiplies the learning rate; ``weight_decay`` replaces the optimizer's
    (None keeps it); ``buffer`` marks running statistics, which are averaged and never see the
    optimizer; ``members`` are the indices of the workers that train the segment (None: all).
    """

    match: str = "*"
    learning_rate_scale: float = 1.0
    weight_decay: float | None = None
    buffer: bool = False
    members: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate_scale) and self.learning_rate_scale >= 0):
            raise ConfigError(
                f"learning_rate_scale of segment {self.match!r} must be finite and at least 0, "
                f"got {self.learning_rate_scale}"
            )
        decay = self.weight_decay
        if decay is not None and not (math.isfinite(decay) and decay >= 0):
            raise ConfigError(
                f"weight_decay of segment {self.match!r} must be finite and at least 0, got {decay}"
            )
        # Plain types: equal options must give equal texts, and NumPy's numbers have none.
        plain: dict[str, object] = {
            "learning_rate_scale": float(self.learning_rate_scale),
            "weight_decay": None if decay is None else float(decay),
            "buffer": bool(self.buffer),
        }
        if self.members is not None:
            members = tuple(sorted({operator.index(member) for member in self.members}))
            if not members or members[0] < 0:
                raise ConfigError(
                    f"members of segment {self.match!r} must be one or more worker indices "
                    f"from 0 up, got {list(self.members)}; leave it out for all workers"
                )
            plain["members"] = members
        for name, value in plain.items():
            object.__setattr__(self, name, value)
