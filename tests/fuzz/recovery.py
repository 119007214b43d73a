"""Servers that make checkpoints and lose workers, and a worker's whole life: as in ``roles``."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np

from fuzz.engine import Target
from fuzz.roles import (
    GRADIENT,
    LAYOUT,
    LIMIT,
    RUN,
    STATS,
    EndOfScriptError,
    Script,
    Sink,
    bytes_of,
    repair,
)
from psgrad.checkpoint.files import FileRecord
from psgrad.checkpoint.manifest import Manifest
from psgrad.checkpoint.writer import InlineWriter
from psgrad.codecs import Key, Workspace
from psgrad.committing import Committing
from psgrad.cuts import CutPlan
from psgrad.layout import SegmentOptions
from psgrad.messages import Flag, Header, Kind, Verdict, encode_json
from psgrad.opening import share_of
from psgrad.optimizers import SGD, Adam
from psgrad.options import Options
from psgrad.roles import Roles
from psgrad.saving import Checkpoints, ServerSaving
from psgrad.server import Server
from psgrad.worker import Worker

ROLES = Roles(4, 2)  # ranks 0 and 1 serve; the inputs are worker 0's, of rank 2, and of rank 0 or 1
IDLE = 20  # waits of a server whose workers are done: until its checkpoints are
Said = tuple[int, bytes]


class Memory:
    """What a ``Store`` does, without a disk."""

    def write(self, step: int, name: str, tensors: dict[str, np.ndarray]) -> FileRecord:
        for array in tensors.values():
            assert array.dtype == np.float32
        return FileRecord(name, sum(a.nbytes for a in tensors.values()), "crc32:00000000")

    def commit(self, step: int, files: list[FileRecord], state: dict[str, Any]) -> None:
        content = Manifest(step, tuple(files), state).to_bytes()
        assert Manifest.from_bytes(content).step == step

    def abandon(self, step: int) -> None:
        pass


def state(clock: int) -> dict[str, Any]:
    """What a worker says of itself."""
    return {"clock": clock, "weight": 8.0, "rate": -1.0, "guard": {"skipped": 0, "in_a_row": 0},
            "encoder": {"feedback.residual": {"psgrad.array": "row"}}, "kept": {}}  # fmt: skip


def heard_by(rank: int, options: Options, saving: bool) -> list[Said]:
    """What the server on ``rank`` hears of both workers, and of the other server."""
    chunks = share_of(LAYOUT, options, ROLES, rank).chunks
    said: list[Said] = []

    def tell(header: Header, payload: bytes = b"", workers: tuple[int, ...] = (0, 1)) -> None:
        said.extend((2 + w, bytes_of(header._replace(worker=w), payload)) for w in workers)

    def each(kind: Kind, clock: int, workers: tuple[int, ...] = (0, 1), **more: Any) -> None:
        for c in chunks:
            header = Header(kind, layout=LAYOUT.digest, segment=c.segment, chunk=c.index,
                            clock=clock, **more)  # fmt: skip
            piece = b"" if kind is Kind.PULL else GRADIENT[c.start : c.stop].tobytes()
            tell(header, piece, workers)

    def round_of(clock: int) -> None:
        if options.commits:
            kind = Kind.COMPLETE if rank == 0 else Kind.COMMIT
            header = Header(kind, clock=clock, sequence=1 - rank)
            said.append((1 - rank, bytes_of(header, encode_json({"workers": [0, 1]}))))

    tell(Header(Kind.REGISTER), encode_json({"layout": asdict(LAYOUT)}))
    each(Kind.INIT, 0, (0,))
    each(Kind.STEP, 1, weight=8.0)
    round_of(1)
    if rank == 0:
        tell(Header(Kind.ALIVE))
        view = {"blocked": [[0, 1, [0, 1], "why", [1]]], "pushed": {"0": [1, 2]}, "missing": []}
        told = {"doing": "waits", "stack": ["here"], "view": view}
        said.append((2, bytes_of(Header(Kind.DOING, sequence=2), encode_json(told))))
    else:
        said.append((0, bytes_of(Header(Kind.ASK))))
    if saving:
        each(Kind.STATE, 0)
        rows = {"rows": ["encoder.feedback.residual"], "state": state(1)}
        tell(Header(Kind.MARK, clock=1, sequence=1), encode_json(rows))
        if rank == 0:
            file = {"name": "server-1.safetensors", "nbytes": 96, "checksum": "crc32:01234567"}
            report = {"number": 1, "error": None, "file": file, "chunks": {"1": {"version": 2}},
                      "workers": [0, 1]}  # fmt: skip
            said.append((1, bytes_of(Header(Kind.WRITTEN), encode_json(report))))
    each(Kind.STEP, 2, weight=8.0)
    round_of(2)
    if rank == 0:
        tell(Header(Kind.MEET, sequence=1), encode_json({"values": {}, "weight": 1.0}))
    else:
        said.append((0, bytes_of(Header(Kind.EVICTED, worker=1))))
    if saving and rank == 0:
        said.append((2, bytes_of(Header(Kind.STOP), encode_json({"reason": "SIGUSR1"}))))
    last = encode_json({"state": state(2)}) if saving else b""
    staying = (0, 1) if rank == 0 else (0,)
    tell(Header(Kind.LEAVE, clock=2), last, staying)
    tell(Header(Kind.FINISH), b"", staying)
    return said


def server(name: str, rank: int, saving: bool, **options: Any) -> Target:
    """Inputs in place of what worker 0 and the other server say."""
    options = {"staleness": None, **options}
    mine = Options(optimizer=SGD(0.1), chunk_bytes=64, servers=2, **options)
    script = heard_by(rank, mine, saving)
    inputs = [i for i, (peer, _) in enumerate(script) if peer != 3]

    def checkpoints() -> Checkpoints | None:
        if not saving:
            return None
        store: Any = Memory()
        plan = CutPlan(mine.checkpoints.every, None, {})
        leads = Committing(store, InlineWriter(), plan, 2, lambda _: None) if rank == 0 else None
        return Checkpoints(ServerSaving(store, InlineWriter(), rank), leads, together=False)

    def read(sample: int, data: bytes) -> None:
        at = inputs[sample % len(inputs)]
        messages = [*script[:at], (script[at][0], data), *script[at + 1 :]]
        program = Server(Script(rank, messages, IDLE), ROLES, mine, RUN, Sink(),
                         checkpoints=checkpoints(), warn=lambda _: None)  # fmt: skip
        program.watch(None, [None] * 4)
        with suppress(EndOfScriptError), np.errstate(all="ignore"):
            program.serve()

    read(0, script[0][1])
    samples = (*(script[i][1] for i in inputs), bytes_of(Header(Kind.LOST)))
    return Target(f"server-{name}", samples, read, 2, repair, limit=LIMIT)


# A worker


def life(options: Options) -> list[bytes]:
    """What a worker hears of its only server, from its registration on."""
    said = []
    answer = {"first": 0, "error": None, "notice": "", "server": 0, "params": None}
    said.append(bytes_of(Header(Kind.REGISTERED, Verdict.APPLIED), encode_json(answer)))
    codec = options.compression.pull

    def params(clock: int, encoded: bool) -> None:
        for c in LAYOUT.chunks(options.chunk_bytes):
            piece, flags = GRADIENT[c.start : c.stop], 0
            payload = piece.tobytes()
            if encoded and codec is not None:
                out, flags = np.zeros(codec.nbytes_max(c.size), np.uint8), Flag.ENCODED | Flag.HELD
                size = codec.encode(piece, None, out, Key(0, 0, 1, c.start), Workspace())
                payload = out[:size].tobytes()
            header = Header(Kind.PARAMS, Verdict.APPLIED, layout=LAYOUT.digest, chunk=c.index,
                            clock=clock, version=clock, rate=0.5, flags=flags)  # fmt: skip
            said.append(bytes_of(header, payload))

    said += [
        bytes_of(Header(Kind.ACK, Verdict.APPLIED, chunk=c.index))
        for c in LAYOUT.chunks(options.chunk_bytes)
    ]
    params(0, encoded=False)
    params(1, encoded=True)
    said.append(bytes_of(Header(Kind.CUT, sequence=1, clock=1)))
    said.append(bytes_of(Header(Kind.ASK)))
    params(2, encoded=True)
    met = {"mean": {"loss": 0.5}, "running": [0], "lost": {}}
    said.append(bytes_of(Header(Kind.MET, sequence=1), encode_json(met)))
    said.append(bytes_of(Header(Kind.STATS_ARE), encode_json(STATS)))
    said.append(bytes_of(Header(Kind.LEFT)))
    stopped = {"reason": "SIGUSR1", "number": 3, "newest": 3, "problem": None}
    said.append(bytes_of(Header(Kind.STOPPED), encode_json(stopped)))
    return said


def worker(name: str, **options: Any) -> Target:
    """All that a worker does; an input is in the place of a message, the last ones come between."""
    mine = Options(optimizer=Adam(0.1), chunk_bytes=64, staleness=None,
                   segments=(SegmentOptions("b"),), checkpoint_dir="there", checkpoint_every="1",
                   **options)  # fmt: skip
    script, roles = life(mine), Roles(2, 1)
    between = [bytes_of(Header(Kind.FENCED)), bytes_of(Header(Kind.LOST))]
    arrays = {"w": np.zeros((6, 8), np.float32), "b": np.zeros(8, np.float32)}

    def live(program: Worker) -> None:
        program.register(arrays)
        for _ in range(2):
            program.step({"w": GRADIENT[:48].reshape(6, 8), "b": GRADIENT[48:]})
        program.mean({"loss": 0.5})
        program.server_stats()
        program.finish()

    def read(sample: int, data: bytes) -> None:
        messages = [*script[:sample], data, *script[sample + 1 :]]
        if sample >= len(script):
            messages = [*script[:12], data, *script[12:]]
        transport: Any = Script(1, [(0, said) for said in messages], IDLE)
        with suppress(EndOfScriptError), np.errstate(all="ignore"):
            live(Worker(transport, roles, mine, RUN))

    read(0, script[0])
    return Target(f"worker-{name}", (*script, *between), read, 2, repair, limit=LIMIT)


RECOVERY = (
    server("checkpoints", 0, True, checkpoint_dir="there", checkpoint_every="1"),
    server("tolerant", 1, True, checkpoint_dir="there", checkpoint_every="1", fault_tolerant=True),
    server("leases", 0, False, fault_tolerant=True),
    server("rounds", 0, False, fault_tolerant=True, staleness=0),
    server("round", 1, False, fault_tolerant=True, staleness=0),
    worker("whole", fault_tolerant=True, codec="topk:0.5", pull_codec="int8"),
)
