"""The CUDA kernels on a GPU: checked against the CPU's, then timed: ``python benchmarks/gpu.py``.

Each line is a fraction: the bytes that a kernel must move at least, over its time, over the rate of
a copy from device to device in the same run. Where PyTorch is installed, ``torch.topk`` with a
residual runs beside them. Takes less than 8 minutes, prints a table last, and writes
``benchmarks/results/gpu.json``. Ends with status 1 where there is no GPU or a check fails.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from psgrad import kernels
from psgrad.codecs import Workspace
from psgrad.codecs.scaled import Form
from psgrad.errors import ConfigError
from psgrad.kernels import bits, plain, quantize, select
from psgrad.optimizers import AdamW

SIZES = (1_000_000, 10_000_000, 100_000_000)
CHECKED = 1_000_003
SMALL = 4096
REPEATS = 20
BUDGET_S = 420.0
"""No further size is started after it."""
RATIO = 0.01
WORKERS = 8
FORMS = {
    "int8": Form(3, 256, 127, bits.BYTES),
    "int4": Form(4, 64, 7, bits.NIBBLES),
    "ternary": Form(6, 128, 1, bits.TRITS),
}
GOALS = {
    "encode int8": 0.8,
    "encode int4": 0.8,
    "threshold top-k": 0.7,
    "exact top-k": 0.5,
    "add 8 int8": 0.8,
    "adamw": 0.85,
}
"""Fractions of the copy rate at the largest size; the issue's "within 2 times" is 0.5."""
RESULTS = Path(__file__).parent / "results" / "gpu.json"


class Row(NamedTuple):
    name: str
    n: int
    seconds: float  # median of a launch
    nbytes: int  # that have to be moved
    fraction: float  # of the copy rate


def main() -> int:
    started = time.monotonic()
    try:
        gpu = kernels.load("gpu")
    except ConfigError as error:
        print(f"not run: {error}", file=sys.stderr)
        return 1
    check(gpu.xp)
    rows: list[Row] = []
    for n in SIZES:
        if time.monotonic() - started < BUDGET_S:
            rows += measured(gpu.xp, n)
    small_us = {name: 1e6 * timed(gpu.xp, encoder(gpu.xp, name, SMALL)[0]) for name in FORMS}
    peers = torch_topk() if importlib.util.find_spec("torch") else {}
    properties = gpu.xp.cuda.runtime.getDeviceProperties(0)
    record = {
        "device": properties["name"].decode(),
        "rows": [row._asdict() for row in rows],
        "small_us": small_us,
        "torch_topk_s": peers,
        "goals": GOALS,
        "seconds": time.monotonic() - started,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(rows, small_us, peers))
    return 0


def drawn(n: int, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal(n, np.float32)


def encoder(xp: Any, name: str, n: int) -> tuple[Callable[[], None], Any, Any]:
    """A launch that encodes n elements with a residual; what it writes; the residual."""
    from psgrad.kernels import cuda_scaled

    form = FORMS[name]
    x, kept = xp.asarray(drawn(n, 1)), xp.asarray(drawn(n, 2))
    packed = xp.zeros(bits.packed_nbytes(n, form.coding), np.uint8)
    codes = cuda_scaled.Codes(xp.zeros(form.blocks(n), np.float32), packed)
    found = xp.zeros(1, np.uint32)
    measure = quantize.block_max

    def encode() -> None:
        cuda_scaled.encode_scaled(form, measure, x, kept, codes, None, found)

    return encode, codes, kept


def check(xp: Any) -> None:
    """Raises AssertionError where a kernel does not give the CPU's bytes."""
    from psgrad.kernels import cuda_optim, cuda_select

    n = CHECKED
    for name, form in FORMS.items():
        encode, codes, there = encoder(xp, name, n)
        encode()
        kept, steps = drawn(n, 2), np.zeros(form.blocks(n), np.float32)
        packed = np.zeros(bits.packed_nbytes(n, form.coding), np.uint8)
        measure = quantize.block_max
        plain.encode_scaled(form, measure, drawn(n, 1), kept, steps, packed, None, Workspace())
        pairs = ((codes.steps, steps), (codes.packed, packed), (there, kept))
        same(f"encode {name}", pairs)
    v, k = drawn(n, 3), n // 100
    want = select.top_k(v.copy(), k, Workspace())
    same("exact top-k", list(zip(cuda_select.top_k(xp.asarray(v), k), want, strict=True)))
    it, slots = AdamW(), AdamW().init(n)
    params, grad = drawn(n, 4), drawn(n, 5)
    there, *rest = (xp.asarray(a) for a in (params, grad, *slots.values()))
    gradient, mean, squares = rest
    moments = it.beta1, it.beta2, it.eps
    cuda_optim.adam(there, gradient, mean, squares, 1, 0.1, 0.01, *moments, decoupled=True)
    it.apply(params, grad, slots, 1, 0.1, 0.01, np.empty((1, n), np.float32))
    same("adamw", [(there, params), (mean, slots["mean"]), (squares, slots["square_mean"])])


def same(name: str, pairs: Any) -> None:
    for there, here in pairs:
        assert np.array_equal(there.get().view(np.uint8), here.view(np.uint8)), (
            f"{name}: the GPU's bytes are not the CPU's"
        )


def timed(xp: Any, launch: Callable[[], Any]) -> float:
    """Seconds of one launch: the median of some, by the GPU's clock."""
    for _ in range(3):
        launch()
    taken = []
    for _ in range(REPEATS):
        begin, end = xp.cuda.Event(), xp.cuda.Event()
        begin.record()
        launch()
        end.record()
        end.synchronize()
        taken.append(xp.cuda.get_elapsed_time(begin, end) / 1e3)
    return float(np.median(taken))


def measured(xp: Any, n: int) -> list[Row]:
    """The rows of one size."""
    from psgrad.kernels import cuda_optim, cuda_scaled, cuda_select

    source, target = xp.zeros(n, np.float32), xp.zeros(n, np.float32)
    copy_s = timed(xp, lambda: xp.copyto(target, source))
    rate = 8 * n / copy_s
    rows = [Row("copy", n, copy_s, 8 * n, 1.0)]

    def row(name: str, nbytes: int, launch: Callable[[], Any]) -> None:
        seconds = timed(xp, launch)
        rows.append(Row(name, n, seconds, nbytes, nbytes / seconds / rate))

    for name, form in FORMS.items():
        encode, codes, _ = encoder(xp, name, n)
        row(f"encode {name}", 12 * n + form.nbytes(n), encode)
        del encode, codes
    form = FORMS["int8"]
    encode, codes, _ = encoder(xp, "int8", n)
    encode()
    payloads = [cuda_scaled.Codes(codes.steps.copy(), codes.packed.copy()) for _ in range(WORKERS)]
    shares = [np.float32(1 / WORKERS)] * WORKERS
    row(
        f"add {WORKERS} int8",
        WORKERS * form.nbytes(n) + 4 * n,
        lambda: cuda_scaled.add_payloads(form, payloads, shares, target, True),
    )
    v, add = xp.asarray(drawn(n, 3)), xp.zeros(n, np.float32)
    k = round(RATIO * n)
    low = np.float32(2.5758)  # of a normal distribution 1% is beyond it
    row("exact top-k", 16 * n, lambda: cuda_select.top_k(v, k, add))
    row("threshold top-k", 12 * n, lambda: cuda_select.reaching(v, low, 2 * k, add))
    mean, squares = xp.zeros(n, np.float32), xp.zeros(n, np.float32)
    moments = 0.9, 0.999, 1e-8
    row(
        "adamw",
        28 * n,
        lambda: cuda_optim.adam(target, v, mean, squares, 1, 1e-3, 0.01, *moments, decoupled=True),
    )
    return rows


def torch_topk() -> dict[str, float]:
    """Seconds of torch.topk of |grad + residual| with a new residual, by size."""
    import torch  # type: ignore[import-not-found,unused-ignore]

    def step() -> None:
        residual.add_(grad)
        _, where = residual.abs().topk(round(RATIO * n))
        residual[where] = 0

    times = {}
    for n in SIZES if torch.cuda.is_available() else ():
        grad = torch.randn(n, device="cuda")
        residual = torch.zeros_like(grad)
        step()
        torch.cuda.synchronize()
        begin = time.monotonic()
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        times[str(n)] = (time.monotonic() - begin) / 3
    return times


def table(rows: list[Row], small_us: dict[str, float], peers: dict[str, float]) -> str:
    lines = [f"{'kernel':18}{'n':>12}{'ms':>10}{'GB/s':>9}{'of copy':>9}{'goal':>7}"]
    for row in rows:
        goal = GOALS.get(row.name) if row.n == SIZES[-1] else None
        lines.append(
            f"{row.name:18}{row.n:12,}{1e3 * row.seconds:10.3f}"
            f"{row.nbytes / row.seconds / 1e9:9.0f}{row.fraction:9.2f}"
            f"{'' if goal is None else format(goal, '7.2f')}"
        )
    lines += [f"encode {name}, {SMALL} elements: {us:.1f} us" for name, us in small_us.items()]
    lines += [f"torch.topk + residual, {n}: {1e3 * seconds:.2f} ms" for n, seconds in peers.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
