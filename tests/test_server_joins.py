"""A server where others take the places of workers that are lost: message by message."""

from __future__ import annotations

import json

import pytest
from scripted_transport import NothingComesError
from test_server import LAYOUT, RUN, full, registration
from test_server_losses import Desk

from psgrad.errors import ProtocolError, RankLostError
from psgrad.messages import Header, Kind, Verdict, encode_json
from psgrad.optimizers import SGD
from psgrad.options import Options
from psgrad.roles import Roles
from psgrad.server import Server


class Doors(Desk):
    """A desk of a job with spares, whose workers may come back."""

    def __init__(self, workers=2, servers=1, rank=0, bound=1, spares=1):
        super().__init__(workers, servers, rank, bound)
        self.roles = Roles(workers + servers + spares, servers, spares=spares)
        options = Options(
            optimizer=SGD(1.0),
            staleness=bound,
            servers=servers,
            fault_tolerant=True,
            lease=8.0,
            rejoin=True,
            spares=spares,
        )
        self.transport.forsaken = []
        self.transport.forsake = self.transport.forsaken.append
        self.server = Server(
            self.transport, self.roles, options, RUN, self.sink, warn=self.warnings.append
        )
        self.spare = workers + servers

    def rank_tells(self, rank, kind, payload=b"", **fields):
        header = Header(kind, run=RUN, layout=LAYOUT.digest)
        self.transport.arrives(rank, header._replace(**fields), bytes(payload))

    def joins(self, rank):
        self.rank_tells(rank, Kind.JOIN)

    def gets_ready(self, rank, worker, number):
        seat = {"worker": worker, "incarnation": number}
        self.rank_tells(rank, Kind.REGISTER, registration(LAYOUT), **seat)

    def said(self):
        """What was sent since the last time: (rank, kind, worker, incarnation, clock)."""
        before = len(self.transport.events)
        with pytest.raises(NothingComesError):
            self.server.serve()
        return [
            (peer, h.kind, h.worker, h.incarnation, h.clock)
            for what, peer, h in self.transport.events[before:]
            if what == "send"
        ]


def lost_at(desk, clock):
    """Worker 1 is gone when both have pushed up to ``clock``."""
    desk.register(0, 1)
    for step in range(1, clock + 1):
        desk.step(0, step, 1.0)
        desk.step(1, step, 1.0)
    desk.serve()
    desk.lose(1)


def test_a_spare_takes_the_place_at_the_slowest_live_clock():
    desk = Doors()
    desk.joins(desk.spare)
    lost_at(desk, 3)
    desk.step(0, 4, 1.0)
    assert desk.said() == [
        (3, Kind.PLACE, 1, 1, 0),
        (1, Kind.PARAMS, 0, 0, 4),
    ]
    desk.gets_ready(desk.spare, 1, 1)
    assert desk.said() == [(3, Kind.REGISTERED, 1, 1, 4)]
    told = json.loads(desk.transport.payloads[-1])
    assert told["past"] == {"meetings": 0, "changes": [], "mine": [[None, 3]]}
    desk.rank_tells(3, Kind.PULL, worker=1, incarnation=1, clock=4)
    desk.rank_tells(3, Kind.STEP, full(5.0), worker=1, incarnation=1, clock=5, weight=1.0)
    assert desk.said() == [(3, Kind.PARAMS, 1, 1, 4), (3, Kind.PARAMS, 1, 1, 5)]
    assert desk.transport.payloads[-1] == full(-12.0), "3 + 4 steps of 1, and one of 5"
    assert desk.warnings[1:] == [
        "rank 3 (host unknown) is worker 1 from clock 4 on; 2 workers go on"
    ]


def test_who_was_shut_out_comes_back_and_its_old_messages_do_not_count():
    desk = Doors(spares=0)
    desk.register(0, 1)
    desk.serve()
    for now_s in (2.0, 4.0, 6.0, 8.0, 10.0):
        desk.transport.script.append(now_s)
        desk.tell(0, Kind.ALIVE)
    assert desk.said() == [(2, Kind.FENCED, 1, 0, 0)]
    assert (desk.transport.dropped, desk.transport.forsaken) == ([], [2])
    desk.step(1, 1, 100.0)  # on its way before it knew
    desk.joins(2)
    assert desk.said() == [(2, Kind.PLACE, 1, 1, 0)]
    desk.gets_ready(2, 1, 1)
    desk.rank_tells(2, Kind.STEP, full(100.0), worker=1, clock=2, weight=1.0)
    desk.rank_tells(2, Kind.PULL, worker=1, incarnation=1)
    assert desk.said() == [(2, Kind.REGISTERED, 1, 1, 0), (2, Kind.PARAMS, 1, 1, 0)]
    assert desk.transport.payloads[-1] == full(0.0)
    desk.tell(0, Kind.STATS)
    desk.said()
    assert json.loads(desk.transport.payloads[-1])["fenced"] == 2
    assert desk.server._gradients.lent == 0


def test_in_sync_mode_it_is_in_every_round_that_is_not_committed():
    desk = Doors(bound=0)
    desk.joins(desk.spare)
    lost_at(desk, 2)
    desk.gets_ready(desk.spare, 1, 1)
    desk.said()
    desk.step(0, 3, 1.0)
    assert desk.said() == [], "round 3 waits for it"
    desk.rank_tells(3, Kind.STEP, full(3.0), worker=1, incarnation=1, clock=3, weight=1.0)
    assert desk.said() == [(1, Kind.PARAMS, 0, 0, 3), (3, Kind.PARAMS, 1, 1, 3)]
    assert desk.transport.payloads[-1] == full(-4.0), "means: 1, 1 and 2"


def test_what_the_lost_one_had_in_the_open_round_is_dropped():
    desk = Doors(bound=0)
    desk.joins(desk.spare)
    lost_at(desk, 1)
    desk.serve()
    desk.gets_ready(desk.spare, 1, 1)
    desk.said()
    desk.rank_tells(3, Kind.STEP, full(3.0), worker=1, incarnation=1, clock=2, weight=1.0)
    desk.said()
    desk.lose_rank(3)  # its push is in round 2
    desk.joins(2)  # the first one was not dead after all, as far as this server knows
    assert desk.said() == [(2, Kind.PLACE, 1, 2, 0)]
    desk.gets_ready(2, 1, 2)
    desk.said()
    desk.rank_tells(2, Kind.STEP, full(5.0), worker=1, incarnation=2, clock=2, weight=1.0)
    desk.step(0, 2, 1.0)
    assert [kind for _, kind, *_ in desk.said()] == [Kind.PARAMS, Kind.PARAMS]
    assert desk.transport.payloads[-1] == full(-4.0), "means: 1, and 3 of 1 and 5"


def test_all_servers_are_told_before_the_newcomer_can_say_anything_to_them():
    desk = Doors(servers=3)
    desk.joins(desk.spare)
    lost_at(desk, 1)
    desk.gets_ready(desk.spare, 1, 1)
    told = [(peer, kind, clock) for peer, kind, _, _, clock in desk.said()]
    assert told[-3:] == [(1, Kind.ADMIT, 1), (2, Kind.ADMIT, 1), (5, Kind.REGISTERED, 1)]


def announce(desk, *workers):
    """They register at a server that has no chunk."""
    for worker in workers:
        desk.tell(worker, Kind.REGISTER, registration(LAYOUT))


def admit(desk, rank, number, worker=1, clock=4):
    payload = encode_json({"rank": rank})
    header = Header(
        Kind.ADMIT, run=RUN, worker=worker, incarnation=number, clock=clock, sequence=number
    )
    desk.transport.arrives(0, header, payload)


def test_another_server_admits_who_the_coordinator_says():
    desk = Doors(servers=2, rank=1)
    announce(desk, 0, 1)
    desk.server_tells(0, Kind.EVICTED, worker=1)
    admit(desk, 4, 1)
    assert desk.said()[-1] == (4, Kind.REGISTERED, 1, 1, 4)
    assert desk.sink.lines[-1] == "rank 4 (host unknown) is worker 1 from clock 4 on"


def test_an_admission_before_all_have_registered():
    desk = Doors(servers=2, rank=1)
    desk.tell(0, Kind.REGISTER, registration(LAYOUT))
    admit(desk, 4, 1)
    assert desk.said() == []
    desk.server_tells(0, Kind.EVICTED, worker=1)
    assert [(kind, worker) for _, kind, worker, *_ in desk.said()] == [
        (Kind.REGISTERED, 0),
        (Kind.REGISTERED, 1),
    ]


@pytest.mark.parametrize(("rank", "number"), [(4, 2), (1, 1), (5, 1)])
def test_admissions_that_cannot_be(rank, number):
    desk = Doors(servers=2, rank=1)
    announce(desk, 0, 1)
    desk.server_tells(0, Kind.EVICTED, worker=1)
    admit(desk, rank, number)
    with pytest.raises(ProtocolError, match=f"rank {rank} is admitted as worker 1 by admission"):
        desk.server.serve()


def test_a_layout_that_does_not_fit_is_that_of_the_newcomer_alone():
    desk = Doors()
    desk.joins(desk.spare)
    lost_at(desk, 1)
    desk.said()
    seat = {"worker": 1, "incarnation": 1}
    desk.rank_tells(3, Kind.REGISTER, encode_json({"problem": "no parameters"}), **seat)
    assert desk.said() == [(3, Kind.REGISTERED, 1, 1, 0)]
    assert desk.transport.sent[-1].verdict is Verdict.REFUSED
    assert json.loads(desk.transport.payloads[-1])["error"] == "no parameters"


def test_who_comes_when_others_leave_comes_too_late():
    desk = Doors(workers=3, spares=2)
    desk.joins(4)
    desk.register(0, 1, 2)
    desk.serve()
    desk.lose(1)
    assert desk.said() == [(4, Kind.PLACE, 1, 1, 0)]
    desk.joins(5)
    desk.tell(0, Kind.LEAVE)
    assert desk.said() == [
        (5, Kind.PLACE, 0, 1, 0),
        (4, Kind.PLACE, 0, 1, 0),
        (1, Kind.LEFT, 0, 0, 0),
    ]
    desk.gets_ready(4, 1, 1)
    desk.joins(2)
    assert desk.said() == [(2, Kind.PLACE, 0, 1, 0)]
    refused = [h for h in desk.transport.sent if h.kind is Kind.PLACE][1:]
    assert {h.verdict for h in refused} == {Verdict.REFUSED}


def test_a_spare_takes_the_place_of_the_last_worker():
    desk = Doors(workers=1)
    desk.joins(desk.spare)
    desk.register(0)
    desk.step(0, 1, 1.0)
    desk.serve()
    desk.lose(0)
    desk.gets_ready(desk.spare, 0, 1)
    assert desk.said() == [(2, Kind.PLACE, 0, 1, 0), (2, Kind.REGISTERED, 0, 1, 1)]
    desk.rank_tells(2, Kind.FINISH, incarnation=1)
    desk.server.serve()


def test_it_gives_the_first_values_where_nobody_has():
    desk = Doors(workers=1)
    desk.joins(desk.spare)
    desk.tell(0, Kind.REGISTER, registration(LAYOUT))
    desk.serve()
    desk.lose(0)
    desk.gets_ready(desk.spare, 0, 1)
    assert [kind for _, kind, *_ in desk.said()] == [Kind.PLACE, Kind.REGISTERED, Kind.INIT]


def test_the_last_hope_is_gone():
    desk = Doors(workers=1)
    desk.joins(desk.spare)
    desk.register(0)
    desk.serve()
    desk.lose(0)
    desk.said()
    desk.lose_rank(desk.spare)
    with pytest.raises(RankLostError, match=r"rank 2 \(spare, host unknown\) is gone, and it was"):
        desk.server.serve()


def test_another_server_waits_for_what_the_coordinator_decides():
    """For it all workers are gone; then one comes in, and it goes on."""
    desk = Doors(workers=1, servers=2, rank=1)
    announce(desk, 0)
    desk.serve()
    desk.lose(0)
    admit(desk, 3, 1, worker=0)
    assert desk.said() == [(0, Kind.FINISH, 0, 0, 0), (3, Kind.REGISTERED, 0, 1, 4)]
    desk.rank_tells(3, Kind.FINISH, incarnation=1)
    desk.server_tells(0, Kind.FINISH, sequence=1)
    desk.server.serve()
    assert [h.sequence for h in desk.transport.sent if h.kind is Kind.FINISH] == [0, 1]


def test_the_end_of_a_server_that_did_not_know_is_none():
    desk = Doors(workers=1, servers=2)
    desk.joins(desk.spare)
    desk.register(0)
    desk.serve()
    desk.lose(0)
    desk.server_tells(1, Kind.FINISH)
    desk.gets_ready(desk.spare, 0, 1)
    desk.server_tells(1, Kind.FINISH)  # said before it knew
    desk.rank_tells(desk.spare, Kind.FINISH, incarnation=1)
    desk.said()
    desk.server_tells(1, Kind.FINISH, sequence=1)
    desk.server.serve()


@pytest.mark.parametrize("kind", [Kind.PULL, Kind.FINISH, Kind.MEET])
def test_what_a_spare_does_not_send(kind):
    desk = Doors()
    desk.rank_tells(desk.spare, kind)
    with pytest.raises(ProtocolError, match=f"rank 3 sends {kind.name} and is no worker"):
        desk.server.serve()


def test_only_the_coordinator_is_asked():
    desk = Doors(servers=2, rank=1)
    desk.joins(4)
    with pytest.raises(ProtocolError, match="rank 4 sends JOIN and is no worker"):
        desk.server.serve()


def test_who_is_a_worker_asks_for_no_place():
    desk = Doors()
    desk.joins(1)
    with pytest.raises(ProtocolError):
        desk.server.serve()


def test_a_rank_that_registers_as_what_it_was_not_promised():
    desk = Doors()
    desk.joins(desk.spare)
    lost_at(desk, 1)
    desk.gets_ready(desk.spare, 0, 1)
    with pytest.raises(ProtocolError, match="rank 3 registers as 0, it is to be"):
        desk.server.serve()
