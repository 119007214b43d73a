"""What the checks on shards are worth: each planted bug must fail them."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from shard_scenarios import Ledger, draw_scenario, with_duplicates
from shard_world import World, check_ledger, check_sync

from psgrad import consistency
from psgrad import shard as shard_module
from psgrad.applying import Applier
from psgrad.chunk_state import fresh
from psgrad.errors import ProtocolError
from psgrad.messages import Kind, Verdict
from psgrad.shard import Shard


def loose(decide):
    return lambda clock, clocks, bound: decide(clock, clocks, None if bound is None else bound + 1)


class AppliesTwice(Shard):
    def _apply(self, state, pushes, position):
        super()._apply(state, pushes, position)
        super()._apply(state, pushes, position)


class AppliesDuplicates(Shard):
    def _push(self, state, push):
        if push.header.clock <= state.clocks[push.header.worker]:
            self._apply(state, [push], state.position)
        return super()._push(state, push)


class ForgetsToWakeWhenOneLeaves(Shard):
    def _leave(self, state, header):
        state.clocks.pop(header.worker, None)
        return []


class ForgetsToWakeWhenReady(Shard):
    def _initialise(self, state, push):
        return super()._initialise(state, push)[:1]


class WaitsForThoseWhoLeft(Shard):
    def _leave(self, state, header):
        return []


class LetsInBeforeTheRoundCloses(Shard):
    def _accepts(self, state, push):
        decision = consistency.may_accept(push.header.clock - 1, state.clocks, self.rules.bound)
        return state.ready and decision.allowed


class AcknowledgesBeforeTheRoundCloses(Shard):
    def _accept(self, state, push):
        early = super()._accept(state, push)
        if self.rules.bound == 0 and push.header.kind is Kind.PUSH:
            early = [self._answer(state, push.header, Kind.ACK, Verdict.APPLIED, push)]
        return early

    def _acknowledge(self, state, push):
        if self.rules.bound == 0 and push.header.kind is Kind.PUSH:
            return []
        return super()._acknowledge(state, push)


class ReleasesMemoryTooEarly(Shard):
    """Gives a gradient back with an answer to another message, while it is still needed."""

    def _answer(self, state, request, kind, verdict, push):
        reply = super()._answer(state, request, kind, verdict, push)
        still = [p.grad for p in state.round.values() if p.grad is not None]
        return reply._replace(released=still[0]) if still else reply


class PromisesStableParameters(Shard):
    def _answer(self, state, request, kind, verdict, push):
        return super()._answer(state, request, kind, verdict, push)._replace(stable=True)


class Planted(Shard):
    """A shard whose updates are those of ``applier``."""

    applier = Applier

    def __init__(self, layout, chunks, workers, rules):
        super().__init__(layout, chunks, workers, rules)
        self._applier = self.applier(rules, self._applier._updater, self.counters)


class CountsStepsFromZeroAgain(Planted):
    class applier(Applier):  # noqa: N801
        def _hyper(self, state, position):
            return super()._hyper(state, position)._replace(step=1)


class IgnoresTheRate(Planted):
    class applier(Applier):  # noqa: N801
        def set_rate(self, state, pushes):
            pass


class IgnoresTheSegmentsScale(Planted):
    class applier(Applier):  # noqa: N801
        def _hyper(self, state, position):
            hyper = super()._hyper(state, position)
            return hyper._replace(rate=hyper.rate / (state.options.learning_rate_scale or 1.0))


class TrainsBuffers(Shard):
    def __init__(self, layout, chunks, workers, rules):
        super().__init__(layout, chunks, workers, rules)
        for index, state in self.chunks.items():
            options = replace(state.options, buffer=False)
            self.chunks[index] = fresh(state.chunk, options, sorted(state.clocks), rules)


class ForgetsTheLargestStaleness(Shard):
    def _answer_pulls(self, state):
        self.counters.staleness_max = 0
        return super()._answer_pulls(state)


class TellsAnOldVersion(Shard):
    def _answer_pulls(self, state):
        before = state.params.copy()
        replies = super()._answer_pulls(state)
        state.params[:] = before
        return [
            r if r.params is None else r._replace(params=np.zeros_like(before)) for r in replies
        ]


PLANTED = [value for value in list(globals().values()) if isinstance(value, type)]
PLANTED = [kind for kind in PLANTED if issubclass(kind, Shard) and kind not in (Shard, Planted)]


def campaign(shard, rounds=40):
    """What ``test_shard`` does with random runs, over fixed seeds; the first failure ends it."""
    for seed in range(rounds):
        for bound in (0, 1, 3, None):
            scenario = draw_scenario(random.Random(seed), bound)
            if bound == 0:
                check_sync(scenario, seed, shard)
                check_sync(with_duplicates(scenario), seed, shard)
            else:
                World(scenario, seed, shard).run()
                check_ledger(Ledger.of(scenario), seed, shard)
                check_ledger(with_duplicates(Ledger.of(scenario)), seed, shard)


def test_the_campaign_passes_without_a_bug():
    campaign(Shard)


@pytest.mark.parametrize("shard", PLANTED)
def test_a_planted_bug_is_caught(shard):
    with pytest.raises((AssertionError, ProtocolError)):
        campaign(shard)


@pytest.mark.parametrize("name", ["may_answer", "may_accept"])
def test_a_bound_that_is_one_too_large_is_caught(name, monkeypatch):
    monkeypatch.setattr(shard_module, name, loose(getattr(consistency, name)))
    with pytest.raises(AssertionError):
        campaign(Shard)


def test_sums_in_arrival_order_are_caught(monkeypatch):
    monkeypatch.setattr(shard_module, "sorted", list, raising=False)
    with pytest.raises(AssertionError):
        campaign(Shard)
