"""Accumulate and apply: the payloads of a chunk become its next parameters in one pass.

The pass goes over blocks that stay in cache, so the memory traffic is one read of each payload and
one read and write of the parameters and slots, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from psgrad.codecs.base import BLOCK, Opened
from psgrad.kernels import plain
from psgrad.kernels.chunks import ChunkKernels
from psgrad.kernels.crew import Crew
from psgrad.layout import Float32
from psgrad.optimizers import SGD, Optimizer

Gradient: TypeAlias = Float32 | Opened
"""A chunk's gradient as it came: float32[n], or a payload that a codec has opened."""


class Hyperparameters(NamedTuple):
    """What one update of one chunk needs beside the arrays. ``step`` counts from 1."""

    step: int
    rate: float
    decay: float


class _Scratch(NamedTuple):
    """One thread's memory for a block."""

    mean: Float32
    rows: NDArray[np.float32]


@dataclass(frozen=True)
class Updater:
    """An optimizer with its scratch memory and threads; one for each shard.

    The order of the arithmetic is fixed: payloads in the order given, one element after the other
    independent of blocks and threads. Equal inputs give equal bits.
    """

    optimizer: Optimizer
    scratch: tuple[_Scratch, ...]  # by thread
    fused: ChunkKernels | None
    """What sums and steps in one pass over memory, where the optimizer is plain SGD."""
    crew: Crew

    @classmethod
    def of(
        cls, optimizer: Optimizer, kernels: ChunkKernels = plain, crew: Crew | None = None
    ) -> Updater:
        """An updater with scratch for blocks of ``BLOCK`` elements, by default of one thread."""
        crew = crew or Crew()
        rows = max(1, optimizer.scratch_rows)
        scratch = tuple(
            _Scratch(np.zeros(BLOCK, np.float32), np.zeros((rows, BLOCK), np.float32))
            for _ in range(crew.size)
        )
        fused = type(optimizer).apply is SGD.apply and kernels is not plain
        return cls(optimizer, scratch, kernels if fused else None, crew)

    def step(
        self,
        params: Float32,
        slots: Mapping[str, Float32],
        payloads: Sequence[Gradient],
        weights: Sequence[float],
        hyper: Hyperparameters,
    ) -> None:
        """params[n] <- optimizer(params, sum(w_i g_i) / sum(w_i)), with n elements in each g_i."""
        bare = [grad for grad in payloads if isinstance(grad, np.ndarray)]
        alone = len(bare) < len(payloads)  # an opened payload has scratch of its own
        fused = None if alone or hyper.decay else self.fused
        total = sum(weights)
        shares = [np.float32(weight / total) for weight in weights]
        rate = np.float32(hyper.rate)

        def part(start: int, stop: int, thread: int) -> None:
            if fused is not None:
                here = slice(start, stop)
                if fused.sgd(params[here], [grad[here] for grad in bare], shares, rate):
                    return
            self._blocks(params, slots, payloads, shares, hyper, range(start, stop), thread)

        if alone:
            part(0, params.size, 0)
        else:
            self.crew.share(params.size, part)

    def _blocks(
        self,
        params: Float32,
        slots: Mapping[str, Float32],
        payloads: Sequence[Gradient],
        shares: Sequence[np.float32],
        hyper: Hyperparameters,
        where: range,
        thread: int,
    ) -> None:
        """``step`` of the elements ``where``, block by block."""
        scratch = self.scratch[thread]
        for start in where[::BLOCK]:
            block = slice(start, min(start + BLOCK, where.stop))
            n = block.stop - block.start
            self.optimizer.apply(
                params[block],
                _weighted_sum(payloads, shares, block, scratch),
                {name: slot[block] for name, slot in slots.items()},
                hyper.step,
                hyper.rate,
                hyper.decay,
                scratch.rows[:, :n],
            )

    def track(self, estimate: Float32, payloads: Sequence[Gradient], workers: int) -> None:
        """estimate[n] <- estimate + (sum of the payloads) / workers: the servers' part of EF21."""
        shares = [np.float32(1.0 / workers)] * len(payloads)
        for start in range(0, estimate.size, BLOCK):
            block = slice(start, min(start + BLOCK, estimate.size))
            estimate[block] += _weighted_sum(payloads, shares, block, self.scratch[0])

    def average(
        self,
        params: Float32,
        payloads: Sequence[Gradient],
        weights: Sequence[float],
        share: float,
    ) -> None:
        """params[n] <- params + share * (weighted mean - params): how buffers move."""
        total = sum(weights)
        shares = [np.float32(weight / total) for weight in weights]
        for start in range(0, params.size, BLOCK):
            block = slice(start, min(start + BLOCK, params.size))
            mean = _weighted_sum(payloads, shares, block, self.scratch[0])
            if share == 1.0:
                params[block] = mean
            else:
                mean -= params[block]
                mean *= np.float32(share)
                params[block] += mean


def _weighted_sum(
    payloads: Sequence[Gradient], shares: Sequence[np.float32], block: slice, scratch: _Scratch
) -> Float32:
    """shares[0] g_0 + shares[1] g_1 + ... of a block, in the memory of ``scratch``."""
    n = block.stop - block.start
    mean, product = scratch.mean[:n], scratch.rows[0, :n]
    for i, (payload, share) in enumerate(zip(payloads, shares, strict=True)):
        if not isinstance(payload, np.ndarray):
            payload.add_to(mean, block.start, share, first=i == 0)
        elif i == 0:
            np.multiply(payload[block], share, out=mean)
        else:
            np.multiply(payload[block], share, out=product)
            mean += product
    return mean
