"""The staleness rule as a table, its reasons in words, and what follows from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgrad.consistency import (
    Decision,
    may_accept,
    may_answer,
    round_is_complete,
    slowest_clock,
)

clocks_of_workers = st.dictionaries(st.integers(0, 9), st.integers(0, 20), max_size=6)
bounds = st.one_of(st.none(), st.integers(0, 6))


@pytest.mark.parametrize(
    ("clock", "clocks", "bound", "allowed", "waits_for"),
    [
        (0, {0: 0, 1: 0}, 0, True, ()),
        (1, {0: 1, 1: 1}, 0, True, ()),
        (1, {0: 1, 1: 0}, 0, False, (1,)),
        (3, {0: 3, 1: 0}, 3, True, ()),
        (4, {0: 4, 1: 0}, 3, False, (1,)),
        (4, {0: 4, 1: 1}, 3, True, ()),
        (9, {0: 9, 2: 3, 1: 4, 3: 6}, 3, False, (1, 2)),
        (99, {0: 99, 1: 0}, None, True, ()),
        (7, {}, 0, True, ()),
        (0, {0: 5, 1: 9}, 0, True, ()),
    ],
)
def test_a_pull(clock, clocks, bound, allowed, waits_for):
    decision = may_answer(clock, clocks, bound)
    assert (decision.allowed, decision.waits_for) == (allowed, waits_for)
    assert (decision.clock, decision.bound) == (clock, bound)
    assert decision.slowest == min(clocks.values(), default=clock)


@given(st.integers(0, 20), clocks_of_workers, bounds)
def test_the_rule_in_one_line(clock, clocks, bound):
    ahead = clock - min([clock, *clocks.values()])
    assert may_answer(clock, clocks, bound).allowed == (bound is None or ahead <= bound)


@given(st.integers(1, 20), clocks_of_workers, bounds)
def test_a_push_is_accepted_when_the_pull_before_it_was_due(clock, clocks, bound):
    assert may_accept(clock, clocks, bound).allowed == may_answer(clock - 1, clocks, bound).allowed


@given(st.integers(0, 20), clocks_of_workers, bounds)
def test_who_is_waited_for_is_who_holds_it_up(clock, clocks, bound):
    decision = may_answer(clock, clocks, bound)
    assert decision.allowed == (not decision.waits_for)
    caught_up = {w: clock if w in decision.waits_for else c for w, c in clocks.items()}
    assert may_answer(clock, caught_up, bound).allowed


@given(st.integers(0, 20), clocks_of_workers, bounds, st.integers(0, 9))
def test_progress_never_takes_a_permission_away(clock, clocks, bound, worker):
    if may_answer(clock, clocks, bound).allowed:
        gone = {w: c for w, c in clocks.items() if w != worker}
        further = {w: c + (w == worker) for w, c in clocks.items()}
        assert may_answer(clock, gone, bound).allowed
        assert may_answer(clock, further, bound).allowed


@given(clocks_of_workers.filter(bool), bounds)
def test_the_slowest_worker_may_always_go_on(clocks, bound):
    slowest = min(clocks.values())
    assert may_answer(slowest, clocks, bound).allowed
    assert may_accept(slowest + 1, clocks, bound).allowed


@pytest.mark.parametrize(
    ("clock", "clocks", "complete"),
    [
        (1, {0: 1, 1: 1}, True),
        (1, {0: 1, 1: 0}, False),
        (1, {1: 1}, True),
        (1, {}, True),
    ],
)
def test_a_round(clock, clocks, complete):
    assert round_is_complete(clock, clocks) is complete


def test_the_slowest_clock():
    assert slowest_clock({3: 5, 1: 2}, otherwise=9) == 2
    assert slowest_clock({}, otherwise=9) == 9


def test_reasons_in_words():
    assert may_answer(4, {0: 4, 1: 0, 2: 0, 3: 4}, 3).reason == (
        "clock 4 is 4 ahead of worker 1, worker 2 at clock 0; the staleness bound is 3"
    )
    assert may_answer(4, {0: 4, 1: 1}, 3).reason == ("clock 4 is within 3 of the slowest clock 1")
    assert Decision(True, 4, 0, None).reason == "clock 4 may go on: there is no staleness bound"
