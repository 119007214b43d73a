"""What ranks measure for ``calibrate``: ``python -m psgrad.scale.probe link|messages|steps OUT``.

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
from typing import Final

import numpy as np

from psgrad.layout import ITEMSIZE
from psgrad.messages import Header, Kind
from psgrad.optimizers import SGD
from psgrad.session import Session
from psgrad.transport import Buffer, Place
from psgrad.transport.mpi import MpiTransport
from psgrad.worker import Worker

ROUNDS: Final = 60
NAP_S: Final = 0.02
BURSTS: Final = 8
WARM_UP: Final = 3  # steps


class Drowsy(MpiTransport):
    """A server's end that sleeps when a burst begins, and times how long it then takes for it."""

    def __init__(self, messages: int) -> None:
        super().__init__()
        self._messages = messages
        self.seconds: list[float] = []
        """Of each burst."""
        self._handled = 0
        self._since = 0.0

    def receive(self, place: Place, timeout: float | None = None) -> tuple[int, Header] | None:
        if self._handled == self._messages:
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
    """The latency of a message between two ranks: half of a ping-pong of headers."""
    transport = MpiTransport()
    peer = 1 - transport.rank
    transport.connect([peer])
    times = []
    for _ in range(ROUNDS):
        start = transport.now()
        for turn in (0, 1):
            if transport.rank == turn:
                transport.send(peer, Header(Kind.PUSH))
            else:
                transport.receive(_no_place)
        times.append(transport.now() - start)
    transport.close()
    return {"latency_s": median(times[WARM_UP:]) / 2}


def _no_place(_peer: int, header: Header) -> Buffer:
    raise AssertionError(f"{header} has a payload")


def messages(chunks: int, size: int) -> dict[str, float]:
    """Processor seconds of a chunk of ``size`` elements, of which ``chunks`` come at once.

    On rank 0 they are those of a server, its arithmetic included; on rank 1 those of a worker,
    where chunks are so small that they need not wait to be fetched.
    """
    transport = Drowsy(chunks)
    sends, takes = [], []

    def main(worker: Worker) -> None:
        worker.register({"p": np.zeros(chunks * size, np.float32)})
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
            chunk_bytes=ITEMSIZE * size,
            window=chunks,
            shared_memory="off",
        )
    if transport.seconds:
        return {"server_s": median(transport.seconds) / chunks}
    return {"worker_s": (median(sends) + median(takes)) / chunks}


def steps(n: int, count: int) -> dict[str, float]:
    """The median time of a synchronous step with ``n`` parameters that computes nothing."""
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
            staleness=0,
            optimizer=SGD(0.01),
            shared_memory="off",
        )
        return {"step_s": median(times[WARM_UP:])} if times else {}


PROBES: Final[Mapping[str, Callable[..., dict[str, float]]]] = MappingProxyType(
    {"link": link, "messages": messages, "steps": steps}
)


def main(argv: Sequence[str]) -> None:
    """Runs one probe as one of its ranks; each that has something to say adds a line to OUT."""
    name, out, *rest = argv
    record = PROBES[name](*map(int, rest))
    with Path(out).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
