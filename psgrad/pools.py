"""A server's memory for what is under way: gradients that come in, snapshots that go out.

Both are kept and used again, so a server in its stride allocates nothing.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import numpy as np

from psgrad.codecs import Bytes, Codec, Opened
from psgrad.layout import Float32
from psgrad.transport import Sent
from psgrad.update import Gradient

SNAPSHOT_NBYTES: Final = 64 << 10  # snapshots have multiples of it, so few sizes serve them all


class GradientPool:
    """Memory that gradient chunks are received into, until the shard has done with them."""

    def __init__(self) -> None:
        self.lent = 0
        """How many pieces have not come back."""
        self._bare: dict[int, list[Float32]] = defaultdict(list)  # by elements
        self._bytes: dict[int, list[Bytes]] = defaultdict(list)  # by elements of the chunk
        self._opened: dict[int, tuple[int, Bytes]] = {}  # elements, memory; by id of the Opened

    def bare(self, n: int) -> Float32:
        """Room for float32[n]."""
        self.lent += 1
        free = self._bare[n]
        return free.pop() if free else np.zeros(n, np.float32)

    def payload(self, n: int, codec: Codec, nbytes: int) -> Bytes:
        """Room for a payload of n elements, which has at most ``codec.nbytes_max(n)`` bytes."""
        self.lent += 1
        free = self._bytes[n]
        return (free.pop() if free else np.zeros(codec.nbytes_max(n), np.uint8))[:nbytes]

    def open(self, payload: Bytes, n: int, codec: Codec) -> Opened:
        """Opens a payload that lies in memory of this pool; raises ``WireError``."""
        opened = codec.open(payload, n)
        memory = payload if payload.base is None else payload.base
        self._opened[id(opened)] = (n, memory)
        return opened

    def forget(self, pieces: int) -> None:
        """So many pieces were lent for what will not come; they may still be written to."""
        self.lent -= pieces

    def give_back(self, gradient: Gradient, keep: bool = True) -> None:
        """Nobody looks at ``gradient`` any more; without ``keep`` there will be none like it."""
        self.lent -= 1
        if isinstance(gradient, np.ndarray) and keep:
            self._bare[gradient.size].append(gradient)
        elif not isinstance(gradient, np.ndarray):
            n, memory = self._opened.pop(id(gradient))
            self._bytes[n].append(memory)


class SnapshotPool:
    """Memory for what is sent while its original may change."""

    def __init__(self) -> None:
        self._under_way: list[tuple[Sent, Bytes]] = []

    def memory(self, nbytes: int) -> Bytes:
        """Room for ``nbytes`` or a little more: where one lay that is gone, if there is one."""
        room = -(-nbytes // SNAPSHOT_NBYTES) * SNAPSHOT_NBYTES
        for i, (sent, memory) in enumerate(self._under_way):
            if memory.size == room and sent.done():
                del self._under_way[i]
                return memory
        return np.empty(room, np.uint8)

    def sent(self, sent: Sent, memory: Bytes) -> None:
        """``memory`` is on its way."""
        self._under_way.append((sent, memory))
