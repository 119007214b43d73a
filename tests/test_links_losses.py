"""A worker's links where ranks may die: who is gone or shut out, who waits, how it parts."""

from __future__ import annotations

import pytest
from scripted_transport import NothingComesError, Scripted

from psgrad.errors import FencedError, RankLostError
from psgrad.links import ServerLinks
from psgrad.messages import Header, Kind
from psgrad.roles import Roles

RUN = 77
ROLES = Roles(4, 2)  # ranks 0 and 1 serve; this is worker 1 on rank 3


class Slow(Scripted):
    """Before each message of the script, a wait is in vain as often as ``vain`` says."""

    vain = 0

    def receive(self, place, timeout=None):
        if timeout and self.vain:
            self.vain -= 1
            return None
        return super().receive(place, timeout if timeout == 0.0 else None)


@pytest.fixture
def transport():
    return Slow(rank=3)


@pytest.fixture
def links(transport):
    return ServerLinks(transport, ROLES, RUN, window=2)


def kinds(transport):
    return [(header.kind, peer) for what, peer, header in transport.events if what == "send"]


@pytest.mark.parametrize(("server", "name"), [(0, "coordinator"), (1, "server")])
def test_a_server_is_gone(transport, links, server, name):
    transport.arrives(server, Header(Kind.LOST))
    text = rf"rank {server} \({name}, host unknown\) is gone, and its part of the parameters with"
    with pytest.raises(RankLostError, match=text):
        links.take()


def test_one_that_is_shut_out(transport, links):
    transport.arrives(0, Header(Kind.FENCED, number=1))
    text = "worker 1 was silent for longer than its lease and is shut out; call worker.alive()"
    with pytest.raises(FencedError, match=text):
        links.take()


def test_who_waits_says_that_it_lives(transport, links):
    links.beat_s = 2.0
    transport.vain = 3
    links.request(1, Header(Kind.STEP))
    transport.arrives(1, Header(Kind.ACK))
    links.await_answers()
    assert kinds(transport) == [(Kind.STEP, 1)] + 3 * [(Kind.ALIVE, 0)]


def test_elsewhere_nobody_asks(transport, links):
    transport.vain = 3
    links.request(1, Header(Kind.STEP))
    transport.arrives(1, Header(Kind.ACK))
    links.await_answers()
    assert kinds(transport) == [(Kind.STEP, 1)]


def test_driving_is_no_waiting(transport, links):
    links.beat_s = 2.0
    transport.vain = 1
    links.drive()
    assert kinds(transport) == []


def test_parting_waits_until_every_server_knows(transport, links):
    links.beat_s = 2.0
    transport.arrives(1, Header(Kind.LEFT))
    with pytest.raises(NothingComesError):
        links.part()
    assert kinds(transport) == [(Kind.FINISH, 0), (Kind.FINISH, 1)]
    transport.arrives(1, Header(Kind.LOST))  # it knew
    transport.vain = 1
    transport.arrives(0, Header(Kind.CUT, sequence=9))
    transport.arrives(0, Header(Kind.LEFT))
    while links._parting:
        links.take()
    assert kinds(transport)[2:] == [(Kind.ALIVE, 0)]


def test_who_parts_needs_no_server_any_more(transport, links):
    transport.arrives(0, Header(Kind.LOST))
    transport.arrives(1, Header(Kind.LOST))
    links.part()
    assert not transport.script


def test_who_parts_may_have_been_shut_out(transport, links):
    transport.arrives(1, Header(Kind.LEFT))
    transport.arrives(0, Header(Kind.FENCED))
    with pytest.raises(FencedError):
        links.part()


def test_first_values_are_given_when_they_can_be(transport, links):
    """A server may want them while another one has not answered the registration."""
    given = []
    transport.arrives(0, Header(Kind.INIT, chunk=3))
    transport.arrives(0, Header(Kind.INIT, chunk=5))
    links.drive()
    assert given == []
    links.give_first_values(given.append)
    assert sorted(given) == [3, 5]
    transport.arrives(1, Header(Kind.INIT, chunk=4))
    links.drive()
    assert sorted(given) == [3, 4, 5]
