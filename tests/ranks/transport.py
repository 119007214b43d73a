"""What each rank of tests/test_transport_mpi.py runs: any failed assertion ends the job."""

import random
import sys

import numpy as np

import psgrad  # noqa: F401  (its hook takes the other ranks along)
from psgrad.messages import Header, Kind
from psgrad.transport.mpi import INLINE_NBYTES, MpiTransport

SIZES = (0, 1, 7, INLINE_NBYTES - 1, INLINE_NBYTES, INLINE_NBYTES + 1, 100_000, 3_000_000)


def content(source, dest, number, nbytes):
    """The bytes of a message, different for each."""
    seed = source * 1_000_003 + dest * 10_007 + number
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


def plan(source, dest):
    """The sizes that ``source`` sends to ``dest``, known to both."""
    return random.Random(source * 100 + dest).choices(SIZES, k=40)


def messages(transport):
    """All to all at once: order within a link, every byte, whatever sizes mix."""
    peers = [rank for rank in range(transport.size) if rank != transport.rank]
    transport.connect(peers)
    placed = {peer: [] for peer in peers}

    def place(peer, header):
        placed[peer].append(np.zeros(header.nbytes, np.uint8))
        return placed[peer][-1]

    for number in range(40):
        for peer in peers:
            payload = content(transport.rank, peer, number, plan(transport.rank, peer)[number])
            header = Header(Kind.PUSH, clock=number, nbytes=payload.nbytes)
            transport.send(peer, header, payload if payload.nbytes else None)
    seen = dict.fromkeys(peers, 0)
    for _ in range(40 * len(peers)):
        peer, header = transport.receive(place)
        assert header.clock == seen[peer], "messages of a link arrive in the order sent"
        expected = content(peer, transport.rank, seen[peer], plan(peer, transport.rank)[seen[peer]])
        assert header.nbytes == expected.nbytes
        if header.nbytes:
            assert np.array_equal(placed[peer].pop(0), expected)
        seen[peer] += 1
    transport.flush()
    transport.exchange(b"")  # nobody closes while others still receive
    assert transport.receive(place, timeout=0.01) is None, "nothing is left"


def exchange(transport):
    """Blobs of every size, empty ones too."""
    mine = bytes([transport.rank]) * (1000 * transport.rank)
    everyone = transport.exchange(mine)
    assert everyone == [bytes([rank]) * (1000 * rank) for rank in range(transport.size)]
    assert transport.exchange(b"") == [b""] * transport.size


def subgroup(transport):
    """A communicator for its members, None for the others."""
    comm = transport.subgroup([1, 2])
    if transport.rank in (1, 2):
        assert comm.size == 2
        assert comm.rank == transport.rank - 1
    else:
        assert comm is None


def mismatch(transport):
    """A place of another size than announced is refused before anything is received."""
    peers = [rank for rank in range(transport.size) if rank != transport.rank]
    transport.connect(peers)
    if transport.rank == 0:
        for peer in peers:
            transport.send(peer, Header(Kind.PUSH, nbytes=8), np.zeros(8, np.uint8))
        transport.flush()
        transport.sleep(30)  # ended by the others
    else:
        transport.receive(lambda _peer, _header: bytearray(9))


if __name__ == "__main__":
    transport = MpiTransport()
    globals()[sys.argv[1]](transport)
    transport.close()
    print("ok")
