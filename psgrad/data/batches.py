"""The order in which one worker sees its samples: seeded, and resumable at any batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from psgrad.data.dataset import IndexArray
from psgrad.errors import ConfigError, shown


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
        self,
        indices: IndexArray,
        batch_size: int,
        seed: int,
        worker: int,
        epochs: int,
        *,
        samples: int | None = None,
    ) -> None:
        """``samples``: how many there are in the data set, as far as a cursor is looked at."""
        limits = (("batch_size", batch_size, 1), ("epochs", epochs, 1))
        for key, value, least in (*limits, ("seed", seed, 0), ("worker", worker, 0)):
            if value < least:
                raise ConfigError(f"{key} must be at least {least}, got {value}")
        self._indices = np.array(indices, np.int64)
        self._batch_size = batch_size
        self._key = (seed, worker)
        self._samples = samples
        self._epochs = epochs
        self._epoch = 0
        self._position = 0
        self._order: IndexArray | None = None  # of this epoch; drawn when first needed
        self._leftovers: dict[int, IndexArray] = {}  # epoch -> what is left of it, for this worker

    @property
    def epoch(self) -> int:
        """The epoch of the next batch."""
        return self._epoch

    @property
    def last_begun(self) -> int:
        """The last epoch of which something was given, here or by whom this was taken over from."""
        return max([self._epoch, *self._leftovers])

    def groups(self, size: int) -> Iterator[tuple[int, list[IndexArray]]]:
        """(epoch, up to ``size`` batches), which never span two epochs."""
        group: list[IndexArray] = []
        for epoch, batch in self:
            group.append(batch)
            if len(group) == size or self._position == 0:
                yield epoch, group
                group = []

    def count(self, size: int) -> int:
        """How many groups of ``size`` batches are to come."""
        left = (self.rest(epoch).size for epoch in range(self._epoch, self._epochs))
        return sum(math.ceil(math.ceil(n / self._batch_size) / size) for n in left)

    def rest(self, epoch: int) -> IndexArray:
        """The indices of ``epoch`` that were not given yet."""
        if epoch == self._epoch:
            return self._draw()[self._position :]
        return self._of(epoch) if epoch > self._epoch else self._indices[:0]

    def take_over(self, epoch: int, leftovers: Mapping[int, IndexArray]) -> None:
        """Begins at ``epoch``, with what other workers have left of this and later ones."""
        self._leftovers = {e: np.array(indices, np.int64) for e, indices in leftovers.items()}
        self._epoch, self._position, self._order = epoch, 0, None
        self._skip_empty()

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> tuple[int, IndexArray]:
        if self._epoch >= self._epochs or not self._of(self._epoch).size:
            raise StopIteration
        order, epoch, start = self._draw(), self._epoch, self._position
        batch = order[start : start + self._batch_size]
        self._seek(epoch, start + batch.size)
        return epoch, batch

    def _of(self, epoch: int) -> IndexArray:
        """The indices that this worker goes through in ``epoch``."""
        return self._leftovers.get(epoch, self._indices)

    def _draw(self) -> IndexArray:
        """This epoch's order."""
        if self._order is None:
            rng = np.random.default_rng([*self._key, self._epoch])
            self._order = rng.permutation(self._of(self._epoch))
        return self._order

    def _seek(self, epoch: int, position: int) -> None:
        if 0 < self._of(epoch).size <= position:  # the end of an epoch is the start of the next
            epoch, position = epoch + 1, 0
        if epoch != self._epoch:
            self._order = None
        self._epoch, self._position = epoch, position
        self._skip_empty()

    def _skip_empty(self) -> None:
        """Goes on behind epochs of which nothing is left for this worker."""
        while self._epoch in self._leftovers and not self._leftovers[self._epoch].size:
            self._epoch, self._position, self._order = self._epoch + 1, 0, None

    def state_dict(self) -> dict[str, Any]:
        """The cursor: plain JSON values, and arrays of what was taken over, where it was."""
        left = {str(e): i for e, i in self._leftovers.items() if e >= self._epoch}
        cursor = {"epoch": self._epoch, "position": self._position}
        return {**cursor, "leftovers": left} if left else cursor

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken, with the same indices, seed and worker.

        Raises ConfigError, and changes nothing, for a state that is not one of this iterator.
        """
        if not isinstance(state, Mapping) or set(state) - {"leftovers"} != {"epoch", "position"}:
            raise ConfigError(f"a data cursor has epoch and position, got {shown(state)}")
        before = self._leftovers
        self._leftovers = _leftovers(state.get("leftovers", {}), self._samples)
        try:
            self._check(state)
        except ConfigError:
            self._leftovers = before
            raise
        self._order = None
        self._seek(state["epoch"], state["position"])

    def _check(self, state: Mapping[str, Any]) -> None:
        _check_cursor("epoch", state["epoch"], self._epochs)
        here = self._leftovers.get(state["epoch"], self._indices)
        last = 0 if state["epoch"] == self._epochs else max(here.size - 1, 0)
        _check_cursor("position", state["position"], last)


def _check_cursor(key: str, value: Any, limit: int) -> None:
    if type(value) is not int or not 0 <= value <= limit:
        raise ConfigError(
            f"data cursor: {key} must be 0 to {limit}, got {shown(value)}; resume with the epochs, "
            "data set and number of workers of the saved run"
        )


def _leftovers(state: Any, samples: int | None) -> dict[int, IndexArray]:
    if not isinstance(state, Mapping) or not all(
        _is_epoch(key) and isinstance(i, np.ndarray) and i.dtype == np.int64 and i.ndim == 1
        for key, i in state.items()
    ):
        raise ConfigError(
            f"data cursor: leftovers must be int64 arrays by epoch, got {shown(state)}"
        )
    for key, i in state.items():
        if i.size and (i.min() < 0 or (samples is not None and i.max() >= samples)):
            raise ConfigError(
                f"data cursor: leftovers of epoch {key} have samples {i.min()} to {i.max()}, the "
                f"data set has {samples}; resume with that of the saved run"
            )
    return {int(key): indices for key, indices in state.items()}


def _is_epoch(key: Any) -> bool:
    return isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10
