"""Measures links, one pair of ranks at a time, and how far apart clocks are.

Rank 0 says which pair is next; all others wait, mostly asleep. Of a pair, the one that asks sends
what it likes and the other one sends it back, until something empty comes. Nothing waits inside
MPI: a link that is dead must end in a finding.
"""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Final

from psgrad.doctor.links import Link, Measured, better, slow
from psgrad.transport.mpi import load_mpi

COMMANDS: Final = 76  # tags
EXCHANGE: Final = 77
END, CLOCK, ASK, ANSWER = 0, 1, 2, 3

PING_NBYTES: Final = 8
PINGS: Final = 30
FIRST_NBYTES: Final = 32 << 10  # tells how many bytes may follow
LARGEST_NBYTES: Final = 4 << 20
EXCHANGE_S: Final = 0.05  # of the large exchanges, about
ROUNDS: Final = 3
CLOCK_ROUNDS: Final = 8
SILENCE_S: Final = 30.0  # after which no answer is expected any more
NAP_S: Final = 1e-3
SECOND_LOOKS: Final = 2


class SilentError(Exception):
    """A rank gives no answer; its text is for nobody."""


def measure(
    comm: Any, plan: Sequence[tuple[int, int]], hosts: Sequence[str], seconds: float
) -> Measured:
    """Measures the pairs of ``plan`` for at most about ``seconds``; ``hosts`` are by rank.

    A pair that is slow is measured again, and the better figures count: what stays is the link.
    Collective over ``comm``, an MPI communicator with nothing else under way; rank 0 has the
    result. Where a rank was silent the others still wait: end the job.
    """
    if comm.rank:
        _obey(comm)
        return Measured()
    links: list[Link] = []
    clocks = [0.0]
    asked: tuple[int, ...] = ()
    end_s = time.perf_counter() + seconds
    try:
        for rank in range(1, comm.size):
            asked = (rank,)
            clocks.append(_clock(comm, rank))
        for a, b in plan:
            if time.perf_counter() > end_s:
                break
            asked = (a, b)
            links.append(_pair(comm, a, b))
        for _ in range(SECOND_LOOKS):
            for one in slow(links, hosts):
                if time.perf_counter() > end_s:
                    break
                asked = (one.link.a, one.link.b)
                at = links.index(one.link)
                links[at] = better(one.link, _pair(comm, *asked))
    except SilentError:
        return Measured(tuple(links), len(plan), tuple(clocks), asked)
    for rank in range(1, comm.size):
        _send(comm, rank, array("q", [END, 0]), COMMANDS)
    return Measured(tuple(links), len(plan), tuple(clocks))


def _clock(comm: Any, rank: int) -> float:
    """Seconds that the clock of ``rank`` is ahead, as the quickest of several exchanges says."""
    _send(comm, rank, array("q", [CLOCK, 0]), COMMANDS)
    best, ahead = float("inf"), 0.0
    for _ in range(CLOCK_ROUNDS):
        before = time.time()
        _send(comm, rank, array("d", [before]), EXCHANGE)
        there = array("d", [0.0])
        _receive(comm, rank, there, EXCHANGE)
        after = time.time()
        if after - before < best:
            best, ahead = after - before, there[0] - (before + after) / 2
    return ahead


def _pair(comm: Any, a: int, b: int) -> Link:
    _send(comm, b, array("q", [ANSWER, a]), COMMANDS)
    if a == comm.rank:
        return Link(a, b, *_ask(comm, b))
    _send(comm, a, array("q", [ASK, b]), COMMANDS)
    found = array("d", [0.0, 0.0])
    _receive(comm, a, found, EXCHANGE, NAP_S)
    if found[0] < 0:
        raise SilentError
    return Link(a, b, *found)


def _obey(comm: Any) -> None:
    """Does what rank 0 says until it says END."""
    while True:
        command = array("q", [0, 0])
        _receive(comm, 0, command, COMMANDS, NAP_S, float("inf"))
        what, peer = command
        if what == END:
            return
        if what == CLOCK:
            for _ in range(CLOCK_ROUNDS):
                _receive(comm, 0, array("d", [0.0]), EXCHANGE)
                _send(comm, 0, array("d", [time.time()]), EXCHANGE)
        elif what == ANSWER:
            _answer(comm, peer)
        else:
            try:
                found = array("d", _ask(comm, peer))
            except SilentError:
                found = array("d", [-1.0, -1.0])
            _send(comm, 0, found, EXCHANGE)


def _ask(comm: Any, peer: int) -> tuple[float, float]:
    """Microseconds one way, and bytes a second."""
    ping_s = _quickest(comm, peer, PING_NBYTES, PINGS)
    first_s = _quickest(comm, peer, FIRST_NBYTES, ROUNDS)
    times = min(LARGEST_NBYTES // FIRST_NBYTES, max(1, int(EXCHANGE_S / first_s)))
    large_s = _quickest(comm, peer, times * FIRST_NBYTES, ROUNDS)
    _send(comm, peer, array("B"), EXCHANGE)
    return 1e6 * ping_s / 2, 2 * times * FIRST_NBYTES / large_s


def _quickest(comm: Any, peer: int, nbytes: int, rounds: int) -> float:
    """Seconds of the quickest exchange there and back; one more goes first and does not count."""
    there, back = bytearray(nbytes), bytearray(nbytes)
    best = float("inf")
    for number in range(rounds + 1):
        start = time.perf_counter()
        _send(comm, peer, there, EXCHANGE)
        _receive(comm, peer, back, EXCHANGE)
        if number:
            best = min(best, time.perf_counter() - start)
    return best


def _answer(comm: Any, peer: int) -> None:
    """Sends back what ``peer`` sends, until something empty comes."""
    mpi = load_mpi()
    status = mpi.Status()
    nbytes = -1
    while nbytes:
        _until(lambda: comm.Iprobe(peer, EXCHANGE, status), 0.0, float("inf"))
        nbytes = int(status.Get_count(mpi.BYTE))
        echo = bytearray(nbytes)
        _receive(comm, peer, echo, EXCHANGE)
        if nbytes:
            _send(comm, peer, echo, EXCHANGE)


def _send(comm: Any, peer: int, what: Any, tag: int) -> None:
    request = comm.Isend(what, peer, tag)
    _until(request.Test)


def _receive(
    comm: Any, peer: int, into: Any, tag: int, nap_s: float = 0.0, limit_s: float = SILENCE_S
) -> None:
    request = comm.Irecv(into, peer, tag)
    _until(request.Test, nap_s, limit_s)


def _until(done: Callable[[], Any], nap_s: float = 0.0, limit_s: float = SILENCE_S) -> None:
    """Drives MPI until ``done``, with naps in between, or yields; raises ``SilentError``."""
    start = time.perf_counter()
    while not done():
        if time.perf_counter() - start > limit_s:
            raise SilentError
        if nap_s:
            time.sleep(nap_s)
        else:
            os.sched_yield()
