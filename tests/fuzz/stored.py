"""What is read of a checkpoint: its files, and what each part of a run goes on from."""

from __future__ import annotations

import json
import zlib
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from fuzz.engine import Target
from fuzz.files import FOLDER
from fuzz.mutate import Dice
from fuzz.roles import GRADIENT, LAYOUT
from psgrad.arrays import Arrays
from psgrad.checkpoint.convert import parameters
from psgrad.checkpoint.files import FileRecord, open_tensors, write_tensors
from psgrad.checkpoint.manifest import Manifest
from psgrad.checkpoint.strict_json import parse
from psgrad.data import Batches
from psgrad.errors import CheckpointError
from psgrad.guard import StepGuard
from psgrad.local import LocalSteps
from psgrad.loss_scale import MOST, LossScale
from psgrad.messages import Header, Kind
from psgrad.opening import about, rules_of
from psgrad.optimizers import SGD, Adam
from psgrad.options import Options
from psgrad.push_encoder import PushEncoder
from psgrad.resuming import Resuming
from psgrad.roles import Roles
from psgrad.shard import Shard
from psgrad.tally import Tally
from psgrad.worker_state import WorkerState, unpack

WORKERS, STEPS, EPOCHS, BATCH = 2, 3, 2, 4
SAMPLES = 30
N = LAYOUT.size
ROLES = Roles(3, 1)
OPTIONS = Options(optimizer=Adam(0.1), chunk_bytes=64, staleness=None, codec="topk:0.5")
CHUNKS = LAYOUT.chunks(64)


def sealed(data: bytes) -> bytes:
    """A manifest of the content ``data``, with the right checksum."""
    rest = data.removeprefix(b"{")
    return b'{"checksum": "crc32:%08x",\n' % zlib.crc32(rest) + rest


def read_manifest(sample: int, data: bytes) -> None:
    check_manifest(Manifest.from_bytes(data))


def read_content(sample: int, data: bytes) -> None:
    check_manifest(Manifest.from_bytes(sealed(data)))


def check_manifest(found: Manifest) -> None:
    assert Manifest.from_bytes(found.to_bytes()) == found
    assert found.nbytes >= 0


def read_tensors(sample: int, data: bytes) -> None:
    """The whole file, or its header alone before the right data."""
    path = FOLDER / "fuzz.safetensors"
    if sample >= len(FILES_OF_TENSORS):
        data = len(data).to_bytes(8, "little") + data + DATA
    path.write_bytes(data)
    file = open_tensors(path)
    for name in file.names:
        assert file.tensor(name).nbytes <= len(data)


def tensors(**arrays: np.ndarray) -> bytes:
    path = FOLDER / "sample.safetensors"
    path.unlink(missing_ok=True)
    write_tensors(path, arrays)
    return path.read_bytes()


FILES_OF_TENSORS = (
    tensors(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.arange(3)),
    tensors(a=np.zeros((0, 3), np.float64), b=np.ones(5, np.uint8), c=np.array(2.5, np.float32)),
)
HEADER_END = 8 + int.from_bytes(FILES_OF_TENSORS[0][:8], "little")
DATA = FILES_OF_TENSORS[0][HEADER_END:]


def length(data: bytearray, dice: Dice) -> None:
    """The header is as long as it says, sometimes."""
    end = data.find(b"}}")
    if end >= 6 and dice.below(2):
        data[:8] = (end + 2 - 8).to_bytes(8, "little")


# States


def packed(state: Any) -> Any:
    return WorkerState.of(state, N).record


def no_row(name: str) -> None:
    return None


def row(name: str) -> np.ndarray:
    return np.ones(N, np.float32)


def read_state(sample: int, data: bytes) -> None:
    try:
        record = parse(data)
    except ValueError as error:  # as the manifest says it
        raise CheckpointError("no JSON") from error
    READERS[sample](unpack(record, row if sample % 2 else no_row, "kept"))


def read_cursor(state: Any) -> None:
    batches = Batches(np.arange(10, 20), BATCH, 1, 0, EPOCHS, samples=SAMPLES)
    batches.load_state_dict(state)
    for _, (epoch, indices) in zip(range(20), batches, strict=False):
        assert 0 <= epoch < EPOCHS
        assert 0 < indices.size <= BATCH
        assert indices.min() >= 0
        assert indices.max() < SAMPLES
    batches.state_dict()


def read_tally(state: Any) -> None:
    worker: Any = SimpleNamespace(clock=STEPS)
    tally = Tally(worker)
    tally.load_state_dict(state)
    tally.add(1, 0.5, 0.5)
    assert tally.pushes >= 0
    packed(tally.state_dict())


def read_scale(state: Any) -> None:
    scale = LossScale(8.0, every=3)
    scale.load_state_dict(state)
    for value in (1.0, np.nan, 1.0):
        scale.observe([np.array([value], np.float32)])
    assert 1 <= scale.value <= MOST
    packed(scale.state_dict())


def local_steps(elastic: float) -> LocalSteps:
    flat = [np.zeros(N, np.float32) for _ in range(2)]
    options = Options(optimizer=SGD(1.0), staleness=None)
    params, grads = (Arrays(LAYOUT.views(one)) for one in flat)
    worker: Any = SimpleNamespace(
        layout=LAYOUT, rank=0, params=params, grads=grads, skipped=0, _options=options
    )
    return LocalSteps(worker, Adam(0.1), 4, elastic=elastic)


def read_local(state: Any) -> None:
    for elastic in (0.0, 0.5):
        learner = local_steps(elastic)
        learner.load_state_dict(state)
        with np.errstate(all="ignore"):
            learner.step()
        packed(learner.state_dict())


def read_any(state: Any) -> None:
    """No part of psgrad: whatever is found can be kept again."""
    with suppress(CheckpointError):  # a key with a slash is no key
        packed(state)


def cursors() -> tuple[dict[str, Any], dict[str, Any]]:
    plain = Batches(np.arange(10), BATCH, 1, 0, EPOCHS)
    next(plain)
    taken = Batches(np.arange(10), BATCH, 1, 0, EPOCHS)
    taken.take_over(0, {0: np.arange(5), 1: np.arange(20, 29)})
    return plain.state_dict(), taken.state_dict()


TALLY = {"steps": 4, "samples": 16, "loss": 0.5, "accuracy": 0.25, "pushes": 3}
SCALE = {"value": 1024.0, "good": 1}
ODD = {"a": [1, 2.5, "x", None, True], "b": np.arange(3), "c": np.zeros((2, 2)),
       "d": np.array(float("nan")), "e": np.array([True])}  # fmt: skip
STATES: tuple[tuple[Any, Any], ...] = (
    (cursors()[0], read_cursor),
    (cursors()[1], read_cursor),
    (TALLY, read_tally),
    (local_steps(0.5).state_dict(), read_local),
    (ODD, read_any),
    ({"inner": {"row": np.zeros(N, np.float32)}}, read_any),
    (SCALE, read_scale),
)
READERS = tuple(reader for _, reader in STATES)


# A run that goes on


def encoder() -> PushEncoder:
    codec = OPTIONS.compression.push
    assert codec is not None
    return PushEncoder(OPTIONS.compression, codec, LAYOUT, CHUNKS, 1, 0, lambda: 0.0)


def manifest(workers: int) -> bytes:
    """The content of a manifest of a run of ``workers``, one of which had left."""
    said = {"guard": {"skipped": 1, "in_a_row": 0}, "weight": 8.0, "rate": -1.0, "clock": STEPS}
    kept = {"tally": TALLY, "batches": cursors()[0]}
    own = packed({**said, "encoder": encoder().state_dict(), "kept": kept})
    chunks = {}
    for c in CHUNKS:
        chunks[str(c.index)] = {
            "version": 5, "position": 2.5, "rate": 0.1, "slots": ["mean", "square_mean"],
            "reference": None,
            "parked": [[0, 4, 8.0, -1.0, True], [1, 4, 0.0, 0.25, False]],
        }  # fmt: skip
    state = {
        **about(OPTIONS, Roles(1 + workers, 1), LAYOUT),
        "clocks": {"0": STEPS, "1": STEPS - 1},
        "worker_states": {str(w): own for w in range(workers)},
        "chunks": chunks,
    }
    record = FileRecord("server-0.safetensors", 4096, "crc32:01234567")
    content = json.loads(Manifest(7, (record,), state).to_bytes())
    del content["checksum"]
    return json.dumps(content).encode()


class Stored:
    """A checkpoint of that manifest; every tensor that is asked for is there."""

    path = Path("a-checkpoint")

    def __init__(self, found: Manifest) -> None:
        self.manifest = found

    def tensor(self, name: str) -> np.ndarray:
        index = name.split("/")[1]
        if not index.isdigit() or int(index) >= len(CHUNKS):
            raise CheckpointError(f"no tensor {name[:40]!r}")
        chunk = CHUNKS[int(index)]
        return GRADIENT[chunk.start : chunk.stop] ** 2


def read_resumed(sample: int, data: bytes) -> None:
    """All that servers and workers do before the first step."""
    stored: Any = Stored(Manifest.from_bytes(sealed(data)))
    resuming = Resuming(stored, WORKERS, together=bool(sample))
    if (text := resuming.differs(LAYOUT)) is not None:
        raise CheckpointError(text)
    if resuming.chunk_bytes != OPTIONS.chunk_bytes:
        raise CheckpointError("another grid")
    clocks = {w: resuming.clock_of(w) for w in range(WORKERS)}
    for worker, clock in clocks.items():
        Header(Kind.CUT, worker=worker, clock=clock + 1, sequence=resuming.number).encode()
        record = resuming.record_of(worker)
        float(record.get("weight", 1.0))
        float(record.get("rate", -1.0))
        StepGuard(LAYOUT, LAYOUT.segments, None).load_state_dict(record.get("guard", {}))
        mine = encoder()
        mine.load_state_dict(resuming.encoder_state(worker, mine.state_dict()))
        for name, reader in (("tally", read_tally), ("batches", read_cursor)):
            if (state := resuming.kept(worker, name)) is not None:
                reader(state)
    resumed = resuming.resumed
    states = [resumed.states.get(w, {}) for w in range(min(resumed.workers, 64))]
    worker_like: Any = SimpleNamespace(clock=0)
    Tally(worker_like).merge([state["tally"] for state in states if "tally" in state])
    rules = rules_of(OPTIONS, 1)
    shard = Shard(LAYOUT, CHUNKS, range(WORKERS), rules)
    with np.errstate(all="ignore"):
        shard.load(clocks, resuming.chunk_records, resuming.source)
    for chunk in shard.chunks.values():
        assert np.isfinite(chunk.rate * rules.schedule.factor(chunk.position))


CONTENTS = (manifest(2), manifest(3))


def read_exported(sample: int, data: bytes) -> None:
    """Its parameters, for other programs."""
    stored: Any = Stored(Manifest.from_bytes(sealed(data)))
    named = parameters(stored)
    assert sum(array.size for array in named.values()) == N


STORED = (
    Target(
        "manifest", tuple(sealed(c) for c in CONTENTS), read_manifest, 2, limit=4 << 20, wire=False
    ),
    Target("content", CONTENTS, read_content, 2, json=True, limit=4 << 20, wire=False),
    Target("tensors", FILES_OF_TENSORS, read_tensors, 2, length, wire=False),
    Target(
        "tensor-header",
        (FILES_OF_TENSORS[0][8:HEADER_END],),
        lambda _, data: read_tensors(len(FILES_OF_TENSORS), data),
        2, json=True, wire=False,
    ),
    Target(
        "state",
        tuple(json.dumps(packed(state)).encode() for state, _ in STATES),
        read_state, 2, json=True, limit=4 << 20, wire=False,
    ),
    Target("export", CONTENTS, read_exported, 2, json=True, limit=4 << 20, wire=False),
    Target("resuming", CONTENTS, read_resumed, 2, json=True, limit=4 << 20, wire=False),
)  # fmt: skip
