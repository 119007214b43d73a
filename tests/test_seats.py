"""Which rank is which worker, before and after one is lost."""

from __future__ import annotations

from psgrad.roles import Roles
from psgrad.seats import Seat, Seats


def seats():
    """Two workers on ranks 1 and 2, a spare on rank 3."""
    return Seats.of(Roles(4, 1, spares=1))


def test_at_the_start():
    s = seats()
    assert [s.rank_of(worker) for worker in (0, 1)] == [1, 2]
    assert [s.seat_of(rank) for rank in range(4)] == [None, Seat(0), Seat(1), None]
    assert s.holder(1) == Seat(1, 0)
    assert not s.is_past(2, 0)


def test_who_is_out_and_what_it_sends():
    s = seats()
    s.vacate(1)
    assert (s.seat_of(2), s.holder(1), s.rank_of(1)) == (None, None, 2)
    assert (s.is_past(2, 0), s.is_past(2, 1), s.is_past(1, 0)) == (True, False, False)


def test_a_spare_takes_the_place_and_the_first_one_comes_back_as_another_worker():
    s = seats()
    s.vacate(1)
    s.admit(3, Seat(1, 4))
    assert (s.rank_of(1), s.holder(1), s.seat_of(3)) == (3, Seat(1, 4), Seat(1, 4))
    s.vacate(0)
    s.admit(2, Seat(0, 6))
    assert (s.holder(0), s.holder(1), s.seat_of(1)) == (Seat(0, 6), Seat(1, 4), None)
    assert (s.is_past(2, 0), s.is_past(2, 6), s.is_past(3, 4)) == (True, False, False)


def test_a_rank_that_is_another_worker_now_does_not_hold_its_old_place():
    s = seats()
    s.vacate(1)
    s.vacate(0)
    s.admit(2, Seat(0, 1))
    assert (s.holder(1), s.holder(0)) == (None, Seat(0, 1))
