"""What a replica hears of the turns of its server."""

from __future__ import annotations

from fuzz.engine import Target
from fuzz.mutate import Dice
from fuzz.roles import RUN
from psgrad.messages import HEADER_NBYTES, Header, Kind
from psgrad.transport.kept import scratch
from psgrad.turns import Arriving, Turn, What

PUSH = Header(Kind.PUSH, run=RUN, worker=1, chunk=3, nbytes=32, number=4, taken=2)
TURN = Turn(What.MESSAGE, 1.5, 3, PUSH, bytes(range(32)))
SENT = tuple(header.encode() + bytes(payload) for header, payload in TURN.messages(RUN))
TIME = next(Turn(What.TIME, 2.5, number=0).messages(RUN))


def read(sample: int, data: bytes) -> None:
    """Of a payload, after the head that it belongs to."""
    arriving = Arriving(0)
    for message in (SENT[0], data) if sample == 1 else (data,):
        header, payload = Header.decode(message), message[HEADER_NBYTES:]
        # The rest is refused before, or is for somebody else.
        if header.nbytes != len(payload) or header.kind not in (Kind.REPLICATE, Kind.PAYLOAD):
            return
        if payload:
            memoryview(arriving.place(header, scratch)).cast("B")[:] = payload
        turn = arriving.take(header)
    assert sample != 1 or turn is None or turn.payload is not None


def repaired(right_checksum):
    """Right for both headers, the one of the message and the one that it carries."""

    def repair(data: bytearray, dice: Dice) -> None:
        inner = bytearray(data[HEADER_NBYTES:])
        right_checksum(inner, dice)
        data[HEADER_NBYTES:] = inner
        right_checksum(data, dice)

    return repair


def targets(right_checksum) -> tuple[Target, ...]:
    return (
        Target(
            "replica-turns",
            (*SENT, TIME[0].encode() + TIME[1]),
            read,
            2,
            repaired(right_checksum),
        ),
    )
