"""The shard against a naive twin and a referee of its own, over thousands of arrival orders.

``shard_scenarios`` has the twin, ``shard_world`` the referee and the world. Here are the properties
and the messages one by one; ``test_shard_planted`` proves that the checks see what they should.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_scenarios import Ledger, Op, Scenario, draw_scenario, twin, with_duplicates
from shard_world import World, check_ledger, check_sync

from psgrad.chunk_state import Rules
from psgrad.errors import ConfigError, ProtocolError
from psgrad.layout import Layout, SegmentOptions
from psgrad.messages import NO_RATE, Header, Kind, Verdict
from psgrad.optimizers import SGD, Adam
from psgrad.schedules import Constant, StepDecay, Warmup
from psgrad.shard import Shard

randoms = st.randoms(use_true_random=False)
seeds = st.integers(0, 2**32 - 1)
BOUNDS = (1, 2, 3, None)


# Sync: bit for bit the twin


@settings(deadline=None, max_examples=150)
@given(randoms, seeds)
def test_sync_is_the_naive_twin_bit_for_bit(rng, seed):
    check_sync(draw_scenario(rng, bound=0), seed)


@settings(deadline=None, max_examples=25)
@given(randoms, seeds)
def test_sync_does_not_depend_on_order_grid_or_servers(rng, seed):
    scenario = draw_scenario(rng, bound=0)
    results = []
    for i, (chunk_bytes, servers) in enumerate([(64, 1), (64, 3), (128, 2), (0, 1)]):
        world = World(replace(scenario, chunk_bytes=chunk_bytes, servers=servers), seed + i)
        world.run()
        results.append(world.flat.tobytes())
    assert set(results) == {twin(scenario)[-1].tobytes()}


@settings(deadline=None, max_examples=50)
@given(randoms, seeds)
def test_sync_applies_a_duplicate_once(rng, seed):
    check_sync(with_duplicates(draw_scenario(rng, bound=0)), seed)


# Bounded staleness and async: the referee in World checks every answer


@pytest.mark.parametrize("bound", BOUNDS)
@settings(deadline=None, max_examples=60)
@given(randoms, seeds)
def test_no_answer_beyond_the_bound_and_none_too_late(bound, rng, seed):
    World(draw_scenario(rng, bound), seed).run()


@pytest.mark.parametrize("bound", BOUNDS)
@settings(deadline=None, max_examples=60)
@given(randoms, seeds)
def test_each_push_is_in_the_parameters_once_and_in_time(bound, rng, seed):
    check_ledger(Ledger.of(draw_scenario(rng, bound)), seed)


@pytest.mark.parametrize("bound", BOUNDS)
@settings(deadline=None, max_examples=25)
@given(randoms, seeds)
def test_a_duplicate_is_acknowledged_and_not_applied(bound, rng, seed):
    check_ledger(with_duplicates(Ledger.of(draw_scenario(rng, bound))), seed)


@settings(deadline=None, max_examples=40)
@given(randoms, st.lists(st.integers(0, 3), max_size=40))
def test_async_answers_everything_at_once(rng, order):
    desk = Desk(workers=4, bound=None, initial=0.0)
    for worker in order:
        kind = rng.choice([Kind.PUSH, Kind.STEP, Kind.PULL])
        assert [w for _, w, _ in desk.names(desk.send(kind, worker))] == [worker]


def test_the_largest_staleness_seen_is_exact():
    desk = Desk(workers=2, bound=3, initial=0.0)
    for clock in (1, 2):
        desk.send(Kind.STEP, 0)
        assert desk.shard.counters.staleness_max == clock
    desk.send(Kind.PUSH, 1)
    desk.send(Kind.STEP, 0)
    assert desk.shard.counters.staleness_max == 2
    desk.send(Kind.LEAVE, 1)
    desk.send(Kind.STEP, 0)
    assert desk.shard.counters.staleness_max == 2  # alone, nobody is ahead of anybody


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_push_without_pull_cannot_outrun_the_bound(bound):
    desk = Desk(workers=2, bound=bound, initial=0.0)
    for _ in range(bound + 4):
        desk.send(Kind.PUSH, 0)
    assert desk.state.clocks == {0: bound + 1, 1: 0}
    assert len(desk.state.parked[0]) == 3
    acknowledged = desk.names(desk.send(Kind.PUSH, 1))
    assert (Kind.ACK, 1, 1) in acknowledged
    assert desk.state.clocks == {0: bound + 2, 1: 1}


# One message at a time


class Desk:
    """One chunk of one shard, and workers that number their own pushes."""

    def __init__(self, workers, bound, initial=None, n=3, rules=None, options=()):
        self.layout = Layout.of({"a": np.zeros(n, np.float32)}, options)
        self.rules = rules or Rules(SGD(1.0), Constant(), bound)
        self.shard = Shard(self.layout, self.layout.chunks(), range(workers), self.rules)
        self.state = self.shard.chunks[0]
        self.clocks = [0] * workers
        if initial is not None:
            self.shard.handle(Header(Kind.INIT), self.full(initial))

    def full(self, value):
        return np.full(self.layout.size, value, np.float32)

    def send(self, kind, worker, value=None, weight=1.0, rate=NO_RATE):
        """Returns the replies; a push of None is a gradient of zeros, one of weight 0 is empty."""
        if kind is Kind.PUSH or kind is Kind.STEP:
            self.clocks[worker] += 1
            payload = self.full(0.0 if value is None else value) if weight else None
        else:
            payload, weight = None, 0.0
        header = Header(kind, worker=worker, clock=self.clocks[worker], weight=weight, rate=rate)
        return self.shard.handle(header, payload)

    @staticmethod
    def names(replies):
        return [(r.header.kind, r.header.worker, r.header.clock) for r in replies]


def test_parameters_are_served_only_after_they_have_a_value():
    desk = Desk(workers=2, bound=0)
    assert desk.send(Kind.PULL, 1) == []
    replies = desk.shard.handle(Header(Kind.INIT), desk.full(7.0))
    assert desk.names(replies) == [(Kind.ACK, 0, 0), (Kind.PARAMS, 1, 0)]
    np.testing.assert_array_equal(replies[1].params, desk.full(7.0))


def test_the_initial_value_is_copied_and_its_memory_released():
    desk = Desk(workers=1, bound=0)
    values = desk.full(7.0)
    (reply,) = desk.shard.handle(Header(Kind.INIT), values)
    assert reply.released is values
    values.fill(0.0)
    np.testing.assert_array_equal(desk.state.params, desk.full(7.0))


def test_a_round_is_one_update_with_the_weighted_mean():
    desk = Desk(workers=2, bound=0, initial=0.0)
    assert desk.send(Kind.STEP, 1, 4.0, weight=3.0) == []
    replies = desk.send(Kind.STEP, 0, 8.0, weight=1.0)
    assert desk.names(replies) == [(Kind.PARAMS, 0, 1), (Kind.PARAMS, 1, 1)]
    np.testing.assert_array_equal(desk.state.params, desk.full(-5.0))
    assert desk.state.version == desk.shard.counters.updates == 1
    assert all(reply.stable for reply in replies)


def test_a_push_of_the_next_round_does_not_take_the_place_of_this_one():
    desk = Desk(workers=2, bound=0, initial=0.0)
    assert desk.send(Kind.PUSH, 1, 10.0) == []
    assert desk.send(Kind.PUSH, 1, 1000.0) == []
    assert desk.names(desk.send(Kind.PUSH, 0, 20.0)) == [(Kind.ACK, 0, 1), (Kind.ACK, 1, 1)]
    np.testing.assert_array_equal(desk.state.params, desk.full(-15.0))


def test_a_worker_that_leaves_closes_the_round_it_held_up():
    desk = Desk(workers=3, bound=0, initial=0.0)
    desk.send(Kind.STEP, 0, 2.0)
    desk.send(Kind.STEP, 1, 4.0)
    replies = desk.send(Kind.LEAVE, 2)
    assert desk.names(replies) == [(Kind.PARAMS, 0, 1), (Kind.PARAMS, 1, 1)]
    np.testing.assert_array_equal(desk.state.params, desk.full(-3.0))


@pytest.mark.parametrize("bound", [0, 2, None])
def test_who_has_left_may_still_pull_a_copy(bound):
    desk = Desk(workers=2, bound=bound, initial=7.0)
    desk.send(Kind.LEAVE, 0)
    (reply,) = desk.send(Kind.PULL, 0)
    assert not reply.stable
    np.testing.assert_array_equal(reply.params, desk.full(7.0))


@pytest.mark.parametrize("bound", [0, 3, None])
def test_an_empty_push_moves_the_clock_and_nothing_else(bound):
    rules = Rules(Adam(0.1), Constant(), bound)
    desk = Desk(workers=1, bound=bound, initial=7.0, rules=rules)
    (reply,) = desk.send(Kind.STEP, 0, weight=0.0)
    assert (reply.header.verdict, reply.header.version) == (Verdict.SKIPPED, 0)
    assert reply.released is None
    np.testing.assert_array_equal(reply.params, desk.full(7.0))
    counters = desk.shard.counters
    assert (counters.pushes, counters.skipped, counters.updates) == (1, 1, 0)
    desk.send(Kind.STEP, 0, 1.0)
    np.testing.assert_allclose(desk.state.params, 6.9, rtol=1e-6)  # Adam's first step is the rate


@pytest.mark.parametrize("bound", [0, 3, None])
def test_duplicates_are_counted_and_give_their_memory_back(bound):
    desk = Desk(workers=1, bound=bound, initial=0.0)
    desk.send(Kind.PUSH, 0, 1.0)
    again = desk.full(1.0)
    (reply,) = desk.shard.handle(Header(Kind.PUSH, worker=0, clock=1, weight=1.0), again)
    assert (reply.header.kind, reply.header.verdict) == (Kind.ACK, Verdict.DUPLICATE)
    assert reply.released is again
    assert desk.shard.counters.duplicates == 1
    np.testing.assert_array_equal(desk.state.params, desk.full(-1.0))


@pytest.mark.parametrize(
    ("header", "payload", "text"),
    [
        (Header(Kind.PUSH, worker=0, clock=3, weight=1.0), 1.0, "clock 3 of chunk 0, expected 2"),
        (Header(Kind.PUSH, worker=1, clock=1, weight=1.0), 1.0, "worker 1 .* not a live member"),
        (Header(Kind.STEP, worker=9, clock=1, weight=1.0), 1.0, "worker 9 .* not a live member"),
        (Header(Kind.PUSH, worker=0, chunk=4, clock=2), None, "chunk 4 is not on this server"),
        (Header(Kind.PULL, worker=0, chunk=4), None, "chunk 4 is not on this server"),
        (Header(Kind.INIT, worker=0), 1.0, "takes one initial value"),
        (Header(Kind.ACK, worker=0), None, "does not handle ACK"),
        (Header(Kind.MEET, worker=0), None, "does not handle MEET"),
        (Header(Kind.PUSH, worker=0, clock=2, weight=0.0), 1.0, "weight 0.0"),
        (Header(Kind.PUSH, worker=0, clock=2, weight=-1.0), 1.0, "weight -1.0"),
        (Header(Kind.PUSH, worker=0, clock=2, weight=math.nan), 1.0, "weight nan"),
        (Header(Kind.PUSH, worker=0, clock=2, weight=math.inf), 1.0, "weight inf"),
        (Header(Kind.PUSH, worker=0, clock=2, weight=1.0), None, "weight 1.0"),
    ],
)
def test_messages_that_no_correct_worker_sends(header, payload, text):
    desk = Desk(workers=2, bound=None, initial=0.0)
    desk.send(Kind.PUSH, 0)
    desk.send(Kind.LEAVE, 1)
    with pytest.raises(ProtocolError, match=text):
        desk.shard.handle(header, None if payload is None else desk.full(payload))


def test_an_initial_value_must_have_one():
    desk = Desk(workers=1, bound=0)
    with pytest.raises(ProtocolError, match="takes one initial value"):
        desk.shard.handle(Header(Kind.INIT))


def test_what_a_leaver_has_pushed_comes_first():
    """It is live until its parked push is in a round; then nobody waits for it any more."""
    desk = Desk(workers=2, bound=0, initial=0.0)
    desk.send(Kind.PUSH, 0)
    desk.send(Kind.PUSH, 0)
    assert desk.send(Kind.LEAVE, 0) == []
    replies = desk.send(Kind.PUSH, 1)
    assert desk.names(replies) == [(Kind.ACK, 0, 1), (Kind.ACK, 1, 1)]
    replies = desk.send(Kind.PUSH, 1)
    assert sorted(desk.names(replies)) == [(Kind.ACK, 0, 2), (Kind.ACK, 1, 2)]
    (reply,) = desk.send(Kind.STEP, 1)
    assert (reply.header.kind, reply.header.worker) == (Kind.PARAMS, 1)


def test_a_non_member_does_not_push_and_is_not_waited_for():
    group = [SegmentOptions("a", members=(1,))]
    desk = Desk(workers=2, bound=0, initial=0.0, options=group)
    replies = desk.send(Kind.STEP, 1, 2.0)
    assert desk.names(replies) == [(Kind.PARAMS, 1, 1)]
    (reply,) = desk.send(Kind.PULL, 0)
    assert not reply.stable  # the group's next round does not wait for this reader
    with pytest.raises(ProtocolError, match="worker 0 pushes chunk 0 but is not a live member"):
        desk.send(Kind.PUSH, 0)


def test_an_empty_shard_lets_workers_leave():
    layout = Layout.of({"a": np.zeros(3, np.float32)})
    shard = Shard(layout, [], range(2), Rules(SGD(), Constant(), 0))
    assert shard.handle(Header(Kind.LEAVE, worker=0)) == []


def test_blocked_names_every_unanswered_message():
    desk = Desk(workers=2, bound=0)
    desk.send(Kind.PULL, 1)
    (text,) = desk.shard.blocked()
    assert text == "chunk 0: worker 1: the chunk has no initial value yet"
    desk.shard.handle(Header(Kind.INIT), desk.full(0.0))
    assert desk.shard.blocked() == []
    desk.send(Kind.PUSH, 0)
    desk.send(Kind.PUSH, 0)
    desk.send(Kind.PULL, 0)
    reasons = sorted(desk.shard.blocked())
    assert [text[: text.index(" ahead")] for text in reasons] == [
        "chunk 0: worker 0: clock 1 is 1",  # the push in the open round
        "chunk 0: worker 0: clock 2 is 2",  # the parked push
        "chunk 0: worker 0: clock 2 is 2",  # the pull
    ]
    assert all(text.endswith("worker 1 at clock 0; the staleness bound is 0") for text in reasons)


# Learning rates, schedules, options


def test_set_lr_takes_effect_at_its_clock_on_every_chunk_and_server():
    programs = (
        (Op(Kind.STEP), Op(Kind.STEP, rate=0.25), Op(Kind.STEP)),
        (Op(Kind.STEP), Op(Kind.STEP), Op(Kind.STEP)),
    )
    rules = Rules(SGD(1.0), Constant(), 0)
    scenario = Scenario((70, 40), (), 64, 3, programs, rules)
    check_sync(scenario, seed=1)
    first, second, third = (b - a for a, b in zip(twin(scenario), twin(scenario)[1:], strict=False))
    for update, clock, rate in [(first, 1, 1.0), (second, 2, 0.25), (third, 3, 0.25)]:
        mean = (scenario.grad(0, clock) + scenario.grad(1, clock)) / 2
        np.testing.assert_allclose(update, -rate * mean, atol=1e-6)


@pytest.mark.parametrize("bound", [0, 2, None])
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_set_lr_is_in_the_answer_to_the_push_that_carries_it(bound, weight):
    desk = Desk(workers=1, bound=bound, initial=0.0)
    (before,) = desk.send(Kind.PULL, 0)
    (after,) = desk.send(Kind.STEP, 0, weight=weight, rate=0.25)
    assert (before.header.rate, after.header.rate) == (1.0, 0.25)
    desk.send(Kind.STEP, 0, 8.0)
    np.testing.assert_array_equal(desk.state.params, desk.full(-2.0))


def test_a_parked_push_sets_the_rate_only_when_it_is_accepted():
    desk = Desk(workers=2, bound=1, initial=0.0)
    desk.send(Kind.PUSH, 0)
    desk.send(Kind.PUSH, 0)
    desk.send(Kind.PUSH, 0, rate=0.0)  # parked: worker 1 has not begun
    desk.send(Kind.PUSH, 1, 4.0)
    np.testing.assert_array_equal(desk.state.params, desk.full(-4.0))
    assert desk.state.rate == 0.0


def test_two_rates_in_one_round_are_an_error_that_names_the_workers():
    desk = Desk(workers=3, bound=0, initial=0.0)
    desk.send(Kind.PUSH, 2, rate=0.5)
    desk.send(Kind.PUSH, 1)
    with pytest.raises(
        ConfigError, match=r"rates at clock 1: worker 0 0\.25, worker 2 0\.5; in sy"
    ):
        desk.send(Kind.PUSH, 0, rate=0.25)


def test_the_same_rate_twice_in_one_round_is_fine():
    desk = Desk(workers=2, bound=0, initial=0.0)
    desk.send(Kind.PUSH, 0, rate=0.5)
    desk.send(Kind.PUSH, 1, rate=0.5)
    assert desk.state.rate == 0.5


def test_two_rates_without_rounds_take_effect_one_after_the_other():
    desk = Desk(workers=2, bound=3, initial=0.0)
    desk.send(Kind.PUSH, 0, 1.0, rate=0.5)
    desk.send(Kind.PUSH, 1, 1.0, rate=0.25)
    np.testing.assert_array_equal(desk.state.params, desk.full(-0.75))


def test_the_schedule_counts_rounds_in_sync_also_empty_ones():
    rules = Rules(SGD(1.0), StepDecay(2, 0.5), 0)
    desk = Desk(workers=2, bound=0, initial=0.0, rules=rules)
    moved = []
    for clock in range(1, 6):
        before = desk.state.params[0]
        for worker in (0, 1):
            desk.send(Kind.PUSH, worker, 1.0, weight=0.0 if clock == 2 else 1.0)
        moved.append(float(before - desk.state.params[0]))
    assert moved == [1.0, 0.0, 0.5, 0.5, 0.25]


def test_the_schedule_counts_applied_pushes_over_live_workers_otherwise():
    rules = Rules(SGD(1.0), Warmup(8), 9)
    desk = Desk(workers=4, bound=9, initial=0.0, rules=rules)
    for worker, weight in [(0, 1.0), (1, 1.0), (1, 0.0), (2, 1.0)]:  # an empty push is not applied
        desk.send(Kind.PUSH, worker, weight=weight)
    assert desk.state.position == 0.75
    desk.send(Kind.LEAVE, 2)
    desk.send(Kind.LEAVE, 3)
    desk.send(Kind.PUSH, 0)
    assert desk.state.position == 1.25
    desk.send(Kind.PUSH, 0, 8.0)
    np.testing.assert_allclose(desk.state.params, -(1.25 + 1), rtol=1e-6)


@pytest.mark.parametrize("bound", [0, 3])
def test_scale_and_decay_of_a_segment(bound):
    options = [SegmentOptions("a", learning_rate_scale=0.5, weight_decay=0.25)]
    rules = Rules(SGD(1.0, weight_decay=100.0), Constant(), bound)
    desk = Desk(workers=1, bound=bound, initial=4.0, rules=rules, options=options)
    desk.send(Kind.PUSH, 0, 1.0)
    np.testing.assert_array_equal(desk.state.params, desk.full(4.0 - 0.5 * (1.0 + 0.25 * 4.0)))


def test_a_segment_keeps_the_optimizers_decay_unless_it_says_otherwise():
    rules = Rules(SGD(1.0, weight_decay=0.5), Constant(), 0)
    for option, decay in [(None, 0.5), (0.0, 0.0)]:
        options = [SegmentOptions("a", weight_decay=option)]
        desk = Desk(workers=1, bound=0, initial=4.0, rules=rules, options=options)
        desk.send(Kind.PUSH, 0, 0.0)
        np.testing.assert_array_equal(desk.state.params, desk.full(4.0 - decay * 4.0))


def test_buffers_are_averaged_and_never_see_the_optimizer():
    buffer = [SegmentOptions("a", buffer=True)]
    rules = Rules(Adam(0.1, weight_decay=1.0), Constant(), 0)
    desk = Desk(workers=2, bound=0, initial=100.0, rules=rules, options=buffer)
    assert desk.state.slots == {}
    desk.send(Kind.PUSH, 0, 8.0, weight=3.0)
    desk.send(Kind.PUSH, 1, 4.0, weight=1.0)
    np.testing.assert_array_equal(desk.state.params, desk.full(7.0))


def test_buffers_move_by_one_workers_share_without_rounds():
    buffer = [SegmentOptions("a", buffer=True)]
    desk = Desk(workers=4, bound=None, initial=100.0, options=buffer)
    desk.send(Kind.PUSH, 0, 60.0)
    np.testing.assert_array_equal(desk.state.params, desk.full(90.0))
