"""What the sender of a link keeps until the other end has it, so that it can be sent once more.

Each message carries the number of the last one that its sender has taken from the other end. So who
hears of it may forget all up to that number, and nothing else travels for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from psgrad.errors import ProtocolError
from psgrad.messages import Header
from psgrad.transport import Buffer, Sent

LARGEST: Final = (1 << 31) - 1  # bytes of a payload: MPI counts them in 32 bits
_MASK: Final = (1 << 32) - 1  # numbers have 32 bits
_HALF: Final = 1 << 31


def is_behind(number: int, taken: int) -> bool:
    """Whether the message with ``number`` is the one with ``taken``, or before it."""
    return ((taken - number) & _MASK) < _HALF and taken > 0


@dataclass(eq=False, slots=True)
class Kept:
    """A message that the other end may not have; it stands for the message under way, too."""

    header: Header
    payload: Buffer | None
    sent: Sent | None = None
    is_known: bool = False

    def done(self) -> bool:
        """Whether the payload's memory may be written again."""
        return self.is_known and (self.sent is None or self.sent.done())


class Outgoing:
    """What was sent on one link, and is not known to have been taken; the oldest first."""

    def __init__(self) -> None:
        self._kept: deque[Kept] = deque()

    def __iter__(self) -> Iterator[Kept]:
        return iter(list(self._kept))

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, header: Header, payload: Buffer | None) -> Kept:
        """One more message; ``payload`` stays as it is until it is ``done``, or ``copy``."""
        kept = Kept(header, payload)
        self._kept.append(kept)
        return kept

    def known(self, taken: int) -> None:
        """The other end has all messages up to this number."""
        while self._kept and is_behind(self._kept[0].header.number, taken):
            self._kept.popleft().is_known = True

    def copy(self) -> None:
        """The memory of payloads may be written from now on."""
        for kept in self._kept:
            if kept.payload is not None and not isinstance(kept.payload, bytes):
                kept.payload = memoryview(kept.payload).cast("B").tobytes()

    def clear(self) -> None:
        """There is nobody any more to send it to."""
        for kept in self._kept:
            kept.is_known = True
        self._kept.clear()


def scratch(peer: int, header: Header) -> bytearray:
    """Memory for a payload that its program has no place for now."""
    if header.nbytes > LARGEST:
        raise ProtocolError(f"rank {peer} announces {header.nbytes} bytes, the limit is {LARGEST}")
    return bytearray(header.nbytes)
