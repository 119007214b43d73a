"""Steps whose chunks come before it is known what is to be done with them.

Where communication is hidden behind computation, a chunk leaves its worker as soon as its gradient
is final, while those of other layers are still computed. Whether the step may be applied, with
which weight and clipped by how much, is known at its end: until then its chunks wait here, and no
shard has heard of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from psgrad.errors import ProtocolError
from psgrad.messages import Flag, Header
from psgrad.update import Gradient

Pushed: TypeAlias = tuple[Header, Gradient | None]


@dataclass
class OpenSteps:
    """One open step for each worker at most; ``_chunks`` has what has come of it, by chunk."""

    _chunks: dict[int, dict[int, Pushed]] = field(default_factory=dict)

    def add(self, header: Header, grad: Gradient | None) -> None:
        """Keeps a chunk; raises ``ProtocolError`` for one that cannot be of the open step."""
        chunks = self._chunks.setdefault(header.worker, {})
        clock = next(iter(chunks.values()))[0].clock if chunks else header.clock
        if header.chunk in chunks or header.clock != clock:
            raise ProtocolError(
                f"worker {header.worker} pushes chunk {header.chunk} of clock {header.clock} into "
                f"its open step of clock {clock}, which has {len(chunks)} chunks"
            )
        chunks[header.chunk] = header, grad

    def settle(self, end: Header) -> list[Pushed]:
        """The chunks of the step that ``end`` ends, with its weight and rate, the first one first.

        The next forward pass needs them in this order. Raises ``ProtocolError`` where chunks are
        missing.
        """
        chunks = self._chunks.pop(end.worker, {})
        if (
            not chunks
            or len(chunks) != end.sequence
            or any(h.clock != end.clock for h, _ in chunks.values())
        ):
            raise ProtocolError(
                f"worker {end.worker} ends step {end.clock} of {end.sequence} chunks, "
                f"{len(chunks)} are here"
            )
        return [
            (
                header._replace(weight=end.weight, rate=end.rate, flags=header.flags & ~Flag.OPEN),
                grad,
            )
            for _, (header, grad) in sorted(chunks.items())
        ]

    def drop(self, worker: int) -> list[Pushed]:
        """``worker`` is gone: what has come of its open step."""
        return list(self._chunks.pop(worker, {}).values())

    @property
    def workers(self) -> list[int]:
        """Whose steps are open."""
        return sorted(self._chunks)
