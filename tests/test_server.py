"""The server's program on a script of messages: registration, memory, traffic, refusals."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from scripted_transport import NothingComesError, Scripted

from psgrad import intake
from psgrad.errors import ConfigError, ProtocolError, WireError
from psgrad.layout import Layout
from psgrad.messages import HEADER_NBYTES, Flag, Header, Kind, Verdict, encode_json
from psgrad.optimizers import SGD
from psgrad.options import Options
from psgrad.roles import Roles
from psgrad.server import Server

RUN = 77
LAYOUT = Layout.of({"w": np.zeros((4, 5), np.float32), "b": np.zeros(4, np.float32)})
OTHER = Layout.of({"w": np.zeros((5, 4), np.float32), "b": np.zeros(4, np.float32)})


class Log:
    """A sink that keeps the lines."""

    def __init__(self):
        self.lines = []

    def log(self, text):
        self.lines.append(text)

    def record(self, kind, **fields):
        raise AssertionError("servers log, they do not record")


class Desk:
    """A server of one job, its script, and what it sent."""

    def __init__(self, workers=1, bound=0, servers=1, rank=0):
        self.roles = Roles(workers + servers, servers)
        self.transport, self.sink = Scripted(rank), Log()
        options = Options(optimizer=SGD(1.0), staleness=bound, servers=servers)
        self.server = Server(self.transport, self.roles, options, RUN, self.sink)

    def tell(self, sender, kind, payload=b"", **fields):
        header = Header(kind, run=RUN, layout=LAYOUT.digest, worker=sender)
        rank = self.roles.rank_of(sender)
        self.transport.arrives(rank, header._replace(**fields), bytes(payload))

    def register(self, *workers, initial=0.0):
        for worker in workers:
            self.tell(worker, Kind.REGISTER, registration(LAYOUT))
        self.tell(0, Kind.INIT, full(initial))

    def serve(self):
        """Up to the end of the script; the kinds sent to each worker so far."""
        with pytest.raises(NothingComesError):
            self.server.serve()
        return self.sent

    @property
    def sent(self):
        return [(h.kind, h.worker) for h in self.transport.sent]


def registration(layout):
    return encode_json({"layout": asdict(layout)})


def full(value):
    return np.full(LAYOUT.size, value, np.float32).tobytes()


def test_it_hears_every_worker_and_ends_when_all_are_done():
    desk = Desk(workers=2)
    desk.tell(1, Kind.FINISH)
    desk.tell(0, Kind.FINISH)
    desk.server.serve()
    assert desk.transport.peers == [1, 2]
    assert desk.sink.lines == ["worker 1 is done", "worker 0 is done"]


def test_a_run_of_one_worker():
    desk = Desk()
    desk.register(0, initial=3.0)
    desk.tell(0, Kind.PULL)
    desk.tell(0, Kind.STEP, full(1.0), clock=1, weight=8.0)
    desk.tell(0, Kind.LEAVE, clock=1)
    desk.tell(0, Kind.FINISH)
    desk.server.serve()
    assert desk.sent == [
        (Kind.REGISTERED, 0),
        (Kind.ACK, 0),
        (Kind.PARAMS, 0),
        (Kind.PARAMS, 0),
        (Kind.LEFT, 0),
    ]
    assert desk.transport.payloads[2:4] == [full(3.0), full(2.0)]
    assert all(h.run == RUN for h in desk.transport.sent)


def test_registration_waits_for_every_worker():
    desk = Desk(workers=3)
    desk.tell(2, Kind.REGISTER, registration(LAYOUT))
    desk.tell(0, Kind.REGISTER, registration(LAYOUT))
    assert desk.serve() == []
    desk.tell(1, Kind.REGISTER, registration(LAYOUT))
    assert desk.serve() == [(Kind.REGISTERED, w) for w in (0, 1, 2)]
    assert {h.layout for h in desk.transport.sent} == {LAYOUT.digest}


def test_a_shard_that_memory_cannot_hold_is_refused(monkeypatch):
    def none(*_):
        raise MemoryError

    desk = Desk()
    monkeypatch.setattr(desk.server, "_kind_of_shard", none)
    desk.tell(0, Kind.REGISTER, registration(LAYOUT))
    assert desk.serve() == [(Kind.REGISTERED, 0)]
    assert desk.transport.sent[0].verdict is Verdict.REFUSED
    assert json.loads(desk.transport.payloads[0])["error"] == (
        "server 0 has no memory for 96 bytes; use more servers"
    )


def test_layouts_that_differ_are_refused_on_every_worker():
    desk = Desk(workers=3)
    for worker, layout in [(0, LAYOUT), (1, LAYOUT), (2, OTHER)]:
        desk.tell(worker, Kind.REGISTER, registration(layout))
    assert desk.serve() == [(Kind.REGISTERED, w) for w in (0, 1, 2)]
    assert {h.verdict for h in desk.transport.sent} == {Verdict.REFUSED}
    assert {json.loads(p)["error"] for p in desk.transport.payloads} == {
        "parameters differ between workers: worker 2 has parameter 'w' with shape (5, 4), "
        "expected (4, 5), as on worker 0"
    }


def test_a_worker_that_is_done_before_it_registered_is_not_waited_for():
    desk = Desk(workers=3)
    desk.register(0, 2)
    desk.tell(1, Kind.FINISH)
    desk.transport.script.insert(2, desk.transport.script.pop())  # before INIT
    desk.tell(0, Kind.STEP, full(1.0), clock=1, weight=1.0)
    desk.tell(2, Kind.STEP, full(1.0), clock=1, weight=1.0)
    assert desk.serve()[-2:] == [(Kind.PARAMS, 0), (Kind.PARAMS, 2)]


def test_the_refused_may_register_again():
    desk = Desk(workers=2)
    desk.tell(0, Kind.REGISTER, registration(LAYOUT))
    desk.tell(1, Kind.REGISTER, registration(OTHER))
    desk.tell(1, Kind.REGISTER, registration(LAYOUT))
    desk.tell(0, Kind.REGISTER, registration(LAYOUT))
    desk.serve()
    assert [h.verdict for h in desk.transport.sent] == [Verdict.REFUSED] * 2 + [Verdict.APPLIED] * 2


def test_a_problem_of_one_worker_is_told_to_all():
    desk = Desk(workers=2)
    desk.tell(0, Kind.REGISTER, registration(LAYOUT))
    desk.tell(1, Kind.REGISTER, encode_json({"problem": "no parameters"}))
    desk.serve()
    answer = {
        "first": 0,
        "error": "worker 1: no parameters",
        "notice": "",
        "server": 0,
        "params": None,
    }
    assert [json.loads(p) for p in desk.transport.payloads] == [answer] * 2


def test_workers_that_wait_for_each_other_in_a_circle():
    desk = Desk(workers=2)
    desk.register(0, 1)
    desk.tell(1, Kind.STEP, full(1.0), clock=1, weight=1.0)
    part = encode_json({"values": {}, "weight": 1.0})
    desk.tell(0, Kind.MEET, part, sequence=1)
    with pytest.raises(ConfigError, match="worker 1 waits for the next step of worker 0, which"):
        desk.server.serve()


def test_a_step_that_can_still_be_answered_is_no_circle():
    desk = Desk(workers=3)
    desk.register(0, 1, 2)
    desk.tell(1, Kind.STEP, full(1.0), clock=1, weight=1.0)
    desk.tell(0, Kind.PUSH, full(1.0), clock=1, weight=1.0)
    desk.tell(0, Kind.MEET, encode_json({"values": {}, "weight": 1.0}), sequence=1)
    desk.tell(2, Kind.PUSH, full(1.0), clock=1, weight=1.0)
    assert (Kind.PARAMS, 1) in desk.serve()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_everyone_is_told_who_gives_the_initial_values(order):
    desk = Desk(workers=3)
    for worker in order:
        if worker == 0:
            desk.tell(0, Kind.FINISH)
        else:
            desk.tell(worker, Kind.REGISTER, registration(LAYOUT))
    assert desk.serve() == [(Kind.REGISTERED, 1), (Kind.REGISTERED, 2)]
    assert [json.loads(p) for p in desk.transport.payloads] == [
        {"first": 1, "error": None, "notice": "", "server": 0, "params": None}
    ] * 2
    desk.tell(1, Kind.INIT, full(7.0))
    desk.tell(2, Kind.PULL)
    desk.serve()
    assert desk.transport.payloads[-1] == full(7.0)


def test_what_is_unanswered_at_the_end_is_said():
    desk = Desk(workers=2)
    desk.register(0, 1)
    desk.tell(0, Kind.PUSH, full(1.0), clock=1, weight=1.0)
    desk.tell(0, Kind.FINISH)
    desk.tell(1, Kind.FINISH)
    with pytest.raises(ProtocolError, match="ended with unanswered messages: chunk 0: worker 0"):
        desk.server.serve()


# Memory


def test_gradient_memory_is_used_again():
    desk = Desk()
    desk.register(0)
    placed = []
    place = desk.server._intake.place

    def spy(peer, header):
        memory = place(peer, header)
        placed.append(memory)
        return memory

    desk.server._intake.place = spy
    for clock in (1, 2, 3):
        desk.tell(0, Kind.STEP, full(1.0), clock=clock, weight=1.0)
    desk.serve()
    grads = [m for m in placed if isinstance(m, np.ndarray)]
    assert len(grads) == 4
    initial, *pushes = grads
    assert len({id(m) for m in pushes}) == 1
    assert pushes[0] is not initial, "first values come once: their memory is not kept"


def test_gradient_memory_of_an_open_round_is_left_alone():
    desk = Desk(workers=2)
    desk.register(0, 1)
    desk.tell(0, Kind.STEP, full(1.0), clock=1, weight=1.0)
    desk.tell(1, Kind.STEP, full(3.0), clock=1, weight=1.0)
    desk.serve()
    assert desk.transport.payloads[-2:] == [full(-2.0)] * 2


def test_sync_sends_parameters_without_a_copy():
    desk = Desk()
    desk.register(0)
    desk.tell(0, Kind.STEP, full(1.0), clock=1, weight=1.0)
    desk.serve()
    assert desk.transport.memory[-1] is desk.server._shard.chunks[0].params


@pytest.mark.parametrize("gone", [False, True])
def test_elsewhere_a_copy_is_reused_only_when_it_is_gone(gone):
    desk = Desk(workers=2, bound=None)
    desk.register(0, 1)
    desk.tell(0, Kind.STEP, full(1.0), clock=1, weight=1.0)
    desk.serve()
    first = desk.transport.memory[-1]
    desk.transport.sendings[-1].gone = gone
    desk.tell(1, Kind.STEP, full(1.0), clock=1, weight=1.0)
    desk.serve()
    second = desk.transport.memory[-1]
    params = desk.server._shard.chunks[0].params
    assert not np.shares_memory(first, params)
    assert not np.shares_memory(second, params)
    assert np.shares_memory(second, first) == gone
    assert second.tobytes() == full(-2.0)
    assert first.tobytes() == full(-2.0 if gone else -1.0)


# Rendezvous, statistics, other servers


def test_a_rendezvous_on_the_coordinator():
    desk = Desk(workers=2)
    part = encode_json({"values": {"x": 2.0}, "weight": 1.0})
    desk.tell(1, Kind.MEET, part, sequence=1)
    desk.tell(0, Kind.FINISH)
    assert desk.serve() == [(Kind.MET, 1)]
    assert desk.transport.sent[0].sequence == 1
    assert json.loads(desk.transport.payloads[0]) == {
        "mean": {"x": 2.0},
        "running": [1],
        "lost": {},
    }


def test_only_the_coordinator_takes_a_rendezvous():
    desk = Desk(servers=2, rank=1)
    desk.tell(0, Kind.MEET, encode_json({"values": {}, "weight": 1.0}), sequence=1)
    with pytest.raises(ProtocolError, match="only the coordinator takes a rendezvous"):
        desk.server.serve()


def test_statistics():
    desk = Desk()
    desk.register(0)
    desk.tell(0, Kind.STEP, full(1.0), clock=1, weight=1.0)
    desk.tell(0, Kind.STEP, clock=2)
    desk.tell(0, Kind.STATS)
    desk.serve()
    stats = json.loads(desk.transport.payloads[-1])
    nbytes = LAYOUT.size * 4
    assert stats == {
        "pushes": 2,
        "skipped": 1,
        "duplicates": 0,
        "updates": 1,
        "pulls": 2,
        "staleness_max": 0,
        "bytes_pushed": 3 * HEADER_NBYTES + 2 * nbytes,
        "bytes_pulled": 3 * HEADER_NBYTES + 2 * nbytes,
        "balance": 1.0,
        "repeated": 0,
        "fenced": 0,
    }


def test_statistics_before_there_are_parameters():
    desk = Desk()
    desk.tell(0, Kind.STATS)
    desk.serve()
    assert json.loads(desk.transport.payloads[-1])["updates"] == 0


def test_a_server_owns_its_chunks_only():
    desk = Desk(servers=2, rank=1)  # LAYOUT has one chunk: it is on server 0
    desk.tell(0, Kind.REGISTER, registration(LAYOUT))
    desk.tell(0, Kind.LEAVE)
    assert desk.serve() == [(Kind.REGISTERED, 0), (Kind.LEFT, 0)]
    assert "shard of 0 bytes in 0 of 1 chunks, balance (max/mean over servers) 2.000" in (
        desk.sink.lines
    )
    desk.tell(0, Kind.INIT, full(1.0))
    with pytest.raises(ProtocolError, match="rank 2 pushes chunk 0, which is not here"):
        desk.server.serve()


# What is refused


@pytest.mark.parametrize(
    ("kind", "payload", "fields", "text"),
    [
        (Kind.PUSH, full(1.0), {"run": 5}, "rank 1 sends for run 5, not 4d"),
        (Kind.PULL, b"", {"run": 5}, "rank 1 sends for run 5, not 4d"),
        (Kind.FINISH, b"", {"run": 5}, "rank 1 sends for run 5, not 4d"),
        (Kind.PULL, b"", {"worker": 1}, "rank 1 sends as worker 1, incarnation 0; it is"),
        (
            Kind.PUSH,
            full(1.0),
            {"worker": 1},
            "rank 1 sends as worker 1, incarnation 0; it is",
        ),
        (Kind.PUSH, full(1.0), {"layout": 5}, "rank 1 pushes with another layout"),
        (Kind.PUSH, full(1.0), {"chunk": 3}, "rank 1 pushes chunk 3, which is not here"),
        (Kind.PUSH, full(1.0)[:-4], {}, "rank 1 pushes 92 bytes to chunk 0 of 96 bytes"),
        (Kind.PULL, b"", {"chunk": 3}, "chunk 3 is not on this server"),
        (Kind.ACK, b"", {}, "does not handle ACK"),
        (Kind.WRITTEN, b"{}", {}, "rank 1 sends WRITTEN, which servers send alone"),
        (Kind.EVICTED, b"", {}, "rank 1 sends EVICTED, which servers send alone"),
        (Kind.STATE, b"", {}, "rank 1 sends state of chunk 0 without a payload"),
        (Kind.MARK, b"{}", {}, "worker 0 marks a checkpoint, this run has none"),
        (Kind.LEAVE, b"", {"clock": 9}, "worker 0 leaves at clock 9, it has pushed 0 steps of"),
        (Kind.SETTLE, b"", {"sequence": 0}, "worker 0 ends step 1 of 0 chunks, 0 are here"),
        (Kind.PUSH, full(1.0), {"flags": Flag.OPEN}, "worker 0 opens a step by PUSH"),
    ],
)
def test_messages_that_no_correct_worker_sends(kind, payload, fields, text):
    desk = Desk(workers=2)
    desk.register(0, 1)
    desk.serve()
    desk.tell(0, kind, payload, **{"clock": 1, "weight": 1.0, **fields})
    with pytest.raises(ProtocolError, match=text):
        desk.server.serve()


@pytest.mark.parametrize("kind", [Kind.EVICTED, Kind.FENCED, Kind.WRITTEN])
def test_what_only_the_coordinator_says_to_servers(kind):
    desk = Desk(servers=3, rank=1)
    desk.transport.peers.append(2)  # a server that this one does not even hear
    desk.transport.arrives(2, Header(kind, run=RUN), b"")
    text = "this run has none" if kind is Kind.WRITTEN else f"server 2 sends {kind.name} to a"
    with pytest.raises(ProtocolError, match=text):
        desk.server.serve()


@pytest.mark.parametrize("kind", [Kind.PULL, Kind.LEAVE, Kind.PUSH])
def test_chunks_before_there_are_any(kind):
    desk = Desk()
    desk.tell(0, kind)
    with pytest.raises(ProtocolError, match=f"worker 0 sends {kind.name} before its registration"):
        desk.server.serve()


def test_a_control_message_that_is_too_large(monkeypatch):
    monkeypatch.setattr(intake, "CONTROL_LIMIT", 3)
    desk = Desk()
    desk.tell(0, Kind.MEET, b"abcd")
    with pytest.raises(ProtocolError, match="rank 1 announces a control message of 4 bytes"):
        desk.server.serve()


# What comes twice


def test_a_message_that_comes_twice_is_handled_once():
    """Whatever it is; and the memory that the second one is received into is nobody's gradient."""
    desk = Desk(workers=2, bound=None)
    desk.register(0, 1)
    came = len(desk.transport.script)
    for number, (kind, payload) in enumerate(
        [(Kind.STEP, full(1.0)), (Kind.PULL, b""), (Kind.LEAVE, b""), (Kind.FINISH, b"")], start=1
    ):
        for _ in range(2):
            desk.tell(1, kind, payload, clock=1, number=number, weight=1.0 if payload else 0.0)
    assert came
    assert [kind for kind, worker in desk.serve() if worker == 1] == [
        Kind.REGISTERED, Kind.PARAMS, Kind.PARAMS, Kind.LEFT,
    ]  # fmt: skip
    desk.tell(0, Kind.STATS)
    desk.serve()
    stats = json.loads(desk.transport.payloads[-1])
    assert (stats["repeated"], stats["pushes"], stats["pulls"]) == (4, 1, 2)


def test_answers_are_numbered_on_each_link():
    desk = Desk(workers=2, bound=None)
    desk.register(0, 1)
    desk.tell(1, Kind.PULL)
    desk.serve()
    numbers = {0: [], 1: []}
    for header in desk.transport.sent:
        numbers[header.worker].append(header.number)
    assert numbers == {0: [1, 2], 1: [1, 2]}


@pytest.mark.parametrize("rate", [math.nan, math.inf, -0.5, -2.0])
def test_a_learning_rate_that_is_none_is_refused(rate):
    desk = Desk()
    desk.register(0)
    desk.tell(0, Kind.STEP, full(1.0), clock=1, weight=1.0, rate=rate)
    with pytest.raises(ProtocolError, match=f"rank 1 sends STEP with learning rate {rate}, which"):
        desk.server.serve()


@pytest.mark.parametrize(
    ("kind", "payload", "text"),
    [
        (Kind.REGISTER, b"{}", "payload of REGISTER has no field 'layout'"),
        (Kind.MEET, b'{"values": {"x": "1"}, "weight": 1}', "field 'x' of MEET must be float"),
        (Kind.SHARE, b'{"grads": 1, "params": null}', "field 'grads' of SHARE must be str or null"),
        (Kind.SETTLE, b'{"scale": null}', "field 'scale' of SETTLE must be float"),
        (Kind.MEET, b"", "control payload is not JSON"),
    ],
)
def test_a_control_payload_of_another_shape_is_refused_by_name(kind, payload, text):
    desk = Desk()
    if kind is not Kind.REGISTER:
        desk.register(0)
    desk.tell(0, kind, payload)
    with pytest.raises(WireError, match=text):
        desk.server.serve()
