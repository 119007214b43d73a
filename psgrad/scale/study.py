"""``psgrad simulate`` for scale: throughput, efficiency, staleness and server load, by the model.

``Options`` is what the command takes; the metadata of its fields are the help texts and, where a
value is not simply its type's, the function that reads it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from psgrad import pace
from psgrad.bench.plots import check
from psgrad.codecs import Compression
from psgrad.errors import ConfigError
from psgrad.layout import SMALLEST_CHUNK_BYTES
from psgrad.scale.calibrate import ROUNDS, Prediction, calibrate, report
from psgrad.scale.figures import Figures
from psgrad.scale.flow import play
from psgrad.scale.machine import FLOAT32, TYPICAL, Machine
from psgrad.scale.model import Case, Costs, Grid
from psgrad.scale.plot import plot, plot_bounds
from psgrad.scale.rows import BOUNDS, HEAD, Row, line
from psgrad.transport.network import Network


def counts(text: str) -> tuple[int, ...]:
    """1,16,256."""
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError(f"expected whole numbers such as 1,16,256, got {text!r}") from None


def _option(default: Any, text: str, read: Callable[[str], Any] | None = None) -> Any:
    return field(default=default, metadata={"help": text, "read": read or type(default)})


@dataclass(frozen=True)
class Options:
    """What ``simulate`` takes. Raises ``ConfigError`` for what cannot be."""

    workers: tuple[int, ...] = _option(
        (1, 4, 16, 64, 256, 1024), "numbers of workers, up to 4096 (1,4,16,64,256,1024)", counts
    )
    servers: int = _option(4, "server ranks, up to 64 (4)")
    params: int = _option(25_000_000, "parameters (25000000)")
    chunk_bytes: int = _option(0, "bytes of a chunk (0: the default grid)")
    staleness: int = _option(3, "bound of ssp (3)")
    window: int = _option(8, "unanswered chunks of a worker at a server (8)")
    steps: int = _option(100, "steps of each worker (100)")
    batch: int = _option(32, "samples in a worker's step (32)")
    pace: str = _option("exponential:mean=0.1", "time to compute a step (exponential:mean=0.1)")
    latency: float = _option(20e-6, "of a message, in seconds (20e-6)")
    bandwidth: float = _option(1.25e9, "of a link, in bytes a second (1.25e9)")
    nic: float = _option(0.0, "of a rank's NIC, in bytes a second (0: that of a link)")
    codec: str = _option("none", "compare with gradients that travel as this: topk:0.01, int8")
    pull_codec: str = _option("none", "parameters that travel as this, with --codec")
    seed: int = _option(1, "of the times to compute (1)")
    ideal: bool = _option(False, "processors cost nothing, only network and pace do")
    calibrate: bool = _option(False, "measure what processors cost on this machine first")
    rounds: int = _option(ROUNDS, f"of --calibrate ({ROUNDS})")
    plot: str = _option("", "draw throughput, efficiency, staleness and load to this PNG")
    plot_bounds: str = _option("", "draw throughput against the staleness bound to this PNG")
    json: bool = _option(False, "the figures on the last line")

    def __post_init__(self) -> None:
        if not self.workers:
            raise ConfigError("workers needs one number at least, such as 1,16,256")
        for name in ("staleness", "batch", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.codec == "none" and self.pull_codec != "none":
            raise ConfigError(f"pull_codec {self.pull_codec} is for runs with a codec; give one")
        Compression.of(self.codec, self.pull_codec, "auto", "off")
        for workers in self.workers:
            self.case(Machine(), "none", "none", workers, None)

    @property
    def codecs(self) -> list[tuple[str, str]]:
        """Those of pushes and pulls that are compared."""
        return list(dict.fromkeys([("none", "none"), (self.codec, self.pull_codec)]))

    @property
    def bounds(self) -> tuple[int | None, ...]:
        """Those of the table: sync, ssp and async."""
        return (0, self.staleness, None)

    def case(
        self, machine: Machine, codec: str, pull_codec: str, workers: int, bound: int | None
    ) -> Case:
        """One row of the table, on ranks with ``machine``'s processors."""
        return Case(
            workers,
            self.servers,
            self.params,
            self.chunk_bytes,
            bound,
            self.window,
            self.steps,
            pace.parse(self.pace, self.seed),
            Network(self.latency, self.bandwidth, nic_bandwidth=self.nic or None),
            Costs() if self.ideal else machine.costs(codec, pull_codec, bound),
            machine.nbytes(codec),
            machine.nbytes(pull_codec),
        )


def simulate(options: Options, environ: Mapping[str, str]) -> None:
    """Runs the command; ``environ`` is for the ranks that ``calibrate`` starts.

    Raises ``ConfigError`` for a picture without matplotlib, ``LaunchError`` where ranks cannot be
    started.
    """
    for path in filter(None, (options.plot, options.plot_bounds)):
        check(path)
    specs = [spec for pair in options.codecs for spec in pair]
    machine, predictions = TYPICAL, list[Prediction]()
    if options.calibrate:
        machine, predictions = calibrate(specs, environ, options.rounds, _say)
        _say(report(machine, predictions))
    machine = machine.with_codecs(specs)
    rows = _table(options, machine)
    record: dict[str, Any] = {
        "options": asdict(options),
        "machine": asdict(machine),
        "predictions": [asdict(p) | {"error": p.error} for p in predictions],
        "rows": [row.record() for row in rows],
    }
    if options.plot:
        plot(rows, _title(options), Path(options.plot))
    if options.plot_bounds:
        bounds = _bounds(options, machine)
        record["bounds"] = [row.record() for row in bounds]
        title = f"{max(options.workers)} workers, {_title(options)}"
        plot_bounds(bounds, title, Path(options.plot_bounds))
    if options.json:
        _say(json.dumps(record))


def _table(options: Options, machine: Machine) -> list[Row]:
    grid = Grid.of(options.case(machine, "none", "none", 1, 0))
    _say(
        f"{options.params:,} parameters in {grid.chunks} chunks on {options.servers} servers; "
        f"{1e6 * options.latency:g} us, {8e-9 * options.bandwidth:g} Gb/s; {options.pace}"
        + f"; {_processors(options)}"
    )
    idle = options.servers - np.unique(grid.owner).size
    if idle:
        _say(f"{idle} servers have no chunk; try --chunk-bytes {_suggested(options)}")
    _say(HEAD)
    rows = []
    for pair in options.codecs:
        for bound in options.bounds:
            for workers in options.workers:
                rows.append(play_row(options, machine, pair, workers, bound))
                _say(line(rows[-1]))
    return rows


def _bounds(options: Options, machine: Machine) -> list[Row]:
    """Rows of the most workers, with one bound after the other."""
    most = max(options.workers)
    _say(HEAD)
    rows = []
    for bound in BOUNDS:
        rows.append(play_row(options, machine, ("none", "none"), most, bound))
        _say(line(rows[-1]))
    return rows


def play_row(
    options: Options,
    machine: Machine,
    codecs: tuple[str, str],
    workers: int,
    bound: int | None,
) -> Row:
    """Plays one case."""
    figures = Figures.of(play(options.case(machine, *codecs, workers, bound)))
    label = codecs[0] if codecs[1] == "none" else ", ".join(codecs)
    return Row(label, bound, options.batch * figures.throughput, figures)


def _processors(options: Options) -> str:
    if options.ideal:
        return "processors take no time"
    return "processors as measured here" if options.calibrate else "typical processors"


def _suggested(options: Options) -> int:
    """Bytes of a chunk with which every server has some."""
    return max(SMALLEST_CHUNK_BYTES, int(FLOAT32) * options.params // (4 * options.servers))


def _title(options: Options) -> str:
    return (
        f"{options.params / 1e6:g}M parameters, {options.servers} servers, "
        f"{8e-9 * options.bandwidth:g} Gb/s, {options.pace}"
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
