"""The programs of server and worker, in the middle of a conversation: one message is not as it was.

An input is a message, header and payload, in the place of the one that it was made of. What comes
before and after is as it should be.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict

import numpy as np

from fuzz.engine import Target
from fuzz.mutate import Dice
from psgrad.codecs import Key, Workspace
from psgrad.errors import ProtocolError
from psgrad.layout import Layout, SegmentOptions
from psgrad.links import ServerLinks
from psgrad.messages import HEADER_NBYTES, Flag, Header, Kind, Verdict, encode_json
from psgrad.optimizers import Adam
from psgrad.options import Options
from psgrad.registered import Registered
from psgrad.roles import Roles
from psgrad.server import Server
from psgrad.sharing import WorkerMemory
from psgrad.transport import check_travelled

RUN = 77
LIMIT = 160 << 20  # two times the largest control payload, and what JSON makes of it
ROLES_OF_ONE = Roles(2, 1)
LAYOUT = Layout.of(
    {"w": np.zeros((6, 8), np.float32), "b": np.zeros(8, np.float32)}, [SegmentOptions("b")]
)
GRADIENT = np.linspace(-1, 1, LAYOUT.size, dtype=np.float32)
STATS = {"updates": 1, "pushes": 1, "staleness_max": 0, "bytes_pushed": 9, "bytes_pulled": 9,
         "balance": 1.0}  # fmt: skip
Message = tuple[Header, bytes]


class EndOfScriptError(Exception):
    """All has been said."""


class Gone:
    def done(self) -> bool:
        return True


class Script:
    """A transport with the messages that come, as bytes; what is sent is lost."""

    cores, host = 1, "here"

    def __init__(self, rank: int, messages: Sequence[tuple[int, bytes]], idle: int = 0) -> None:
        """``messages`` with the ranks that they come from; ``idle`` waits in vain may follow."""
        self.rank, self._messages, self._idle = rank, deque(messages), idle

    def now(self) -> float:
        return 0.0

    def drop(self, peer: int) -> None:
        self._messages = deque(message for message in self._messages if message[0] != peer)

    def connect(self, peers: object) -> None:
        pass

    def flush(self) -> None:
        pass

    def send(self, peer: int, header: Header, payload: object = None) -> Gone:
        header.encode()
        return Gone()

    def receive(self, place: Callable, timeout: float | None = None):
        if not self._messages:
            if timeout is None or not self._idle:
                raise EndOfScriptError
            self._idle -= 1
            return None
        peer, data = self._messages.popleft()
        header = Header.decode(data)
        check_travelled(peer, header)
        if header.nbytes:
            memory = memoryview(place(peer, header)).cast("B")
            if memory.nbytes != header.nbytes:
                raise ProtocolError("as MpiTransport says")
            came = data[HEADER_NBYTES : HEADER_NBYTES + header.nbytes]
            memory[: len(came)] = came
        return peer, header


class Sink:
    def log(self, text: str) -> None:
        pass


def repair(data: bytearray, dice: Dice) -> None:
    """The run and the worker stay what they are, and lengths and checksums fit, most times."""
    if len(data) < HEADER_NBYTES:
        return
    if dice.below(8):
        data[8:16] = RUN.to_bytes(8, "little")
        data[24:28] = bytes(4)
    if dice.below(2):
        nbytes = len(data) - HEADER_NBYTES
        data[HEADER_NBYTES - 16 : HEADER_NBYTES - 8] = nbytes.to_bytes(8, "little")
    body = HEADER_NBYTES - 4
    data[body:HEADER_NBYTES] = zlib.crc32(data[:body]).to_bytes(4, "little")


def bytes_of(header: Header, payload: bytes = b"") -> bytes:
    return header._replace(run=RUN, nbytes=len(payload)).encode() + payload


def conversation(options: Options) -> list[bytes]:
    """What a server of one worker hears."""
    chunks, codec = LAYOUT.chunks(options.chunk_bytes), options.compression.push

    def to(kind: Kind, clock: int, flags: int = 0, **more: float) -> list[bytes]:
        said = []
        for c in chunks:
            piece, mark = GRADIENT[c.start : c.stop], flags
            payload = piece.tobytes()
            if codec is not None and kind in (Kind.STEP, Kind.PUSH):
                out, mark = np.zeros(codec.nbytes_max(c.size), np.uint8), flags | Flag.ENCODED
                key = Key(0, 0, clock, c.start)
                payload = out[: codec.encode(piece, None, out, key, Workspace())].tobytes()
            header = Header(kind, layout=LAYOUT.digest, segment=c.segment, chunk=c.index,
                            clock=clock, flags=mark, **more)  # fmt: skip
            said.append(bytes_of(header, payload if kind is not Kind.PULL else b""))
        return said

    settle = Header(Kind.SETTLE, layout=LAYOUT.digest, clock=2, weight=4.0, sequence=len(chunks))
    return [
        bytes_of(Header(Kind.REGISTER), encode_json({"layout": asdict(LAYOUT)})),
        *to(Kind.INIT, 0),
        bytes_of(Header(Kind.SHARE), encode_json({"grads": None, "params": "/proc/1/fd/9#8"})),
        *to(Kind.PULL, 0),
        *to(Kind.STEP, 1, weight=8.0, rate=0.25),
        *to(Kind.STEP, 2, flags=Flag.OPEN, weight=1.0),
        bytes_of(settle, encode_json({"scale": 0.5})),
        bytes_of(Header(Kind.MEET, sequence=1), encode_json({"values": {"x": 1.0}, "weight": 2.0})),
        bytes_of(Header(Kind.STATS)),
        *to(Kind.PUSH, 3, weight=8.0),
        bytes_of(Header(Kind.LEAVE, clock=3)),
        bytes_of(Header(Kind.FINISH)),
    ]


def server(name: str, **options: object) -> Target:
    mine = Options(optimizer=Adam(0.1), chunk_bytes=64, **options)
    script = conversation(mine)

    def read(sample: int, data: bytes) -> None:
        messages = [(1, said) for said in (*script[:sample], data, *script[sample + 1 :])]
        program = Server(Script(0, messages), ROLES_OF_ONE, mine, RUN, Sink())
        with suppress(EndOfScriptError), np.errstate(all="ignore"):  # gradients may be huge
            program.serve()

    read(0, script[0])
    return Target(f"server-{name}", tuple(script), read, 2, repair, limit=LIMIT)


def answers(options: Options) -> list[bytes]:
    """What a worker hears of a server."""
    codec = options.compression.pull
    said = []
    for c in LAYOUT.chunks(options.chunk_bytes):
        about = Header(Kind.ACK, Verdict.APPLIED, layout=LAYOUT.digest, chunk=c.index, clock=1,
                       version=1, rate=0.5)  # fmt: skip
        piece, mark = GRADIENT[c.start : c.stop], 0
        payload = piece.tobytes()
        if codec is not None:
            out, mark = np.zeros(codec.nbytes_max(c.size), np.uint8), Flag.ENCODED | Flag.HELD
            size = codec.encode(piece, None, out, Key(0, 0, 1, c.start), Workspace())
            payload = out[:size].tobytes()
        said += [bytes_of(about), bytes_of(about._replace(kind=Kind.RECEIVED))]
        said.append(bytes_of(about._replace(kind=Kind.PARAMS, flags=mark), payload))
    said.append(bytes_of(Header(Kind.CUT, sequence=2, clock=3)))
    return [*said, bytes_of(Header(Kind.STATS_ARE), encode_json(STATS))]


def worker(name: str, **options: object) -> Target:
    mine = Options(optimizer=Adam(0.1), chunk_bytes=64, **options)
    script = answers(mine)
    memory = WorkerMemory.private(LAYOUT.size)
    state = Registered.of(LAYOUT, mine, 1, 0, memory)

    def read(sample: int, data: bytes) -> None:
        messages = [(0, said) for said in (*script[:sample], data, *script[sample + 1 :])]
        transport = Script(1, messages)
        links = ServerLinks(transport, ROLES_OF_ONE, RUN, 99, mine.compression.pull)
        links.receive_params_into(state.params_of, state.take_shared)
        for chunk in state.chunks:
            for _ in range(3):
                links.request(0, Header(Kind.PULL, chunk=chunk.index))
        with suppress(EndOfScriptError), np.errstate(all="ignore"):
            links.await_answers()
            links.await_control(Kind.STATS_ARE)

    read(0, script[0])
    return Target(f"worker-{name}", tuple(script), read, 2, repair, limit=LIMIT)


ROLES = (
    server("sync", staleness=0),
    server("async-topk", staleness=None, codec="topk:0.5+int8", feedback="none"),
    worker("dense", staleness=0),
    worker("int8", staleness=0, pull_codec="int8"),
)
