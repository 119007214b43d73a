"""Synchronous rounds that survive a death: a round closes on all shards with the same workers.

A chunk's round could close as soon as all live workers have pushed. If one of them dies meanwhile,
it would be in the update of some chunks and not of others. So each shard says when the round of a
clock is complete on all its chunks, and with whom; when all have said the same, the coordinator
commits it, and only then is anything of it applied. A shard that learns of a death before that says
it again, without the dead; one that learns of it later keeps to what was committed.

A worker that comes in is in every round that is not committed yet. What a shard has said before it
knew of that counts no more: it says the open round again when the newcomer has pushed it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from psgrad.errors import ProtocolError


class Round(NamedTuple):
    """The round of ``clock``, with the pushes of ``workers``."""

    clock: int
    workers: tuple[int, ...]


@dataclass
class Commits:
    """The coordinator's part; ``clock`` is that of the last round that was committed."""

    servers: frozenset[int]  # those that have chunks
    clock: int = 0
    _said: dict[int, Round] = field(default_factory=dict)

    def report(self, server: int, complete: Round) -> Round | None:
        """``server`` has all of a round; the round, if it is committed by that."""
        if complete.clock <= self.clock:
            return None  # said before it knew
        if complete.clock != self.clock + 1 or server not in self.servers:
            raise ProtocolError(
                f"server {server} reports round {complete.clock}, the next one is {self.clock + 1}"
            )
        self._said[server] = complete
        if self._said.keys() != self.servers or len(set(self._said.values())) > 1:
            return None
        self.clock = complete.clock
        self._said.clear()
        return complete

    def admit(self) -> None:
        """A worker is in from the open round on: what was said of it counts no more."""
        self._said.clear()


@dataclass
class OpenRound:
    """A shard's part: which of its ``chunks`` have the round after ``committed``."""

    chunks: frozenset[int]
    committed: int = 0
    _complete: dict[int, frozenset[int]] = field(default_factory=dict)  # chunk -> its workers
    _said: Round | None = None

    def complete(self, chunk: int, workers: Iterable[int]) -> None:
        """The round of ``chunk`` has the pushes of ``workers``, and waits for nobody."""
        self._complete[chunk] = frozenset(workers)

    def news(self, lost: Iterable[int]) -> Round | None:
        """What the coordinator is to be told, if that is new; ``lost`` are workers that died."""
        if not self.chunks or self._complete.keys() != self.chunks:
            return None
        # Of one that died on its way through the chunks, some are not there.
        workers = frozenset.intersection(*self._complete.values()) - frozenset(lost)
        said = Round(self.committed + 1, tuple(sorted(workers)))
        if said == self._said:
            return None
        self._said = said
        return said

    def admit(self) -> None:
        """A worker is in from the open round on: no chunk has all of it."""
        self._complete.clear()
        self._said = None

    def commit(self, clock: int) -> None:
        """The round of ``clock`` closes."""
        if clock != self.committed + 1:
            raise ProtocolError(f"round {clock} is committed after round {self.committed}")
        self.committed = clock
        self._complete.clear()
        self._said = None
