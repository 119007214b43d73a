"""A server's part in committing synchronous rounds; what is decided, and why, is in ``commits``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median
from typing import Final

from psgrad.commits import Commits, Round
from psgrad.errors import ProtocolError
from psgrad.messages import Header, Kind, encode_json
from psgrad.outbox import Outbox

REMEMBERED: Final = 1000  # rounds, for the median of what they have waited


class Rounds:
    """Tells the coordinator of complete rounds; on the coordinator, the servers of commits."""

    def __init__(self, rank: int, servers: int, run: int, outbox: Outbox) -> None:
        self._rank = rank
        self._servers = servers
        self._run = run
        self._outbox = outbox
        self._commits: Commits | None = None
        self._admission = 0  # how many this server knows of
        self._complete_s: float | None = None  # since when a round waits to be committed
        self._waits_s: deque[float] = deque(maxlen=REMEMBERED)

    def open(self, owners: Iterable[int], begun: int) -> None:
        """On the coordinator: ``owners`` have chunks, and are at clock ``begun``."""
        self._commits = Commits(frozenset(owners), begun)

    @property
    def wait_s(self) -> float:
        """How long a round that is complete here waits to be committed: the median; 0 of none."""
        return median(self._waits_s) if self._waits_s else 0.0

    def closed(self, now_s: float) -> None:
        """A round was committed."""
        if self._complete_s is not None:
            self._waits_s.append(now_s - self._complete_s)
        self._complete_s = None

    def report(self, complete: Round, now_s: float) -> Round | None:
        """A round is complete here; returns the one that is to be applied here now, if one is."""
        self._complete_s = now_s if self._complete_s is None else self._complete_s
        if self._rank == 0:
            return self.take(0, complete, self._admission)
        payload = encode_json({"workers": complete.workers})
        header = Header(
            Kind.COMPLETE,
            run=self._run,
            clock=complete.clock,
            sequence=self._rank,
            incarnation=self._admission,
            nbytes=len(payload),
        )
        self._outbox.post(0, header, payload)
        return None

    def admit(self, number: int) -> None:
        """A worker has come in, by this admission: it is in all rounds that are not committed."""
        self._admission = number
        if self._commits is not None:
            self._commits.admit()

    def take(self, server: int, complete: Round, admission: int) -> Round | None:
        """On the coordinator: a round is complete on ``server``, which knows of the admissions up
        to this one; as ``report``."""
        if self._commits is None:
            raise ProtocolError("only the coordinator commits rounds, and only after registration")
        if admission < self._admission:
            return None  # said before it knew
        committed = self._commits.report(server, complete)
        if committed is None:
            return None
        payload = encode_json({"workers": committed.workers})
        header = Header(Kind.COMMIT, run=self._run, clock=committed.clock, nbytes=len(payload))
        for other in range(1, self._servers):  # those without chunks cut for checkpoints, too
            self._outbox.post(other, header, payload)
        return committed
