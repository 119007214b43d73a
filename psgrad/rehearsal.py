"""Runs a scenario in the simulator, with the real workers, servers and sessions, and checks it.

After every message is checked what must hold (``invariants``), and at the end

- that every worker pulls the same parameters;
- in sync mode without codecs, that they are those of a plain loop over whole arrays, bit for bit;
- with plain SGD where nothing may be lost, that the sum of all updates is that of all gradients;
- with checkpoints, that they change nothing and that a run goes on from them (``interruption``);
- where ranks die, that the others go on and nothing is lost or applied twice (``survival``);
- in sync mode with replicas, where no worker dies, that the parameters are those of a run without.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from psgrad import guard, interruption, survival
from psgrad.checkpoint import Checkpoint, found
from psgrad.codecs.feedback import NOT_FED_BACK
from psgrad.invariants import CheckedShard, InvariantError
from psgrad.layout import Float32, Layout
from psgrad.scenario import LEARNING_RATE, Scenario
from psgrad.shard import Shard
from psgrad.toy import Played, play
from psgrad.transport.trace import Sink


@dataclass
class Outcome:
    """What a scenario came to."""

    seconds: float  # virtual
    messages: int
    updates: int
    params: Float32
    compared: list[str] = field(default_factory=list)  # with what


def run(
    scenario: Scenario, *, shard: type[Shard] = CheckedShard, trace: Sink | None = None
) -> Outcome:
    """Runs a scenario and checks it, and, where it has checkpoints, what they promise.

    Raises ``InvariantError``, or whatever ended the simulation: ``RankError`` with an
    ``InvariantError`` of a server behind it, ``StallError``, ``AliasingError``.
    """
    if scenario.has_losses:
        return _run_with_losses(scenario, shard, trace)
    nothing = np.zeros(sum(scenario.sizes))
    if not scenario.checkpoints:
        played = play(scenario, shard, trace=trace)
        return _outcome(played, _compare(scenario, played, nothing, twin=True))
    with _folder() as made:
        folder = Path(made)
        played = play(scenario, shard, trace=trace, checkpoints=folder / "0")
        compared = _compare(scenario, played, nothing, twin=True)
        said, runs = interruption.check(scenario, played, folder, shard)
    compared += said
    for each in runs:
        compared += [
            f"{what} of a run that goes on"
            for what in _compare(each.scenario, each.played, each.before, twin=False)
        ]
    return _outcome(played, compared)


def _folder() -> TemporaryDirectory[str]:
    memory = Path("/dev/shm")  # where it is there, a file that is to reach the disk costs nothing
    return TemporaryDirectory(dir=memory if memory.is_dir() else None)


def _run_with_losses(scenario: Scenario, shard: type[Shard], trace: Sink | None) -> Outcome:
    with _folder() as made:
        folder = Path(made) if scenario.checkpoints else None
        played = play(scenario, shard, trace=trace, checkpoints=folder)
        compared = survival.check(
            scenario, played.books, played.ends, played.warnings, played.servers_died
        )
        if scenario.replicas and scenario.bound == 0 and not scenario.loses_workers:
            undisturbed = play(scenario.calm, shard).told[0]
            if undisturbed.params.tobytes() != played.told[0].params.tobytes():
                raise InvariantError("a run with replicas ends with other parameters")
            compared.append("undisturbed")
        paths = [] if folder is None else found(folder)
        for path in paths:
            Checkpoint.open(path)
        if folder is not None and paths:
            path = paths[scenario.chosen(len(paths))]
            going_on = play(scenario.resumed().calm, shard, checkpoints=folder / "1", resume=path)
            if len({told.params.tobytes() for told in going_on.told}) > 1:
                raise InvariantError(f"workers that go on from {path.name} end differently")
            compared.append("resumed after losses")
    return _outcome(played, compared)


def _outcome(played: Played, compared: list[str]) -> Outcome:
    return Outcome(
        played.seconds,
        played.messages,
        max(told.updates for told in played.told),
        played.told[0].params,
        compared,
    )


def _compare(
    scenario: Scenario, played: Played, before: NDArray[np.float64], twin: bool
) -> list[str]:
    """What a run was compared with; ``before`` is the sum of what runs before it have pushed.

    ``twin``: it began at the start, so that a plain loop ends like it.
    """
    params = played.told[0].params
    for worker, told in enumerate(played.told):
        if told.params.tobytes() != params.tobytes():
            raise InvariantError(f"worker {worker} and worker 0 end with different parameters")
    compared = ["workers"]
    if twin and scenario.bound == 0 and scenario.codec == scenario.pull_codec == "none":
        if naive_sync(scenario).tobytes() != params.tobytes():
            raise InvariantError("sync differs from the plain loop over whole arrays")
        compared.append("twin")
    codec = scenario.codec.partition(":")[0]
    # An unbiased codec without feedback loses here and finds there.
    lossy = codec != "none" and (codec in NOT_FED_BACK or scenario.feedback not in ("auto", "ef"))
    if scenario.bound != 0 and scenario.optimizer == "sgd" and not lossy:
        start = np.concatenate(list(scenario.arrays().values()))
        total = before + sum(told.pushed[-1] for told in played.told)
        moved = start - LEARNING_RATE * total
        size = 1.0 + np.abs(start).max() + LEARNING_RATE * np.abs(total).max()
        error = float(np.abs(moved - params).max())
        if error > 1e-4 * size:
            raise InvariantError(f"the updates differ from the sum of gradients by {error:g}")
        compared.append("mass")
    return compared


def naive_sync(scenario: Scenario) -> Float32:
    """The parameters after synchronous training: one loop, one process, whole arrays."""
    params = np.concatenate(list(scenario.arrays().values()))
    rule, layout = scenario.rule, Layout.of(scenario.arrays())
    slots, scratch = rule.init(params.size), np.zeros((2, params.size), np.float32)
    seen = [params.copy() for _ in range(scenario.workers)]
    updates = 0
    for step in range(1, scenario.steps + 1):
        live = [w for w in range(scenario.workers) if scenario.steps_of(w) >= step]
        grads = {w: scenario.gradient(w, step, seen[w]) for w in live}
        sent = {w: g for w, g in grads.items() if np.isfinite(g).all()}
        weights = {w: scenario.weight(w, step) for w in sent}
        if sent:
            total = sum(weights.values())
            for g in sent.values():
                verdict = guard.check(g, layout, layout.segments, scenario.clip_norm)
                g *= np.float32(verdict.scale)
            terms = [g * np.float32(weights[w] / total) for w, g in sent.items()]
            mean = terms[0]
            for term in terms[1:]:
                mean = mean + term
            updates += 1
            rule.apply(params, mean, slots, updates, LEARNING_RATE, rule.weight_decay, scratch)
        for w in live:
            if not scenario.is_push(w, step):
                seen[w] = params.copy()
    return params
