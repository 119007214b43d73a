"""Payloads of every codec, type of values, coding of indices and flag; what a reader promises."""

from __future__ import annotations

import numpy as np
import zstandard

from psgrad.codecs import Key, Workspace, parse
from psgrad.codecs.base import write_into
from psgrad.codecs.sparse import VALUES, OpenedSparse
from psgrad.codecs.wire import HEADER_NBYTES, Flag
from psgrad.errors import WireError


def gaussian(n, scale=1.0):
    return (np.random.default_rng(n).standard_normal(n) * scale).astype(np.float32)


def raised(n, where):
    """Small noise, and 1 at some places: what top-k sends."""
    v = gaussian(n, 1e-3)
    v[where] = 1
    return v


PLACES = {
    "uniform": (1000, np.sort(np.random.default_rng(1).choice(1000, 40, replace=False))),
    "runs": (1000, (np.arange(0, 900, 300)[:, None] + np.arange(30)).ravel()),
    "clusters": (4000, np.unique(np.random.default_rng(2).lognormal(4, 1.5, 90).astype(int))),
    "regular": (20000, np.arange(0, 20000, 50)),
    "columns": (2000, np.flatnonzero(np.isin(np.arange(2000) % 50, (3, 20, 24)))),
    "dense": (300, np.flatnonzero(np.random.default_rng(3).random(300) < 0.5)),
}
DENSE = [
    "none", "fp16", "bf16", "int8", "int8:block=16", "int8:rounding=stochastic", "int4",
    "int4:block=16", "qsgd", "qsgd:levels=1,block=16", "qsgd:levels=127", "ternary", "sign",
    "sign:block=32", "randk:0.2",
]  # fmt: skip
INPUTS = {"gaussian": gaussian(200), "huge": np.clip(gaussian(200), -3, 3) * np.float32(1e38)}


def encoded(codec, v):
    out = np.zeros(codec.nbytes_max(v.size), np.uint8)
    return out[: codec.encode(v, None, out, Key(1, 2, 3, 64), Workspace())]


def zstd_of(payload):
    """With the body as a zstd frame, even where that is larger."""
    frame = zstandard.ZstdCompressor(level=1).compress(payload[HEADER_NBYTES:].data)
    squeezed = np.append(payload[:HEADER_NBYTES], np.frombuffer(frame, np.uint8))
    squeezed[5] |= Flag.ZSTD
    return squeezed


def cases():
    """name: (codec, n, payload)"""
    for spec in DENSE:
        for kind, v in INPUTS.items():
            yield f"{spec} {kind}", parse(spec), v
    for kind, (n, where) in PLACES.items():
        for values in VALUES:
            codec = parse(f"topk:{where.size / n}+{values}")
            yield f"topk+{values} {kind}", codec, raised(n, where)
    yield "adaptive int4", parse("adaptive:0.1"), gaussian(400)
    yield "adaptive topk", parse("adaptive"), raised(1000, np.arange(0, 1000, 101))
    yield "topk threshold", parse("topk:0.1,select=threshold"), gaussian(400)
    yield "topk raw", parse("topk:1"), gaussian(30)
    yield "topk zero", parse("topk:0.1"), np.zeros(100, np.float32)
    yield "int4 zero", parse("int4"), np.zeros(100, np.float32)
    yield "sign raw", parse("sign"), gaussian(1)


PLAIN = {name: (codec, v.size, encoded(codec, v)) for name, codec, v in cases()}
SQUEEZED = {
    f"{name} zstd": (codec, n, zstd_of(payload))
    for name, (codec, n, payload) in PLAIN.items()
    if not payload[5]
}
CASES = {**PLAIN, **SQUEEZED}


def check(codec, payload, n):
    """Opens a payload, and looks at all that it stands for; raises ``WireError``."""
    opened = codec.open(payload, n)
    out = np.full(n, np.nan, np.float32)
    with np.errstate(all="ignore" if payload[5] == Flag.RAW else "warn"):
        write_into(opened, out)
    if isinstance(opened, OpenedSparse):
        assert opened.where[0] >= 0
        assert opened.where[-1] < n
        assert (opened.where[1:] > opened.where[:-1]).all()
    if payload[5] != Flag.RAW:
        assert np.isfinite(out).all()


def read(codec, payload, n):
    """Whether the payload is accepted; then it is checked."""
    try:
        check(codec, payload, n)
    except WireError:
        return False
    return True
