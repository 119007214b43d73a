"""Every message of a link has a number, so what comes twice is taken once and a loss is noticed.

A transport promises both already. This is the check on that promise, and what makes a link that is
set up anew (another transport, a peer that repeats itself) safe.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from psgrad.errors import ProtocolError


@dataclass
class Numbering:
    """The numbers of one rank's links, by peer. They begin at 1; 0 is a message without one."""

    _sent: dict[int, int] = field(default_factory=dict)
    _seen: dict[int, int] = field(default_factory=dict)  # of messages whose header is known
    _taken: dict[int, int] = field(default_factory=dict)

    def next(self, peer: int) -> int:
        """The number of the next message to ``peer``."""
        number = self._sent.get(peer, 0) + 1
        self._sent[peer] = number
        return number

    def is_new(self, peer: int, number: int) -> bool:
        """Whether a message whose payload wants a place is the first with its number."""
        last = max(self._seen.get(peer, 0), self._taken.get(peer, 0))
        self._seen[peer] = max(last, number)
        return number > last or not number

    def take(self, peer: int, number: int) -> bool:
        """Whether a whole message is to be handled: False for one that has been.

        Raises ``ProtocolError`` where one before it is missing.
        """
        last = self._taken.get(peer, 0)
        if not number:
            return True
        if number > last + 1:
            raise ProtocolError(
                f"message {number} of rank {peer} came after its message {last}: one was lost"
            )
        self._taken[peer] = max(last, number)
        return number > last
