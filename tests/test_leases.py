"""When silence counts as death: after the lease, or ten of a worker's own steps."""

from __future__ import annotations

from itertools import pairwise
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.leases import BEATS, REMEMBERED, STEPS, Leases

LEASE_S = 8.0


def heard(*messages, worker=0):
    """Leases of 8 s after messages (seconds, clock)."""
    leases = Leases(LEASE_S)
    for now_s, clock in messages:
        leases.heard(worker, clock, now_s)
    return leases


@pytest.mark.parametrize(
    ("messages", "limit_s"),
    [
        ([], LEASE_S),
        ([(0, 0), (5, 0)], LEASE_S),
        ([(0, 0), (5, 1)], LEASE_S),  # the first step has no beginning
        ([(0, 1), (0.5, 2)], LEASE_S),
        ([(0, 1), (2, 2)], 10 * 2.0),
        ([(0, 1), (2, 2), (3, 0), (4, 0)], 10 * 2.0),  # control messages are no steps
        ([(0, 1), (2, 2), (2.5, 2), (2.6, 1)], 10 * 2.0),  # nor are the other chunks of one
        ([(0, 1), (6, 4)], 10 * 2.0),  # three steps
        ([(0, 1), (1, 2), (2, 3), (102, 4)], 10 * 1.0),  # one that takes long is not the rule
        ([(0, 1), *((3.0 * i, 1 + i) for i in range(1, 40))], 10 * 3.0),
    ],
)
def test_how_long_a_worker_may_be_silent(messages, limit_s):
    assert heard(*messages).limit_s(0) == pytest.approx(limit_s)


@pytest.mark.parametrize(
    ("now_s", "silent"), [(8.0, {}), (8.5, {0: 8.5}), (-1.0, {}), (100.0, {0: 100.0})]
)
def test_silence(now_s, silent):
    assert heard((0, 0)).silent([0], now_s) == silent


def test_any_message_renews_a_lease():
    leases = heard((0, 0), (7, 0))
    assert leases.silent([0], 14.0) == {}
    assert leases.silent([0], 15.5) == {0: 8.5}


def test_who_was_never_heard_has_not_begun():
    assert heard((0, 0)).silent([0, 1], 100.0) == {0: 100.0}


def test_only_those_asked_for_count():
    assert heard((0, 0)).silent([], 100.0) == {}


def test_each_worker_has_steps_of_its_own():
    leases = heard((0, 1), (100, 2))
    for now_s in range(20):
        leases.heard(1, 1 + now_s, 100.0 + now_s)
    assert leases.silent([0, 1], 135.0) == {1: 16.0}


def test_who_could_hear_nobody_gives_everyone_a_new_lease():
    leases = heard((0, 0))
    leases.renew(1000.0)
    assert leases.silent([0, 1], 1008.0) == {}
    assert leases.silent([0, 1], 1009.0) == {0: 9.0}


def test_beats_come_several_times_in_a_lease():
    leases = Leases(LEASE_S)
    assert leases.beat_s * BEATS == LEASE_S
    assert BEATS > 2, "one may be late, and one is looked for late"


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.floats(0, 50), st.integers(0, 3)), min_size=1, max_size=60),
    st.floats(0, 500),
)
def test_the_limit_is_ten_of_the_last_steps_and_never_below_the_lease(moves, later_s):
    leases, now_s, clock = Leases(LEASE_S), 0.0, 1
    leases.heard(0, clock, now_s)
    steps = [(clock, now_s)]
    for pause_s, ahead in moves:
        now_s, clock = now_s + pause_s, clock + ahead
        leases.heard(0, clock if ahead else 0, now_s)
        if ahead:
            steps.append((clock, now_s))
    took = [(s - r) / (d - c) for (c, r), (d, s) in pairwise(steps)]
    limit_s = max([LEASE_S, *([STEPS * median(took[-REMEMBERED:])] if took else [])])
    assert leases.limit_s(0) == pytest.approx(limit_s)
    silent = leases.silent([0], now_s + later_s)
    if abs(later_s - limit_s) > 1e-6:
        assert bool(silent) == (later_s > limit_s)


def test_silence_is_looked_for_once_a_beat():
    leases = Leases(LEASE_S)
    leases.heard(0, 0, 0.0)
    beats = [leases.beat_s * i for i in range(1, 5)]
    assert [leases.over([0], now_s) for now_s in beats] == [{}] * 4
    late_s = LEASE_S + leases.beat_s / 2
    assert leases.over([0], late_s) == {}, "the next beat has not come"
    assert leases.over([0], LEASE_S + leases.beat_s) == {0: LEASE_S + leases.beat_s}


def test_who_did_not_get_on_itself_begins_again_with_all():
    leases = Leases(LEASE_S)
    leases.heard(0, 0, 0.0)
    assert leases.over([0], 10 * LEASE_S) == {}
    assert leases.silent([0], 10 * LEASE_S) == {}
