"""What the tests of the simulator share: small programs, and a network for mental arithmetic."""

from __future__ import annotations

import itertools

import numpy as np

from psgrad.messages import HEADER_NBYTES, Header, Kind
from psgrad.transport.faults import Delay, Drop, Messages
from psgrad.transport.network import Network
from psgrad.transport.simulated import Simulation

SECOND = Network(latency_s=1.0, bandwidth=100.0)
PAYLOAD = 200 - HEADER_NBYTES  # with its header two seconds long on that network
WILD = [Delay(0, 5e-3, Messages(share=0.5)), Drop(1e-3, Messages(share=0.2))]


def message(number=0, nbytes=0, kind=Kind.PUSH):
    return Header(kind, clock=number, nbytes=nbytes)


def no_place(_peer, header):
    raise AssertionError(f"{header} has a payload")


def anywhere(_peer, header):
    return bytearray(header.nbytes)


def run(size, program, *args, **options):
    return Simulation(size, *args, **options).run(program)


def play(sends, network, faults=(), seed=0, size=3):
    """When the messages (at, source, dest, payload bytes) arrive: [(time, source, number)] a rank.

    The numbers count the list, in whose order each rank sends its own.
    """

    def program(transport):
        rank = transport.rank
        payload = np.zeros(1 << 20, np.uint8)
        for number, (at, source, dest, nbytes) in enumerate(sends):
            if source == rank:
                if at > transport.now():
                    transport.sleep(at - transport.now())
                transport.send(dest, message(number, nbytes), payload[:nbytes])
        transport.sleep(1e5)

    events = []
    run(size, program, network, faults, seed=seed, stall_after_s=1e6, trace=events.append)
    return [
        [
            (e.time_s, e.peer, e.header.clock)
            for e in events
            if e.what == "arrive" and e.rank == rank
        ]
        for rank in range(size)
    ]


def chatter(transport):
    """Everybody talks to everybody, and answers."""
    transport.connect([r for r in range(transport.size) if r != transport.rank])
    for number, peer in itertools.product(range(3), range(transport.size)):
        if peer != transport.rank:
            transport.send(peer, message(number, 100), bytearray(100))
    for _ in range(6 * (transport.size - 1)):
        peer, header = transport.receive(anywhere)
        if header.kind is Kind.PUSH:
            transport.send(peer, message(header.clock, 10, Kind.ACK), bytearray(10))
    return transport.now()


def count_to(transport, steps=6, cleanup=None):
    """Rank 1 counts, one message a second; rank 0 says how far it came."""
    if transport.rank == 0:
        transport.connect([1])
        came = []
        while (got := transport.receive(no_place, timeout=60)) is not None:
            came.append(got[1].clock)
        return came
    try:
        for number in range(steps):  # two calls of the transport each
            transport.send(0, message(number))
            transport.sleep(1.0)
        return "done"
    finally:
        if cleanup is not None:
            cleanup(transport)
