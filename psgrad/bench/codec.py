"""``psgrad bench codec``: what each codec costs and what it loses, on this machine.

Everything runs in one process on one thread. A copy of the same array (memcpy) is timed in turn
with each codec, so that the ratio holds although the machine is busy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from psgrad import data
from psgrad.bench import plots
from psgrad.codecs import Bytes, Codec, Key, Workspace, parse
from psgrad.codecs.base import BLOCK, write_into
from psgrad.data import DatasetOptions
from psgrad.kernels import chunks, cpu
from psgrad.layout import Float32
from psgrad.models import MLP

SPECS: Final = (
    "none", "fp16", "bf16", "int8", "int8:rounding=stochastic", "int4", "qsgd", "ternary", "sign",
    "topk:0.01", "topk:0.001", "topk:0.01+int8", "randk:0.01",
)  # fmt: skip
LABELS: Final = MappingProxyType(
    {
        "gauss": "Gaussian",
        "rows": "rows of log-normal scale",
        "real": "gradient of an MLP on digits",
    }
)
PAYLOADS: Final = 8  # that are added up
KEY: Final = Key(seed=1, worker=0, step=1, start=0)
ERROR_ELEMENTS: Final = 1 << 20


@dataclass(frozen=True)
class Row:
    """One codec. Rates are GB/s of the float32 gradient; ``*_ratio`` are to memcpy."""

    codec: str
    kernels: str  # numpy, or numba with its version
    bits: float
    encode: float
    decode: float
    accumulate: float
    encode_ratio: float
    accumulate_ratio: float
    small_us: float  # to encode 1024 elements
    error_gauss: float  # |v - C(v)| / |v|
    error_rows: float
    error_real: float

    @property
    def break_even(self) -> float:
        """Gb/s of a link below which the codec saves time: bytes saved over time spent.

        Encoding and adding up take 1/encode + 1/accumulate seconds for each GB of gradient, which
        they make smaller by 1 - bits/32 GB. Nothing is assumed to overlap.
        """
        saved = max(0.0, 1 - self.bits / 32)
        return 8 * saved / (1 / self.encode + 1 / self.accumulate)


def bench_codecs(
    n: int, specs: Sequence[str], repeats: int, done: Callable[[str], None]
) -> list[Row]:
    """One row for each spec; ``done`` hears of each one as it is measured."""
    chunks.fastest()  # numba compiles here, and not while something is timed
    rng = np.random.default_rng(1)
    x = rng.standard_normal(n, dtype=np.float32)
    samples = [x[:ERROR_ELEMENTS], row_scaled(min(n, ERROR_ELEMENTS)), real_gradient()]
    rows = []
    for spec in specs:
        rows.append(_bench_one(parse(spec), spec, x, samples, repeats))
        done(spec)
    return rows


def _bench_one(
    codec: Codec, spec: str, x: Float32, samples: Sequence[Float32], repeats: int
) -> Row:
    n, work = x.size, Workspace()
    residual, copy, total = (np.zeros(n, np.float32) for _ in range(3))
    out = np.zeros(codec.nbytes_max(n), np.uint8)
    small, small_residual = x[:1024].copy(), np.zeros(1024, np.float32)
    size = codec.encode(x, residual, out, KEY, work)

    def encode() -> None:
        codec.encode(x, residual, out, KEY, work)

    def encode_small() -> None:
        codec.encode(small, small_residual, out, KEY, work)

    payload = out[:size].copy()
    copy_s, encode_s = _in_turn(lambda: np.copyto(copy, x), encode, repeats)
    _, decode_s = _in_turn(
        lambda: np.copyto(copy, x), lambda: write_into(codec.open(payload, n), total), repeats
    )
    again_s, accumulate_s = _in_turn(
        lambda: np.copyto(copy, x), lambda: accumulate(codec, [payload] * PAYLOADS, total), repeats
    )
    small_s = median(_seconds(encode_small) for _ in range(200))
    moved = 4e-9 * n
    return Row(
        codec=spec,
        kernels=chunks.fastest().name,
        bits=8 * size / n,
        encode=moved / encode_s,
        decode=moved / decode_s,
        accumulate=PAYLOADS * moved / accumulate_s,
        encode_ratio=copy_s / encode_s,
        accumulate_ratio=PAYLOADS * again_s / accumulate_s,
        small_us=1e6 * small_s,
        error_gauss=relative_error(codec, samples[0]),
        error_rows=relative_error(codec, samples[1]),
        error_real=relative_error(codec, samples[2]),
    )


def accumulate(codec: Codec, payloads: Sequence[Bytes], out: Float32) -> None:
    """out[n] = the mean of the payloads, in one pass over blocks, in the order given."""
    opened = [codec.open(payload, out.size) for payload in payloads]
    share = np.float32(1 / len(payloads))
    for start in range(0, out.size, BLOCK):
        block = out[start : start + BLOCK]
        for i, one in enumerate(opened):
            one.add_to(block, start, share, first=i == 0)


def relative_error(codec: Codec, v: Float32) -> float:
    """|v - C(v)| / |v|, of one payload without feedback."""
    residual, out = np.zeros_like(v), np.zeros(codec.nbytes_max(v.size), np.uint8)
    codec.encode(v, residual, out, KEY, Workspace())
    return float(np.linalg.norm(residual) / np.linalg.norm(v))


def row_scaled(n: int) -> Float32:
    """Gaussian rows of 512 elements whose scales are log-normal, as of layers and neurons."""
    rng = np.random.default_rng(2)
    scales = np.exp(2 * rng.standard_normal(-(-n // 512))).astype(np.float32)
    return (np.repeat(scales, 512)[:n] * rng.standard_normal(n, dtype=np.float32)).astype(
        np.float32
    )


def real_gradient() -> Float32:
    """The gradient of an MLP on the digits after 50 steps of SGD, as one flat vector."""
    dataset = data.load(DatasetOptions())
    model = MLP(hidden=(512, 256))
    params = model.init(dataset.features, dataset.classes, seed=1)
    grads = {name: np.zeros_like(value) for name, value in params.items()}
    rng = np.random.default_rng(3)
    for _ in range(50):
        x, y = dataset.batch(rng.integers(0, len(dataset), 32))
        model.loss_and_grad(params, x, y, grads, cpu)
        for name, grad in grads.items():
            params[name] -= np.float32(0.1) * grad
    return np.concatenate([grad.ravel() for grad in grads.values()])


def table(rows: Sequence[Row], n: int) -> str:
    """The rows for a person."""
    head = (
        f"{n:,} elements of float32, one thread; GB/s of gradient, x of memcpy\n"
        f"kernels: {', '.join(sorted({row.kernels for row in rows}))}\n"
        f"{'codec':26}{'bits':>7}{'encode':>14}{'decode':>8}{'sum of 8':>15}{'4 KiB':>9}"
        f"{'pays below':>12}{'error on':>11}\n"
        f"{'':26}{'/elem':>7}{'GB/s':>8}{'x':>6}{'GB/s':>8}{'GB/s':>9}{'x':>6}{'us':>9}"
        f"{'Gb/s':>12}{'Gauss':>11}{'rows':>8}{'real':>8}"
    )
    lines = [
        f"{r.codec:26}{r.bits:7.2f}{r.encode:8.2f}{r.encode_ratio:6.2f}{r.decode:8.2f}"
        f"{r.accumulate:9.2f}{r.accumulate_ratio:6.2f}{r.small_us:9.1f}"
        f"{r.break_even:12.1f}{r.error_gauss:11.4f}{r.error_rows:8.4f}{r.error_real:8.4f}"
        for r in rows
    ]
    return "\n".join([head, *lines])


def plot(rows: Sequence[Row], path: Path) -> None:
    """A picture of error against bits; needs matplotlib."""
    pyplot = plots.pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, marker in (("gauss", "o"), ("rows", "s"), ("real", "^")):
        points = [(row.bits, getattr(row, f"error_{name}")) for row in rows if row.codec != "none"]
        axes.scatter(*zip(*points, strict=True), marker=marker, label=LABELS[name], alpha=0.7)
    for row in rows:
        if row.codec != "none":
            left = row.bits < 2  # the picture has room to the right of these
            axes.annotate(
                row.codec,
                (row.bits, row.error_gauss),
                xytext=(5 if left else -7, 5 if left else -3),
                textcoords="offset points",
                ha="left" if left else "right",
                rotation=40 if left else 0,
                fontsize=8,
            )
    axes.set(xscale="log", yscale="log", xlabel="bits per element", ylabel="|v - C(v)| / |v|")
    axes.set_title("Error of one payload, without feedback")
    axes.set_ylim(top=6)
    axes.legend(loc="lower left")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120)


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for a program."""
    return [{**asdict(row), "break_even": row.break_even} for row in rows]


def _in_turn(
    first: Callable[[], None], second: Callable[[], None], repeats: int
) -> tuple[float, float]:
    """Median seconds of each, taken in turn."""
    times = [(_seconds(first), _seconds(second)) for _ in range(repeats)]
    return median(a for a, _ in times), median(b for _, b in times)


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
