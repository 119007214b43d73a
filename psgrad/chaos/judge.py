"""Whether what came of a run that was disturbed is what an undisturbed one gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from psgrad.chaos.trial import BATCH, Trial
from psgrad.chaos.watch import Struck
from psgrad.errors import CAUSE

RESTART: Final = "psgrad: restart "
# Of accuracy: half a point, from the nearest undisturbed run. Those of 359 test samples that are
# not in sync mode differ by a quarter of a point (one standard deviation) among themselves, so half
# a point from their mean would take one good run in 25 for a wrong one.
TOLERANCE: Final = 0.005


@dataclass(frozen=True)
class Outcome:
    """What was seen of a run. ``summary`` is None without a completion record.

    ``samples`` are those that all steps have used, by epoch, ``steps`` how many steps each worker
    has written down; in a run that was started again, some are there twice.
    """

    seconds: float
    status: int
    hung: bool = False
    summary: Mapping[str, Any] | None = None
    left: Sequence[str] = ()  # processes and files, in words
    struck: Sequence[Struck] = ()
    samples: Mapping[int, int] = field(default_factory=dict)
    steps: Sequence[int] = ()
    stderr: str = ""

    @property
    def ends(self) -> list[str]:
        """Why attempts have ended that were followed by another one, as the supervisor said."""
        lines = [line for line in self.stderr.splitlines() if line.startswith(RESTART)]
        return [line.rpartition("it ended with: ")[2] for line in lines]


@dataclass(frozen=True)
class Reference:
    """What undisturbed runs have come to.

    ``fewer`` are the accuracies of runs that had fewer workers from their start.
    """

    sha256: frozenset[str]
    accuracies: tuple[float, ...]
    steps: frozenset[int]
    updates: frozenset[int]
    samples: int  # of an epoch
    fewer: tuple[float, ...] = ()


def reference(whole: Sequence[Outcome], fewer: Sequence[Outcome] = ()) -> Reference:
    """That of undisturbed runs, which have summaries."""
    summaries = [outcome.summary or {} for outcome in whole]
    return Reference(
        frozenset(s["params_sha256"] for s in summaries),
        tuple(s["test_accuracy"] for s in summaries),
        frozenset(s["steps"] for s in summaries),
        frozenset(s["updates"] for s in summaries),
        max(whole[0].samples.values()),
        tuple((outcome.summary or {})["test_accuracy"] for outcome in fewer),
    )


def judge(trial: Trial, outcome: Outcome, expected: Reference) -> list[str]:
    """All that is wrong, in words; nothing if the run is as good as undisturbed."""
    if outcome.hung:
        return [f"hung: not over after {outcome.seconds:.0f} s"]
    faults = [f"left {thing}" for thing in outcome.left]
    ending = [s for s in outcome.struck if not s.strike.survived]
    if len(outcome.ends) > len(ending):
        faults.append(f"ended unasked, one of: {', '.join(outcome.ends)}")
    if outcome.status:
        if len(ending) <= trial.restarts:
            faults.append(f"exit status {outcome.status}")
        elif not outcome.stderr.rstrip().rpartition("\n")[2].startswith(CAUSE):
            faults.append(f"exit status {outcome.status} without a cause")
        if outcome.summary is None and len(ending) > trial.restarts:
            return faults  # it has failed, and says so
    if outcome.summary is None:
        return [*faults, "no completion record"]
    if outcome.summary["skipped_steps"]:
        faults.append(f"{outcome.summary['skipped_steps']} steps were not finite")
    if any(struck.strike.loses for struck in outcome.struck):
        return faults + _with_losses(trial, outcome, outcome.summary, expected)
    return faults + _as_undisturbed(trial, outcome.summary, expected)


def _as_undisturbed(trial: Trial, summary: Mapping[str, Any], expected: Reference) -> list[str]:
    """Of a run that has lost nothing in the end."""
    faults = []
    for name, known in (("steps", expected.steps), ("updates", expected.updates)):
        if summary[name] not in known:
            faults.append(f"{summary[name]} {name}, undisturbed {_list(known)}")
    if trial.mode != "sync":
        faults += _accuracy(summary, expected.accuracies)
    elif summary["params_sha256"] not in expected.sha256:
        faults.append("other parameters than undisturbed")
    if summary.get("workers_lost"):
        faults.append(f"workers {summary['workers_lost']} are lost, nobody has touched them")
    return faults


def _with_losses(
    trial: Trial, outcome: Outcome, summary: Mapping[str, Any], expected: Reference
) -> list[str]:
    """Of a run that has gone on without somebody."""
    faults = _accuracy(summary, (*expected.accuracies, *expected.fewer))
    last = max(struck.attempt for struck in outcome.struck) if outcome.ends else 1
    losing = [s.strike for s in outcome.struck if s.strike.loses and s.attempt == last]
    known = {strike.rank - trial.servers for strike in losing}
    if unknown := set(summary["workers_lost"]) - known:
        faults.append(f"workers {sorted(unknown)} are lost, nobody has touched them")
    if outcome.ends:  # what was done twice is written down twice
        return faults
    faults += _samples(outcome, expected, len(losing))
    done, extra = sum(outcome.steps), len(losing)
    if trial.codec != "none":  # who leaves pushes once more: what feedback has kept back
        extra += trial.workers
    low = max(outcome.steps) if trial.mode == "sync" else done
    if not low <= summary["updates"] <= done + extra:
        faults.append(f"{summary['updates']} updates of {low} to {done + extra}")
    return faults


def _samples(outcome: Outcome, expected: Reference, lost: int) -> list[str]:
    """Each sample once: but for a step that was applied as its worker died, before it said so."""
    missing = 0
    for epoch, used in sorted(outcome.samples.items()):
        if used > expected.samples:
            return [f"epoch {epoch} has used {used} samples of {expected.samples}"]
        missing += expected.samples - used
    if missing > lost * BATCH:
        return [f"{missing} samples were not used, {lost} workers lost"]
    return []


def _accuracy(summary: Mapping[str, Any], known: Sequence[float]) -> list[str]:
    accuracy = summary["test_accuracy"]
    if max(min(known) - accuracy, accuracy - max(known)) <= TOLERANCE:
        return []
    return [f"accuracy {accuracy:.4f}, undisturbed {min(known):.4f} to {max(known):.4f}"]


def _list(values: frozenset[int]) -> str:
    return " or ".join(str(value) for value in sorted(values))
