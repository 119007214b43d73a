"""Who runs when, and what came of it. Nothing is started here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from peers.jobs import Ended
from peers.systems import BY_NAME, MEMCPY, System

T = TypeVar("T")

KEYS: Final = ("system", "workers", "nbytes", "times_ms", "error", "versions")


class UnusableError(Exception):
    """A run gave no figures that may be used; the message says why.

    ``wrong``: its parameters were. ``again``: it may be tried once more.
    """

    def __init__(self, reason: str, *, wrong: bool = False, again: bool = False) -> None:
        super().__init__(reason)
        self.wrong, self.again = wrong, again


@dataclass(frozen=True)
class Entry:
    """A system with so many workers: once in each round."""

    system: System
    workers: int


@dataclass
class Measured:
    """What came of the rounds: records of runs, and what was left out from some round on."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)

    def skips(self, entry: Entry) -> bool:
        """Whether ``entry`` is left out."""
        names = [(one["system"], one["workers"]) for one in self.skipped]
        return (entry.system.name, entry.workers) in names

    def skip(self, entry: Entry, number: int, reason: str, wrong: bool = False) -> None:
        """Leaves ``entry`` out from round ``number`` on."""
        self.skipped.append(
            {
                "system": entry.system.name,
                "workers": entry.workers,
                "round": number,
                "reason": reason,
                "wrong": wrong,
            }
        )

    @property
    def failed(self) -> bool:
        """Whether a result was wrong, or what must run did not."""
        return any(one["wrong"] or BY_NAME[one["system"]].required for one in self.skipped)


def entries(systems: Sequence[System], workers: Sequence[int]) -> list[Entry]:
    """A round: for each number of workers a copy and every system."""
    return [
        entry
        for count in workers
        for entry in (Entry(MEMCPY, 1), *(Entry(system, count) for system in systems))
    ]


def order(items: Sequence[T], number: int, rounds: int) -> list[T]:
    """``items`` as round ``number`` of ``rounds`` takes them: rotated, evenly over the rounds."""
    shift = number * len(items) // rounds
    return [*items[shift:], *items[:shift]]


def read(ended: Ended, entry: Entry, nbytes: int) -> dict[str, Any]:
    """The record that a program has printed; raises :class:`UnusableError` without a good one."""
    if ended.status is None:
        raise UnusableError("not over in time; --timeout gives it more")
    found = _record(ended.stdout)
    if found is None:
        reason = f"status {ended.status} and no figures{_last(ended.stderr)}"
        raise UnusableError(reason, again=True)
    if found["error"] is not None:
        raise UnusableError(f"wrong parameters: {found['error']}", wrong=True)
    expected = (entry.system.name, entry.workers, nbytes)
    if (found["system"], found["workers"], found["nbytes"]) != expected:
        raise UnusableError(f"the figures are of {found['system']}, {found['workers']} workers")
    if ended.status:
        raise UnusableError(f"status {ended.status} after the figures{_last(ended.stderr)}")
    if not found["times_ms"] or min(found["times_ms"]) <= 0:
        raise UnusableError(f"times must be above 0, got {found['times_ms']}")
    return found


def measure(
    plan: Sequence[Entry],
    rounds: int,
    nbytes: int,
    missing: Mapping[str, Mapping[str, str]],
    start: Callable[[Entry], Ended],
    say: Callable[[str], None],
) -> Measured:
    """Runs every entry of ``plan`` once a round, by ``start``.

    ``missing``: for each environment why a package is not there. An entry that cannot run is left
    out from then on, and ``say`` hears why.
    """
    measured = Measured()
    for entry in plan:
        system = entry.system
        reason = missing.get(system.environment, {}).get(system.package)
        if reason is not None and not measured.skips(entry):
            measured.skip(entry, 0, reason)
            say(f"skipped {system.name}, workers {entry.workers}: {reason}")
    for number in range(rounds):
        for entry in order(plan, number, rounds):
            if measured.skips(entry):
                continue
            try:
                found = _attempt(entry, nbytes, start)
            except UnusableError as error:
                measured.skip(entry, number, str(error), error.wrong)
                say(f"skipped {entry.system.name}, workers {entry.workers}: {error}")
                continue
            measured.runs.append({"round": number, **found})
            times = sorted(found["times_ms"])
            say(
                f"round {number + 1} of {rounds}: {entry.system.name}, workers {entry.workers}: "
                f"{times[len(times) // 2]:.2f} ms"
            )
    return measured


def _attempt(entry: Entry, nbytes: int, start: Callable[[Entry], Ended]) -> dict[str, Any]:
    """A launcher fails to start now and then; what does so twice is left out."""
    try:
        return read(start(entry), entry, nbytes)
    except UnusableError as error:
        if not error.again:
            raise
    return read(start(entry), entry, nbytes)


def _record(stdout: str) -> dict[str, Any] | None:
    for line in reversed(stdout.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and all(key in found for key in KEYS):
            return found
    return None


def _last(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return f": {lines[-1][:200]}" if lines else ""
