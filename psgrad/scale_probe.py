"""What ranks measure for ``calibrate``: ``python -m psgrad.scale_probe link|messages|steps OUT``.

Each writes one JSON record to OUT. Waiting is kept out of what a message costs: who is measured
finds all messages there already, because it has slept while they came.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from psgrad.layout import ITEMSIZE
from psgrad.messages import Header, Kind
from psgrad.optimizers import SGD
from psgrad.session import Session
from psgrad.transport import Buffer, Place
from psgrad.transport.mpi import MpiTransport
from psgrad.worker import Worker

Places: TypeAlias = NDArray[np.uint8]

ROUNDS: Final = 60
LINK_BYTES: Final = 1 << 20
PLACES: Final = 16  # of messages in memory, so that they do not stay in a core's cache
MESSAGES: Final = 256
SMALL: Final = 16  # elements of a chunk that costs nothing but its message
NAP_S: Final = 0.02
BURSTS: Final = 8
WARM_UP: Final = 3  # steps


class Drowsy(MpiTransport):
    """A server's end that sleeps when a burst begins, and times how long it then takes for it."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        """Of each burst."""
        self._handled = 0
        self._since = 0.0

    def receive(self, place: Place, timeout: float | None = None) -> tuple[int, Header] | None:
        if self._handled == MESSAGES:
            self.seconds.append(self.now() - self._since)
            self._handled = 0
        message = super().receive(place, timeout)
        if message is not None and message[1].kind is Kind.PUSH:
            if self._handled == 0:
                self.sleep(NAP_S)
                self._since = self.now()
            self._handled += 1
        return message


def link() -> dict[str, float]:
    """Latency, and seconds for each byte, of messages between two ranks.

    The latency is that of a ping-pong of headers. Bytes go both ways at once, as in a step, where
    pushes and pulls share the machine's memory.
    """
    transport = MpiTransport()
    peer = 1 - transport.rank
    transport.connect([peer])
    memory = np.zeros((2 * PLACES, LINK_BYTES), np.uint8)
    latency_s = _ping_pong(transport, peer)
    both_ways_s = _both_ways(transport, peer, memory)
    transport.close()
    return {"latency_s": latency_s, "byte_s": max(0.0, both_ways_s - latency_s) / LINK_BYTES}


def _ping_pong(transport: MpiTransport, peer: int) -> float:
    """Seconds of a header, one way."""
    times = []
    for _ in range(ROUNDS):
        start = transport.now()
        for turn in (0, 1):
            if transport.rank == turn:
                transport.send(peer, Header(Kind.PUSH))
            else:
                transport.receive(_no_place)
        times.append(transport.now() - start)
    return median(times[WARM_UP:]) / 2


def _both_ways(transport: MpiTransport, peer: int, memory: Places) -> float:
    """Seconds in which both ranks have a message of ``LINK_BYTES``, sent at the same time."""
    times = []
    for number in range(ROUNDS):
        out, into = memory[number % PLACES], memory[PLACES + number % PLACES]

        def place(_peer: int, _header: Header, into: Buffer = into) -> Buffer:
            return into

        start = transport.now()
        transport.send(peer, Header(Kind.PUSH, nbytes=LINK_BYTES), out)
        transport.receive(place)
        transport.flush()
        times.append(transport.now() - start)
    return median(times[WARM_UP:])


def _no_place(_peer: int, header: Header) -> Buffer:
    raise AssertionError(f"{header} has a payload")


def messages() -> dict[str, float]:
    """Processor seconds of a chunk's messages: on rank 0 those of a server, on 1 of a worker."""
    transport = Drowsy()
    sends, takes = [], []

    def main(worker: Worker) -> None:
        worker.register({"p": np.zeros(MESSAGES * SMALL, np.float32)})
        for _ in range(BURSTS):
            start = worker.now()
            worker.push()
            sends.append(worker.now() - start)
            worker.sleep(3 * NAP_S)
            start = worker.now()
            worker.barrier()  # takes what has come before
            takes.append(worker.now() - start)

    with Session(transport=transport) as session:
        session.run(
            main,
            servers=1,
            staleness=0,
            chunk_bytes=ITEMSIZE * SMALL,
            window=MESSAGES,
            shared_memory="off",
        )
    if transport.seconds:
        return {"server_message_s": median(transport.seconds) / MESSAGES}
    return {"worker_message_s": (median(sends) + median(takes)) / MESSAGES}


def steps(n: int, count: int, codec: str, staleness: int | None) -> dict[str, float]:
    """The median time of a step with ``n`` parameters in which nothing is computed."""
    times: list[float] = []

    def main(worker: Worker) -> None:
        worker.register({"p": np.zeros(n, np.float32)})
        worker.grads["p"] = np.linspace(-1e-3, 1e-3, n, dtype=np.float32)
        for number in range(WARM_UP + count):
            if number == WARM_UP:
                worker.barrier()
            start = worker.now()
            worker.step()
            times.append(worker.now() - start)
        worker.barrier()

    with Session() as session:
        session.run(
            main,
            servers=1,
            staleness=staleness,
            optimizer=SGD(0.01),
            codec=codec,
            shared_memory="off",
        )
        return {"step_s": median(times[WARM_UP:])} if times else {}


PROBES: Final[Mapping[str, Callable[..., dict[str, float]]]] = MappingProxyType(
    {"link": link, "messages": messages, "steps": steps}
)


def main(argv: Sequence[str]) -> None:
    """Runs one probe as one of its ranks; each that has something to say adds a line to OUT."""
    name, out, *rest = argv
    record = PROBES[name](*map(json.loads, rest))
    with Path(out).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
