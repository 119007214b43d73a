"""The verdict of a step, settled before any of it is applied: finite? how large? clipped?

Global-norm clipping follows Pascanu et al., ICML 2013: the gradient is scaled by
min(1, limit / norm), with the L2 norm over all parameters that the worker trains. It is the norm
of this worker's gradient, not of the mean over workers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from psgrad import stored
from psgrad.errors import NonFiniteError
from psgrad.layout import Float32, Layout, Segment

BLOCK: Final = 64 << 10  # elements
NON_FINITE_LIMIT: Final = 10  # steps in a row


class StepVerdict(NamedTuple):
    """``norm`` is the L2 norm; ``scale`` what the gradient must be multiplied by before it is used.

    The worker does that before the gradient leaves; what left before the end of a step is scaled by
    the servers. ``culprit`` names the tensor with the first NaN or infinity; None: all is finite.
    """

    norm: float
    scale: float
    culprit: str | None = None

    @property
    def finite(self) -> bool:
        """Whether the step may be applied."""
        return self.culprit is None


def check(
    grads: Float32, layout: Layout, segments: Sequence[Segment], clip_norm: float | None
) -> StepVerdict:
    """Judges the gradient ``grads[n]`` over ``segments``; buffers must be finite but do not count
    in the norm.

    The sum of squares runs in float32 within a block and in float64 across blocks. A finite sum
    proves that every element is finite, so the slower element-wise test runs only when it is not.
    """
    total = 0.0
    for segment in segments:
        with np.errstate(over="ignore", invalid="ignore"):
            squares, bad = _squares(grads, segment.start, segment.stop)
        if bad is not None:
            return StepVerdict(math.nan, 0.0, layout.tensor_at(bad).name)
        if not segment.options.buffer:
            total += squares
    norm = math.sqrt(total)
    clipped = clip_norm is not None and norm > clip_norm
    return StepVerdict(norm, clip_norm / norm if clipped and clip_norm is not None else 1.0)


def is_finite(grad: Float32) -> bool:
    """Whether ``grad[n]`` has neither NaN nor infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _squares(grad, 0, grad.size)[1] is None


def _squares(grads: Float32, start: int, stop: int) -> tuple[float, int | None]:
    """The sum of squares of grads[start:stop], and where the first NaN or infinity is, if any."""
    total = 0.0
    for first in range(start, stop, BLOCK):
        block = grads[first : min(first + BLOCK, stop)]
        squares = float(np.dot(block, block))
        if not math.isfinite(squares):
            bad = np.flatnonzero(~np.isfinite(block))
            if bad.size:
                return math.nan, first + int(bad[0])
            squares = float(np.sum(np.square(block, dtype=np.float64)))
        total += squares
    return total, None


class StepGuard:
    """One worker's verdicts, step by step: clips what is too large, counts what is not finite."""

    def __init__(
        self, layout: Layout, segments: Sequence[Segment], clip_norm: float | None
    ) -> None:
        self.skipped = 0
        """How many steps were not finite."""
        self._layout = layout
        self._segments = segments
        self._clip_norm = clip_norm
        self._in_a_row = 0

    def settle(self, grads: Float32) -> bool:
        """``judge`` and ``clip``: whether the step may be applied."""
        verdict = self.judge(grads)
        if verdict.finite:
            self.clip(grads, verdict)
        return verdict.finite

    @property
    def clips(self) -> bool:
        """Whether a step's norm matters."""
        return self._clip_norm is not None

    def passed(self) -> None:
        """Others have found a step finite."""
        self._in_a_row = 0

    def judge(self, grads: Float32) -> StepVerdict:
        """Decides on a step: may ``grads[n]`` be applied, and clipped by how much?

        Raises ``NonFiniteError`` after ``NON_FINITE_LIMIT`` steps in a row that are not finite.
        """
        verdict = check(grads, self._layout, self._segments, self._clip_norm)
        if verdict.finite:
            self._in_a_row = 0
        else:
            self._count(verdict)
        return verdict

    def clip(self, grads: Float32, verdict: StepVerdict) -> None:
        """Scales ``grads[n]`` in place, where they are to be clipped; buffers stay as they are."""
        if verdict.scale != 1.0:
            for segment in self._segments:
                if not segment.options.buffer:
                    grads[segment.start : segment.stop] *= np.float32(verdict.scale)

    def state_dict(self) -> dict[str, int]:
        """The counts, for a checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from the counts of ``state_dict``, or of nothing; raises ``CheckpointError``."""
        if state:
            self.skipped = stored.count(state, "skipped", "a guard")
            self._in_a_row = stored.count(state, "in_a_row", "a guard", NON_FINITE_LIMIT)

    def _count(self, verdict: StepVerdict) -> None:
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= NON_FINITE_LIMIT:
            raise NonFiniteError(
                f"the gradient of {verdict.culprit!r} was NaN or infinite for "
                f"{NON_FINITE_LIMIT} steps in a row; lower the learning rate or clip gradients"
            )
