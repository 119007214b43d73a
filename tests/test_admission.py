"""Who takes the place of a worker that is lost: who comes first, one at a time, not too late."""

from __future__ import annotations

from psgrad.admission import Admission
from psgrad.seats import Seat


def getting_ready(rank=7, worker=2):
    """``rank`` was promised the place of ``worker``."""
    admission = Admission()
    admission.ask(rank)
    admission.vacate(worker)
    admission.promise()
    return admission


def test_who_asks_first_is_promised_what_was_lost_first():
    admission = Admission()
    admission.ask(7)
    assert admission.promise() == []
    admission.vacate(2)
    assert admission.promise() == [(7, Seat(2, 1))]
    assert admission.promise() == [], "once"
    admission.vacate(0)
    admission.vacate(1)
    admission.ask(9)
    admission.ask(8)
    assert admission.promise() == [(9, Seat(0, 2)), (8, Seat(1, 3))]
    assert (admission.promised(9), admission.promised(5)) == (Seat(0, 2), None)


def test_it_is_admitted_when_it_is_ready():
    admission = getting_ready()
    assert admission.admit() is None
    admission.ready(7)
    assert admission.is_ready
    assert admission.admit() == (7, Seat(2, 1))
    assert admission.admit() is None
    assert admission.promised(7) is None


def test_one_at_a_time():
    admission = getting_ready()
    admission.vacate(3)
    admission.ask(8)
    admission.promise()
    admission.ready(8)
    admission.ready(7)
    assert admission.admit() == (8, Seat(3, 2))
    assert not admission.is_ready
    assert not admission.heard(7)
    assert admission.heard(8)
    assert not admission.heard(8), "no news"
    assert admission.admit() == (7, Seat(2, 1))


def test_who_dies_on_the_way_leaves_the_place_to_others():
    admission = getting_ready()
    admission.ready(7)
    admission.lose(7)
    assert admission.admit() is None
    admission.ask(8)
    assert admission.promise() == [(8, Seat(2, 2))]


def test_who_dies_as_it_waits_is_promised_nothing():
    admission = Admission()
    admission.ask(7)
    admission.lose(7)
    admission.vacate(2)
    assert admission.promise() == []
    assert not admission.hopes


def test_who_dies_when_it_was_admitted_holds_nobody_up():
    admission = getting_ready()
    admission.ready(7)
    admission.admit()
    assert admission.hopes
    admission.lose(7)
    assert admission.entering is None
    assert not admission.hopes


def test_who_asks_again_begins_anew():
    admission = getting_ready()
    admission.ask(7)
    assert admission.promise() == [(7, Seat(2, 2))]


def test_nobody_is_admitted_when_others_leave():
    admission = getting_ready()
    admission.vacate(4)
    admission.ready(7)
    for rank in (8, 9):
        admission.ask(rank)
    admission.promise()
    assert admission.close() == [9, 7, 8]
    assert (admission.admit(), admission.promise(), admission.hopes) == (None, [], False)
    admission.ask(7)
    admission.vacate(5)
    assert admission.promise() == []
