"""A run in which nothing moves: who waits for whom, as a pure report of what each rank says."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from psgrad import control
from psgrad.errors import WireError
from psgrad.messages import Kind
from psgrad.waiting import Wait

SHOWN: Final = 12  # ranks, and stacks, on the screen; the log has all
FRAMES: Final = 6  # of a stack, there


class Blocked(NamedTuple):
    """Messages of one worker and clock that have no answer for one reason."""

    worker: int
    clock: int
    chunks: tuple[int, ...]
    reason: str
    others: tuple[int, ...]


@dataclass(frozen=True)
class View:
    """What a server knows of workers: ``pushed`` are the least and the largest clock over its
    chunks, ``missing`` the workers whose registration it waits for."""

    blocked: tuple[Blocked, ...] = ()
    pushed: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    missing: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        waits: Iterable[Wait],
        pushed: Mapping[int, tuple[int, int]],
        missing: Collection[int] = (),
    ) -> View:
        """``waits`` are single messages."""
        groups: dict[tuple[int, int, str, tuple[int, ...]], list[int]] = {}
        for wait in waits:
            key = (wait.worker, wait.clock, wait.reason, wait.others)
            groups.setdefault(key, []).append(wait.chunk)
        blocked = [Blocked(w, c, tuple(groups[w, c, r, o]), r, o) for w, c, r, o in groups]
        return cls(tuple(sorted(blocked)), pushed, tuple(sorted(missing)))

    def record(self) -> dict[str, Any]:
        """For the wire."""
        pushed = {str(w): list(clocks) for w, clocks in self.pushed.items()}
        return {"blocked": self.blocked, "pushed": pushed, "missing": self.missing}

    @classmethod
    def from_record(cls, record: Any) -> View:
        """The inverse of ``record``, out of JSON; raises ``WireError``."""
        try:
            blocked = [
                Blocked(int(w), int(c), tuple(map(int, chunks)), str(r), tuple(map(int, others)))
                for w, c, chunks, r, others in record["blocked"]
            ]
            pushed = {int(w): (int(a), int(b)) for w, (a, b) in record["pushed"].items()}
            return cls(tuple(blocked), pushed, tuple(map(int, record["missing"])))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise WireError(f"field 'view' of DOING is no view of a server: {error!r}") from None


class Told(NamedTuple):
    """What a rank says of itself; ``view`` is that of a server."""

    doing: str
    stack: tuple[str, ...] = ()
    view: View | None = None

    def record(self) -> dict[str, Any]:
        """For the wire."""
        view = None if self.view is None else self.view.record()
        return {"doing": self.doing, "stack": self.stack, "view": view}

    @classmethod
    def from_payload(cls, payload: Any) -> Told:
        """A DOING; raises ``WireError``."""
        nothing = type(None)
        said = control.fields(
            payload, Kind.DOING, doing=(str,), stack=(list,), view=(dict, nothing)
        )
        view = None if said["view"] is None else View.from_record(said["view"])
        return cls(said["doing"], tuple(map(str, said["stack"])), view)


@dataclass(frozen=True)
class Scene:
    """All that is known when nothing has moved for ``quiet_s`` seconds, by rank.

    ``told`` are the ranks that answered, the coordinator among them, ``silent_s`` those that did
    not, and since when; ``last`` is the last message of each, ``states`` what the kernel says of
    processes on the coordinator's node. ``come`` and ``missing`` are workers at a rendezvous.
    """

    quiet_s: float
    names: Mapping[int, str]
    workers: Mapping[int, int]  # those that run -> their ranks
    told: Mapping[int, Told] = field(default_factory=dict)
    silent_s: Mapping[int, float] = field(default_factory=dict)
    states: Mapping[int, str] = field(default_factory=dict)
    last: Mapping[int, str] = field(default_factory=dict)
    come: frozenset[int] = frozenset()
    missing: frozenset[int] = frozenset()

    @property
    def views(self) -> dict[int, View]:
        """By server."""
        return {r: told.view for r, told in self.told.items() if told.view is not None}

    @property
    def waits(self) -> dict[int, set[int]]:
        """Workers that wait for others, and for whom."""
        waits: dict[int, set[int]] = {w: set(self.missing) for w in self.come if self.missing}
        for view in self.views.values():
            for blocked in view.blocked:
                waits.setdefault(blocked.worker, set()).update(blocked.others)
            late = set(view.missing)
            for worker in self.workers.keys() - late if late else ():
                waits.setdefault(worker, set()).update(late)
        return {w: others - {w} for w, others in waits.items() if others - {w}}


def cause(scene: Scene) -> str:
    """One line: who is waited for, and what is known of it."""
    waits = scene.waits
    wanted = set().union(*waits.values()) if waits else set()
    silent = {w for w, rank in scene.workers.items() if rank in scene.silent_s}
    servers = [rank for rank in scene.silent_s if rank not in scene.workers.values()]
    culprits = sorted((wanted - waits.keys()) | (wanted & silent)) or sorted(silent)
    begins = f"nothing has moved for {scene.quiet_s:.0f} s"
    if servers:
        return f"{begins}: {_all(scene, servers)}"
    if culprits:
        waiting = sorted(w for w in waits if w not in culprits)
        who = f"{_workers(waiting)} for " if waiting else ""
        return f"{begins}: {who}{_all(scene, [scene.workers[w] for w in culprits])}"
    if waits:
        return f"{begins}: {_workers(sorted(waits))} for each other"
    return f"{begins}: no rank is known to be waited for"


def report(scene: Scene, most: int | None = None, frames: int = 0) -> list[str]:
    """``cause``, and behind it each rank, what it waits for, and its stack.

    With a limit: of ``most`` ranks, with the last ``frames`` calls, and no stacks of servers.
    """
    ranks = sorted(scene.silent_s) + sorted(scene.told.keys() - scene.silent_s.keys())
    lines = [cause(scene)]
    for rank in ranks[:most]:
        lines.append(f"  {_about(scene, rank)}")
        worker = next((w for w, r in scene.workers.items() if r == rank), None)
        for server, view in sorted(scene.views.items()):
            lines += [
                f"    {scene.names[server].partition(' (')[0]}: step {b.clock}, "
                f"{_spans('chunk', b.chunks)}: {b.reason}"
                for b in view.blocked
                if b.worker == worker
            ]
    if most is not None and len(ranks) > most:
        lines.append(f"  ... and {len(ranks) - most} more ranks, in the coordinator's log")
    stacks: dict[tuple[str, ...], list[int]] = {}
    for rank, told in sorted(scene.told.items()):
        if told.stack and (most is None or told.view is None):
            stacks.setdefault(told.stack[-frames:], []).append(rank)
    for stack, where in list(stacks.items())[:most]:
        lines.append(f"  stack of {_spans('rank', where)}, the last call last:")
        lines += [f"    {line}" for text in stack for line in text.rstrip().splitlines()]
    return lines


def _all(scene: Scene, ranks: Sequence[int]) -> str:
    shown = "; ".join(_about(scene, rank) for rank in ranks[:SHOWN])
    return shown + (f"; and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else "")


def _about(scene: Scene, rank: int) -> str:
    """A rank, and what is known of what it does."""
    name = scene.names[rank]
    if rank not in scene.silent_s:
        return f"{name}: {scene.told[rank].doing}"
    # Who had nothing to say to the coordinator has been silent all the time.
    heard = rank in scene.last
    known = [f"silent for {scene.silent_s[rank]:.1f} s" if heard else "does not answer"]
    if rank in scene.states:
        known.append(f"its process is {scene.states[rank]}")
    return f"{name}: " + ", ".join([*known, *_was_doing(scene, rank)])


def _was_doing(scene: Scene, rank: int) -> list[str]:
    """What a silent rank was doing, as far as others can tell."""
    last = [f"its last message was {scene.last[rank]}"] if rank in scene.last else []
    worker = next((w for w, r in scene.workers.items() if r == rank), None)
    views = scene.views.values()
    if worker is None:
        return last
    if any(worker in view.missing for view in views):
        return ["it has not registered its parameters", *last]
    clocks = [view.pushed[worker] for view in views if worker in view.pushed]
    waits = sorted({b.clock for view in views for b in view.blocked if b.worker == worker})
    if waits:
        return [f"it waits for the answer to step {waits[-1]}"]
    if not clocks:
        return ["it pushes no more", *last]
    least, largest = min(a for a, _ in clocks), max(b for _, b in clocks)
    return [
        f"it was pushing step {largest}"
        if least < largest
        else f"it was computing step {largest + 1}"
    ]


def _workers(workers: Sequence[int]) -> str:
    return f"{_spans('worker', workers)} wait{'s' if len(workers) == 1 else ''}"


def _spans(what: str, numbers: Iterable[int]) -> str:
    """``chunks 0-3, 7``."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    texts = [str(low) if low == high else f"{low}-{high}" for low, high in spans]
    several = len(texts) > 1 or "-" in texts[0]
    return f"{what}{'s' if several else ''} {', '.join(texts)}"
