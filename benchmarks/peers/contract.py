"""What every system does and prints, so that their figures mean the same.

Worker w hands over (w + 1) times one pattern of n float32, the same in each step. The update is
plain SGD: ``params -= RATE * mean``. A worker notes the time whenever it holds the parameters of
another step; steps follow each other without a pause. The time of a step is that from the moment
when the last worker had the parameters of the step before to that when the last one has these. All
processes read one clock (``CLOCK_MONOTONIC``).

Every worker compares all n parameters with what they must be, after the first step and after the
last. A program prints one line of JSON, with ``error`` saying where they were wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from peers.case import Case

Float32 = NDArray[np.float32]

RATE: Final = 2.0**-10
PATTERN: Final = 1 << 16  # elements of the gradient before it repeats
BLOCK: Final = 1 << 15  # elements that stay in cache
TOLERANCE: Final = 1e-4  # of rounding; one step of a thousand too few is ten times that


@dataclass(frozen=True)
class Trace:
    """What a worker saw: when it had the parameters (seconds), and what was wrong with them."""

    ends: list[float]
    error: str | None


def parse(argv: Sequence[str] | None = None, **choices: Sequence[str]) -> argparse.Namespace:
    """``system``, ``case`` and one option for each of ``choices``, whose first is the default."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--system", required=True)
    for field in fields(Case):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, required=True)
    for name, values in choices.items():
        parser.add_argument(f"--{name}", choices=values, default=values[0])
    found = parser.parse_args(argv)
    found.case = Case(**{field.name: getattr(found, field.name) for field in fields(Case)})
    return found


def pattern() -> Float32:
    """The gradient of worker 0, as far as it does not repeat."""
    return np.random.default_rng(1).standard_normal(PATTERN, np.float32)


def gradient(worker: int, n: int) -> Float32:
    """Worker ``worker``'s gradient[n], in memory that has been touched."""
    return np.float32(worker + 1) * np.resize(pattern(), n)


def wrong(params: Float32, case: Case, steps: int) -> str | None:
    """What is wrong with params[n] after ``steps`` steps from zeros; None if nothing is.

    The mean of the gradients of W workers is (W + 1) / 2 times the pattern.
    """
    if params.shape != (case.n,) or params.dtype != np.float32:
        return f"got {params.dtype}{list(params.shape)}, expected float32[{case.n}]"
    expected = np.float32(-RATE * steps * (case.workers + 1) / 2) * pattern()
    for start in range(0, case.n, PATTERN):
        block = params[start : start + PATTERN]
        want = expected[: block.size]
        bad = ~(np.abs(block - want) <= TOLERANCE * np.abs(want))  # a NaN is bad, too
        if bad.any():
            i = int(np.argmax(bad))
            return (
                f"element {start + i} is {block[i]:.7g} after {steps} steps, expected {want[i]:.7g}"
            )
    return None


def drive(step: Callable[[], object], params: Callable[[], Float32], case: Case) -> Trace:
    """One worker's part: takes the steps, notes the times, checks the parameters."""
    step()
    error = wrong(params(), case, 1)
    for _ in range(case.warm_up - 1):
        step()
    ends = [time.perf_counter()]
    for _ in range(case.steps):
        step()
        ends.append(time.perf_counter())
    return Trace(ends, error or wrong(params(), case, case.warm_up + case.steps))


def gathered(comm: Any, trace: Trace | None) -> list[Trace] | None:
    """The traces of all ranks of an mpi4py communicator, on its first one; None elsewhere.

    A rank without a trace is left out. They travel as JSON: mpi4py's ``gather`` would pickle.
    """
    text = json.dumps([asdict(trace)] if trace is not None else [])
    mine = np.frombuffer(text.encode(), np.uint8)
    sizes = np.zeros(comm.size, np.int64)
    comm.Allgather(np.array([mine.size], np.int64), sizes)
    blob = np.zeros(int(sizes.sum()), np.uint8)
    comm.Gatherv(mine, [blob, sizes])
    if comm.rank:
        return None
    ends = np.cumsum(sizes)
    texts = [blob[end - size : end].tobytes() for size, end in zip(sizes, ends, strict=True)]
    return [Trace(**fields) for text in texts for fields in json.loads(text)]


def times_ms(ends: Sequence[Sequence[float]]) -> list[float]:
    """Milliseconds of each step, of the ends in seconds of every worker."""
    last = [max(of_step) for of_step in zip(*ends, strict=True)]
    return [1e3 * (b - a) for a, b in itertools.pairwise(last)]


def record(
    system: str, case: Case, traces: Sequence[Trace], versions: Mapping[str, str]
) -> dict[str, Any]:
    """What a system has to say: its times, or what was wrong in which worker."""
    errors = [f"worker {w}: {t.error}" for w, t in enumerate(traces) if t.error is not None]
    if len(traces) != case.workers:
        errors.append(f"{len(traces)} workers took part, expected {case.workers}")
    return {
        "system": system,
        **asdict(case),
        "times_ms": [round(ms, 4) for ms in times_ms([trace.ends for trace in traces])],
        "error": "; ".join(errors) or None,
        "versions": dict(versions),
    }


def report(system: str, case: Case, traces: Sequence[Trace], versions: Mapping[str, str]) -> None:
    """Prints :func:`record` as one line."""
    print(json.dumps(record(system, case, traces, versions)), flush=True)


def descend(params: Float32, grads: Sequence[Float32], rate: float, scratch: Float32) -> None:
    """params[n] -= rate * the sum of grads, block by block; scratch has the size of a block."""
    factor = np.float32(rate)
    for start in range(0, params.size, scratch.size):
        part = slice(start, min(start + scratch.size, params.size))
        total = scratch[: part.stop - start]
        np.multiply(grads[0][part], factor, out=total)
        if len(grads) > 1:
            np.add(grads[0][part], grads[1][part], out=total)
            for grad in grads[2:]:
                total += grad[part]
            total *= factor
        params[part] -= total
