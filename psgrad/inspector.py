"""The coordinator's look at a run in which nothing moves; what it says is in ``stall``.

Messages of workers and servers are movement. When none has come for a while, every rank is asked
what it is doing, so that all who can have answered when ``stall_s`` seconds are over. Then there is
one report, until something moves again; those that have said nothing are silent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from psgrad import processes
from psgrad.errors import StalledError
from psgrad.messages import Header, Kind
from psgrad.outbox import Outbox
from psgrad.processes import Process
from psgrad.roles import Roles
from psgrad.seats import Seats
from psgrad.stall import FRAMES, SHOWN, Scene, Told, View, cause, report

ANSWER_S: Final = 2.0  # ranks are asked so long before, or half of the time where that is less
STILL: Final = frozenset({Kind.ALIVE, Kind.DOING, Kind.STOP})
"""What says nothing of whether the run gets on."""


class Inspector:
    """``known`` are the processes of all ranks, where they are real."""

    def __init__(
        self,
        roles: Roles,
        run: int,
        outbox: Outbox,
        stall_s: float,
        abort_s: float,
        known: Sequence[Process | None],
        now_s: float,
    ) -> None:
        self._roles = roles
        self.seats = Seats.of(roles)
        """Which rank is which worker; that of the server, where it has one."""
        self._run = run
        self._outbox = outbox
        self._stall_s = stall_s
        self._abort_s = abort_s
        self._known = known
        self._moved_s = now_s
        self._asked = False
        self._reported = False
        self._heard_s: dict[int, float] = dict.fromkeys(range(roles.size), now_s)
        self._last: dict[int, Header] = {}
        self._told: dict[int, Told] = {}

    @property
    def watch_s(self) -> float:
        """How often somebody who waits for messages has to look."""
        return min(1.0, self._stall_s / 4)

    def heard(self, rank: int, header: Header, now_s: float) -> None:
        """A message has come."""
        self._heard_s[rank] = now_s
        if header.kind in STILL:
            return
        self._last[rank] = header
        self._moved_s = now_s
        if self._asked:
            self._asked = self._reported = False
            self._told.clear()

    def is_quiet(self, now_s: float) -> bool:
        """Whether it is time to look closer."""
        return now_s - self._moved_s >= max(self._stall_s / 2, self._stall_s - ANSWER_S)

    def answered(self, rank: int, told: Told) -> None:
        """A rank has said what it is doing."""
        self._told[rank] = told

    def is_due(self, now_s: float, running: Sequence[int]) -> bool:
        """Whether there is something to report; asks the ranks before, of workers ``running``."""
        quiet_s = now_s - self._moved_s
        if not self._asked and self.is_quiet(now_s):
            self._asked = True
            for rank in self._roles.server_ranks[1:]:
                self._outbox.post(rank, Header(Kind.ASK, run=self._run))
            for worker in running:
                seat = self.seats.holder(worker)
                header = Header(Kind.ASK, run=self._run, incarnation=seat[1] if seat else 0)
                self._outbox.post(self.seats.rank_of(worker), header)
        return quiet_s >= self._stall_s and not self._reported

    def is_over(self, now_s: float) -> bool:
        """Whether nothing has moved for so long that the run is to end."""
        return self._reported and 0 < self._abort_s <= now_s - self._moved_s

    def conclude(
        self, now_s: float, running: Sequence[int], view: View, come: set[int], missing: set[int]
    ) -> tuple[list[str], list[str]]:
        """The report, once, for the screen and as a whole; ``view`` is the coordinator's, ``come``
        and ``missing`` are workers at a rendezvous. Raises ``StalledError`` where ``is_over``."""
        scene = self._scene(now_s, running, view, come, missing)
        if self.is_over(now_s):
            raise StalledError(cause(scene))
        self._reported = True
        return report(scene, SHOWN, FRAMES), report(scene)

    def _scene(
        self, now_s: float, running: Sequence[int], view: View, come: set[int], missing: set[int]
    ) -> Scene:
        roles = self._roles
        told = {**self._told, 0: Told("takes messages", (), view)}
        workers = {worker: self.seats.rank_of(worker) for worker in running}
        asked = [*roles.server_ranks[1:], *workers.values()]
        return Scene(
            quiet_s=now_s - self._moved_s,
            names={rank: self._name(rank) for rank in range(roles.size)},
            workers=workers,
            told=told,
            silent_s={rank: now_s - self._heard_s[rank] for rank in asked if rank not in told},
            states=self._states(asked),
            last={r: f"{h.kind.name} of clock {h.clock}" for r, h in self._last.items()},
            come=frozenset(come),
            missing=frozenset(missing),
        )

    def _states(self, ranks: Sequence[int]) -> Mapping[int, str]:
        here = {rank: self._known[rank] for rank in ranks if self._roles.same_node(0, rank)}
        return {rank: processes.state(found) for rank, found in here.items() if found is not None}

    def _name(self, rank: int) -> str:
        roles, process = self._roles, self._known[rank]
        pid = "" if process is None else f", pid {process.pid}"
        where = f"(rank {rank}, {roles.host(rank)}{pid})"
        if roles.is_server(rank):
            return f"server {rank} {where}" if rank else f"coordinator {where}"
        seat = self.seats.seat_of(rank)
        return f"{roles.name(rank)} {where}" if seat is None else f"worker {seat.worker} {where}"
