"""The order in which one worker sees its samples: seeded, and resumable at any batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from psgrad.data.dataset import IndexArray
from psgrad.errors import ConfigError


class Batches(Iterator[tuple[int, IndexArray]]):
    """Iterates over (epoch, int64 indices) for ``epochs`` epochs, counted from 0.

    Every epoch goes through ``indices`` once, in a new order drawn by (seed, worker, epoch) alone.
    All batches have ``batch_size`` indices but the last of an epoch, which has what is left.
    Without indices there is no batch.

    The cursor is (epoch, position), position being the samples of that epoch already given; an
    interrupted iteration goes on at exactly the next batch. ``state_dict`` taken after a batch
    was drawn does not give that batch again.

    Raises ConfigError for a size, count or seed out of range.
    """

    def __init__(
        self, indices: IndexArray, batch_size: int, seed: int, worker: int, epochs: int
    ) -> None:
        limits = (("batch_size", batch_size, 1), ("epochs", epochs, 1))
        for key, value, least in (*limits, ("seed", seed, 0), ("worker", worker, 0)):
            if value < least:
                raise ConfigError(f"{key} must be at least {least}, got {value}")
        self._indices = np.array(indices, np.int64)
        self._batch_size = batch_size
        self._key = (seed, worker)
        self._epochs = epochs
        self._epoch = 0
        self._position = 0
        self._order: IndexArray | None = None  # of this epoch; drawn when first needed

    @property
    def per_epoch(self) -> int:
        """How many batches an epoch has."""
        return -(-self._indices.size // self._batch_size)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> tuple[int, IndexArray]:
        if self._epoch >= self._epochs or not self._indices.size:
            raise StopIteration
        if self._order is None:
            rng = np.random.default_rng([*self._key, self._epoch])
            self._order = rng.permutation(self._indices)
        epoch, start = self._epoch, self._position
        batch = self._order[start : start + self._batch_size]
        self._seek(epoch, start + batch.size)
        return epoch, batch

    def _seek(self, epoch: int, position: int) -> None:
        if 0 < self._indices.size <= position:  # the end of an epoch is the start of the next
            epoch, position = epoch + 1, 0
        if epoch != self._epoch:
            self._order = None
        self._epoch, self._position = epoch, position

    def state_dict(self) -> dict[str, int]:
        """The cursor as plain JSON values."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on where ``state_dict`` was taken, with the same indices, seed and worker.

        Raises ConfigError, and changes nothing, for a state that is not one of this iterator.
        """
        if set(state) != {"epoch", "position"}:
            raise ConfigError(f"a data cursor has epoch and position, got {', '.join(state)}")
        last = 0 if state["epoch"] == self._epochs else max(self._indices.size - 1, 0)
        for key, limit in (("epoch", self._epochs), ("position", last)):
            if type(state[key]) is not int or not 0 <= state[key] <= limit:
                raise ConfigError(
                    f"data cursor: {key} must be 0 to {limit}, got {state[key]!r}; resume with the "
                    "epochs, data set and number of workers of the saved run"
                )
        self._seek(state["epoch"], state["position"])
