"""When a checkpoint is due, who marks, what a marker holds back, and when a cut is complete."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.cuts import Announcement, Cut, CutPlan, Every, Markers, Marks
from psgrad.errors import ConfigError, ProtocolError


@pytest.mark.parametrize(
    ("text", "every"),
    [
        ("", Every()),
        ("1", Every(steps=1)),
        ("500", Every(steps=500)),
        ("007", Every(steps=7)),
        ("600s", Every(seconds=600.0)),
        ("0.5s", Every(seconds=0.5)),
        ("2.s", Every(seconds=2.0)),
    ],
)
def test_how_often(text, every):
    assert Every.parse(text) == every
    assert bool(every) == bool(text)


@pytest.mark.parametrize(
    "text",
    ["0", "0s", "0.0s", "-1", "5x", "5 s", " 5", "5\n", "1.5", ".5s", "1e3s", "s", "never", "nan",
     "infs", "1" * 13, "\u0665", "5S"],
)  # fmt: skip
def test_how_often_cannot_be(text):
    text_of = "checkpoint_every must be a number of steps of at least 1, such as 500, or of seconds"
    with pytest.raises(ConfigError, match=re.escape(text_of) + f".*{re.escape(repr(text))}"):
        Every.parse(text)


# When a worker marks


def test_in_sync_mode_by_steps_each_worker_knows_by_itself():
    markers = Markers(Every(steps=3), bound=0)
    assert [clock for clock in range(10) if markers.due(clock)] == [3, 6, 9]
    assert markers.due(6) == 6
    assert not markers.asked


def test_a_cut_is_marked_once():
    markers = Markers(Every(steps=3), bound=0, last=3)
    assert [markers.due(clock) for clock in (3, 4, 6)] == [None, None, 6]


def test_who_began_with_a_checkpoint_makes_no_older_one():
    markers = Markers(Every(steps=2), bound=0, last=7)
    assert [markers.due(clock) for clock in (4, 6, 7, 8)] == [None, None, None, 8]


@pytest.mark.parametrize("bound", [1, None])
def test_elsewhere_a_worker_marks_where_it_is_when_it_is_asked(bound):
    markers = Markers(Every(steps=3), bound)
    assert [markers.due(clock) for clock in range(10)] == [None] * 10
    markers.announced = Announcement(4, 0)
    assert markers.asked
    assert markers.due(0) == 4
    assert markers.due(9) == 4
    markers.last = 4
    assert not markers.asked
    assert markers.due(9) is None


def test_in_sync_mode_by_seconds_all_mark_at_the_clock_that_was_said():
    markers = Markers(Every(seconds=1.0), bound=0, announced=Announcement(6, 6))
    assert [markers.due(clock) for clock in (4, 5, 6, 7)] == [None, None, 6, 6]


def test_without_checkpoints_nobody_marks():
    assert [Markers(bound=bound).due(clock) for bound in (0, 1, None) for clock in (0, 1)] == (
        [None] * 6
    )


# What a shard holds back


def test_a_push_behind_a_marker_waits_and_others_do_not():
    marks = Marks()
    marks.put(1, 5, clock=5)
    assert [marks.holds(1, clock) for clock in (4, 5, 6, 7)] == [False, False, True, True]
    assert not marks.holds(0, 6)
    assert marks.missing({0, 1, 2}) == [0, 2]
    assert marks.complete({0, 1, 2}) is None


def test_the_last_marker_completes_the_cut():
    marks = Marks()
    marks.put(2, 7, clock=9)
    marks.put(0, 7, clock=4)
    assert marks.complete({0, 2}) == Cut(7, {0: 4, 2: 9})
    assert marks.complete({0, 2}) == Cut(7, {0: 4, 2: 9}), "it stays open until it is used up"
    marks.use_up()
    assert not marks.holds(2, 10)
    assert marks.complete({0, 2}) is None
    assert marks.missing({0, 2}) == []


def test_who_leaves_is_not_waited_for_and_who_has_marked_stays_in():
    marks = Marks()
    marks.put(0, 3, clock=3)
    assert marks.complete({0, 1}) is None
    assert marks.complete({0}) == Cut(3, {0: 3})
    assert marks.complete(set()) == Cut(3, {0: 3}), "the marker came before it left"


def test_no_cut_without_a_marker():
    assert Marks().complete(set()) is None
    assert Marks().complete({0, 1}) is None
    assert Marks().missing({0, 1}) == []


def test_a_worker_may_be_at_its_next_marker():
    marks = Marks()
    marks.put(0, 1, clock=1)
    marks.put(0, 2, clock=2)
    assert marks.holds(0, 2), "by its first one"
    marks.put(1, 1, clock=1)
    assert marks.complete({0, 1}) == Cut(1, {0: 1, 1: 1})
    marks.use_up()
    assert not marks.holds(0, 2)
    assert marks.holds(0, 3)
    assert marks.missing({0, 1}) == [1]


def test_markers_of_different_cuts_are_no_cut():
    marks = Marks()
    marks.put(0, 1, clock=1)
    marks.put(1, 2, clock=2)
    with pytest.raises(
        ProtocolError, match=re.escape("workers mark different checkpoints: [1, 2]")
    ):
        marks.complete({0, 1})


@settings(derandomize=True, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 4))
def test_in_any_order_cuts_come_out_as_they_were_marked(data, workers, cuts):
    """Markers of a worker in order, those of different workers in any; some leave after theirs."""
    clocks = {w: sorted(data.draw(st.sets(st.integers(0, 30), min_size=cuts, max_size=cuts)))
              for w in range(workers)}  # fmt: skip
    given_up = {w: data.draw(st.integers(1, cuts)) for w in range(1, workers)}
    left = dict.fromkeys(range(workers), 0)
    live, marks, seen = set(range(workers)), Marks(), []
    while any(left[w] < given_up.get(w, cuts) for w in live):
        w = data.draw(st.sampled_from([w for w in live if left[w] < given_up.get(w, cuts)]))
        marks.put(w, left[w] + 1, clocks[w][left[w]])
        left[w] += 1
        if left[w] == given_up.get(w, cuts) and w in given_up:
            live.discard(w)
        while (cut := marks.complete(live)) is not None:
            seen.append(cut)
            marks.use_up()
    expected = [
        Cut(n, {w: clocks[w][n - 1] for w in range(workers) if given_up.get(w, cuts) >= n})
        for n in range(1, cuts + 1)
    ]
    assert seen == expected
    assert not any(marks.holds(w, 1000) for w in range(workers))


# When the coordinator wants one


def plan(every, bound, **clocks):
    return CutPlan(Every.parse(every), bound, {int(k[1:]): v for k, v in clocks.items()})


def test_by_steps_of_a_worker_in_the_mean():
    made = plan("3", None, w0=0, w1=0)
    assert made.announce(0.0) is None
    made.saw(0, 5)
    assert made.announce(1.0) is None, "5 steps of 2 workers"
    made.saw(1, 1)
    assert made.announce(2.0) == Announcement(3, 0)
    assert made.under_way
    made.saw(0, 50)
    assert made.announce(3.0) is None, "one at a time"
    made.under_way = False
    assert made.announce(4.0) == Announcement(25, 0)


def test_an_old_clock_does_not_count_again():
    made = plan("1", 2, w0=0)
    made.announce(0.0)
    made.saw(0, 4)
    made.saw(0, 2)
    assert made.clocks == {0: 4}


def test_by_seconds():
    made = plan("10s", None, w0=0)
    assert made.announce(100.0) is None
    made.saw(0, 8)
    assert made.announce(109.9) is None
    assert made.announce(110.0) == Announcement(8, 0)
    made.under_way = False
    assert made.announce(130.0) is None, "nothing has been pushed since"
    made.saw(0, 9)
    assert made.announce(130.0) == Announcement(9, 0)


def test_in_sync_mode_by_seconds_at_a_clock_that_nobody_is_behind():
    made = plan("10s", 0, w0=4, w1=4)
    made.announce(0.0)
    made.saw(1, 5)
    assert made.announce(10.0) == Announcement(6, 6)


def test_in_sync_mode_by_steps_there_is_nothing_to_announce():
    made = plan("1", 0, w0=0)
    made.announce(0.0)
    made.saw(0, 100)
    assert made.announce(1.0) is None


def test_numbers_only_grow():
    made = CutPlan(Every(steps=1), None, {0: 0}, number=500)
    made.announce(0.0)
    made.saw(0, 3)
    assert made.announce(1.0) == Announcement(501, 0)


def test_who_has_left_does_not_make_intervals_longer():
    made = plan("3", None, w0=0, w1=0, w2=0)
    made.announce(0.0)
    made.saw(0, 2)
    made.left(0)
    made.left(1)
    made.saw(2, 1)
    assert made.announce(1.0) == Announcement(1, 0)
    made.left(2)
    made.under_way = False
    made.saw(2, 9)
    assert made.announce(2.0) is None, "nobody would mark it"


def test_without_workers_or_without_checkpoints_nothing_is_due():
    assert plan("1", None).announce(0.0) is None
    made = CutPlan(Every(), None, {0: 0})
    made.announce(0.0)
    made.saw(0, 9)
    assert made.announce(9.0) is None


def test_who_is_gone_is_in_no_cut_and_not_waited_for():
    marks = Marks()
    marks.put(0, 3, clock=3)
    marks.put(1, 3, clock=4)
    marks.put(1, 6, clock=6)
    assert marks.complete({0, 1, 2}) is None
    marks.drop(1)
    marks.drop(2)
    assert not marks.holds(1, 9)
    assert marks.complete({0}) == Cut(3, {0: 3})
    marks.use_up()
    assert marks.complete({0}) is None


# The last cut of a run that is to stop


@pytest.mark.parametrize(
    ("every", "bound", "clocks", "number", "announced"),
    [
        (Every(steps=500), 0, {0: 7, 1: 8}, 0, (9, 9)),
        (Every(steps=500), 0, {0: 0, 1: 0}, 0, (1, 1)),
        (Every(steps=3), 0, {0: 5, 1: 5}, 3, (6, 6)),
        (Every(seconds=9.0), 0, {0: 7, 1: 8}, 5, (9, 9)),
        (Every(seconds=9.0), 0, {0: 7, 1: 8}, 12, (13, 9)),
        (Every(steps=500), None, {0: 7, 1: 12}, 4, (9, 0)),
        (Every(steps=500), 3, {0: 7, 1: 8}, 7, (8, 0)),
        (Every(steps=500), None, {0: 0, 1: 0}, 0, (1, 0)),
    ],
)
def test_where_the_last_cut_is_made(every, bound, clocks, number, announced):
    plan = CutPlan(every, bound, clocks, number)
    plan.stopping = True
    assert plan.announce(1.0) == Announcement(*announced, last=True)
    assert plan.last == announced[0]
    plan.under_way = False
    assert plan.announce(99.0) is None, "nothing comes behind it"


def test_the_last_cut_is_at_a_multiple_where_workers_are_not_in_step():
    plan = CutPlan(Every(steps=5), 0, {0: 5, 1: 8})
    plan.stopping = plan.apart = True
    assert plan.announce(1.0) == Announcement(10, 10, last=True)


def test_the_last_cut_waits_for_the_one_that_is_under_way():
    plan = CutPlan(Every(seconds=1.0), None, {0: 5})
    plan.announce(0.0)
    plan.saw(0, 6)
    assert plan.announce(2.0) == Announcement(6, 0)
    plan.stopping = True
    assert plan.announce(2.0) is None
    plan.under_way = False
    assert plan.announce(2.0) == Announcement(7, 0, last=True)


def test_there_is_no_last_cut_of_nobody():
    plan = CutPlan(Every(steps=5), None, {})
    plan.stopping = True
    assert plan.announce(1.0) is None, "nobody has registered"
    plan.saw(0, 4)
    plan.left(0)
    assert plan.announce(1.0) is None, "all are done"


def test_in_sync_mode_by_steps_too_the_last_cut_is_marked_where_it_was_said():
    markers = Markers(Every(steps=3), bound=0, announced=Announcement(8, 8, last=True))
    assert markers.stops
    assert [clock for clock in range(1, 10) if markers.due(clock)] == [3, 6, 8, 9]
    markers.last = 8
    assert not markers.asked
    assert markers.due(8) is None


def test_a_last_cut_of_workers_that_are_not_in_step_is_tried_again():
    plan = CutPlan(Every(steps=5), 0, {0: 2, 1: 2})
    plan.stopping = True
    assert plan.announce(1.0) == Announcement(3, 3, last=True)
    plan.opened(Cut(3, {0: 3, 1: 4}))
    assert plan.announce(2.0) is None, "it has not been given up yet"
    plan.under_way = False
    plan.saw(1, 4)
    assert plan.announce(2.0) == Announcement(5, 5, last=True)
    plan.opened(Cut(5, {0: 5, 1: 5}))
    plan.under_way = False
    assert plan.announce(3.0) is None
    assert plan.last == 5


def test_elsewhere_a_last_cut_is_of_any_clocks():
    plan = CutPlan(Every(steps=5), 3, {0: 2, 1: 2})
    plan.stopping = True
    plan.announce(1.0)
    plan.opened(Cut(2, {0: 3, 1: 4}))
    assert plan.last == 2
