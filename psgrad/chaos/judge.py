"""Whether what came of a run that was disturbed is what an undisturbed one gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from psgrad.chaos.trial import Trial

RESTART: Final = "psgrad: restart "
# Of accuracy: half a point, from the nearest undisturbed run. Those of 359 test samples that are
# not in sync mode differ by a quarter of a point (one standard deviation) among themselves, so half
# a point from their mean would take one good run in 25 for a wrong one.
TOLERANCE: Final = 0.005


@dataclass(frozen=True)
class Outcome:
    """What was seen of a run. ``summary`` is None without a completion record."""

    seconds: float
    status: int
    hung: bool = False
    summary: Mapping[str, Any] | None = None
    left: Sequence[str] = ()  # processes and files, in words
    killed: int = 0
    recoveries: Sequence[float] = field(default_factory=tuple)  # s, kill to the next step
    stderr: str = ""

    @property
    def ends(self) -> list[str]:
        """Why attempts have ended that were followed by another one, as the supervisor said."""
        lines = [line for line in self.stderr.splitlines() if line.startswith(RESTART)]
        return [line.rpartition("it ended with: ")[2] for line in lines]


@dataclass(frozen=True)
class Reference:
    """What undisturbed runs have come to: their parameters' digests, accuracies, steps."""

    sha256: frozenset[str]
    accuracies: tuple[float, ...]
    steps: frozenset[int]

    def distance(self, accuracy: float) -> float:
        """From the nearest of them; 0 between two."""
        return max(min(self.accuracies) - accuracy, accuracy - max(self.accuracies), 0.0)


def reference(summaries: Sequence[Mapping[str, Any]]) -> Reference:
    """That of undisturbed runs with these summaries."""
    return Reference(
        frozenset(s["params_sha256"] for s in summaries),
        tuple(s["test_accuracy"] for s in summaries),
        frozenset(s["steps"] for s in summaries),
    )


def judge(trial: Trial, outcome: Outcome, expected: Reference) -> list[str]:
    """All that is wrong, in words; nothing if the run is as good as undisturbed."""
    if outcome.hung:
        return [f"hung: not over after {outcome.seconds:.0f} s"]
    faults = [f"left {thing}" for thing in outcome.left]
    if len(outcome.ends) > outcome.killed:
        faults.append(f"ended unasked, one of: {', '.join(outcome.ends)}")
    if outcome.status:
        faults.append(f"exit status {outcome.status}")
    if outcome.summary is None:
        return [*faults, "no completion record"]
    steps, accuracy = outcome.summary["steps"], outcome.summary["test_accuracy"]
    if steps not in expected.steps:
        faults.append(f"{steps} steps, undisturbed {_list(expected.steps)}")
    if trial.mode == "sync":
        if outcome.summary["params_sha256"] not in expected.sha256:
            faults.append("other parameters than undisturbed")
    elif expected.distance(accuracy) > TOLERANCE:
        seen = f"{min(expected.accuracies):.4f} to {max(expected.accuracies):.4f}"
        faults.append(f"accuracy {accuracy:.4f}, undisturbed {seen}")
    if outcome.summary["skipped_steps"]:
        faults.append(f"{outcome.summary['skipped_steps']} steps were not finite")
    return faults


def _list(values: frozenset[int]) -> str:
    return " or ".join(str(value) for value in sorted(values))
