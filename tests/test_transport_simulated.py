"""The simulated carrier: the contract, its clock, what it catches, and how a run ends."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import sys

import numpy as np
import pytest
from simulation import PAYLOAD, SECOND, WILD, anywhere, chatter, count_to, message, no_place, run
from transport_losses import LOSSES
from transport_scenarios import RANKS, REFUSED, SCENARIOS

from psgrad.errors import ConfigError, LaunchError, PsgradError
from psgrad.messages import HEADER_NBYTES, Kind
from psgrad.transport.carrier import AliasingError
from psgrad.transport.clockwork import RankError, SimulationError, StallError
from psgrad.transport.faults import Kill, Partition
from psgrad.transport.network import Link, Network
from psgrad.transport.simulated import POLL_S, Simulation

NETWORKS = {
    "default": (Network(), []),
    "slow": (Network(latency_s=2e-3, bandwidth=1e7, nic_bandwidth=3e7), []),
    "free": (Network(latency_s=0.0, bandwidth=math.inf), []),
    "wild": (Network(jitter=50.0, links=(Link(3e-3, 1e7, source=1),)), WILD),
}


def log(count, transport, peers, place=anywhere):
    """The next ``count`` messages: (time, peer, clock)."""
    transport.connect(peers)
    came = []
    for _ in range(count):
        peer, header = transport.receive(place)
        came.append((transport.now(), peer, header.clock))
    return came


# The contract


def conform(transport, scenario):
    scenario(transport)
    transport.close()
    return "done"


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_contract(name, network):
    program = functools.partial(conform, scenario=SCENARIOS[name])
    assert run(RANKS, program, *NETWORKS[network], seed=3) == ["done"] * RANKS


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", LOSSES)
def test_ranks_may_die(name, network):
    program = functools.partial(conform, scenario=LOSSES[name])
    last = "done" if name.startswith("who_") else None
    for seed in range(8):
        assert run(RANKS, program, *NETWORKS[network], seed=seed) == ["done", "done", last]


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name):
    program, status, text = REFUSED[name]
    with pytest.raises(RankError) as caught:
        run(2, program)
    assert (caught.value.rank, caught.value.exit_status) == (1, status)
    assert text in str(caught.value)


def test_what_a_rank_is():
    assert run(2, lambda t: (t.rank, t.size, t.host)) == [(0, 2, "node0"), (1, 2, "node1")]


# Time


def test_memory_is_free_when_the_message_has_left_the_nic():
    """Not when it was handed over, and not only when it arrives."""

    def program(transport):
        if transport.rank:
            return log(2, transport, [0])
        payload = bytearray(PAYLOAD)
        first, second = (transport.send(1, message(i, PAYLOAD), payload) for i in range(2))
        before = (first.done(), second.done())
        transport.sleep(2.5)
        between = (first.done(), second.done())
        transport.flush()
        return before, between, transport.now(), second.done()

    sender, receiver = run(2, program, SECOND)
    assert sender == ((False, False), (True, False), pytest.approx(4.0), True)
    assert [came[0] for came in receiver] == pytest.approx([3.0, 5.0])


def test_close_waits_for_headers_too():
    def program(transport):
        if transport.rank == 0:
            transport.send(1, message())
            assert transport.send(1, message()).done(), "there is no memory to be written again"
            transport.flush()
            assert transport.now() == 0
            transport.close()
        return transport.now()

    assert run(2, program, SECOND)[0] == pytest.approx(2 * HEADER_NBYTES / 100)


def test_what_comes_after_close_is_lost():
    events = []

    def program(transport):
        if transport.rank == 0:
            transport.connect([1])
            transport.close()
            transport.sleep(5)
        else:
            transport.send(0, message())

    run(2, program, SECOND, trace=events.append)
    assert [e.what for e in events if e.header is not None] == ["send", "enter", "lost"]


def test_what_comes_after_the_end_of_a_program_is_lost():
    def program(transport):
        if transport.rank == 0:
            transport.send(1, message())
            transport.sleep(5)

    sim = Simulation(2, SECOND, trace=True)
    sim.run(program)
    assert [e.what for e in sim.trace if e.header is not None] == ["send", "enter", "lost"]


def test_an_exchange_ends_for_all_when_the_last_has_come():
    def program(transport):
        transport.sleep(1.0 + transport.rank)
        transport.exchange(b"x" * 1000 * transport.rank)
        return transport.now()

    assert run(5, program, SECOND) == [pytest.approx(5.0 + 3 * 1.0)] * 5  # 3 doublings


def test_waits_that_give_up_take_a_moment():
    def program(transport):
        transport.sleep(0)
        assert transport.now() == POLL_S
        assert transport.receive(no_place, timeout=0) is None
        assert transport.now() == 2 * POLL_S
        assert transport.receive(no_place, timeout=2.0) is None
        return transport.now()

    assert run(1, program) == [pytest.approx(2.0 + 2 * POLL_S)]


def test_a_deadline_that_was_not_needed_does_not_wake_anybody():
    def program(transport):
        if transport.rank == 0:
            for number in range(3):
                transport.sleep(1.0)
                transport.send(1, message(number))
            return None
        transport.connect([0])
        came = [transport.receive(no_place, timeout=5.0) for _ in range(3)]
        start = transport.now()
        assert transport.receive(no_place, timeout=4.5) is None
        return [header.clock for _, header in came], transport.now() - start

    assert run(2, program, Network())[1] == ([0, 1, 2], pytest.approx(4.5))


def test_deadlines_do_not_pile_up():
    """Each message is there long before its deadline: one alarm is left in the heap, not 2000."""

    def program(transport):
        if transport.rank == 0:
            for number in range(2000):
                transport.sleep(0.5)
                transport.send(1, message(number))
            return
        transport.connect([0])
        for number in range(2000):
            timeout = 50.0 if number % 2 else 5.0
            assert transport.receive(no_place, timeout)[1].clock == number

    sim = Simulation(2, Network())
    sim.run(program)
    assert sim.events < 2000 * (1 + 2) + 450  # a sleep, two events of a message


def test_all_that_is_there_gets_its_place_before_the_first_is_returned():
    """As over MPI, where headers are taken while others' payloads are under way."""
    asked = []

    def program(transport):
        if transport.rank:
            return transport.send(0, message(transport.rank, 8), bytearray(8))
        transport.connect([1, 2])
        transport.sleep(1.0)
        for count in (1, 2):
            peer, _ = transport.receive(lambda peer, _: asked.append(peer) or bytearray(8))
            assert (peer, asked) == (count, [1, 2])
        return None

    run(3, program)


def test_who_is_dropped_is_not_heard_any_more():
    """Nor is what of it had its place already: its owner has forgotten that place."""

    def program(transport):
        if transport.rank:
            for number in range(3):
                transport.send(0, message(number, 8), bytearray(8))
            return None
        transport.sleep(10.0)
        first, *rest = log(1, transport, [1, 2])
        transport.drop(3 - first[1])
        return rest + [transport.receive(anywhere)[0] for _ in range(2)] + [first[1]]

    heard, *_ = run(3, program)
    assert len(set(heard)) == 1
    assert len(heard) == 3


def test_messages_of_one_moment_keep_their_order():
    """Everything at once on a network that takes no time: first sent, first received."""

    def program(transport):
        if transport.rank == 0:
            return [came[1] for came in log(12, transport, range(1, 5))]
        for number in range(3):
            transport.send(0, message(number))
        return None

    free = Network(latency_s=0.0, bandwidth=math.inf)
    assert run(5, program, free)[0] == [rank for rank in range(1, 5) for _ in range(3)]


# One seed, one run


def trace_of(seed, program=chatter, faults=WILD, size=4):
    sim = Simulation(size, Network(jitter=2.0), faults, seed, trace=True)
    sim.run(program)
    return "\n".join(event.text() for event in sim.trace)


def test_a_seed_is_a_run():
    first = trace_of(7)
    assert first == trace_of(7)
    assert len({trace_of(seed) for seed in range(20)}) == 20


# What it catches


def test_memory_that_changes_under_way():
    def program(transport):
        if transport.rank:
            return log(1, transport, [0])
        payload = np.zeros(PAYLOAD, np.uint8)
        transport.send(1, message(5, PAYLOAD, Kind.STEP)._replace(chunk=3, worker=2), payload)
        transport.sleep(1.0)
        payload[-1] = 1
        return transport.sleep(9.0)

    with pytest.raises(AliasingError) as caught:
        run(2, program, SECOND)
    assert str(caught.value) == (
        "rank 0 has changed a payload on its way to rank 1 (STEP of worker 2, chunk 3, clock 5, "
        "96 bytes, is under way); wait for Sent.done() or flush(), or send a copy"
    )


def test_memory_that_changes_and_changes_back_in_time():
    """Only what would have been seen counts: the comparison is made when the message has left."""

    def program(transport):
        if transport.rank:
            return None
        payload = bytearray(PAYLOAD)
        transport.send(1, message(0, PAYLOAD), payload)
        payload[0] = 1
        payload[0] = 0
        transport.flush()
        payload[0] = 1
        return transport.sleep(9.0)

    run(2, program, SECOND)


@pytest.mark.parametrize(
    ("program", "text"),
    [
        (
            lambda t: t.send(1, message(0, 8), bytearray(9)),
            "rank 0: ProtocolError: rank 0 announces 8 bytes of PUSH to rank 1 and sends 9",
        ),
        (lambda t: t.send(1, message(0, 8)), "announces 8 bytes of PUSH to rank 1 and sends 0"),
        (lambda t: t.send(1, message(), b"x"), "announces 0 bytes of PUSH to rank 1 and sends 1"),
        (lambda t: t.send(2, message()), "sends to rank 2, ranks go from 0 to 1"),
        (lambda t: t.send(-1, message()), "sends to rank -1"),
        (
            lambda t: t.send(1, message(0, 8), np.zeros((2, 8), np.uint8)[:, ::2]),
            "sends memory that is not contiguous",
        ),
        (lambda t: (t.connect([1]), t.connect([1])), "connects to rank 1 twice"),
        (lambda t: (t.close(), t.send(1, message())), "uses its transport after close()"),
        (lambda t: t.sleep(-1), "rank 0: ValueError: sleep needs at least 0 seconds, got -1"),
        (lambda t: t.sleep(math.nan), "sleep needs at least 0 seconds, got nan"),
        (lambda t: t.send(1, message(-1)), "error"),  # what no header can hold
        (
            lambda t: t.exchange(b"") if t.rank else t.subgroup([0]),
            "rank 1 calls exchange() where rank 0 called subgroup()",
        ),
    ],
)
def test_misuse(program, text):
    with pytest.raises(RankError) as caught:
        run(2, program)
    assert text in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_stall_says_who_waits_for_whom():
    def program(transport):
        if transport.rank == 4:
            return
        transport.connect([(transport.rank + 1) % 3])
        if transport.rank == 0:
            transport.send(1, message(3, 16, Kind.ACK), bytearray(16))
            transport.send(2, message(1, kind=Kind.ACK))
        if transport.rank == 3:
            transport.exchange(b"")
        if transport.rank == 2:
            transport.receive(anywhere)
        transport.receive(anywhere)

    with pytest.raises(StallError) as caught:
        run(6, program, SECOND, [Kill(5, at_s=0.5)])
    assert str(caught.value).splitlines() == [
        "nothing can happen any more at 3.24 s: 4 of 6 ranks wait",
        "  rank 0 in receive since 0 s, for rank 1",
        "  rank 1 in receive since 0 s, for rank 2",
        "  rank 2 in receive since 3.24 s, for rank 0",
        "  rank 3 in exchange since 0 s, for ranks 0-2, 4-5",
        "  killed: rank 5",
        "  ended: rank 4",
        "  link 0 -> 1: 1 sent, the last: ACK of worker 0, chunk 0, clock 3, 16 bytes, has arrived",
        "  link 0 -> 2: 1 sent, the last: ACK of worker 0, chunk 0, clock 1, 0 bytes, was taken",
    ]


def test_a_partition_that_never_heals_is_in_the_report():
    with pytest.raises(StallError, match=r"link 1 -> 0: 6 sent, .*, is held back for ever"):
        run(2, count_to, Network(), [Partition([1], 2.5, math.inf)], stall_after_s=10.0)


def test_a_report_has_an_end():
    def program(transport):
        transport.connect([0])
        transport.receive(no_place)

    with pytest.raises(StallError) as caught:
        run(500, program)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("500 of 500 ranks wait")
    assert lines[-1].endswith("... and 468 more of this kind")
    assert len(lines) < 40


def poll(transport):
    transport.connect([0])
    while transport.receive(no_place, timeout=0) is None:
        pass


def test_a_loop_that_polls_for_ever_is_reported():
    with pytest.raises(StallError, match="no end after 1000 events; raise event_limit"):
        run(2, poll, event_limit=1000)


def test_a_run_in_which_nothing_moves_is_reported():
    def program(transport):
        transport.connect([0])
        while transport.receive(no_place, timeout=1.0) is None:
            pass

    with pytest.raises(StallError, match="nothing has moved for 100 s at 100 s: 2 of 2 ranks wait"):
        run(2, program, stall_after_s=100.0)


def test_messages_and_ends_are_progress():
    def program(transport):
        if transport.rank == 0:
            for number in range(30):
                transport.sleep(5.0)
                transport.send(1, message(number))
        elif transport.rank == 1:
            log(30, transport, [0])
        elif transport.rank == 2:
            transport.sleep(155.0)
        else:
            transport.sleep(164.0)
        return transport.now()

    assert max(run(4, program, stall_after_s=10.0)) == 164.0


@pytest.mark.parametrize("what", ["now", "done"])
def test_a_loop_that_never_waits_is_reported(what, monkeypatch):
    monkeypatch.setattr("psgrad.transport.simulated.READINGS", 100)
    monkeypatch.setattr("psgrad.transport.carrier.POLLS", 100)

    def program(transport):
        sent = transport.send(0, message(0, 8), bytearray(8))
        while transport.now() == 0 if what == "now" else not sent.done():
            pass

    with pytest.raises(
        RankError, match=r"rank 0: SimulationError: rank 0 has .* 100 times"
    ) as error:
        run(1, program)
    assert isinstance(error.value.__cause__, SimulationError)


def test_reading_the_clock_is_free_between_waits(monkeypatch):
    monkeypatch.setattr("psgrad.transport.simulated.READINGS", 100)

    def program(transport):
        for _ in range(10):
            for _ in range(90):
                transport.now()
            transport.sleep(1.0)

    run(1, program)


# How a run ends


def test_an_exception_ends_the_run_and_names_the_rank():
    unwound = []

    def program(transport):
        try:
            if transport.rank == 2:
                transport.sleep(1.0)
                raise ValueError("no such luck")
            transport.connect([2])
            transport.receive(no_place)
        finally:
            unwound.append(transport.rank)

    with pytest.raises(RankError, match=r"^rank 2: ValueError: no such luck$") as caught:
        run(4, program)
    assert isinstance(caught.value.__cause__, ValueError)
    assert (caught.value.rank, caught.value.exit_status) == (2, 1)
    assert unwound == [2, 0, 1, 3]


def test_the_status_of_an_error_is_that_of_its_cause():
    def program(transport):
        raise ConfigError("it cannot be")

    with pytest.raises(RankError) as caught:
        run(2, program)
    assert (caught.value.rank, caught.value.exit_status) == (0, 2)


def test_abort_names_what_was_handled():
    def program(transport):
        transport.sleep(1.0 + transport.rank)
        try:
            raise KeyError("w")
        except KeyError:
            transport.abort(7)

    with pytest.raises(RankError, match=r"^rank 0: KeyError: 'w'$") as caught:
        run(3, program)
    assert caught.value.exit_status == 7
    assert isinstance(caught.value.__cause__, KeyError)


def test_leaving_by_exit_is_no_failure():
    assert run(2, lambda t: sys.exit() if t.rank else "done") == ["done", None]
    with pytest.raises(RankError, match="rank 1: SystemExit: 5") as caught:
        run(2, lambda t: sys.exit(5) if t.rank else None)
    assert caught.value.exit_status == 5


def test_an_interrupt_is_an_interrupt():
    def program(transport):
        transport.sleep(1.0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(2, program)


@pytest.mark.parametrize("caught", [Exception, PsgradError])
def test_a_rank_that_catches_everything_ends_all_the_same(caught):
    def program(transport):
        if transport.rank == 0:
            return "done"
        while True:
            with contextlib.suppress(caught):
                transport.sleep(1e3)

    with pytest.raises(StallError):
        run(2, program)


def test_a_simulation_runs_once():
    sim = Simulation(1)
    assert sim.run(lambda t: t.rank) == [0]
    with pytest.raises(ConfigError, match="runs once"):
        sim.run(lambda t: t.rank)


def test_simulations_can_be_nested():
    def outer(transport):
        transport.sleep(1.0)
        return run(2, count_to), transport.now()

    assert run(2, outer) == [([list(range(6)), "done"], 1.0)] * 2


def test_a_rank_inherits_the_context_and_keeps_its_own():
    """NumPy's error state, for one, lives in it."""
    depth = contextvars.ContextVar("depth")

    def program(transport):
        seen = [depth.get()]
        depth.set(transport.rank)
        transport.sleep(1.0)
        return [*seen, depth.get()]

    token = depth.set("outside")
    assert run(3, program) == [["outside", rank] for rank in range(3)]
    assert depth.get() == "outside"
    depth.reset(token)


def test_without_greenlet(monkeypatch):
    monkeypatch.setitem(sys.modules, "greenlet", None)
    with pytest.raises(LaunchError, match=r"pip install 'psgrad\[simulate\]'"):
        run(1, lambda t: None)


# Many ranks


def test_a_thousand_ranks():
    """Pairs play ping-pong; all are done at the same virtual time."""

    def program(transport):
        peer = transport.rank ^ 1
        transport.connect([peer])
        for number in range(10):
            if transport.rank & 1:
                transport.receive(no_place)
            transport.send(peer, message(number))
            if not transport.rank & 1:
                transport.receive(no_place)
        return transport.now()

    sim = Simulation(1000, Network(latency_s=1.0, bandwidth=math.inf))
    assert sim.run(program) == [20.0, 19.0] * 500
    assert sim.messages == 1000 * 10
