"""What a worker is known to hold of a chunk, where pulls carry differences to it.

A difference of parameters x to what is held, r, travels as C(x - r), and both sides go on with
r <- r + C(x - r), the same additions on the same bytes, so they stay equal bit for bit. What the
codec did not send is in the next difference: this is error feedback, on the servers' side (the
double compression of Tang et al., ICML 2019).

In sync mode all workers pull the same versions, so one reference serves them all. Otherwise there
is one for each live worker. A request names the version of the reference that its worker holds, so
a reply is a difference only where both agree on it; where they do not, the reply is dense.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from psgrad.codecs import Bytes, Codec, Key, Workspace
from psgrad.codecs.base import add_into
from psgrad.layout import Chunk, Float32, Layout

# No worker has this index: what servers draw comes from a stream of its own.
SERVERS_STREAM: Final = 0xFFFFFFFF
_EVERYBODY: Final = 0  # the key of a shared reference


@dataclass
class Reference:
    """Float32 values of a chunk: ``version`` is the update that they were made at.

    The last payload led from the reference of version ``before`` to this one; ``exact`` says that
    the values are the parameters of that version, bit for bit.
    """

    values: Float32
    version: int
    before: int
    exact: bool


@dataclass(frozen=True)
class Difference:
    """What makes the reference that a worker holds that of ``version``. ``payload`` may be empty.

    The payload is good until the chunk's next difference.
    """

    payload: Bytes
    version: int


class References:
    """All references to one chunk. ``shared``: one for all workers."""

    def __init__(self, chunk: Chunk, codec: Codec, shared: bool, seed: int) -> None:
        self._chunk = chunk
        self._codec = codec
        self._shared = shared
        self._seed = seed
        self._held: dict[int, Reference] = {}
        self._memory = np.zeros(0, np.uint8)
        self._nbytes = 0

    def answer(
        self, worker: int, held: int | None, params: Float32, version: int, work: Workspace
    ) -> Difference | Float32:
        """What to send to ``worker``, which holds the reference of version ``held`` (None: none).

        ``params[n]`` are the chunk's parameters after ``version`` updates. The answer is a
        difference, or float32[n] that is from now on the reference which the worker holds.
        """
        reference = self._held.get(self._key(worker))
        if reference is None or (not self._shared and held != reference.version):
            return self._start(worker, params, version).values
        if reference.version != version:
            self._advance(reference, params, version, worker, work)
        if held == reference.version:
            return Difference(self._memory[:0], version)
        if held == reference.before:
            return Difference(self._memory[: self._nbytes], version)
        return reference.values

    def dense(self, worker: int, params: Float32, version: int) -> bool:
        """``worker`` is sent ``params`` as they are; says whether that is its reference now.

        A shared reference stays what it is: who has something else is answered with it next time.
        """
        reference = self._held.get(self._key(worker))
        if reference is None or not self._shared:
            reference = self._start(worker, params, version)
        return reference.exact and reference.version == version

    def drop(self, worker: int) -> None:
        """``worker`` has left: nobody keeps in mind what it holds."""
        if not self._shared:
            self._held.pop(worker, None)

    def for_all(self) -> Reference | None:
        """The one that serves all workers, for a checkpoint: others begin anew."""
        return self._held.get(_EVERYBODY) if self._shared else None

    def resume(self, values: Float32, version: int) -> None:
        """Goes on from the reference that serves all workers, made at update ``version``."""
        if self._shared:
            self._held[_EVERYBODY] = Reference(values, version, version, exact=False)

    def _key(self, worker: int) -> int:
        return _EVERYBODY if self._shared else worker

    def _start(self, worker: int, params: Float32, version: int) -> Reference:
        reference = self._held.get(self._key(worker))
        if reference is None:
            reference = Reference(params.copy(), version, version, exact=True)
            self._held[self._key(worker)] = reference
        else:
            np.copyto(reference.values, params)
            reference.version = reference.before = version
            reference.exact = True
        return reference

    def _advance(
        self, reference: Reference, params: Float32, version: int, worker: int, work: Workspace
    ) -> None:
        """r <- r + C(x - r); the payload stays in memory."""
        n = self._chunk.size
        if not self._memory.size:
            self._memory = np.zeros(self._codec.nbytes_max(n), np.uint8)
        rest = work.take("reference.rest", n, np.float32)
        np.negative(reference.values, out=rest)
        stream = SERVERS_STREAM - (0 if self._shared else 1 + worker)
        key = Key(self._seed, stream, version, self._chunk.start)
        self._nbytes = self._codec.encode(params, rest, self._memory, key, work)
        opened = self._codec.open(self._memory[: self._nbytes], n)
        add_into(opened, reference.values)
        reference.before, reference.version = reference.version, version
        reference.exact = False


def references_nbytes(
    layout: Layout,
    chunks: Sequence[Chunk],
    owner: Sequence[int],
    workers: Iterable[int],
    shared: bool,
) -> int:
    """The bytes of all references on the server that has most of them."""
    workers = list(workers)
    nbytes = dict.fromkeys(owner, 0)
    for chunk in chunks:
        group = layout.segments[chunk.segment].options.members
        live = len(workers) if group is None else len(set(group) & set(workers))
        nbytes[owner[chunk.index]] += chunk.nbytes * (1 if shared else live)
    return max(nbytes.values(), default=0)
