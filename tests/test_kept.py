"""What is kept of a link until the other end has it."""

from __future__ import annotations

import numpy as np
import pytest

from psgrad.errors import ProtocolError
from psgrad.messages import Header, Kind
from psgrad.transport.kept import LARGEST, Outgoing, is_behind, scratch

LAST = (1 << 32) - 1  # numbers go on from 1 behind it


class Gone:
    def __init__(self, gone):
        self.gone = gone

    def done(self):
        return self.gone


def outgoing(*numbers):
    links = Outgoing()
    kept = [links.keep(Header(Kind.PUSH, number=number), None) for number in numbers]
    return links, kept


@pytest.mark.parametrize(
    ("number", "taken", "behind"),
    [
        (1, 0, False),  # nothing was taken
        (1, 1, True),
        (2, 1, False),
        (1, 5, True),
        (LAST, LAST - 1, False),
        (LAST, 1, True),
        (1, LAST, False),
    ],
)
def test_what_is_behind_a_number(number, taken, behind):
    assert is_behind(number, taken) is behind


@pytest.mark.parametrize(("taken", "left"), [(0, [7, 8, 9]), (7, [8, 9]), (9, []), (20, [])])
def test_what_is_known_to_be_there_is_kept_no_longer(taken, left):
    links, kept = outgoing(7, 8, 9)
    links.known(taken)
    assert [each.header.number for each in links] == left
    assert len(links) == len(left)
    assert [each.done() for each in kept] == [each.header.number not in left for each in kept]


def test_numbers_that_begin_again():
    links, _ = outgoing(LAST - 1, LAST, 1, 2)
    links.known(LAST)
    assert [each.header.number for each in links] == [1, 2]


def test_memory_that_is_still_being_sent_is_not_done():
    links, [kept] = outgoing(1)
    kept.sent = Gone(False)
    links.known(1)
    assert not kept.done()
    kept.sent = Gone(True)
    assert kept.done()


def test_a_copy_stays_as_it_was():
    links, payload = Outgoing(), np.arange(3, dtype=np.float32)
    kept = links.keep(Header(Kind.PUSH, number=1, nbytes=12), payload)
    links.copy()
    payload[:] = 9
    assert np.frombuffer(kept.payload, np.float32).tolist() == [0, 1, 2]


def test_nobody_to_send_to():
    links, [kept] = outgoing(1)
    links.clear()
    assert (len(links), kept.done()) == (0, True)


def test_scratch_has_a_limit():
    assert len(scratch(1, Header(Kind.PUSH, nbytes=5))) == 5
    with pytest.raises(ProtocolError, match=f"rank 1 announces {LARGEST + 1} bytes, the limit is"):
        scratch(1, Header(Kind.PUSH, nbytes=LARGEST + 1))
