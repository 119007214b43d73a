"""Turns on their way to a replica."""

from __future__ import annotations

import pytest

from psgrad.errors import ProtocolError
from psgrad.messages import Header, Kind
from psgrad.turns import NOTHING, Arriving, Turn, What

PUSH = Header(Kind.PUSH, worker=1, chunk=4, nbytes=8, number=3, taken=2)
TURNS = [
    Turn(What.MESSAGE, 0.5, 7, PUSH, b"gradient", 0),
    Turn(What.TIME, 1.5, number=1),
    Turn(What.WRITTEN, 2.5, 1, payload=b"{}", number=2),
    Turn(What.MESSAGE, 3.5, 6, Header(Kind.PULL, worker=0), number=3),
    Turn(What.STOP, 4.5, payload=b"USR1", number=4),
    Turn(What.MESSAGE, 5.5, 6, Header(Kind.LOST), number=5),
]


class Replica:
    """Takes messages, each received before the next is looked at, some of them before that."""

    def __init__(self):
        self.arriving = Arriving(2)
        self.places = []

    def place(self, peer, header):
        self.places.append((peer, header))
        return bytearray(header.nbytes)

    def receive(self, messages):
        for header, payload in messages:
            memory = self.arriving.place(header, self.place)
            memory[:] = payload
        return [turn for h, _ in messages if (turn := self.arriving.take(h)) is not None]


def messages(turns):
    return [each for turn in turns for each in turn.messages(5)]


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_turns_come_as_they_were(at_once):
    replica, sent = Replica(), messages(TURNS)
    came = []
    for i in range(0, len(sent), at_once):
        came += replica.receive(sent[i : i + at_once])
    assert came == TURNS
    assert replica.places == [(7, PUSH)]  # the program has no place for what is no message


def test_what_comes_twice_is_taken_once():
    replica, sent = Replica(), messages(TURNS)
    assert replica.receive(sent[:2] + sent[:1] + sent[2:4] + sent[1:2] + sent[4:]) == TURNS


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda m: [m[1]], "server 2 replicates a payload of no turn"),
        (lambda m: [(m[0][0]._replace(nbytes=3), b"abc")], "a header of 3 bytes"),
        (lambda m: [m[0], (m[1][0]._replace(nbytes=3), b"abc")], "3 bytes where 8 were announced"),
        (lambda m: [m[0], m[2]], "replicates turn 1 in part"),
        (lambda m: [(m[0][0]._replace(chunk=9), m[0][1])], "replicates turn 0 in part"),
    ],
)
def test_what_no_server_sends(spoil, text):
    with pytest.raises(ProtocolError, match=text):
        Replica().receive(spoil(messages(TURNS)))


def test_a_turn_without_a_header():
    with pytest.raises(ProtocolError, match="without a header"):
        Arriving(2).take(Header(Kind.REPLICATE))
    assert NOTHING.kind is Kind.LOST
