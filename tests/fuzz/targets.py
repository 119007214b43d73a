"""Everything that reads bytes from outside. A new decoder is a ``Target`` in one of the tables."""

from __future__ import annotations

import io
import math
import zlib
from dataclasses import asdict

import numpy as np
from payloads import CASES, check

from fuzz import replicated
from fuzz.engine import Target
from fuzz.files import FILES
from fuzz.mutate import Dice
from fuzz.recovery import RECOVERY
from fuzz.roles import ROLES
from fuzz.stored import STORED
from psgrad import control, record
from psgrad.codecs import CODECS
from psgrad.codecs.wire import HEADER_NBYTES as PAYLOAD_HEADER
from psgrad.layout import Layout, SegmentOptions
from psgrad.messages import HEADER_NBYTES, Flag, Header, Kind, Verdict, decode_json, encode_json

LAYOUT = Layout.of(
    {name: np.zeros(shape, np.float32) for name, shape in (("w", (8, 4)), ("b", 4), ("s", ()))},
    [
        SegmentOptions("b", learning_rate_scale=0.5, members=(0, 1)),
        SegmentOptions("s", buffer=True),
    ],
)


def right_checksum(data: bytearray, dice: Dice) -> None:
    if len(data) >= HEADER_NBYTES and dice.below(8):
        body = HEADER_NBYTES - 4
        data[body:HEADER_NBYTES] = zlib.crc32(data[:body]).to_bytes(4, "little")


def no_checksum(data: bytearray, dice: Dice) -> None:
    if len(data) >= PAYLOAD_HEADER and dice.below(8):
        data[PAYLOAD_HEADER - 4 : PAYLOAD_HEADER] = bytes(4)


def read_header(sample: int, data: bytes) -> None:
    header = Header.decode(data)
    if not (math.isnan(header.weight) or math.isnan(header.rate)):
        assert header.encode() == data[:HEADER_NBYTES]


def read_layout(sample: int, data: bytes) -> None:
    layout = control.registration(data, 0)
    if isinstance(layout, Layout) and layout.size < 1 << 20:
        chunks = layout.chunks(4096)
        assert sum(chunk.size for chunk in chunks) == layout.size
        views = layout.views(np.zeros(layout.size, np.float32))
        assert sum(view.size for view in views.values()) == layout.size
        assert Layout.from_json(layout.to_json()) == layout


def read_offer(sample: int, data: bytes) -> None:
    control.fields(data, Kind.SHARE, grads=control.TEXT, params=control.TEXT)


def read_record(sample: int, data: bytes) -> None:
    found = record.read(data, "a record")
    mine = record.by_message(found)
    assert len(mine.order) + len(mine.choices) <= len(found.entries)
    list(record.differences(found, mine))
    for entry in found.entries:
        entry.describe()


def headers() -> tuple[bytes, ...]:
    return tuple(
        Header(
            kind, verdict, 1 << 63, LAYOUT.digest, 1, 0, 0, 2, 3, 4, 5, 6, 8.0, 0.5, 4096, 7,
            Flag.ENCODED | Flag.HELD, 9,
        ).encode()
        for kind in Kind
        for verdict in (Verdict.NONE, Verdict.APPLIED)
    )  # fmt: skip


def payloads(name: str) -> Target:
    """All payloads of the codec ``name``."""
    mine = [case for case in CASES.values() if case[0].name == name]

    def read(sample: int, data: bytes) -> None:
        codec, n, _ = mine[sample]
        check(codec, np.frombuffer(data, np.uint8), n)

    samples = tuple(payload.tobytes() for _, _, payload in mine)
    limit = 8192 + 64 * max(n for _, n, _ in mine)
    return Target(f"codec-{name}", samples, read, 1, no_checksum, limit=limit)


def recorded() -> bytes:
    file = io.BytesIO()
    about = {"rank": 0, "size": 3, "cpu": "x", "numpy": "2", "threads": {"OMP_NUM_THREADS": "1"}}
    recorder = record.Recorder(file, about)
    for kind in Kind:
        recorder.took(1, Header(kind, chunk=3, clock=5, version=7, rate=0.5, nbytes=1 << 40))
        recorder.answered(2, Header(kind, Verdict.APPLIED, flags=Flag.SHARED))
        recorder.chose(4, 8)
    return file.getvalue()


CONTROL = (
    Target("json", (b"[1]", b'{"a": [1, 2.5, "x", null]}'), lambda _, d: decode_json(d), 2),
    Target(
        "register",
        (encode_json({"layout": asdict(LAYOUT)}), encode_json({"problem": "it differs"})),
        read_layout, 2, json=True, limit=8 << 20,
    ),
    Target(
        "meet",
        (encode_json({"values": {"loss": 0.5, "accuracy": 1}, "weight": 2.0}),),
        lambda _, data: control.part(data), 2, json=True,
    ),
    Target(
        "share",
        (encode_json({"grads": "/proc/12/fd/3#45", "params": None}),),
        read_offer, 2, json=True,
    ),
    Target("settle", (encode_json({"scale": 0.25}),), lambda _, d: control.scale(d), 2, json=True),
)  # fmt: skip

TABLE = (
    Target("header", headers(), read_header, 12, right_checksum),
    *CONTROL,
    *(payloads(name) for name in CODECS),
    *ROLES,
    *RECOVERY,
    *replicated.targets(right_checksum),
    Target("record", (recorded(),), read_record, wire=False),
    *FILES,
    *STORED,
)
TARGETS = {target.name: target for target in TABLE}
