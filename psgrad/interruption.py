"""What checkpoints of a rehearsed run have to promise: cuts change nothing, and no push is lost.

A run with checkpoints is compared with the same one without. Then a run goes on from one of its
checkpoints, and another one from a checkpoint of that. In sync mode, with as many workers, the end
is the same bit for bit; elsewhere, where no gradient may be lost, the updates are the sum of what
was pushed before the cuts and what was pushed behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from psgrad.checkpoint import Checkpoint, found
from psgrad.cuts import Every
from psgrad.invariants import InvariantError
from psgrad.scenario import Scenario
from psgrad.shard import Shard
from psgrad.toy import Played, Told, play

GENERATIONS = 2  # runs that go on from a checkpoint, one from the other's


@dataclass(frozen=True)
class Interrupted:
    """A run that went on from a checkpoint, and what had been pushed up to it, float64[n]."""

    scenario: Scenario
    played: Played
    before: NDArray[np.float64]


def check(
    scenario: Scenario, played: Played, folder: Path, shard: type[Shard]
) -> tuple[list[str], list[Interrupted]]:
    """What was compared, and all runs that went on; ``folder/0`` has what ``played`` wrote.

    Raises ``InvariantError``, and whatever ends a simulation.
    """
    said = []
    _check_all_are_there(scenario, played, folder / "0", 0)
    if scenario.bound == 0 and scenario.codec != "adaptive":
        without = play(scenario, shard)
        if without.told[0].params.tobytes() != played.told[0].params.tobytes():
            raise InvariantError("with checkpoints, a run ends with other parameters than without")
        said.append("no checkpoints")
    runs: list[Interrupted] = []
    before = np.zeros(sum(scenario.sizes))
    now, last = scenario, played
    for generation in range(1, GENERATIONS + 1):
        paths = found(folder / str(generation - 1))
        if not paths:
            break
        path = paths[now.chosen(len(paths))]
        following = now.resumed()
        here = folder / str(generation)
        clocks = _clocks(path)
        going_on = play(following, shard, checkpoints=here, resume=path)
        before = before + _pushed(last, clocks)
        same_number = following.workers == now.workers
        if same_number:
            _check_places(last, going_on, clocks)
        if same_number and _repeats(now, last, clocks):
            if going_on.told[0].params.tobytes() != last.told[0].params.tobytes():
                raise InvariantError(f"a run that goes on from {path.name} ends differently")
            said.append("resumed")
        _check_all_are_there(following, going_on, here, min(clocks.values()))
        runs.append(Interrupted(following, going_on, before))
        now, last = following, going_on
    return said, runs


def _check_all_are_there(scenario: Scenario, played: Played, folder: Path, start: int) -> None:
    """In sync mode by steps: one at each multiple that any worker has come to."""
    every = Every.parse(scenario.checkpoints)
    if played.warnings and not (scenario.bound == 0 and every.seconds):
        raise InvariantError(f"a checkpoint failed: {played.warnings[0]}")
    if scenario.bound != 0 or not every.steps:
        return
    # Which worker a step is of is known by its clock; what is behind the last is a residual.
    last = max(told.clocks[-1] for told in played.told)
    wanted = {step for step in range(start + 1, last + 1) if step % every.steps == 0}
    there = {Checkpoint.open(path).manifest.step for path in found(folder)}
    if there != wanted:
        raise InvariantError(f"checkpoints {sorted(there)} are there instead of {sorted(wanted)}")


def _clocks(path: Path) -> dict[int, int]:
    state = Checkpoint.open(path).manifest.state
    return {int(worker): clock for worker, clock in state["clocks"].items()}


def _pushed(played: Played, clocks: Mapping[int, int]) -> NDArray[np.float64]:
    """The sum of all gradients up to ``clocks``; of workers that had left, all."""
    total = np.zeros_like(played.told[0].pushed[0])
    for worker, told in enumerate(played.told):
        total += told.at(clocks.get(worker))[1]
    return total


def _check_places(before: Played, after: Played, clocks: Mapping[int, int]) -> None:
    slowest = min(clocks.values())
    for worker, (old, new) in enumerate(zip(before.told, after.told, strict=True)):
        wanted = (clocks.get(worker, slowest), old.at(clocks.get(worker))[0])
        got = (new.clocks[0], new.done[0])
        if got != wanted:
            raise InvariantError(
                f"worker {worker} goes on at (clock, step) {got}, the checkpoint is at {wanted}"
            )


def _repeats(scenario: Scenario, played: Played, clocks: Mapping[int, int]) -> bool:
    """Whether a run that goes on has all that this one had."""
    if scenario.bound != 0 or scenario.codec == "adaptive":
        return False
    # Behind a push alone a worker computes with older parameters, which are in no checkpoint.
    return not any(_ends_with_push(scenario, played.told[w], w, c) for w, c in clocks.items())


def _ends_with_push(scenario: Scenario, told: Told, worker: int, clock: int) -> bool:
    return scenario.is_push(worker, told.at(clock)[0])
