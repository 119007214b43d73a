"""What a machine's processors take for psgrad's work, and what codecs make of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import median
from typing import Final

import numpy as np

from psgrad.codecs import Bytes, Key, Opened, Workspace, parse
from psgrad.codecs.base import add_into, write_into
from psgrad.guard import check
from psgrad.kernels import chunks
from psgrad.layout import Float32, Layout
from psgrad.optimizers import SGD
from psgrad.scale.model import Costs
from psgrad.update import Hyperparameters, Updater

FLOAT32: Final = 4.0  # bytes
N: Final = 1 << 22  # elements, more than a cache holds
CHUNK: Final = 1 << 18  # elements of a chunk: what the default grid makes of N
PAYLOADS: Final = 3
REPEATS: Final = 5
KEY: Final = Key(seed=1, worker=0, step=1, start=0)


@dataclass(frozen=True)
class CodecCosts:
    """What a codec comes to for each element: bytes on the wire, and seconds."""

    spec: str
    nbytes: float
    encode_s: float
    decode_s: float
    accumulate_s: float


@dataclass(frozen=True)
class Machine:
    """Seconds for each message, byte or element, as ``Costs`` has them; ``copy_s`` is for an
    element that is copied in memory. Cores are those that ranks may use."""

    cores: int = 1
    latency_s: float = 0.0
    byte_s: float = 0.0
    worker_message_s: float = 0.0
    server_message_s: float = 0.0
    judge_s: float = 0.0
    accumulate_s: float = 0.0
    apply_s: float = 0.0
    copy_s: float = 0.0
    codecs: tuple[CodecCosts, ...] = (CodecCosts("none", FLOAT32, 0.0, 0.0, 0.0),)

    def costs(self, codec: str, pull_codec: str, bound: int | None) -> Costs:
        """What a run costs with these codecs and staleness bound, whose messages NICs copy."""
        push, pull = self._codec(codec), self._codec(pull_codec)
        # Parameters that may change while they are sent are copied first.
        snapshot = 0.0 if bound == 0 else self.copy_s * pull.nbytes / FLOAT32
        return Costs(
            worker_message_s=self.worker_message_s,
            server_message_s=self.server_message_s,
            judge_s=self.judge_s,
            encode_s=push.encode_s,
            accumulate_s=self.accumulate_s if codec == "none" else push.accumulate_s,
            apply_s=self.apply_s,
            reply_s=snapshot + pull.encode_s,
            decode_s=pull.decode_s,
        )

    def nbytes(self, codec: str) -> float:
        """Bytes for each element that travels as ``codec``."""
        return self._codec(codec).nbytes

    def with_codecs(self, specs: Iterable[str]) -> Machine:
        """The same with the costs of ``specs``; measured now, in this process, if not known."""
        known = {codec.spec for codec in self.codecs}
        new = [codec_costs(spec) for spec in dict.fromkeys(specs) if spec not in known]
        return replace(self, codecs=(*self.codecs, *new))

    def _codec(self, spec: str) -> CodecCosts:
        return next(codec for codec in self.codecs if codec.spec == spec)


TYPICAL: Final = Machine(
    cores=2,
    latency_s=7.5e-6,
    byte_s=1.85e-10,
    worker_message_s=1.5e-4,
    server_message_s=5.8e-5,
    judge_s=1.7e-10,
    accumulate_s=1.75e-10,
    apply_s=2.45e-10,
    copy_s=3.4e-10,
    codecs=(
        CodecCosts("none", FLOAT32, 0.0, 0.0, 0.0),
        CodecCosts("fp16", 2.0, 9.2e-10, 5.9e-10, 5.1e-10),
        CodecCosts("bf16", 2.0, 6.1e-10, 5.6e-10, 3.9e-10),
        CodecCosts("int8", 1.016, 8.1e-10, 5.4e-10, 3.1e-10),
        CodecCosts("int4", 0.563, 9.5e-10, 7.3e-10, 4.6e-10),
        CodecCosts("sign", 0.133, 1.75e-9, 5.8e-10, 3.3e-10),
        CodecCosts("topk:0.01", 0.0508, 1.39e-9, 7.9e-10, 3.8e-10),
        CodecCosts("topk:0.001", 0.0056, 1.05e-9, 6.6e-10, 2.4e-10),
    ),
)
"""A machine with two cores, x86-64, as ``calibrate`` measured it on 2026-11-22 with numba."""


def arithmetic() -> dict[str, float]:
    """``judge_s``, ``accumulate_s``, ``apply_s`` and ``copy_s`` of this process: plain SGD."""
    grads = [np.full((N // CHUNK, CHUNK), 1e-3, np.float32) for _ in range(PAYLOADS)]
    params, copy = np.zeros((2, N // CHUNK, CHUNK), np.float32)
    updater = Updater.of(SGD(0.01), chunks.fastest())
    hyper = Hyperparameters(1, 0.01, 0.0)
    layout = Layout.of({"p": params.ravel()})
    flat = grads[0].ravel()

    def update(payloads: int) -> Callable[[], None]:
        def all_chunks() -> None:
            for i, out in enumerate(params):
                parts = [grad[i] for grad in grads[:payloads]]
                updater.step(out, {}, parts, [1.0] * payloads, hyper)

        return all_chunks

    one, several = _seconds(update(1)), _seconds(update(PAYLOADS))
    each = max(0.0, (several - one) / (PAYLOADS - 1))
    return {
        "judge_s": _seconds(lambda: check(flat, layout, layout.segments, None)) / N,
        "copy_s": _seconds(lambda: np.copyto(copy, params)) / N,
        "accumulate_s": each / N,
        "apply_s": max(0.0, one - each) / N,
    }


def codec_costs(spec: str, n: int = N, chunk: int = CHUNK) -> CodecCosts:
    """What ``spec`` costs on Gaussian gradients of ``n`` elements in chunks of ``chunk``."""
    codec, work = parse(spec), Workspace()
    grads = np.random.default_rng(1).standard_normal((-(-n // chunk), chunk), dtype=np.float32)
    residual, total = np.zeros((2, *grads.shape), np.float32)
    outs = np.zeros((len(grads), codec.nbytes_max(chunk)), np.uint8)
    sizes = [0] * len(grads)

    def encode() -> None:
        for i, grad in enumerate(grads):
            sizes[i] = codec.encode(grad, residual[i], outs[i], KEY, work)

    def open_each(then: Callable[[Opened, Float32], None]) -> Callable[[], None]:
        def all_chunks() -> None:
            for i, out in enumerate(total):
                payload: Bytes = outs[i][: sizes[i]]
                then(codec.open(payload, chunk), out)

        return all_chunks

    encode()
    return CodecCosts(
        spec,
        nbytes=sum(sizes) / grads.size,
        encode_s=_seconds(encode) / grads.size,
        decode_s=_seconds(open_each(write_into)) / grads.size,
        accumulate_s=_seconds(open_each(add_into)) / grads.size,
    )


def _seconds(call: Callable[[], object]) -> float:
    """The median of a few calls."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)
