"""Threads that share the arithmetic on one long array.

A core moves only a part of what the memory of a node can. Threads are for that alone: each takes a
piece of the array, nobody goes on before all pieces are done, and no message is ever theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Final

PIECE: Final = 128 << 10
"""The smallest piece, in elements: below it, handing it over takes longer than doing it."""


class Crew:
    """``size`` threads, the caller's own among them; others start with the first long array.

    ``hands`` is how many of them work at present, 1 to ``size``.
    """

    def __init__(self, size: int = 1) -> None:
        self.size = self.hands = size
        self._others: ThreadPoolExecutor | None = None

    def share(self, n: int, work: Callable[[int, int, int], None]) -> None:
        """Calls ``work(start, stop, i)`` for pieces that make up 0 to n, each by the thread i.

        Pieces begin at multiples of ``PIECE``. Returns when all are done; raises what ``work``
        raises.
        """
        pieces = min(self.hands, n // PIECE)
        if pieces < 2:
            work(0, n, 0)
            return
        if self._others is None:
            self._others = ThreadPoolExecutor(self.size - 1, "psgrad-crew")
        share = -(-n // (pieces * PIECE)) * PIECE
        starts = range(0, n, share)
        given = [
            self._others.submit(work, start, min(start + share, n), i)
            for i, start in enumerate(starts)
            if i > 0
        ]
        try:
            work(0, share, 0)
        finally:
            wait(given)
        for each in given:
            each.result()
