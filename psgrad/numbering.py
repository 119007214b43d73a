"""Every message of a link has a number, so what comes twice is taken once and a loss is noticed.

A transport promises both already. This is the check on that promise, and what makes a link that is
set up anew (another transport, a peer that repeats itself) safe. On the wire numbers are 1 to
2^32 - 1 and then 1 again; a number stands for the count next to it of those that came before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from psgrad.errors import ProtocolError

NUMBERS: Final = (1 << 32) - 1


@dataclass
class Numbering:
    """The numbers of one rank's links, by peer. 0 is a message without one."""

    _sent: dict[int, int] = field(default_factory=dict)
    _seen: dict[int, int] = field(default_factory=dict)  # of messages whose header is known
    _taken: dict[int, int] = field(default_factory=dict)

    def next(self, peer: int) -> int:
        """The number of the next message to ``peer``."""
        count = self._sent.get(peer, 0) + 1
        self._sent[peer] = count
        return (count - 1) % NUMBERS + 1

    def is_new(self, peer: int, number: int) -> bool:
        """Whether a message whose payload wants a place is the first with its number."""
        if not number:
            return True
        last = max(self._seen.get(peer, 0), self._taken.get(peer, 0))
        count = _count(number, last)
        if count > last:
            self._seen[peer] = count
        return count > last

    def forget_seen(self, peer: int) -> None:
        """What had a place and was not taken will not come: it will be sent again."""
        self._seen.pop(peer, None)

    def take(self, peer: int, number: int) -> bool:
        """Whether a whole message is to be handled: False for one that has been.

        Raises ``ProtocolError`` where one before it is missing.
        """
        if not number:
            return True
        last = self._taken.get(peer, 0)
        count = _count(number, last)
        if count > last + 1:
            raise ProtocolError(
                f"message {count} of rank {peer} came after its message {last}: one was lost"
            )
        if count > last:
            self._taken[peer] = count
        return count > last


def _count(number: int, last: int) -> int:
    """The count with this number that is next to ``last``."""
    if number == last + 1:  # as almost always
        return number
    ahead = (number - last) % NUMBERS
    return last + (ahead if ahead <= NUMBERS // 2 else ahead - NUMBERS)
