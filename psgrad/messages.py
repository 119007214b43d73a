"""The wire: one fixed header of 104 bytes, then at most one payload.

==========  =====  ==========================================================================
field       bytes  meaning
==========  =====  ==========================================================================
magic           4  ``PSG1``
format          1  1
kind            1  a ``Kind``
verdict         1  a ``Verdict``; ``NONE`` in requests
flags           1  ``Flag`` bits
run             8  the run's id: a message of another run is refused
layout          8  the layout's digest, 0 before there is one
worker          4  worker index of the sender or of the addressee
incarnation     4  0 at the start; of one that came in later, the number of its admission
taken           4  where servers have replicas: the number of the last message that the sender has
                   taken from the receiver; else 0
segment         4
chunk           4
number          4  of the message on its link, from 1; 0: not numbered
clock           8  how many steps the worker has pushed, this one included
slowest         8  replies: the slowest live clock the answer rests on
version         8  replies: how many updates the chunk has had; requests: see ``Flag.HELD``
weight          8  float64, samples behind the gradient; 0 is an empty push
rate            8  float64: a push's new learning rate (-1: none); a reply's effective one
nbytes          8  payload bytes that follow
sequence        4  number of a rendezvous, or of a checkpoint
checksum        4  CRC-32 of the 100 bytes before it
==========  =====  ==========================================================================

All integers are unsigned and little-endian. Payloads of chunks are little-endian float32, or those
of a codec; payloads of control messages are UTF-8 JSON. Nothing is ever unpickled.
"""

from __future__ import annotations

import enum
import json
import struct
import sys
import zlib
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from psgrad.errors import WireError

MAGIC: Final = b"PSG1"
FORMAT: Final = 1
CONTROL_LIMIT: Final = 64 << 20  # bytes of JSON that a control message may carry
NO_RATE: Final = -1.0  # rates are never negative
_BODY: Final = struct.Struct("<4sBBBBQQIIIIIIQQQddQI")
_CHECKSUM: Final = struct.Struct("<I")
HEADER_NBYTES: Final = _BODY.size + _CHECKSUM.size

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("psgrad needs a little-endian machine: payloads are received in place")


class Kind(enum.IntEnum):
    """What a message is; requests go from worker to server, answers come back."""

    REGISTER = 1  # payload: the worker's layout
    REGISTERED = 2  # payload: who sends the first values, or why the registration is refused
    INIT = 3  # payload: a chunk's first values; from a server, that it wants them of this worker
    PUSH = 4  # payload: a gradient chunk; acknowledged by ACK
    PULL = 5  # answered by PARAMS
    STEP = 6  # a push and the pull that it makes due; answered by PARAMS
    ACK = 7
    PARAMS = 8  # payload: a chunk's parameters
    LEAVE = 9  # no more pushes; answered by LEFT
    LEFT = 10
    MEET = 11  # payload: a worker's part of a rendezvous, to the coordinator
    MET = 12  # payload: its result
    STATS = 13
    STATS_ARE = 14  # payload: the server's counters
    FINISH = 15  # a worker's main has returned; payload: why it was stopped, if it was. Where ranks
    # may die, answered by LEFT. From a server to another: for this one all workers are done
    SHARE = 16  # payload: where a worker's memory is, for a server of its node
    SHARED = 17  # payload: whether the server reads it
    SETTLE = 18  # the end of an open step; payload: by how much it is clipped, if it is
    RECEIVED = 19  # a chunk of an open step has come
    CUT = 20  # the coordinator wants a checkpoint: a marker, at the clock named or later
    STATE = 21  # payload: a row of a worker's own state, the part that belongs to a chunk
    MARK = 22  # a checkpoint cuts here: after this clock's push; payload: the worker's state
    WRITTEN = 23  # to the coordinator: a server's part of a checkpoint is in its file, or why not
    LOST = 24  # the peer is gone; a transport makes it itself, it never travels
    EVICTED = 25  # from the coordinator to a server: a worker was silent for too long
    FENCED = 26  # to that worker: nothing of it is taken any more
    JOIN = 30  # to the coordinator: a rank that is no worker, or was shut out, asks for an index
    PLACE = 31  # the answer: the worker that it is to be, or, refused, that there is none
    ADMIT = 32  # from the coordinator to a server: a worker is in from this clock on; payload: who
    COMPLETE = 28  # to the coordinator: a server has all of a round; payload: of whom
    COMMIT = 29  # from the coordinator: that round closes; payload: with whom
    ALIVE = 27  # to the coordinator: a worker waits, or computes for long; not answered
    ENDED = 34  # to other servers: this rank has done its part, and will be gone
    REPLICATE = 35  # from a server to its replica: what it is about to take, and of whom
    PAYLOAD = 36  # payload: that of the message which the REPLICATE before it tells of
    REPLICATED = 37  # from the replica: it has all up to the ``sequence``-th of them
    STANDIN = 38  # the server before this rank has died, this rank goes on in its place
    MOVED = 39  # a server is elsewhere now; what reroutes messages makes it, it never travels
    STOP = 40  # to the coordinator: a rank was asked to stop; payload: by what
    STOPPED = 41  # to a worker: the run has stopped; payload: what of it is safe
    ASK = 42  # from the coordinator: nothing moves, what are you waiting for?
    DOING = 43  # its answer; payload: that, in words, and the stack


class Verdict(enum.IntEnum):
    """What became of a push."""

    NONE = 0
    APPLIED = 1
    DUPLICATE = 2  # had been applied before: acknowledged, not applied again
    SKIPPED = 3  # an empty push: the clock moved, nothing was applied
    REFUSED = 4  # a registration that does not fit
    LATE = 5  # its worker was gone before it could be applied


_KINDS: Final = MappingProxyType({int(kind): kind for kind in Kind})
_VERDICTS: Final = MappingProxyType({int(verdict): verdict for verdict in Verdict})


class Flag:
    """How a chunk's payload is written, or is wanted: bits of a plain integer."""

    ENCODED: Final = 1  # by the run's codec (of pushes, or of pulls); without it, float32
    DENSE: Final = 2  # in a PULL or STEP: answer with float32 whatever the pull codec
    HELD: Final = 4  # in a request, the worker holds the reference of ``version``; in a reply, it
    # does now
    QUIET: Final = 16  # in an INIT or a push: no answer is wanted
    SHARED: Final = 8  # there is no payload: it lies in memory that both ranks have
    BY_MESSAGE: Final = 64  # in a PULL: with a payload, even where memory is shared
    STANDIN: Final = 128  # to or from a rank in the place of the server before it, which has died
    OPEN: Final = 32  # in a STEP: not before the SETTLE of its step; answered by RECEIVED as well
    LAST: Final = 2  # in a CUT or MARK: the run stops behind it


class Header(NamedTuple):
    """The fields of the table above, without magic, format and checksum."""

    kind: Kind
    verdict: Verdict = Verdict.NONE
    run: int = 0
    layout: int = 0
    worker: int = 0
    incarnation: int = 0
    taken: int = 0
    segment: int = 0
    chunk: int = 0
    clock: int = 0
    slowest: int = 0
    version: int = 0
    weight: float = 0.0
    rate: float = NO_RATE
    nbytes: int = 0
    sequence: int = 0
    flags: int = 0
    number: int = 0

    def encode(self) -> bytes:
        """The header's ``HEADER_NBYTES`` bytes."""
        kind, verdict, run, layout, worker, incarnation, taken, segment, chunk, *rest = self
        clock, slowest, version, weight, rate, nbytes, sequence, flags, number = rest
        body = _BODY.pack(
            MAGIC, FORMAT, kind, verdict, flags, run, layout, worker, incarnation, taken, segment,
            chunk, number, clock, slowest, version, weight, rate, nbytes, sequence,
        )  # fmt: skip
        return body + _CHECKSUM.pack(zlib.crc32(body))

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Header:
        """The inverse of ``encode``; raises ``WireError`` for anything that it did not make."""
        if len(data) < HEADER_NBYTES:
            raise WireError(f"a header has {HEADER_NBYTES} bytes, got {len(data)}")
        (checksum,) = _CHECKSUM.unpack_from(data, _BODY.size)
        if zlib.crc32(memoryview(data)[: _BODY.size]) != checksum:
            raise WireError("header checksum does not match: the message was damaged on its way")
        magic, version, kind, verdict, flags, *fields = _BODY.unpack_from(data)
        if magic != MAGIC or version != FORMAT:
            raise WireError(f"expected {MAGIC!r} format {FORMAT}, got {magic!r} format {version}")
        if kind not in _KINDS or verdict not in _VERDICTS:
            raise WireError(f"unknown kind {kind} or verdict {verdict}")
        rest = (*fields[:7], *fields[8:], flags, fields[7])
        return cls(_KINDS[kind], _VERDICTS[verdict], *rest)


def encode_json(record: Any) -> bytes:
    """A control payload; raises ``WireError`` when it is larger than ``CONTROL_LIMIT``."""
    payload = json.dumps(record, separators=(",", ":")).encode()
    if len(payload) > CONTROL_LIMIT:
        raise WireError(f"a control message may have {CONTROL_LIMIT} bytes, got {len(payload)}")
    return payload


def decode_json(payload: bytes | bytearray | memoryview) -> Any:
    """The inverse of ``encode_json``; raises ``WireError`` when the bytes are not JSON."""
    try:
        return json.loads(bytes(payload))
    except (ValueError, RecursionError) as error:
        raise WireError(f"control payload is not JSON: {error}") from error
