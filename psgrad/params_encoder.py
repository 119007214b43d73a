"""How parameters leave a server: as float32, or encoded once for each version of a chunk."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from psgrad.chunk_state import Reply
from psgrad.codecs import Bytes, Codec, Key, Workspace
from psgrad.messages import Flag, Header

# No worker has this index: stochastic rounding of parameters draws from a stream of its own.
SERVERS_STREAM: Final = 0xFFFFFFFF

Memory: TypeAlias = NDArray[Any]


class ParamsEncoder:
    """Parameters as they are sent: encoded once for each version of a chunk."""

    def __init__(self, codec: Codec | None) -> None:
        self._codec = codec
        self._work = Workspace()
        self._payloads: dict[int, tuple[int, Bytes, int]] = {}  # chunk -> version, memory, nbytes

    def encode(self, reply: Reply) -> tuple[Header, Memory | None]:
        """The header and the payload of ``reply``; a payload is good until the next version."""
        header, params, codec = reply.header, reply.params, self._codec
        if params is None:
            return header._replace(flags=0), None
        if codec is None or header.flags & Flag.DENSE:
            return header._replace(flags=0), params
        version, memory, nbytes = self._payloads.get(header.chunk, (-1, None, 0))
        if memory is None:
            memory = np.zeros(codec.nbytes_max(params.size), np.uint8)
        if version != header.version:
            key = Key(seed=0, worker=SERVERS_STREAM, step=header.version, start=header.chunk)
            nbytes = codec.encode(params, None, memory, key, self._work)
            self._payloads[header.chunk] = (header.version, memory, nbytes)
        return header._replace(flags=int(Flag.ENCODED), nbytes=nbytes), memory[:nbytes]
