"""A worker's links: the window, where payloads go, and what the answers said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scripted_transport import NothingComesError, Scripted

from psgrad import links as links_module
from psgrad.codecs import Key, Workspace, parse
from psgrad.errors import ProtocolError, WireError
from psgrad.links import ServerLinks
from psgrad.messages import HEADER_NBYTES, Flag, Header, Kind
from psgrad.roles import Roles

RUN = 77
ROLES = Roles(4, 2)  # ranks 0 and 1 serve; this is worker 1 on rank 3


@pytest.fixture
def transport():
    return Scripted(rank=3)


@pytest.fixture
def links(transport):
    return ServerLinks(transport, ROLES, RUN, window=2)


def push(chunk=0):
    return Header(Kind.PUSH, chunk=chunk, clock=1)


def story(transport):
    return [(what, peer) for what, peer, _ in transport.events]


def test_it_hears_every_server(transport, links):
    assert transport.peers == [0, 1]


def test_headers_say_who_sends_what(transport, links):
    links.request(0, push(), np.arange(3, dtype=np.float32))
    links.tell(1, Header(Kind.FINISH))
    first, second = transport.sent
    assert (first.run, first.worker, first.nbytes) == (RUN, 1, 12)
    assert (second.run, second.worker, second.nbytes) == (RUN, 1, 0)
    assert transport.payloads[0] == np.arange(3, dtype=np.float32).tobytes()


def test_a_full_window_takes_an_answer_before_it_sends(transport, links):
    transport.arrives(0, Header(Kind.ACK))
    for _ in range(3):
        links.request(0, push())
    assert story(transport) == [("send", 0), ("send", 0), ("receive", 0), ("send", 0)]


def test_each_server_has_a_window_of_its_own(transport, links):
    for server in (0, 1, 0, 1):
        links.request(server, push())
    assert story(transport) == [("send", s) for s in (0, 1, 0, 1)]
    transport.arrives(1, Header(Kind.ACK))  # of the other server: server 0 has still no room
    with pytest.raises(NothingComesError):
        links.request(0, push())
    links.request(1, push())


def test_control_messages_are_not_counted(transport, links):
    links.tell_all(Header(Kind.STATS))
    links.tell_all(Header(Kind.STATS))
    links.request(0, push())
    links.request(0, push())
    assert len(transport.sent) == 6


def test_answers_are_waited_for_and_no_longer(transport, links):
    links.await_answers()
    links.request(0, push())
    links.request(1, Header(Kind.STEP))
    transport.arrives(1, Header(Kind.PARAMS))
    transport.arrives(0, Header(Kind.ACK))
    transport.arrives(0, Header(Kind.MET))
    links.await_answers()
    assert len(transport.script) == 1
    links.await_answers()
    assert len(transport.script) == 1


def test_the_link_rate_is_that_of_the_last_large_pull(transport, links):
    """Two readings of the clock, a second apart, whatever came before."""
    assert links.link_rate == 0.0
    for nbytes, rate in ((1000, 0.0), (100_000, 100_104.0), (1000, 100_104.0), (80_000, 80_104.0)):
        memory = np.zeros(nbytes // 4, np.float32)
        links.receive_params_into(lambda chunk, memory=memory: memory, lambda chunk: 0)
        transport.arrives(0, Header(Kind.PARAMS), bytes(nbytes))

        def pull():
            links.request(0, Header(Kind.PULL))
            links.await_answers()

        links.timed(pull)
        assert links.link_rate == rate


def test_it_is_idle_when_all_is_answered(transport, links):
    assert links.idle
    links.request(0, push())
    assert not links.idle
    transport.arrives(0, Header(Kind.ACK))
    links.await_answers()
    assert links.idle


def test_parameters_arrive_where_they_are_used(transport, links):
    memory = {0: np.zeros(2, np.float32), 1: np.zeros(3, np.float32)}
    links.receive_params_into(memory.__getitem__, lambda chunk: 0)
    links.request(0, Header(Kind.PULL, chunk=0))
    links.request(1, Header(Kind.PULL, chunk=1))
    transport.arrives(1, Header(Kind.PARAMS, chunk=1), np.full(3, 7, np.float32).tobytes())
    transport.arrives(0, Header(Kind.PARAMS, chunk=0), np.full(2, 5, np.float32).tobytes())
    links.await_answers()
    np.testing.assert_array_equal(memory[0], [5, 5])
    np.testing.assert_array_equal(memory[1], [7, 7, 7])


def test_parameters_that_cannot_be_read_whole_are_asked_for_by_message(transport, links):
    memory, read = np.zeros(2, np.float32), [0, 8]
    links.receive_params_into(lambda chunk: memory, lambda chunk: read.pop(0))
    links.request(0, Header(Kind.STEP, chunk=4, clock=7))
    links.request(0, Header(Kind.STEP, chunk=5, clock=7))
    there = Header(Kind.PARAMS, chunk=4, clock=7, flags=Flag.SHARED, rate=0.5)
    transport.arrives(0, there)
    transport.arrives(0, there._replace(chunk=5))
    transport.arrives(0, Header(Kind.PARAMS, chunk=4, clock=7), np.ones(2, np.float32).tobytes())
    links.await_answers()
    assert memory.tolist() == [1, 1]
    again = transport.sent[-1]
    assert (again.kind, again.chunk, again.clock, again.flags) == (
        Kind.PULL, 4, 7, Flag.BY_MESSAGE,
    )  # fmt: skip
    assert links.idle


def test_an_open_step_is_answered_twice(transport, links):
    """Once when a chunk has come, which makes room in the window, once when it is settled."""
    links.receive_params_into(lambda chunk: np.zeros(1, np.float32), lambda chunk: 8)
    for chunk in (3, 4):
        links.request(0, Header(Kind.STEP, chunk=chunk, flags=Flag.OPEN))
        transport.arrives(0, Header(Kind.RECEIVED, chunk=chunk))
    links.await_answers()
    assert not links.awaited
    links.expect([3, 4])
    assert links.has_room(0)
    assert links.awaited == {3, 4}
    transport.arrives(0, Header(Kind.PARAMS, chunk=3, flags=Flag.SHARED))
    links.take()
    assert links.awaited == {4}
    assert not links.idle
    transport.arrives(0, Header(Kind.PARAMS, chunk=4, flags=Flag.SHARED))
    links.take()
    assert links.idle
    assert not links.awaited


def test_driving_takes_what_has_come_and_does_not_wait(transport, links):
    transport.arrives(0, Header(Kind.STATS_ARE), b"one")
    transport.arrives(1, Header(Kind.STATS_ARE), b"two")
    links.drive()
    assert not transport.script
    assert [links.await_control(Kind.STATS_ARE)[1] for _ in range(2)] == [b"one", b"two"]


def test_a_control_message_that_comes_early_is_kept(transport, links):
    links.request(0, push())
    transport.arrives(0, Header(Kind.STATS_ARE), b"one")
    transport.arrives(1, Header(Kind.STATS_ARE), b"two")
    transport.arrives(0, Header(Kind.ACK))
    links.await_answers()
    assert [links.await_control(Kind.STATS_ARE)[1] for _ in range(2)] == [b"one", b"two"]


def test_an_answer_from_every_server(transport, links):
    transport.arrives(1, Header(Kind.LEFT))
    transport.arrives(0, Header(Kind.LEFT))
    answers = links.ask_all(Header(Kind.LEAVE, clock=9), Kind.LEFT)
    assert [h.kind for h, _ in answers] == [Kind.LEFT, Kind.LEFT]
    assert [(h.kind, h.clock) for h in transport.sent] == [(Kind.LEAVE, 9)] * 2


def test_another_control_message_than_the_one_expected(transport, links):
    transport.arrives(0, Header(Kind.MET), b"{}")
    with pytest.raises(ProtocolError, match="expected LEFT, got MET"):
        links.await_control(Kind.LEFT)


def test_a_control_message_that_is_too_large(transport, links, monkeypatch):
    monkeypatch.setattr(links_module, "CONTROL_LIMIT", 3)
    transport.arrives(0, Header(Kind.MET), b"abc")
    transport.arrives(1, Header(Kind.MET), b"abcd")
    assert links.await_control(Kind.MET)[1] == b"abc"
    with pytest.raises(ProtocolError, match="server 1 announces 4 bytes of MET, the limit is 3"):
        links.await_control(Kind.MET)


@pytest.mark.parametrize("kind", [Kind.ACK, Kind.CUT, Kind.LEFT, Kind.RECEIVED, Kind.STEP])
def test_a_payload_where_there_is_none_is_refused(transport, links, kind):
    """It would be taken for that of a later message."""
    transport.arrives(1, Header(kind), b"abcd")
    with pytest.raises(ProtocolError, match=f"server 1 sends {kind.name} with a payload"):
        links.drive()


def test_what_the_answers_said(transport, links):
    assert math.isnan(links.answered.rate)
    links.request(0, Header(Kind.STEP))
    links.request(1, push())
    transport.arrives(0, Header(Kind.PARAMS, clock=5, slowest=3, version=8, rate=0.5))
    transport.arrives(1, Header(Kind.ACK, clock=5, slowest=4, version=9, rate=0.25))
    links.await_answers()
    assert (links.answered.rate, links.answered.version) == (0.25, 9)
    assert links.answered.staleness == 2  # of the pull, not of the acknowledgement


def test_bytes_are_counted_both_ways(transport, links):
    links.request(0, push(), np.zeros(5, np.float32))
    transport.arrives(0, Header(Kind.ACK))
    transport.arrives(0, Header(Kind.MET), b"abc")
    links.await_control(Kind.MET)
    assert links.wire_nbytes == 3 * HEADER_NBYTES + 20 + 3


# Encoded payloads


def remote(transport, host, pull=None):
    """Links of the worker on rank 3 to servers on ``host``; it is on ``here`` itself."""
    roles = Roles(4, 2, (host, host, "here", "here"))
    return ServerLinks(transport, roles, RUN, window=4, pull=pull)


def payload_of(codec, values):
    out = np.zeros(codec.nbytes_max(values.size), np.uint8)
    return out[: codec.encode(values, None, out, Key(0, 0, 1, 0), Workspace())]


@pytest.mark.parametrize(("host", "sealed"), [("here", False), ("there", True)])
def test_a_payload_that_leaves_the_node_is_sealed(transport, host, sealed):
    payload = payload_of(parse("int8"), np.ones(300, np.float32))
    header = push()._replace(flags=Flag.ENCODED)
    remote(transport, host).request(0, header, payload)
    assert bool(payload[20:24].any()) == sealed
    damaged = payload.copy()
    damaged[-1] ^= 1  # the last code
    if sealed:
        with pytest.raises(WireError, match="checksum does not match"):
            parse("int8").open(damaged, 300)
    else:
        parse("int8").open(damaged, 300)


def test_differences_are_added_to_what_is_held(transport):
    """A request says what is held; a reply of nothing leaves it as it is."""
    codec, params = parse("topk:0.05"), np.zeros(400, np.float32)
    links = remote(transport, "there", codec)
    links.receive_params_into(lambda chunk: params, lambda chunk: 0)
    dense = np.arange(400, dtype=np.float32)
    held = Header(Kind.PARAMS, chunk=3, version=7, flags=Flag.HELD)
    transport.arrives(0, held, dense.tobytes())
    links.request(0, Header(Kind.PULL, chunk=3))
    links.await_answers()
    assert np.array_equal(params, dense)

    change = np.zeros(400, np.float32)
    change[[5, 50]] = 2.0, -1.0
    encoded = held._replace(version=9, flags=Flag.HELD | Flag.ENCODED)
    transport.arrives(0, encoded, payload_of(codec, change).tobytes())
    transport.arrives(0, encoded, b"")
    for _ in range(2):
        links.request(0, Header(Kind.STEP, chunk=3))
        links.await_answers()
        assert np.array_equal(params, dense + change)

    # After an answer that is not the reference, nothing is held any more.
    transport.arrives(0, Header(Kind.ACK, chunk=3))
    transport.arrives(0, held._replace(flags=0), dense.tobytes())
    links.request(0, Header(Kind.PUSH, chunk=3))
    links.request(0, Header(Kind.PULL, chunk=3))
    links.await_answers()
    links.request(0, Header(Kind.PULL, chunk=3))
    said = [(h.kind, h.version if h.flags & Flag.HELD else None) for h in transport.sent]
    assert said == [
        (Kind.PULL, None), (Kind.STEP, 7), (Kind.STEP, 9),
        (Kind.PUSH, None), (Kind.PULL, 9), (Kind.PULL, None),
    ]  # fmt: skip


def test_an_answer_that_comes_twice_changes_nothing_the_second_time(transport, links):
    params = np.zeros(3, np.float32)
    links.receive_params_into(lambda chunk: params, lambda chunk: 0)
    first = Header(Kind.PARAMS, clock=1, number=1)
    transport.arrives(0, first, np.ones(3, np.float32).tobytes())
    transport.arrives(0, first, np.full(3, 7, np.float32).tobytes())
    transport.arrives(0, Header(Kind.MET, number=2), b"{}")
    transport.arrives(0, Header(Kind.MET, number=2), b"[]")
    transport.arrives(0, Header(Kind.ACK, number=3))
    links.request(0, Header(Kind.STEP))
    links.request(0, Header(Kind.PUSH))
    links.await_answers()
    assert params.tolist() == [1, 1, 1]
    assert links.await_control(Kind.MET)[1] == b"{}"
    assert not transport.script
    with pytest.raises(NothingComesError):
        links.await_control(Kind.MET)


@pytest.mark.parametrize("kind", [Kind.ACK, Kind.RECEIVED, Kind.PARAMS])
def test_an_answer_that_nothing_has_asked_for_is_refused(transport, links, kind):
    """Counted, it would make room that there is not, or an end that never comes."""
    links.receive_params_into(lambda chunk: np.zeros(1, np.float32), lambda chunk: 8)
    links.request(1, push())
    transport.arrives(0, Header(kind, chunk=3))
    with pytest.raises(ProtocolError, match=f"server 0 sends {kind.name} of chunk 3, which nothin"):
        links.take()


def test_what_is_sent_is_numbered_on_each_link(transport, links):
    links.request(0, push())
    links.tell_all(Header(Kind.STATS))
    assert [(peer, h.number) for _, peer, h in transport.events] == [(0, 1), (0, 2), (1, 1)]
