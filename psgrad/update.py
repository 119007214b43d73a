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
from psgrad.layout import Float32
from psgrad.optimizers import SGD, Optimizer

Gradient: TypeAlias = Float32 | Opened
"""A chunk's gradient as it came: float32[n], or a payload that a codec has opened."""


class Hyperparameters(NamedTuple):
    """What one update of one chunk needs beside the arrays. ``step`` counts from 1."""

    step: int
    rate: float
    decay: float


@dataclass(frozen=True)
class Updater:
    """An optimizer with its scratch memory; one for each shard.

    The order of the arithmetic is fixed: payloads in the order given, one element after the other
    independent of blocks. Equal inputs give equal bits.
    """

    optimizer: Optimizer
    mean: Float32
    scratch: NDArray[np.float32]
    fused: ChunkKernels | None
    """What sums and steps in one pass over memory, where the optimizer is plain SGD."""

    @classmethod
    def of(cls, optimizer: Optimizer, kernels: ChunkKernels = plain) -> Updater:
        """An updater with scratch for blocks of ``BLOCK`` elements."""
        rows = max(1, optimizer.scratch_rows)
        mean, scratch = np.zeros(BLOCK, np.float32), np.zeros((rows, BLOCK), np.float32)
        fused = type(optimizer).apply is SGD.apply and kernels is not plain
        return cls(optimizer, mean, scratch, kernels if fused else None)

    def step(
        self,
        params: Float32,
        slots: Mapping[str, Float32],
        payloads: Sequence[Gradient],
        weights: Sequence[float],
        hyper: Hyperparameters,
    ) -> None:
        """params[n] <- optimizer(params, sum(w_i g_i) / sum(w_i)), with n elements in each g_i."""
        if self._step_at_once(params, payloads, weights, hyper):
            return
        for start in range(0, params.size, BLOCK):
            block = slice(start, min(start + BLOCK, params.size))
            n = block.stop - block.start
            grad = self._weighted_mean(payloads, weights, block)
            self.optimizer.apply(
                params[block],
                grad,
                {name: slot[block] for name, slot in slots.items()},
                hyper.step,
                hyper.rate,
                hyper.decay,
                self.scratch[:, :n],
            )

    def _step_at_once(
        self,
        params: Float32,
        payloads: Sequence[Gradient],
        weights: Sequence[float],
        hyper: Hyperparameters,
    ) -> bool:
        """Plain SGD on bare gradients in one pass, where there is a kernel for it."""
        if self.fused is None or hyper.decay:
            return False
        bare = [grad for grad in payloads if isinstance(grad, np.ndarray)]
        if len(bare) < len(payloads):
            return False
        total = sum(weights)
        shares = [np.float32(weight / total) for weight in weights]
        return self.fused.sgd(params, bare, shares, np.float32(hyper.rate))

    def track(self, estimate: Float32, payloads: Sequence[Gradient], workers: int) -> None:
        """estimate[n] <- estimate + (sum of the payloads) / workers: the servers' part of EF21."""
        ones = [1.0] * len(payloads)
        for start in range(0, estimate.size, BLOCK):
            block = slice(start, min(start + BLOCK, estimate.size))
            estimate[block] += self._weighted_mean(payloads, ones, block, total=workers)

    def average(
        self,
        params: Float32,
        payloads: Sequence[Gradient],
        weights: Sequence[float],
        share: float,
    ) -> None:
        """params[n] <- params + share * (weighted mean - params): how buffers move."""
        for start in range(0, params.size, BLOCK):
            block = slice(start, min(start + BLOCK, params.size))
            mean = self._weighted_mean(payloads, weights, block)
            if share == 1.0:
                params[block] = mean
            else:
                mean -= params[block]
                mean *= np.float32(share)
                params[block] += mean

    def _weighted_mean(
        self,
        payloads: Sequence[Gradient],
        weights: Sequence[float],
        block: slice,
        total: float | None = None,
    ) -> Float32:
        """sum(w_i g_i) / total, which is sum(w_i) unless given."""
        n = block.stop - block.start
        mean, product = self.mean[:n], self.scratch[0, :n]
        total = sum(weights) if total is None else total
        for i, (payload, weight) in enumerate(zip(payloads, weights, strict=True)):
            share = np.float32(weight / total)
            if not isinstance(payload, np.ndarray):
                payload.add_to(mean, block.start, share, first=i == 0)
            elif i == 0:
                np.multiply(payload[block], share, out=mean)
            else:
                np.multiply(payload[block], share, out=product)
                mean += product
        return mean
