"""A worker whose server dies: rank 1 of two, for which rank 0 stands in."""

from __future__ import annotations

import numpy as np
import pytest
from scripted_transport import NothingComesError, Scripted

from psgrad.errors import ProtocolError
from psgrad.messages import Flag, Header, Kind
from psgrad.transport.rerouted import Rerouted

STANDS_IN = Flag.STANDIN
TAKES_OVER = Header(Kind.STANDIN, flags=STANDS_IN, taken=1)


class Below(Scripted):
    """``Scripted`` that knows of drops and flushes."""

    def __init__(self):
        super().__init__(2)
        self.dropped = []

    def drop(self, peer):
        self.dropped.append(peer)
        self.script = type(self.script)(m for m in self.script if m[0] != peer)

    def flush(self):
        pass


@pytest.fixture
def below():
    return Below()


@pytest.fixture
def links(below):
    rerouted = Rerouted(below, 2)
    rerouted.connect([0, 1])
    return rerouted


class Program:
    """Receives, and says what came of whom; ``asked`` is what it was asked a place for."""

    def __init__(self, links):
        self.links = links
        self.asked = []

    def place(self, server, header):
        self.asked.append((server, header.number))
        self.memory = bytearray(header.nbytes)
        return self.memory

    def receive(self):
        server, header = self.links.receive(self.place, 0.0) or (None, None)
        return server, header and (header.kind, header.number)

    def all(self):
        came = []
        while (one := self.receive()) != (None, None):
            came.append(one)
        return came


def params(number, taken=0, flags=0):
    return Header(Kind.PARAMS, number=number, taken=taken, flags=flags)


def push(links, server, number, payload=None):
    nbytes = 0 if payload is None else memoryview(payload).nbytes
    links.send(server, Header(Kind.STEP, number=number, nbytes=nbytes), payload)


def test_nothing_dies(below, links):
    program = Program(links)
    push(links, 0, 1, b"one")
    push(links, 1, 1, b"two")
    below.arrives(1, params(1, taken=1), b"p")
    assert program.all() == [(1, (Kind.PARAMS, 1))]
    push(links, 1, 2)
    assert [(h.number, h.taken, h.flags) for h in below.sent] == [(1, 0, 0), (1, 0, 0), (2, 1, 0)]


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "told"])
def test_a_stand_in_gets_what_the_dead_server_may_not_have_had(below, links, noticed):
    program = Program(links)
    for number in (1, 2, 3):
        push(links, 1, number, b"step%d" % number)
    if noticed:
        below.arrives(1, Header(Kind.LOST))
        assert program.all() == []
        push(links, 1, 4)  # nobody is there for it
    before = len(below.sent)
    below.arrives(0, TAKES_OVER)
    assert program.all() == [(1, (Kind.MOVED, 0))]
    assert below.dropped == [1]
    if not noticed:
        push(links, 1, 4)
    again = below.events[-3:]
    assert [(rank, h.number, h.flags) for _, rank, h in again] == [
        (0, number, STANDS_IN) for number in (2, 3, 4)
    ]
    assert below.payloads[before : before + 2] == [b"step2", b"step3"]


def test_answers_go_on_where_they_ended(below, links):
    program = Program(links)
    below.arrives(1, params(1), b"a")
    below.arrives(1, Header(Kind.LOST))
    below.arrives(0, TAKES_OVER)
    below.arrives(0, params(1, flags=STANDS_IN), b"a")  # it has that
    below.arrives(0, params(2, flags=STANDS_IN), b"b")
    below.arrives(0, params(1), b"c")  # rank 0 for itself
    assert program.all() == [
        (1, (Kind.PARAMS, 1)), (1, (Kind.MOVED, 0)), (1, (Kind.PARAMS, 2)), (0, (Kind.PARAMS, 1)),
    ]  # fmt: skip
    assert program.asked == [(1, 1), (1, 2), (0, 1)]
    assert program.memory == b"c"


def test_memory_of_steps_is_free_when_they_are_answered(below, links):
    grads = np.ones(2, np.float32)
    push(links, 1, 1, grads)
    below.arrives(1, params(1, taken=1))
    Program(links).all()
    grads[:] = 9
    below.arrives(1, Header(Kind.LOST))
    below.arrives(0, TAKES_OVER._replace(taken=0))
    before = len(below.sent)
    Program(links).all()
    assert below.sent[before:] == []  # it was answered: nothing of it is sent again


def test_memory_of_what_is_not_answered_is_copied(below, links):
    grads = np.ones(2, np.float32)
    push(links, 1, 1, grads)
    links.flush()
    grads[:] = 9
    below.arrives(0, TAKES_OVER._replace(taken=0))
    Program(links).all()
    assert np.frombuffer(below.payloads[-1], np.float32).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("deaths", "told"), [([1, 0], [0, 1]), ([0, 1], [1, 0])], ids=["its stand-in", "the other"]
)
def test_a_second_death_is_told(below, links, deaths, told):
    for rank in deaths:
        below.arrives(rank, Header(Kind.LOST))
    assert Program(links).all() == [(rank, (Kind.LOST, 0)) for rank in told]


def test_two_servers_with_stand_ins(below, links):
    below.arrives(0, TAKES_OVER)
    below.arrives(0, TAKES_OVER)  # said twice
    below.arrives(1, TAKES_OVER)
    program = Program(links)
    assert program.receive() == (1, (Kind.MOVED, 0))
    below.peers += [1]
    below.script.append((1, TAKES_OVER, b""))
    with pytest.raises(ProtocolError, match="server 0 has a stand-in, and so has server 1"):
        program.receive()


def test_a_wait_has_an_end(below, links):
    below.arrives(1, Header(Kind.LOST))
    assert links.receive(Program(links).place, 5.0) is None
    with pytest.raises(NothingComesError):
        links.receive(Program(links).place)
