"""How messages get from rank to rank: one contract, so that the server and worker programs run
unchanged over MPI and in a simulator.

A transport carries messages, each a ``Header`` and at most one payload:

- Messages of one link (an ordered pair of ranks) arrive in the order sent, each exactly once.
- A message is delivered whole: ``receive`` returns it when its payload lies where the receiver
  wanted it. Receives are named: a rank hears only the peers that it has connected to.
- A payload handed to ``send`` must not change until ``Sent.done()``.
- Where ranks may die (``tolerate``), each rank that hears one that has died takes one ``LOST``
  message of it, after all that had come of it; what is sent to it vanishes.
- Time, sleeping and waiting come from here and from nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from psgrad.errors import ProtocolError
from psgrad.messages import Header, Kind

Buffer = Any  # a contiguous array, bytearray, memoryview or bytes
Place = Callable[[int, Header], Buffer]


def check_travelled(peer: int, header: Header) -> None:
    """Raises ``ProtocolError`` for a header of ``peer`` that transports make themselves.

    Every transport looks at what comes over its wire: who is gone cannot say so.
    """
    if header.kind in (Kind.LOST, Kind.MOVED):
        raise ProtocolError(
            f"rank {peer} sends {header.kind.name}, which only a transport says of a rank"
        )


class Sent(Protocol):
    """A message on its way."""

    def done(self) -> bool:
        """Whether the payload's memory may be written again."""
        ...


class Transport(Protocol):
    """One rank's end of the carrier."""

    @property
    def rank(self) -> int:
        """This rank, 0 to size - 1."""
        ...

    @property
    def size(self) -> int:
        """How many ranks there are."""
        ...

    @property
    def host(self) -> str:
        """The name of the machine that this rank runs on."""
        ...

    @property
    def cores(self) -> int:
        """How many processors this rank may use."""
        ...

    def now(self) -> float:
        """Seconds since an arbitrary moment, never going back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Lets ``seconds`` pass; messages may travel meanwhile, none is delivered."""
        ...

    def exchange(self, blob: bytes) -> list[bytes]:
        """Collective over all ranks: everyone's bytes, by rank."""
        ...

    def subgroup(self, ranks: Sequence[int]) -> Any:
        """Collective over all ranks: a communicator of ``ranks``; None where not a member."""
        ...

    def connect(self, peers: Sequence[int]) -> None:
        """Starts to hear ``peers``."""
        ...

    def send(self, peer: int, header: Header, payload: Buffer | None = None) -> Sent:
        """Starts a message; ``header.nbytes`` is the payload's size."""
        ...

    def flush(self) -> None:
        """Waits until the memory of everything sent so far may be written again."""
        ...

    def receive(self, place: Place, timeout: float | None = None) -> tuple[int, Header] | None:
        """The next whole message; None when ``timeout`` seconds pass without one.

        ``place(peer, header)`` is asked once for each message with a payload and returns the
        writable memory of ``header.nbytes`` bytes that the payload is received into.
        """
        ...

    def tolerate(self) -> None:
        """From now on the end of another rank is told, and does not end this one."""
        ...

    def drop(self, peer: int) -> None:
        """Neither hears ``peer`` any more nor waits for what was sent to it; what is sent to it
        from now on may vanish."""
        ...

    def forsake(self, peer: int) -> None:
        """Waits no more for what was sent to ``peer`` so far; hears it still."""
        ...

    def leave(self, status: int) -> None:
        """Ends this rank alone, with ``status``; where that is tolerated the others go on. Does
        not return."""
        ...

    def close(self, status: int = 0) -> None:
        """Waits until everything sent is gone, then stops to hear.

        ``status`` is what this process ends with, where the transport has to end it.
        """
        ...

    def abort(self, status: int) -> None:
        """Ends every rank of the job with ``status``. Does not return."""
        ...
