"""The contract of ``psgrad.transport`` as programs: every carrier must let them pass.

Each runs on every one of ``RANKS`` ranks; a failed assertion fails the scenario. Afterwards every
rank closes its transport. ``REFUSED`` are programs that must be ended: with what status and text.
"""

from __future__ import annotations

import random
from collections import deque

import numpy as np

from psgrad.messages import Header, Kind
from psgrad.transport.mpi import INLINE_NBYTES

RANKS = 3
SIZES = (0, 1, 7, INLINE_NBYTES - 1, INLINE_NBYTES, INLINE_NBYTES + 1, 100_000, 1_500_000)
A_MOMENT_S = 0.02


def content(source, dest, number, nbytes):
    """The bytes of a message, different for each."""
    seed = source * 1_000_003 + dest * 10_007 + number
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


def push(number, payload=None):
    return Header(Kind.PUSH, clock=number, nbytes=0 if payload is None else payload.nbytes)


class Inbox:
    """Receives whole messages into memory of their own."""

    def __init__(self, transport, peers=None):
        self.transport = transport
        self.peers = others(transport) if peers is None else peers
        self.placed = {peer: deque() for peer in range(transport.size)}
        transport.connect(self.peers)

    def place(self, peer, header):
        assert header.nbytes > 0, "no memory is asked for nothing"
        self.placed[peer].append((header, np.zeros(header.nbytes, np.uint8)))
        return self.placed[peer][-1][1]

    def take(self, timeout=None):
        """(peer, number, payload) of the next message, or None; of the lost, (peer, LOST, None)."""
        message = self.transport.receive(self.place, timeout)
        if message is None:
            return None
        peer, header = message
        if header.kind is Kind.LOST:
            return peer, Kind.LOST, None
        assert header.kind is Kind.PUSH
        if not header.nbytes:
            return peer, header.clock, np.zeros(0, np.uint8)
        placed, payload = self.placed[peer].popleft()
        assert placed == header, "places are asked for in the order of the link"
        return peer, header.clock, payload

    def expect(self, peer, number, nbytes):
        """The next message is this one."""
        came = self.take()
        assert came[:2] == (peer, number)
        np.testing.assert_array_equal(came[2], content(peer, self.transport.rank, number, nbytes))


def others(transport):
    return [rank for rank in range(transport.size) if rank != transport.rank]


def order_within_links(transport):
    """All to all at once: each link in order, every byte, whatever sizes mix."""
    inbox, count = Inbox(transport), 24

    def sizes(source, dest):
        return random.Random(source * 100 + dest).choices(SIZES, k=count)

    for number in range(count):
        for peer in others(transport):
            nbytes = sizes(transport.rank, peer)[number]
            payload = content(transport.rank, peer, number, nbytes)
            transport.send(peer, push(number, payload), payload)
    seen = dict.fromkeys(others(transport), 0)
    for _ in range(count * len(seen)):
        peer, number, payload = inbox.take()
        assert number == seen[peer], "messages of a link arrive in the order sent"
        nbytes = sizes(peer, transport.rank)[number]
        np.testing.assert_array_equal(payload, content(peer, transport.rank, number, nbytes))
        seen[peer] += 1
    transport.flush()
    transport.exchange(b"")  # nobody closes while others still receive
    assert inbox.take(timeout=A_MOMENT_S) is None, "nothing is left"


def exchange(transport):
    """Blobs of every size, empty ones too, and one exchange after the other."""
    mine = bytes([transport.rank]) * (1000 * transport.rank)
    expected = [bytes([rank]) * (1000 * rank) for rank in range(transport.size)]
    assert transport.exchange(mine) == expected
    assert transport.exchange(b"") == [b""] * transport.size
    for round_ in range(20):
        everyone = transport.exchange(f"{transport.rank} {round_}".encode())
        assert everyone == [f"{rank} {round_}".encode() for rank in range(transport.size)]


def subgroup(transport):
    """A communicator for its members, in the order of their ranks; None for the others."""
    comm = transport.subgroup([1, 2])
    if transport.rank in (1, 2):
        assert (comm.rank, comm.size) == (transport.rank - 1, 2)
    else:
        assert comm is None
    comm = transport.subgroup([0])
    assert (comm is not None) == (transport.rank == 0)


def timeout(transport):
    """A receive with a timeout gives up, not before its time, and loses nothing."""
    inbox = Inbox(transport)
    start = transport.now()
    assert inbox.take(timeout=A_MOMENT_S) is None
    assert transport.now() - start >= A_MOMENT_S
    assert inbox.take(timeout=0) is None
    transport.exchange(b"")
    for peer in others(transport):
        payload = content(transport.rank, peer, 0, 5000)
        transport.send(peer, push(0, payload), payload)
    assert sorted(inbox.take(timeout=60)[0] for _ in inbox.peers) == inbox.peers


def polling(transport):
    """A loop that never waits gets its message all the same."""
    if transport.rank == 0:
        inbox = Inbox(transport, [1])
        while (came := inbox.take(timeout=0)) is None:
            pass
        assert came[:2] == (1, 7)
    elif transport.rank == 1:
        transport.sleep(A_MOMENT_S)
        payload = content(1, 0, 7, 5000)
        transport.send(0, push(7, payload), payload)


def time_passes(transport):
    """The clock never goes back, and sleep takes its time."""
    start = transport.now()
    transport.sleep(A_MOMENT_S)
    slept = transport.now()
    assert slept - start >= A_MOMENT_S
    transport.sleep(0)
    assert transport.now() >= slept


def flush(transport):
    """After a flush everything may be written again, and what was sent still arrives.

    A flush may wait for the receiver: where two ranks flush before they receive, both hang.
    """
    inbox = Inbox(transport)
    memory = {
        (peer, i): content(transport.rank, peer, i, nbytes)
        for peer in others(transport)
        for i, nbytes in enumerate(SIZES)
    }
    sent = [transport.send(peer, push(i, p), p) for (peer, i), p in memory.items()]
    if transport.rank == 0:  # the others must receive meanwhile
        transport.flush()
        assert all(message.done() for message in sent)
        for payload in memory.values():
            payload.fill(0)
        transport.flush()
    for _ in range(len(memory)):
        peer, number, payload = inbox.take()
        expected = content(peer, transport.rank, number, SIZES[number])
        np.testing.assert_array_equal(payload, expected)


def memory_is_free_when_done(transport):
    """One buffer for many messages, each when the one before is done."""
    if transport.rank:
        inbox = Inbox(transport, [0])
        for number in range(20):
            inbox.expect(0, number, 100_000 if number % 2 else 1000)
        return
    memory = np.zeros(100_000, np.uint8)
    for number in range(20):
        for peer in others(transport):
            payload = memory[: 100_000 if number % 2 else 1000]
            payload[:] = content(0, peer, number, payload.nbytes)
            sent = transport.send(peer, push(number, payload), payload)
            while not sent.done():
                transport.sleep(1e-4)


def late_to_connect(transport):
    """Messages wait for a peer that connects later, and only those of connected peers are heard."""
    transport.exchange(b"")
    if transport.rank:
        for number, nbytes in enumerate(SIZES):
            payload = content(transport.rank, 0, number, nbytes)
            transport.send(0, push(number, payload), payload)
        return
    transport.sleep(A_MOMENT_S)
    inbox = Inbox(transport, [2])
    for number, nbytes in enumerate(SIZES):
        inbox.expect(2, number, nbytes)
    assert inbox.take(timeout=A_MOMENT_S) is None
    transport.connect([1])
    for number, nbytes in enumerate(SIZES):
        inbox.expect(1, number, nbytes)


def no_bytes(transport):
    """A message may have no payload: none, or an empty one."""
    inbox = Inbox(transport)
    for peer in others(transport):
        transport.send(peer, push(0))
        transport.send(peer, push(1), b"")
        transport.send(peer, push(2), np.zeros(0, np.float32))
    transport.flush()
    came = [inbox.take()[:2] for _ in range(3 * len(inbox.peers))]
    assert sorted(came) == [(peer, i) for peer in inbox.peers for i in range(3)]


def kinds_of_memory(transport):
    """Whatever has a contiguous buffer can be sent, read-only too, and received into."""
    for count in (6, 60_000):  # inline and not
        values = np.arange(count, dtype=np.float32).reshape(2, -1)
        frozen = values.copy()
        frozen.flags.writeable = False
        raw = values.tobytes()
        payloads = [values, frozen, raw, bytearray(raw), memoryview(raw), memoryview(values)]
        if transport.rank == 0:
            for payload in payloads:
                transport.send(1, Header(Kind.PUSH, nbytes=len(raw)), payload)
            transport.flush()
            transport.exchange(b"")
            continue
        if transport.rank == 1:
            if count == 6:
                transport.connect([0])
            places = [bytearray(len(raw)), memoryview(bytearray(len(raw))), np.zeros_like(values)]
            asked = iter(places * 2)
            for i in range(len(payloads)):
                assert transport.receive(lambda _peer, _header: next(asked)) is not None  # noqa: B023
                assert bytes(places[i % 3]) == raw
                if i == 2:
                    places[0][:] = places[1][:] = bytes(len(raw))
                    places[2].fill(0)
        transport.exchange(b"")


def close_waits(transport):
    """What was sent arrives, though its sender closes at once."""
    if transport.rank == 1:
        inbox = Inbox(transport)
        transport.sleep(A_MOMENT_S)
        seen = dict.fromkeys(inbox.peers, 0)
        for _ in range(5 * len(inbox.peers)):
            peer, number, payload = inbox.take()
            assert number == seen[peer]
            np.testing.assert_array_equal(payload, content(peer, 1, number, SIZES[3 + number]))
            seen[peer] += 1
    else:
        for number in range(5):
            payload = content(transport.rank, 1, number, SIZES[3 + number])
            transport.send(1, push(number, payload), payload)


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        order_within_links,
        exchange,
        subgroup,
        timeout,
        polling,
        time_passes,
        flush,
        memory_is_free_when_done,
        late_to_connect,
        no_bytes,
        kinds_of_memory,
        close_waits,
    )
}


def mismatch(transport):
    """A place of another size than announced is refused before anything is received."""
    transport.connect(others(transport))
    if transport.rank == 0:
        for peer in others(transport):
            transport.send(peer, Header(Kind.PUSH, nbytes=8), np.zeros(8, np.uint8))
        transport.flush()
        transport.sleep(30)  # ended by the others
    else:
        transport.receive(lambda _peer, _header: bytearray(9))


def lost(transport):
    """That a rank is gone is what transports say; a message that says so is refused."""
    transport.connect(others(transport))
    if transport.rank == 0:
        transport.send(1, Header(Kind.LOST))
        transport.flush()
        transport.sleep(30)  # ended by the other
    else:
        transport.receive(lambda _peer, _header: bytearray(9))


def aborted(transport):
    """An abort ends the ranks that wait, too."""
    if transport.rank == 1:
        transport.abort(3)
    transport.connect([1])
    transport.receive(lambda _peer, _header: bytearray(9))


REFUSED = {
    "mismatch": (mismatch, 1, "rank 0 announces 8 bytes of PUSH where 9 are expected"),
    "lost": (lost, 1, "rank 0 sends LOST, which only a transport says of a rank"),
    "aborted": (aborted, 3, ""),
}
