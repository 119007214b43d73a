"""What a run is told about checkpoints, and what of them exists before it starts."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, Final

from psgrad.cuts import Every
from psgrad.errors import ConfigError

AUTO: Final = "auto"


@dataclass(frozen=True)
class CheckpointOptions:
    """Raises ``ConfigError`` for what cannot be.

    ``folder`` is where checkpoints are; ``every`` a number of steps, or of seconds (``"600s"``);
    ``keep`` how many of them stay; ``resume`` is ``"auto"`` (the newest valid one in ``folder``, if
    there is one), a folder of checkpoints, or one of them.
    """

    folder: str = ""
    spec: str = ""
    keep: int = 2
    resume: str = ""
    every: Every = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, value in (
            ("checkpoint_dir", self.folder),
            ("checkpoint_every", self.spec),
            ("resume", self.resume),
        ):
            if not isinstance(value, str):
                raise ConfigError(f"{name} must be a string, got {value!r}")
        object.__setattr__(self, "every", Every.parse(self.spec))
        try:
            keep: Any = operator.index(self.keep)
        except TypeError:
            keep = 0
        if keep < 1:
            raise ConfigError(f"checkpoint_keep must be at least 1, got {self.keep!r}")
        if self.every and not self.folder:
            raise ConfigError("checkpoint_every needs checkpoint_dir, a folder to write them to")
        if self.resume == AUTO and not self.folder:
            raise ConfigError("resume auto needs checkpoint_dir, the folder to look in")
