"""What a worker counts of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from psgrad import stored
from psgrad.worker import Worker

SMOOTHING: Final = 0.9  # of loss and accuracy in the progress line


class Tally:
    """What a worker counts of its training; a part of its checkpoints."""

    def __init__(self, worker: Worker) -> None:
        self.steps = 0  # those with a gradient, of which several may be one push
        self.samples = 0
        self.loss = 0.0  # smoothed, as is accuracy
        self.accuracy = 0.0
        self._worker = worker
        self._in_step = False  # whether a step was added, so that a push begins or is done
        self._before = -worker.clock  # pushes of the runs before, less the clock at the start

    @property
    def pushes(self) -> int:
        """How many steps were pushed."""
        return self._before + self._worker.clock

    def add(self, samples: int, loss: float, accuracy: float) -> None:
        """One more step."""
        keep = SMOOTHING if self.steps else 0.0
        self._in_step = True
        self.steps += 1
        self.samples += samples
        self.loss = keep * self.loss + (1 - keep) * loss
        self.accuracy = keep * self.accuracy + (1 - keep) * accuracy

    def idle(self) -> None:
        """The next push has no gradient: it is none of the steps."""
        self._before -= 1

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Counts what several workers have counted; raises ``CheckpointError``."""
        steps, samples, pushes = (
            sum(stored.count(state, key, "a tally") for state in states)
            for key in ("steps", "samples", "pushes")
        )
        self.steps, self.samples = steps, samples
        self._before += pushes

    def state_dict(self) -> dict[str, Any]:
        """How things are when the push that begins now is done; before the first step, now."""
        return {
            "steps": self.steps,
            "samples": self.samples,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "pushes": self.pushes + self._in_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state of ``state_dict``; raises ``CheckpointError`` for another one."""
        loss, accuracy = (
            stored.real(stored.field(state, key, "a tally"), f"{key} of a tally")
            for key in ("loss", "accuracy")
        )
        self.merge([state])
        self.loss, self.accuracy = loss, accuracy
