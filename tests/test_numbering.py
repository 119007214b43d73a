"""What comes twice is taken once; what is missing is noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgrad.errors import ProtocolError
from psgrad.numbering import NUMBERS, Numbering


def test_each_link_counts_from_one():
    numbering = Numbering()
    assert [numbering.next(peer) for peer in (3, 3, 5, 3, 5)] == [1, 2, 1, 3, 2]


@given(st.lists(st.integers(0, 3), max_size=30), st.data())
def test_every_number_is_taken_once_whatever_comes_again(repeats, data):
    """Messages k = 1, 2, ... of a link, each followed by any that came before."""
    numbering, taken, placed = Numbering(), [], []
    for number, again in enumerate(repeats, start=1):
        earlier = [data.draw(st.integers(1, number)) for _ in range(again)]
        for came in (number, *earlier):
            # Headers may be known well before messages are whole; then again, they may not.
            if data.draw(st.booleans()) and numbering.is_new(7, came):
                placed.append(came)
            if numbering.take(7, came):
                taken.append(came)
    assert taken == list(range(1, len(repeats) + 1))
    assert len(placed) == len(set(placed))


def test_two_headers_before_the_first_is_whole():
    numbering = Numbering()
    assert [numbering.is_new(1, n) for n in (1, 2, 2)] == [True, True, False]
    assert [numbering.take(1, n) for n in (1, 2, 2)] == [True, True, False]


def test_a_loss_is_an_error():
    numbering = Numbering()
    numbering.take(4, 1)
    with pytest.raises(ProtocolError, match="message 3 of rank 4 came after its message 1"):
        numbering.take(4, 3)


def test_what_has_no_number_is_always_new():
    numbering = Numbering()
    assert all(numbering.is_new(1, 0) and numbering.take(1, 0) for _ in range(3))


def test_numbers_begin_again():
    """A link that lives for days has more messages than the header has numbers."""
    numbering = Numbering()
    numbering._sent[1] = numbering._taken[1] = numbering._seen[1] = NUMBERS - 2
    numbers = [numbering.next(1) for _ in range(4)]
    assert numbers == [NUMBERS - 1, NUMBERS, 1, 2]
    for number in numbers:
        assert numbering.is_new(1, number)
        assert numbering.take(1, number)
        assert not numbering.take(1, number)
    assert not numbering.is_new(1, NUMBERS)
    with pytest.raises(ProtocolError, match="one was lost"):
        numbering.take(1, 4)
