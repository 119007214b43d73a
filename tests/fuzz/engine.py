"""Feeds a target: only ``PsgradError`` may come out, soon, and memory may grow to its limit."""

from __future__ import annotations

import resource
import signal
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.mutate import BLOCK, Dice, changed, dice, reshaped
from psgrad.errors import PsgradError

MOST_S = 30  # of this process's CPU time for 1024 inputs: others may need the cores
TRACED_EVERY = 16  # blocks: to be told what is allocated makes it several times as slow
TRACED = 64  # inputs of such a block
GROWTH = 64 << 20  # bytes that the process may grow by, beyond what a target may take
ADDRESSES = 4 << 30  # bytes of address space: what asks for more fails, as on a small machine
SHOWN = 512  # bytes of an input in a report


@dataclass(frozen=True)
class Target:
    """``read(sample, data)`` reads an input that was made of the sample with that number."""

    name: str
    samples: tuple[bytes, ...]
    read: Callable[[int, bytes], object]
    share: int = 1
    """Of all inputs, as against other targets."""
    repair: Callable[[bytearray, Dice], None] | None = None
    """Makes checksums right, most times, as nothing else would get behind them."""
    json: bool = False
    limit: int = 1 << 20
    """Bytes that reading one input may allocate."""
    wire: bool = True
    """Whether it comes from another rank, not from a file."""


class TooSlowError(BaseException):
    """Not an ``Exception``: nothing on the way may take it for an answer."""


@dataclass
class Report:
    """What became of the inputs of a target; ``problem`` is for a person."""

    target: str
    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    peak: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    problem: str = ""


def made(target: Target, dice: Dice) -> tuple[int, bytes]:
    """The number of a sample, and an input made of it."""
    sample = dice.below(len(target.samples))
    one, other = target.samples[sample], target.samples[dice.below(len(target.samples))]
    reshape = target.json and dice.below(3)
    data = reshaped(one, other, dice) if reshape else changed(one, other, dice)
    if target.repair is not None:
        target.repair(data, dice)
    return sample, bytes(data)


def inputs(target: Target, seed: int, first: int, count: int) -> Iterator[tuple[int, int, bytes]]:
    """(number, sample, input) of ``count`` inputs from number ``first`` on."""
    number = first - first % BLOCK
    while number < first + count:
        for one in dice(seed, target.name, number // BLOCK):
            if first <= number < first + count:
                yield number, *made(target, one)
            number += 1


def run(target: Target, seed: int, first: int, count: int, until: float = float("inf")) -> Report:
    """Reads inputs, until one fails or the monotonic clock says ``until``."""
    report = Report(target.name)
    start = time.monotonic()
    with _guarded(target):
        rss = _rss()
        number, data = first, b""
        try:
            for block in _blocks(first, count):
                if time.monotonic() >= until:
                    break
                signal.setitimer(signal.ITIMER_PROF, MOST_S)
                traced = TRACED if block[0] // BLOCK % TRACED_EVERY == 0 else 0
                for number, sample, data in inputs(target, seed, *block):
                    _read(target, sample, data, number % BLOCK < traced, report)
                if _rss() - rss > target.limit + GROWTH:
                    raise MemoryError(f"the process has grown by {_rss() - rss} bytes")
        except (Exception, TooSlowError) as error:
            report.problem = told(target, seed, number, data, error)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    report.seconds = time.monotonic() - start
    return report


def told(target: Target, seed: int, number: int, data: bytes, error: BaseException) -> str:
    """What failed, and the command that repeats it."""
    shown = data[:SHOWN].hex() + ("..." if len(data) > SHOWN else "")
    return (
        f"{target.name}: input {number} of seed {seed}: {type(error).__name__}: {error}{_at(error)}"
        f"\n    repeat: bin/fuzz --target {target.name} --seed {seed} --first {number} --inputs 1"
        f"\n    {len(data)} bytes: {shown}"
    )


def _read(target: Target, sample: int, data: bytes, traced: bool, report: Report) -> None:
    try:
        target.read(sample, data)
        report.accepted += 1
    except PsgradError as error:
        name = type(error).__name__
        report.errors[name] = report.errors.get(name, 0) + 1
        if "\n" in str(error) or len(str(error)) > 1000:
            raise AssertionError(f"the error is not a line: {str(error)[:2000]!r}") from None
    report.inputs += 1
    if traced:  # once more: what is made once and kept is there by now
        report.peak = max(report.peak, peak := _peak(target, sample, data))
        if peak > target.limit:
            raise MemoryError(f"{peak} bytes were allocated, the limit is {target.limit}")


def _peak(target: Target, sample: int, data: bytes) -> int:
    """The most bytes that are there at a time, more than before, while an input is read."""
    tracemalloc.start(1)
    try:
        with suppress(PsgradError):
            target.read(sample, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _blocks(first: int, count: int) -> Iterator[tuple[int, int]]:
    """(first, count) of pieces that end where a block does."""
    end = first + count
    while first < end:
        size = min(end, first - first % BLOCK + BLOCK) - first
        yield first, size
        first += size


@contextmanager
def _guarded(target: Target) -> Iterator[None]:
    """Warnings are errors, addresses are few, and an alarm ends what does not end."""

    def alarm(*_: object) -> None:
        raise TooSlowError(f"a block of {target.name} took {MOST_S} s of CPU time")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGPROF, alarm)
    limit = _addresses() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)


def _at(error: BaseException) -> str:
    """The innermost line of the traceback."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _addresses() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
