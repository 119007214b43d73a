"""How parameters leave a server: as float32, encoded, or as a difference to what a worker holds."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from psgrad.chunk_state import Reply
from psgrad.codecs import DIFFERENCES, Bytes, Codec, Key, Workspace
from psgrad.codecs.wire import seal
from psgrad.layout import Float32
from psgrad.messages import Flag, Header
from psgrad.references import SERVERS_STREAM, Difference, References

Memory: TypeAlias = NDArray[Any]


class ParamsEncoder:
    """Parameters as they are sent. Absolute values are encoded once for each version of a chunk."""

    def __init__(self, codec: Codec | None, seed: int, sealed: bool = False) -> None:
        self._codec = codec
        self._seed = seed
        self._sealed = sealed  # some of the payloads leave the node
        self._work = Workspace()
        self._payloads: dict[int, tuple[int, Bytes, int]] = {}  # chunk -> version, memory, nbytes

    def encode(self, reply: Reply) -> tuple[Header, Memory | None]:
        """The header and the payload of ``reply``; a payload is good until the next version."""
        header, params, codec = reply.header, reply.params, self._codec
        if params is None:
            return header._replace(flags=0), None
        if reply.references is not None:
            return self._refer(reply, reply.references, params)
        if codec is None or codec.name in DIFFERENCES or header.flags & Flag.DENSE:
            return header._replace(flags=0), params
        return self._encode(reply, codec, params)

    def _encode(self, reply: Reply, codec: Codec, params: Float32) -> tuple[Header, Memory]:
        header = reply.header
        version, memory, nbytes = self._payloads.get(header.chunk, (-1, None, 0))
        if memory is None:
            memory = np.zeros(codec.nbytes_max(params.size), np.uint8)
        if version != header.version:
            key = Key(self._seed, SERVERS_STREAM, header.version, reply.chunk.start)
            nbytes = codec.encode(params, None, memory, key, self._work)
            if self._sealed:
                seal(memory[:nbytes])
            self._payloads[header.chunk] = (header.version, memory, nbytes)
        return header._replace(flags=Flag.ENCODED, nbytes=nbytes), memory[:nbytes]

    def _refer(
        self, reply: Reply, references: References, params: Float32
    ) -> tuple[Header, Memory | None]:
        header = reply.header
        if header.flags & Flag.DENSE:
            held = references.dense(header.worker, params, header.version)
            return header._replace(flags=Flag.HELD if held else 0), params
        answer = references.answer(header.worker, reply.held, params, header.version, self._work)
        if not isinstance(answer, Difference):
            return header._replace(flags=Flag.HELD), answer
        if self._sealed and answer.payload.size:
            seal(answer.payload)  # once: before it is sent for the first time
        flags = Flag.HELD | Flag.ENCODED
        return header._replace(flags=flags, nbytes=answer.payload.size), answer.payload
