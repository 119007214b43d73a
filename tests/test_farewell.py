"""How ranks of servers with replicas end: here rank 1 of three."""

from __future__ import annotations

import pytest
from scripted_transport import Scripted

from psgrad.errors import ProtocolError
from psgrad.farewell import Farewell
from psgrad.messages import Flag, Header, Kind
from psgrad.roles import Roles

DONE = Header(Kind.ENDED)
STANDS_IN = Header(Kind.ENDED, flags=Flag.STANDIN)


@pytest.fixture
def transport():
    return Scripted(1)


@pytest.fixture
def farewell(transport):
    return Farewell(transport, Roles(5, 3), 7)


def test_each_is_told_once(farewell, transport):
    assert not farewell.is_done(1)
    farewell.say(1)
    farewell.say(1)
    assert farewell.is_done(1)
    assert transport.events == [("send", rank, Header(Kind.ENDED, run=7)) for rank in (0, 2)]


def test_who_stands_in_says_of_whom(farewell, transport):
    farewell.dead.add(0)
    farewell.say(0)
    assert transport.events == [("send", 2, Header(Kind.ENDED, run=7, flags=Flag.STANDIN))]


@pytest.mark.parametrize(
    ("heard", "dead", "over"),
    [
        ([], set(), False),
        ([(0, DONE)], set(), False),
        ([(0, DONE), (2, DONE)], set(), True),
        ([(0, DONE)], {2}, False),  # rank 0 is to stand in for it
        ([(0, DONE), (0, STANDS_IN)], {2}, True),
        ([(0, DONE)], {2, 0}, True),  # nobody is left to ask
        ([(2, DONE)], {0}, False),  # this rank has its replica
    ],
)
def test_nobody_ends_before_all_servers_are_done(farewell, heard, dead, over):
    farewell.say(1)
    farewell.dead |= dead
    for peer, header in heard:
        farewell.hear(peer, header)
    assert farewell.is_over() is over


def test_workers_have_no_servers(farewell):
    with pytest.raises(ProtocolError, match="rank 3 sends ENDED, which servers send alone"):
        farewell.hear(3, DONE)
