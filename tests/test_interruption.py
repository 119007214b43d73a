"""What the checks of checkpoints in rehearsed runs are worth: each planted bug must fail them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from psgrad import shard as shard_module
from psgrad import shard_state
from psgrad.committing import Committing
from psgrad.cuts import Marks
from psgrad.errors import PsgradError
from psgrad.invariants import CheckedShard
from psgrad.references import References
from psgrad.rehearsal import run
from psgrad.resuming import Resuming
from psgrad.saving import ServerSaving
from psgrad.scenario import Scenario
from psgrad.shard import Shard
from psgrad.transport.clockwork import RankError
from psgrad.worker import Worker

PARETO = "pareto:mean=0.001,alpha=1.2"
STRAGGLER = "constant:seconds=0.001;slow:worker=0,factor=7"
SYNC = Scenario(0, workers=3, servers=2, steps=6, checkpoints="2", pace=PARETO, jitter=5.0)
ASYNC = replace(SYNC, bound=None, chunk_bytes=4096)
BOUNDED = replace(ASYNC, bound=1, pushes=0.5, window=4, steps=8)
KINDS = {
    "sync": SYNC,
    "sync, another number": replace(SYNC, then_workers=2, then_servers=3),
    "sync, residuals": replace(SYNC, codec="topk:0.1", optimizer="adam"),
    "sync, differences": replace(SYNC, pull_codec="topk:0.2"),
    "sync, ahead of the cut": replace(SYNC, checkpoints="1", overlaps=1.0, pushes=0.3, drops=0.2),
    "sync, by the clock": replace(SYNC, checkpoints="0.002s", steps=8),
    "async": ASYNC,
    "async, a straggler": replace(ASYNC, checkpoints="1", pace=STRAGGLER),
    "async, another number": replace(ASYNC, codec="topk:0.1", then_workers=2),
    "async, residuals": replace(ASYNC, codec="topk:0.1"),
    "bounded": BOUNDED,
    "bounded, by the clock": replace(BOUNDED, checkpoints="0.003s", overlaps=0.5),
    "bounded, a window of one": replace(BOUNDED, checkpoints="1", window=1, overlaps=0.5),
}
SEEDS = range(8)


def failure(scenario, shard=CheckedShard):
    """Why one of a few seeds does not pass; None if all do."""
    try:
        for seed in SEEDS:
            run(replace(scenario, seed=seed), shard=shard)
    except PsgradError as error:
        return error.__cause__ if isinstance(error, RankError) else error
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_bug_they_pass(kind):
    assert failure(KINDS[kind]) is None


# Bugs of shards


class IgnoresMarkers(Shard):
    def mark(self, worker, number, clock):
        pass


class DoesNotWakeUp(Shard):
    def resume(self):
        self._marks.use_up()
        return []


class CutsTooEarly(Shard):
    """Without the marker of the last worker."""

    def cut(self):
        return self._marks.complete(self._live - {max(self._live)})


class ForgetsClocks(Shard):
    def load(self, clocks, records, source, rate=None):
        super().load(dict.fromkeys(clocks, 0), records, source, rate)


class ForgetsVersions(Shard):
    def load(self, clocks, records, source, rate=None):
        records = {i: {**record, "version": 0} for i, record in records.items()}
        super().load(clocks, records, source, rate)


@pytest.mark.parametrize(
    ("shard", "kind", "text"),
    [
        (IgnoresMarkers, "sync", "too much"),
        (DoesNotWakeUp, "async", "is missing"),
        (CutsTooEarly, "sync", ""),
        (ForgetsClocks, "async", "staleness"),
        (ForgetsVersions, "sync, residuals", "ends differently"),
    ],
)
def test_a_planted_bug_of_shards_is_caught(shard, kind, text):
    error = failure(KINDS[kind], type("Planted", (CheckedShard, shard), {}))
    assert isinstance(error, PsgradError)
    assert text in str(error)


# Bugs of all that is beside them


def lets_in_what_is_behind_a_marker(patch):
    patch.setattr(Marks, "holds", lambda self, worker, clock: False)


def holds_back_one_too_many(patch):
    holds = Marks.holds
    patch.setattr(Marks, "holds", lambda self, worker, clock: holds(self, worker, clock + 1))


def saves_no_residuals(patch):
    encoder_state = Resuming.encoder_state
    patch.setattr(
        Resuming,
        "encoder_state",
        lambda self, worker, mine: {
            name: 0 * array for name, array in encoder_state(self, worker, mine).items()
        },
    )


def forgets_the_rate_of_residuals(patch):
    """So that what was held back is worth something else."""
    encoder_state = Resuming.encoder_state
    patch.setattr(
        Resuming,
        "encoder_state",
        lambda self, worker, mine: {
            **encoder_state(self, worker, mine),
            "feedback.rate": np.ones(1),
        },
    )


def saves_no_references(patch):
    patch.setattr(References, "for_all", lambda self: None)


def loses_slots(patch):
    load = shard_state.load

    def without(state, record, source):
        parked = load(state, record, source)
        for slot in state.slots.values():
            slot.fill(0)
        return parked

    patch.setattr(shard_state, "load", without)


def begins_one_clock_later(patch):
    clock_of = Resuming.clock_of
    patch.setattr(Resuming, "clock_of", lambda self, worker: clock_of(self, worker) + 1)


def swaps_rows(patch):
    row = Resuming._row
    swapped = {0: 1, 1: 0}
    patch.setattr(
        Resuming, "_row", lambda self, worker, name: row(self, swapped.get(worker, worker), name)
    )


def swaps_records(patch):
    record_of = Resuming.record_of
    swapped = {0: 1, 1: 0}
    patch.setattr(
        Resuming, "record_of", lambda self, worker: record_of(self, swapped.get(worker, worker))
    )


def gives_everyone_all_residuals(patch):
    patch.setattr(Resuming, "_shares", lambda self, plain: dict.fromkeys(sorted(self._clocks), 1.0))


def loses_parked_pushes(patch):
    patch.setattr(shard_state, "_before", lambda state, marks: ())


def saves_what_is_behind_a_marker(patch):
    patch.setattr(
        shard_state,
        "_before",
        lambda state, marks: [push for queue in state.parked.values() for push in queue],
    )


def takes_the_latest_record(patch):
    def marked(self, worker, record):
        waiting = self._marked[worker]
        waiting.append(record)
        for i in range(len(waiting)):
            waiting[i] = record

    patch.setattr(Committing, "marked", marked)


def takes_the_latest_rows(patch):
    marked = ServerSaving.marked

    def latest(self, worker, rows, now_s):
        marked(self, worker, rows, now_s)
        waiting = self._marked[worker]
        for i in range(len(waiting)):
            waiting[i] = waiting[-1]

    patch.setattr(ServerSaving, "marked", latest)


def keeps_nothing_before_the_first_step(patch):
    keep = Worker.keep

    def late(self, name, part):
        did = keep(self, name, part)
        self._live().marking.kept = {}
        return did

    patch.setattr(Worker, "keep", late)


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (lets_in_what_is_behind_a_marker, "async"),
        (lets_in_what_is_behind_a_marker, "bounded"),
        (holds_back_one_too_many, "bounded"),
        (saves_no_residuals, "sync, residuals"),
        (saves_no_residuals, "async, residuals"),
        (saves_no_residuals, "async, another number"),
        (forgets_the_rate_of_residuals, "sync, residuals"),
        (saves_no_references, "sync, differences"),
        (loses_slots, "sync, residuals"),
        (begins_one_clock_later, "sync"),
        (begins_one_clock_later, "async"),
        (swaps_rows, "sync, residuals"),
        (swaps_records, "async"),
        (gives_everyone_all_residuals, "async, another number"),
        (loses_parked_pushes, "bounded"),
        (saves_what_is_behind_a_marker, "async"),
        (takes_the_latest_record, "sync, ahead of the cut"),
        (takes_the_latest_rows, "sync, ahead of the cut"),
        (keeps_nothing_before_the_first_step, "async, a straggler"),
    ],
)
def test_a_planted_bug_is_caught(monkeypatch, plant, kind):
    plant(monkeypatch)
    assert isinstance(failure(KINDS[kind]), PsgradError)


def test_shard_module_is_what_the_shard_asks():
    """The patches above reach what runs."""
    assert shard_module.shard_state is shard_state
