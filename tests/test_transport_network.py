"""The simulated network: its arithmetic against figures by hand, its order, and every fault."""

from __future__ import annotations

import contextlib
import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import PAYLOAD, SECOND, anywhere, count_to, message, play, run
from transport_scenarios import Inbox, content

from psgrad.errors import ConfigError
from psgrad.messages import HEADER_NBYTES, Kind
from psgrad.transport.clockwork import RankEndedError, StallError
from psgrad.transport.faults import Delay, Drop, Duplicate, Kill, Messages, Partition
from psgrad.transport.network import Link, Network
from psgrad.transport.simulated import Simulation

SHARED = Network(latency_s=1.0, bandwidth=100.0, nic_bandwidth=200.0)
EXCEPTION = Network(latency_s=1.0, bandwidth=100.0, links=(Link(10.0, 50.0, source=1),))
ARITHMETIC = {
    "one": (SECOND, [(0, 0, 1, PAYLOAD)], [[], [(3, 0, 0)], []]),
    "header": (SECOND, [(0, 0, 1, 0)], [[], [(1 + 0.01 * HEADER_NBYTES, 0, 0)], []]),
    "link": (SECOND, [(0, 0, 1, PAYLOAD)] * 2, [[], [(3, 0, 0), (5, 0, 1)], []]),
    "sent later": (SECOND, [(7, 0, 1, PAYLOAD)], [[], [(10, 0, 0)], []]),
    "NIC out": (
        SECOND,
        [(0, 0, 1, PAYLOAD), (0, 0, 2, PAYLOAD)],
        [[], [(3, 0, 0)], [(5, 0, 1)]],
    ),
    "NIC in": (
        SECOND,
        [(0, 0, 2, PAYLOAD), (0, 1, 2, PAYLOAD)],
        [[], [], [(3, 0, 0), (5, 1, 1)]],
    ),
    "both ways at once": (
        SECOND,
        [(0, 0, 1, PAYLOAD), (0, 1, 0, PAYLOAD)],
        [[(3, 1, 1)], [(3, 0, 0)], []],
    ),
    "into a NIC in the order of first bytes": (
        SECOND,
        [(0, 0, 2, PAYLOAD + 200), (1, 1, 2, PAYLOAD)],
        [[], [], [(5, 0, 0), (7, 1, 1)]],
    ),
    # Two links at 100 fill a NIC at 200: one second for each message in the NIC, two in the link.
    "fast NIC out": (
        SHARED,
        [(0, 0, 1, PAYLOAD), (0, 0, 2, PAYLOAD)],
        [[], [(3, 0, 0)], [(4, 0, 1)]],
    ),
    "fast NIC in": (
        SHARED,
        [(0, 0, 2, PAYLOAD), (0, 1, 2, PAYLOAD)],
        [[], [], [(3, 0, 0), (3, 1, 1)]],
    ),
    "a link is no faster with it": (
        SHARED,
        [(0, 0, 1, PAYLOAD)] * 2,
        [[], [(3, 0, 0), (5, 0, 1)], []],
    ),
    "exception": (
        EXCEPTION,
        [(0, 0, 1, PAYLOAD), (0, 1, 0, PAYLOAD), (0, 1, 2, PAYLOAD)],
        [[(14, 1, 1)], [(3, 0, 0)], [(16, 1, 2)]],
    ),
    "to itself": (SECOND, [(0, 1, 1, PAYLOAD)], [[], [(3, 1, 0)], []]),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_when_messages_arrive(name):
    network, sends, expected = ARITHMETIC[name]
    for arrived, due in zip(play(sends, network), expected, strict=True):
        assert [came[1:] for came in arrived] == [came[1:] for came in due]
        assert [came[0] for came in arrived] == pytest.approx([came[0] for came in due])


def test_every_link_draws_for_itself():
    sends = [(10.0 * i, source, 2, 0) for i in range(100) for source in range(2)]
    came = play(sends, Network(latency_s=0.0), [Delay(5.0, of=Messages(share=0.5))])[2]
    late = [
        {number // 2 for time, source, number in came if source == which and time % 10 > 4}
        for which in range(2)
    ]
    assert [len(numbers) for numbers in late] == pytest.approx([50, 50], abs=15)
    assert len(late[0] & late[1]) == pytest.approx(25, abs=12)


def test_golden_jitter():
    """Seeds that tests name must go on to mean what they meant."""
    network = Network(latency_s=1.0, bandwidth=math.inf, jitter=1.0)
    sends = [(10.0 * i, 0, 1, 0) for i in range(4)]
    arrived = [time - 10.0 * number for time, _, number in play(sends, network, seed=5)[1]]
    assert arrived == pytest.approx(
        [1.880365643532952, 1.1776408565116894, 1.9373864103564407, 1.457396257743945]
    )


# Order


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_happens_a_link_keeps_its_order(data):
    """Any network, any mix of late faults: each message once, in order, with what was sent."""
    some = st.floats(0, 5, allow_subnormal=False)
    of = st.builds(Messages, source=st.sampled_from([None, 0]), share=st.sampled_from([0.1, 0.7]))
    fault = st.one_of(
        st.builds(Delay, some, some, of),
        st.builds(Drop, some, of),
        st.builds(lambda t, d: Partition([1], t, t + d + 0.1), some, some),
    )
    rate = st.sampled_from([100.0, 3e4, math.inf])
    network = Network(
        latency_s=data.draw(some),
        bandwidth=data.draw(rate),
        jitter=data.draw(some),
        nic_bandwidth=data.draw(rate),
    )
    faults = data.draw(st.lists(fault, max_size=4))
    sizes = data.draw(st.lists(st.sampled_from([0, 8, 3000]), min_size=2, max_size=8))

    def program(transport):
        inbox = Inbox(transport)
        for number, size in enumerate(sizes):
            for peer in inbox.peers:
                payload = content(transport.rank, peer, number, size)
                transport.send(peer, message(number, size), payload)
        numbers = dict.fromkeys(inbox.peers, 0)
        for _ in range(len(inbox.peers) * len(sizes)):
            peer, number, payload = inbox.take()
            assert number == numbers[peer]
            expected = content(peer, transport.rank, number, sizes[number])
            np.testing.assert_array_equal(payload, expected)
            numbers[peer] += 1
        assert inbox.take(timeout=1e4) is None
        return transport.now()

    first = run(3, program, network, faults, seed=1, stall_after_s=1e5)
    assert first == run(3, program, network, faults, seed=1, stall_after_s=1e5)


def test_jitter_reorders_across_links_only():
    sends = [(0.001 * i, i % 2, 2, 0) for i in range(100)]
    network = Network(latency_s=1e-3, jitter=100.0)
    came = [number for _, _, number in play(sends, network)[2]]
    assert sorted(came) == list(range(100)) != came
    for source in range(2):
        of_link = [number for number in came if number % 2 == source]
        assert of_link == sorted(of_link)


# Faults


def test_delay():
    of = Messages(source=0, start_s=5.0, stop_s=15.0)
    sends = [(0, 0, 1, PAYLOAD), (10, 0, 1, PAYLOAD), (20, 0, 1, PAYLOAD), (10, 2, 1, 0)]
    came = play(sends, SECOND, [Delay(50.0, of=of)])[1]
    assert [(round(time, 2), number) for time, _, number in came] == [
        (3, 0),
        (12.04, 3),  # of another link
        (63, 1),
        (65, 2),  # of the same link: it waits behind
    ]


def test_spread_is_uniform():
    sends = [(100.0 * i, 0, 1, 0) for i in range(300)]
    came = play(sends, Network(latency_s=0.0), [Delay(10.0, 20.0)])[1]
    late = np.array([time - 100.0 * number for time, _, number in came])
    assert late.min() >= 10
    assert late.max() < 30.001
    assert late.mean() == pytest.approx(20, abs=1.0)


def test_how_late_a_message_is_does_not_depend_on_how_it_was_hit():
    sends = [(100.0 * i, 0, 1, 0) for i in range(300)]
    came = play(sends, Network(latency_s=0.0), [Delay(10.0, 20.0, Messages(share=0.3))])[1]
    late = np.array([time - 100.0 * number for time, _, number in came])
    assert late[late > 9].mean() == pytest.approx(20, abs=2.0)


def test_drop_is_a_timeout_for_each_loss():
    sends = [(100.0 * i, 0, 1, 0) for i in range(400)]
    came = play(sends, Network(latency_s=0.0), [Drop(1.0, Messages(share=0.5))])[1]
    losses = [round(time - 100.0 * number) for time, _, number in came]
    assert [losses.count(n) for n in range(4)] == pytest.approx([200, 100, 50, 25], abs=35)


def test_what_is_behind_a_lost_message_waits():
    of = Messages(share=0.999, start_s=0.0, stop_s=0.5)
    sends = [(0, 0, 1, 0), (1, 0, 1, 0), (1, 2, 1, 0)]
    came = play(sends, Network(), [Drop(7.0, of)])[1]
    assert [number for _, _, number in came] == [2, 0, 1]
    assert came[1][0] == pytest.approx(came[2][0], abs=1e-3)
    assert came[1][0] % 7.0 == pytest.approx(0.0, abs=1e-3)


def test_duplicate():
    """The second comes later, behind what came meanwhile; it has what the first had."""
    faults = [Duplicate(5.0, Messages(dest=1, kinds=[Kind.PUSH]))]

    def program(transport):
        if transport.rank == 0:
            for number in range(2):
                transport.send(1, message(number, 4), np.full(4, number, np.uint8))
            transport.send(1, message(9, kind=Kind.LEAVE))
            transport.send(2, message(7))
            return None
        transport.connect([0])
        came = []
        while (memory := bytearray(4)) and transport.receive(lambda _p, _h: memory, 30) is not None:
            came.append((round(transport.now()), bytes(memory)))
        return came

    _, receiver, other = run(3, program, SECOND, faults)
    assert [memory for _, memory in receiver] == [
        b"\0" * 4,
        b"\1" * 4,
        b"\0" * 4,
        b"\0" * 4,
        b"\1" * 4,
    ]
    assert len(other) == 1


def test_a_duplicate_is_held_back_by_a_partition_like_any_other():
    came = play([(0, 0, 1, 0)], SECOND, [Duplicate(5.0), Partition([0], 6.0, 20.0)])[1]
    header_s = HEADER_NBYTES / 100
    assert [time for time, *_ in came] == pytest.approx([1 + header_s, 20 + header_s])


def test_a_partition_heals():
    sends = [(0, 0, 1, 0), (4, 0, 2, 0), (4, 1, 0, 0), (4, 2, 1, 0)]
    sends += [(t, 0, 1, 0) for t in (4, 5, 12)]
    came = play(sends, SECOND, [Partition([0], 4.5, 10.0, others=[1])])
    header_s = HEADER_NBYTES / 100
    assert [time for time, *_ in came[1]] == pytest.approx(
        [1 + header_s, 5 + header_s, 10 + header_s, 10 + 2 * header_s, 13 + header_s]
    )
    assert [source for _, source, _ in came[1]] == [0, 2, 0, 0, 0]
    assert [time for time, *_ in came[0]] == pytest.approx([10 + header_s])
    assert [time for time, *_ in came[2]] == pytest.approx([5 + header_s])


def test_what_waits_for_a_late_message_meets_the_partition_that_has_begun_meanwhile():
    sends = [(0, 0, 1, PAYLOAD), (1, 0, 1, PAYLOAD)]
    late = Delay(5.0, of=Messages(stop_s=0.5))
    came = play(sends, SECOND, [late, Partition([0], 7.0, 20.0)])[1]
    assert [time for time, *_ in came] == pytest.approx([8.0, 22.0])


def test_a_partition_from_all_others():
    sends = [(0, 0, 1, 0), (0, 1, 0, 0), (0, 2, 1, 0), (0, 0, 2, 0)]
    came = play(sends, SECOND, [Partition([0], 0.0, 100.0)])
    assert [[source for _, source, _ in arrived] for arrived in came] == [[1], [2, 0], [0]]
    assert came[1][0][0] < 3 < 100 < came[1][1][0]


@pytest.mark.parametrize(
    ("kill", "came"),
    [
        (Kill(1, call=1), 0),
        (Kill(1, call=2), 0),  # its message has not left yet
        (Kill(1, call=3), 1),
        (Kill(1, call=4), 1),
        (Kill(1, call=5), 2),
        (Kill(1, call=12), 5),
        (Kill(1, at_s=0.0), 0),
        (Kill(1, at_s=0.5), 1),
        (Kill(1, at_s=2.5), 3),
        (Kill(1, at_s=5.99), 6),
    ],
)
def test_kill(kill, came):
    sim = Simulation(2, Network(), [kill])
    assert sim.run(count_to) == [list(range(came)), None]
    assert sim.killed == (1,)


@pytest.mark.parametrize("kill", [Kill(1, call=13), Kill(1, at_s=7.0)])
def test_a_rank_that_has_ended_cannot_be_killed(kill):
    sim = Simulation(2, Network(), [kill])
    assert sim.run(count_to) == [list(range(6)), "done"]
    assert sim.killed == ()


def test_a_killed_rank_does_nothing_more():
    """Its ``finally`` runs when all is over, and cannot send any more."""
    seen = []

    def cleanup(transport):
        seen.append(transport.now())
        with pytest.raises(RankEndedError):
            transport.send(0, message(99))

    program = functools.partial(count_to, cleanup=cleanup)
    assert run(2, program, Network(), [Kill(1, at_s=2.5)])[0] == [0, 1, 2]
    assert seen == [pytest.approx(62, abs=0.1)]


def test_a_killed_rank_returns_nothing():
    """Not even where it catches that it is over."""

    def program(transport):
        with contextlib.suppress(RankEndedError):
            transport.sleep(1.0 + transport.rank)
        return "done"

    sim = Simulation(2, Network(), [Kill(0, at_s=0.5)], trace=True)
    assert sim.run(program) == [None, "done"]
    assert [(e.what, e.rank) for e in sim.trace] == [("kill", 0), ("sleep", 1), ("end", 1)]


def test_what_has_not_left_is_lost_with_its_sender():
    def program(transport):
        if transport.rank == 0:
            transport.connect([1])
            came = []
            while (got := transport.receive(anywhere, timeout=60)) is not None:
                came.append(got[1].clock)
            return came
        payload = bytearray(PAYLOAD)
        for number in range(4):  # each leaves for two seconds
            transport.send(0, message(number, PAYLOAD), payload)
        transport.sleep(60)
        return "done"

    assert run(2, program, SECOND, [Kill(1, at_s=5.0)]) == [[0, 1], None]
    assert run(2, program, SECOND, [Kill(1, at_s=5.5)]) == [[0, 1], None]  # half of it has come
    assert run(2, program, SECOND, [Kill(1, at_s=6.0)]) == [[0, 1, 2], None]
    assert run(2, program, SECOND, [Kill(1, at_s=59.0)]) == [[0, 1, 2, 3], None]


@pytest.mark.parametrize("first", [0, 1])
def test_the_first_of_several_kills_counts(first):
    kills = [Kill(1, call=9), Kill(1, call=5)][:: 1 - 2 * first]
    assert run(2, count_to, Network(), [*kills, Kill(1, at_s=50.0)]) == [[0, 1], None]


def test_a_rank_that_is_killed_in_a_flush_stays_there():
    def program(transport):
        if transport.rank == 0:
            return transport.sleep(60)
        transport.send(0, message(0, PAYLOAD), bytearray(PAYLOAD))
        transport.flush()
        flushed.append(transport.now())
        return None

    flushed = []
    run(2, program, SECOND, [Kill(1, at_s=1.0)])
    assert flushed == []


def test_a_rank_that_is_killed_in_an_exchange_stays_there():
    """What it brought counts: the others had it already."""
    left = []

    def program(transport):
        everyone = transport.exchange(b"x")
        left.append(transport.rank)
        return everyone

    assert run(3, program, SECOND, [Kill(1, at_s=1.5)]) == [[b"x"] * 3, None, [b"x"] * 3]
    assert left == [0, 2]


def test_nobody_hears_a_killed_rank_in_an_exchange():
    def program(transport):
        transport.sleep(1.0 + transport.rank)
        transport.exchange(b"")

    with pytest.raises(StallError, match="rank 0 in exchange since 1 s, for rank 1\n"):
        run(3, program, SECOND, [Kill(1, at_s=1.5)])


def test_every_fault_draws_for_itself():
    """Two faults of one kind do not hit the same messages; nor does jitter go with them."""
    twice = [Delay(1.0, of=Messages(share=0.5)), Delay(1.0, of=Messages(share=0.5))]
    sends = [(10.0 * i, 0, 1, 0) for i in range(200)]
    late = [
        round(time - 10.0 * number)
        for time, _, number in play(sends, Network(latency_s=0.0), twice)[1]
    ]
    assert [late.count(n) for n in range(4)] == pytest.approx([50, 100, 50, 0], abs=20)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Simulation(0), "a simulation needs at least 1 rank, got 0"),
        (lambda: Simulation(2, faults=[Kill(2, at_s=1.0)]), "ranks go from 0 to 1, got 2"),
        (lambda: Simulation(2, faults=[Delay(1.0, of=Messages(dest=-1))]), "got -1"),
        (lambda: Simulation(2, faults=[Partition([0], 1.0, 2.0, [5])]), "got 5"),
        (lambda: Network(latency_s=-1.0), "Link: latency_s must be a number above 0, or 0, got -1"),
        (lambda: Network(latency_s=math.inf), "latency_s must be a number above 0, or 0, got inf"),
        (lambda: Network(bandwidth=0.0), "bandwidth must be a number above 0, got 0"),
        (lambda: Network(jitter=math.nan), "Network: jitter must be a number above 0, or 0, got"),
        (lambda: Network(nic_bandwidth=-1.0), "nic_bandwidth must be a number above 0, got -1"),
        (lambda: Messages(share=1.5), "share must be a probability, from 0 to 1, got 1.5"),
        (lambda: Delay(math.inf), "Delay: seconds must be a finite number of at least 0, got inf"),
        (lambda: Delay(0, -1), "Delay: spread_s must be a finite number of at least 0, got -1"),
        (lambda: Drop(-1, Messages(share=0.1)), "Drop: timeout_s must be a finite number"),
        (lambda: Drop(1.0, Messages()), "Drop: share must be below 1, or nothing ever arrives"),
        (lambda: Duplicate(math.nan), "Duplicate: after_s must be a finite number"),
        (lambda: Partition([0], 5.0, 5.0), r"stop_s must be after start_s \(5.0\), got 5.0"),
        (lambda: Partition([0], -1.0, 5.0), "start_s must be a finite number of at least 0"),
        (lambda: Kill(1), "Kill: give at_s, a time, or call, a number; one of them"),
        (lambda: Kill(1, at_s=1.0, call=3), "one of them"),
        (lambda: Kill(1, call=0), "Kill: call must be at least 1, got 0"),
        (lambda: Kill(1, at_s=-1.0), "Kill: at_s must be a finite number of at least 0, got -1"),
    ],
)
def test_what_cannot_be_simulated(make, text):
    with pytest.raises(ConfigError, match=text):
        make()
