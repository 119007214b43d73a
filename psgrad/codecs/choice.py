"""What a worker settles before a chunk is encoded: which codec, with which threshold.

A codec is a frozen value and looks at nothing but its chunk. What takes more than that, the whole
gradient of a step, what was sent in the steps before, or a clock, is a choice, with one worker's
state. ``Always`` is the choice where nothing has to be settled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from psgrad.codecs.base import Bytes, Codec
from psgrad.errors import ConfigError, shown
from psgrad.layout import Chunk, Float32

State: TypeAlias = Mapping[str, NDArray[Any]]


class Look(Protocol):
    """How a choice sees the gradient of a step."""

    def __call__(self, chunk: Chunk, where: slice, /) -> Float32:
        """v[where], a new array, with v what would be encoded of the chunk."""
        ...


class Choice(Protocol):
    """One worker's choice, for the chunks that it was made for."""

    def begin(self, step: int, look: Look) -> None:
        """Before the first chunk of a step."""
        ...

    def codec(self, chunk: Chunk, link_rate: float) -> Codec:
        """What to encode the chunk with. ``link_rate`` is in bytes a second, 0: not known."""
        ...

    def note(self, chunk: Chunk, payload: Bytes, seconds: float) -> None:
        """The chunk was encoded as ``payload`` in ``seconds``."""
        ...

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The state by name: the memory itself."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Takes over a state of ``state_dict``; raises ``ConfigError`` for another one's."""
        ...


class Always:
    """The codecs given, chunk by chunk."""

    def __init__(self, codecs: Mapping[int, Codec]) -> None:
        self._codecs = codecs

    def begin(self, step: int, look: Look) -> None:
        """Nothing to settle."""

    def codec(self, chunk: Chunk, link_rate: float) -> Codec:
        return self._codecs[chunk.index]

    def note(self, chunk: Chunk, payload: Bytes, seconds: float) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, NDArray[Any]]:
        return {}

    def load_state_dict(self, state: State) -> None:
        load({}, state)


def everywhere(codec: Codec, chunks: Sequence[Chunk]) -> Always:
    """``codec`` for all chunks."""
    return Always({chunk.index: codec for chunk in chunks})


def load(mine: State, state: State) -> None:
    """Copies ``state`` into the arrays ``mine``: the same by name, dtype and shape.

    Raises ``ConfigError``, and copies nothing, where they are not.
    """
    if set(mine) != set(state):
        raise ConfigError(f"codec state has {shown(sorted(state))}, expected {sorted(mine)}")
    for name, array in mine.items():
        given = state[name]
        if not isinstance(given, np.ndarray) or given.dtype != array.dtype:
            raise ConfigError(f"{name} must be an array of {array.dtype}, got {shown(given)}")
        if given.shape != array.shape:
            raise ConfigError(f"{name} has shape {given.shape}, expected {array.shape}")
    for name, array in mine.items():
        np.copyto(array, state[name])
