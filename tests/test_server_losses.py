"""A server whose workers die, fall silent or end: message by message."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scripted_transport import NothingComesError, Scripted
from test_server import LAYOUT, RUN, Log, full, registration

from psgrad.errors import FencedError, RankLostError
from psgrad.links import ServerLinks
from psgrad.messages import Flag, Header, Kind, encode_json
from psgrad.optimizers import SGD
from psgrad.options import Options
from psgrad.roles import Roles
from psgrad.server import Server

LEASE_S = 8.0


class Timed(Scripted):
    """A script with a clock: a number in it is the time of a wait in vain."""

    def __init__(self, rank):
        super().__init__(rank)
        self.time_s = 0.0
        self.dropped = []

    def now(self):
        return self.time_s

    def receive(self, place, timeout=None):
        if self.script and isinstance(self.script[0], float):
            assert timeout is not None, "it would wait for ever"
            self.time_s = self.script.popleft()
            return None
        return super().receive(place)

    def drop(self, peer):
        self.dropped.append(peer)
        self.script = type(self.script)(
            entry for entry in self.script if isinstance(entry, float) or entry[0] != peer
        )


class Desk:
    """A server of an elastic job, its script, and what it sent."""

    def __init__(self, workers=2, servers=1, rank=0, bound=1):
        self.roles = Roles(workers + servers, servers)
        self.transport, self.sink, self.warnings = Timed(rank), Log(), []
        options = Options(
            optimizer=SGD(1.0), staleness=bound, servers=servers, fault_tolerant=True, lease=LEASE_S
        )
        self.server = Server(
            self.transport, self.roles, options, RUN, self.sink, warn=self.warnings.append
        )

    def tell(self, worker, kind, payload=b"", **fields):
        header = Header(kind, run=RUN, layout=LAYOUT.digest, worker=worker)
        rank = self.roles.rank_of(worker)
        self.transport.arrives(rank, header._replace(**fields), bytes(payload))

    def server_tells(self, rank, kind, **fields):
        self.transport.arrives(rank, Header(kind, run=RUN, **fields))

    def lose(self, worker):
        self.lose_rank(self.roles.rank_of(worker))

    def lose_rank(self, rank):
        self.transport.arrives(rank, Header(Kind.LOST))

    def register(self, *workers):
        for worker in workers:
            self.tell(worker, Kind.REGISTER, registration(LAYOUT))
        self.tell(min(workers), Kind.INIT, full(0.0))

    def step(self, worker, clock, value, kind=Kind.STEP, **fields):
        self.tell(worker, kind, full(value), clock=clock, weight=1.0, **fields)

    def done(self, *workers):
        """They finish, and nothing is left."""
        for worker in workers:
            self.tell(worker, Kind.FINISH)
        self.server.serve()

    def serve(self):
        """Up to the end of the script; what was sent meanwhile."""
        before = len(self.transport.sent)
        with pytest.raises(NothingComesError):
            self.server.serve()
        return [(h.kind, h.worker) for h in self.transport.sent[before:]]


def test_all_that_was_open_of_it_is_forgotten():
    """Parked pushes, a pull and a step that is open: the others go on, no memory is lost, and the
    run ends as it should."""
    desk = Desk(workers=3)
    desk.register(0, 1, 2)
    for clock in (1, 2, 3, 4):
        desk.step(1, clock, 1.0, Kind.PUSH)  # 3 and 4 are too far ahead
    desk.step(2, 1, 1.0)
    desk.step(2, 2, 1.0)  # applied, and its pull waits for worker 0
    desk.step(2, 3, 1.0, flags=Flag.OPEN)
    desk.serve()
    assert desk.server._gradients.lent == 4, "parked: 2; waiting: 1; open: 1"
    desk.lose(1)
    desk.lose(2)
    assert desk.serve() == []
    assert desk.server._gradients.lent == 0
    desk.tell(0, Kind.PULL)
    desk.serve()
    assert desk.transport.payloads[-1] == full(-4.0), "two pushes of 1 and two steps of 2"
    desk.done(0)
    assert desk.transport.dropped == [2, 3]
    assert desk.warnings == [
        "rank 2 (worker, host unknown) is gone; 2 workers go on",
        "rank 3 (worker, host unknown) is gone; 1 workers go on",
    ]


def meet(desk, worker, value):
    said = {"values": {"x": value}, "weight": 1.0}
    desk.tell(worker, Kind.MEET, encode_json(said), sequence=1)


def test_a_rendezvous_is_complete_without_it():
    desk = Desk(workers=4)
    desk.register(0, 1, 2, 3)
    desk.step(2, 1, 1.0)
    meet(desk, 0, 1.0)
    meet(desk, 3, 5.0)
    desk.serve()
    desk.lose(3)  # it has come
    desk.lose(1)
    assert desk.serve() == []
    desk.lose(2)
    assert desk.serve() == [(Kind.MET, 0)]
    met = json.loads(desk.transport.payloads[-1])
    spans = {"1": [[None, 0]], "2": [[None, 1]], "3": [[None, 0]]}
    lost = {"1": 0, "2": 1, "3": 0}
    said = {"running": [0], "lost": lost, "spans": spans, "changed": True}
    assert met == {"mean": {"x": 3.0}, **said}


def test_what_waited_for_it_is_answered():
    desk = Desk()
    desk.register(0, 1)
    desk.step(0, 1, 1.0)
    desk.step(0, 2, 1.0)
    desk.serve()
    desk.lose(1)
    assert desk.serve() == [(Kind.PARAMS, 0)]


def test_a_registration_is_complete_without_it():
    desk = Desk(workers=3)
    desk.tell(0, Kind.REGISTER, registration(LAYOUT))
    desk.tell(2, Kind.REGISTER, registration(LAYOUT))
    desk.lose(0)
    assert desk.serve() == []
    desk.lose(1)
    assert desk.serve() == [(Kind.REGISTERED, 2)]
    assert json.loads(desk.transport.payloads[-1])["first"] == 2


@pytest.mark.parametrize("others", [[1, 2], [2]], ids=["all", "one has died with it"])
def test_first_values_are_asked_of_the_next_one(others):
    desk = Desk(workers=3)
    for worker in range(3):
        desk.tell(worker, Kind.REGISTER, registration(LAYOUT))
    for worker in others:
        desk.tell(worker, Kind.PULL)
    desk.serve()
    if 1 not in others:
        desk.lose(1)
    desk.lose(0)
    assert desk.serve() == [(Kind.INIT, others[0])]
    asked = desk.transport.sent[-1]
    assert (asked.layout, asked.chunk, asked.nbytes) == (LAYOUT.digest, 0, 0)
    desk.tell(others[0], Kind.INIT, full(5.0), flags=Flag.QUIET)
    assert desk.serve() == [(Kind.PARAMS, worker) for worker in others]
    assert desk.transport.payloads[-1] == full(5.0)
    desk.done(*others)


def test_first_values_are_asked_again_when_that_one_dies_too():
    desk = Desk(workers=3)
    for worker in range(3):
        desk.tell(worker, Kind.REGISTER, registration(LAYOUT))
    desk.lose(0)
    desk.lose(1)
    assert desk.serve()[-2:] == [(Kind.INIT, 1), (Kind.INIT, 2)]


def test_who_has_given_them_is_not_replaced():
    desk = Desk()
    desk.register(0, 1)
    desk.lose(0)
    assert Kind.INIT not in {kind for kind, _ in desk.serve()}


def test_the_last_one():
    desk = Desk()
    desk.register(0, 1)
    desk.lose(1)
    desk.serve()
    desk.lose(0)
    text = r"rank 1 \(worker, host unknown\) is gone, and it was the last worker"
    with pytest.raises(RankLostError, match=text):
        desk.server.serve()


def test_the_last_one_where_another_is_done():
    desk = Desk()
    desk.register(0, 1)
    desk.tell(1, Kind.FINISH)
    desk.lose(0)
    desk.server.serve()
    assert desk.warnings == ["rank 1 (worker, host unknown) is gone; 0 workers go on"]


def test_who_is_done_may_go():
    """It waits for the answer to FINISH, so it is told of before its end is."""
    desk = Desk()
    desk.register(0, 1)
    desk.serve()
    desk.tell(1, Kind.FINISH)
    desk.lose(1)
    assert desk.serve() == [(Kind.LEFT, 1)]
    desk.done(0)
    assert desk.warnings == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_server_is_gone(rank):
    desk = Desk(workers=1, servers=2, rank=1 - rank)
    desk.lose_rank(rank)
    name = "coordinator" if rank == 0 else "server"
    text = rf"rank {rank} \({name}, host unknown\) is gone, and its part of the parameters with it"
    with pytest.raises(RankLostError, match=text):
        desk.server.serve()


# The end, on which all servers agree


def test_the_coordinator_waits_for_all_servers_and_lets_them_go():
    desk = Desk(workers=1, servers=3)
    desk.server_tells(2, Kind.FINISH)
    desk.tell(0, Kind.FINISH)
    assert desk.serve() == [(Kind.LEFT, 0)]
    desk.server_tells(1, Kind.FINISH)
    desk.server.serve()
    assert [(what, peer) for what, peer, header in desk.transport.events[-2:]] == [
        ("send", 1),
        ("send", 2),
    ]
    assert {header.kind for header in desk.transport.sent[-2:]} == {Kind.FINISH}


def test_a_server_that_dies_when_it_was_needed_to_the_end():
    desk = Desk(workers=1, servers=2)
    desk.tell(0, Kind.FINISH)
    desk.lose_rank(1)
    with pytest.raises(RankLostError, match=r"rank 1 \(server"):
        desk.server.serve()


def test_a_server_that_is_done_is_not_missed():
    desk = Desk(workers=2, servers=2)
    desk.server_tells(1, Kind.FINISH)
    desk.lose_rank(1)
    desk.tell(0, Kind.FINISH)
    desk.done(1)


@pytest.mark.parametrize("kind", [Kind.FINISH, Kind.LOST])
def test_another_server_waits_for_the_coordinator(kind):
    desk = Desk(workers=1, servers=2, rank=1)
    desk.tell(0, Kind.FINISH)
    assert desk.serve() == [(Kind.LEFT, 0), (Kind.FINISH, 0)]
    assert desk.transport.events[-1][1] == 0
    if kind is Kind.LOST:
        desk.lose_rank(0)
    else:
        desk.server_tells(0, kind)
    desk.server.serve()


def test_a_worker_that_one_server_knows_to_be_gone_is_evicted_on_the_others():
    desk = Desk(workers=2, servers=3)
    desk.lose(1)
    desk.serve()
    assert [(peer, h.kind, h.worker) for _, peer, h in desk.transport.events[-2:]] == [
        (1, Kind.EVICTED, 1),
        (2, Kind.EVICTED, 1),
    ]


def test_an_eviction_comes_first_and_the_loss_later():
    desk = Desk(workers=2, servers=2, rank=1)
    desk.server_tells(0, Kind.EVICTED, worker=1)
    desk.server_tells(0, Kind.EVICTED, worker=1)
    desk.serve()
    assert desk.transport.dropped == [3]
    assert desk.sink.lines == ["worker 1 was shut out by the coordinator; 1 workers go on"]
    assert desk.warnings == [], "the coordinator says it"


# Leases


def later(desk, *times):
    desk.transport.script.extend(float(t) for t in times)


def test_who_is_silent_is_shut_out():
    desk = Desk(workers=2, servers=2)
    desk.tell(0, Kind.ALIVE)
    desk.tell(1, Kind.ALIVE)
    desk.serve()
    for now_s in (2, 4, 6, 8, 10):
        later(desk, now_s)
        desk.tell(0, Kind.ALIVE)
        desk.tell(0, Kind.ALIVE)
    sent = desk.serve()
    assert sent == [(Kind.FENCED, 1), (Kind.EVICTED, 1)]
    assert desk.transport.dropped == [3]
    assert desk.warnings == [
        "rank 3 (worker, host unknown) was silent for 10.0 s and is shut out; 1 workers go on"
    ]


def test_what_it_sends_later_is_not_taken():
    desk = Desk()
    desk.register(0, 1)
    for now_s in (2, 4, 6, 8, 10):
        later(desk, now_s)
        desk.tell(0, Kind.ALIVE)
    desk.step(1, 1, 100.0)
    desk.tell(0, Kind.PULL)
    desk.serve()
    assert desk.transport.payloads[-1] == full(0.0)


def test_a_coordinator_that_stood_still_shuts_nobody_out():
    desk = Desk()
    desk.register(0, 1)
    desk.serve()
    later(desk, 100, 102, 104, 106, 108)
    assert desk.serve() == []
    assert desk.warnings == []
    desk.tell(0, Kind.ALIVE)
    later(desk, 110)
    assert desk.serve() == [(Kind.FENCED, 1)], "worker 1 has had a new lease, and no more"


def test_only_the_coordinator_looks():
    desk = Desk(workers=2, servers=2, rank=1)
    desk.tell(0, Kind.ALIVE)
    with pytest.raises(NothingComesError):
        desk.server.serve()
    later(desk, 1000)
    with pytest.raises(AssertionError, match="it would wait for ever"):
        desk.server.serve()


# The other end of the link


def test_a_worker_that_was_shut_out_ends():
    transport = Scripted(rank=1)
    links = ServerLinks(transport, Roles(2, 1), RUN, window=2)
    transport.arrives(0, Header(Kind.FENCED))
    with pytest.raises(FencedError, match="worker 0 was silent for longer than its lease"):
        links.drive()


def test_replies_to_the_dead_are_not_sent():
    desk = Desk()
    desk.register(0, 1)
    desk.step(1, 1, 1.0, Kind.PUSH)
    desk.step(1, 2, 1.0, Kind.PUSH)
    desk.step(1, 3, 1.0, Kind.PUSH)
    desk.serve()
    desk.lose(1)
    assert desk.serve() == []
    assert desk.server._gradients.lent == 0


def test_a_payload_that_had_a_place_and_never_came():
    """Its memory is not used again: a dying link may still write there."""
    desk = Desk()
    desk.register(0, 1)
    desk.serve()
    header = Header(
        Kind.STEP, run=RUN, layout=LAYOUT.digest, worker=1, clock=1, weight=1.0, nbytes=96
    )
    memory = desk.server._intake.place(2, header)
    assert desk.server._gradients.lent == 1
    desk.lose(1)
    desk.serve()
    assert desk.server._gradients.lent == 0
    desk.step(0, 1, 1.0)
    desk.serve()
    assert not np.any(memory), "worker 0's gradient went elsewhere"
    desk.done(0)
