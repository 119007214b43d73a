"""``psgrad simulate --calibrate``: what the cost model needs to know of this machine, and how far
its predictions are from what happens here.

A round measures what a message costs (two ranks, ``probe``), what the arithmetic of servers
and workers costs (in this process), and the time of a step of 1, 2 and 3 workers with one server
that computes nothing. From the first two alone the model predicts the third. Other things go on on
most machines, so each prediction is compared with the steps of its own round, and the median of the
rounds counts. Memory is not shared in these runs: the model is about messages.

Messages within a machine are copied by the processor of the rank that receives them, so the time
that a byte takes is a cost of processors here (``Costs.receive_s``), and of the network only the
latency remains. It is what a server takes longer for large chunks than for small ones, without the
arithmetic.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

from psgrad.errors import LaunchError
from psgrad.jobs import run
from psgrad.launch import Launch, prepare
from psgrad.layout import ITEMSIZE
from psgrad.pace import Constant
from psgrad.scale.figures import Figures
from psgrad.scale.flow import play
from psgrad.scale.machine import CHUNK, CodecCosts, Machine, N, arithmetic
from psgrad.scale.model import Case
from psgrad.transport.network import Network

ROUNDS: Final = 10
WORKERS: Final = (1, 2, 3)
STEPS: Final = 15
SMALL_CHUNKS: Final = 256  # of a burst that measures what messages cost
SMALL: Final = 16  # elements of a chunk that costs nothing but its message


@dataclass(frozen=True)
class Prediction:
    """A synchronous step of so many workers, round by round, in seconds."""

    workers: int
    predicted_s: tuple[float, ...]
    measured_s: tuple[float, ...]

    @property
    def error(self) -> float:
        """The median over the rounds of predicted / measured, less 1."""
        pairs = zip(self.predicted_s, self.measured_s, strict=True)
        return median(predicted / measured for predicted, measured in pairs) - 1


def calibrate(
    specs: Sequence[str], environ: Mapping[str, str], rounds: int, done: Callable[[str], None]
) -> tuple[Machine, list[Prediction]]:
    """Measures in ``rounds`` rounds, the codecs ``specs`` too; ``done`` hears of each.

    Raises ``LaunchError`` where ranks cannot be started.
    """
    machines: list[Machine] = []
    steps: list[dict[int, float]] = []
    for number in range(rounds):
        machines.append(measure(environ).with_codecs(specs))
        steps.append({workers: measure_step(workers, environ) for workers in WORKERS})
        done(f"calibrate: round {number + 1} of {rounds}")
    return middle(machines), [
        Prediction(
            workers,
            tuple(predict(machine, workers) for machine in machines),
            tuple(step[workers] for step in steps),
        )
        for workers in WORKERS
    ]


def measure(environ: Mapping[str, str]) -> Machine:
    """This machine, now."""
    sums = arithmetic()
    small = _on_ranks(2, "messages", (SMALL_CHUNKS, SMALL), environ)
    large = _on_ranks(2, "messages", (N // CHUNK, CHUNK), environ)
    computing_s = CHUNK * (sums["accumulate_s"] + sums["apply_s"])
    copying_s = large["server_s"] - small["server_s"] - computing_s
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        latency_s=_on_ranks(2, "link", (), environ)["latency_s"],
        byte_s=max(0.0, copying_s) / (ITEMSIZE * CHUNK),
        worker_message_s=small["worker_s"],
        server_message_s=small["server_s"],
        **sums,  # type: ignore[arg-type]  # these are floats
    )


def measure_step(workers: int, environ: Mapping[str, str]) -> float:
    """Seconds of a synchronous step with N parameters and one server, on the slowest worker."""
    return _on_ranks(1 + workers, "steps", (N, STEPS), environ)["step_s"]


def predict(machine: Machine, workers: int) -> float:
    """What the model makes of the step that ``measure_step`` measures."""
    costs = replace(machine.costs("none", "none", 0), receive_s=machine.byte_s)
    case = Case(
        workers,
        n=N,
        steps=STEPS,
        pace=Constant(0.0),
        network=Network(machine.latency_s, math.inf),
        costs=costs,
        cores=machine.cores,
    )
    return Figures.of(play(case)).step_s


def middle(machines: Sequence[Machine]) -> Machine:
    """The median of every figure."""
    codecs = [
        CodecCosts(same[0].spec, **_medians(same, without=("spec",)))
        for same in zip(*(machine.codecs for machine in machines), strict=True)
    ]
    figures = _medians(machines, without=("cores", "codecs"))
    return replace(machines[0], **figures, codecs=tuple(codecs))  # type: ignore[arg-type]  # as above


def report(machine: Machine, predictions: Sequence[Prediction]) -> str:
    """What was found, for a person."""
    lines = [
        f"messages: {1e6 * machine.latency_s:.0f} us and {1e9 * machine.byte_s:.2f} ns a byte; of "
        f"a processor, {1e6 * machine.worker_message_s:.0f} us on a worker and "
        f"{1e6 * machine.server_message_s:.0f} us on a server for each chunk of a step",
        f"for each element: judge {1e9 * machine.judge_s:.2f} ns, accumulate "
        f"{1e9 * machine.accumulate_s:.2f} ns, apply {1e9 * machine.apply_s:.2f} ns, copy "
        f"{1e9 * machine.copy_s:.2f} ns",
    ]
    lines += [
        f"{codec.spec}: {8 * codec.nbytes:.2f} bits an element; encode {1e9 * codec.encode_s:.2f} "
        f"ns, decode {1e9 * codec.decode_s:.2f} ns, accumulate {1e9 * codec.accumulate_s:.2f} ns"
        for codec in machine.codecs
        if codec.spec != "none"
    ]
    lines += [
        f"a step of {p.workers} worker{'s' * (p.workers > 1)} with {N:,} parameters: predicted "
        f"{1e3 * median(p.predicted_s):.1f} ms, measured {1e3 * median(p.measured_s):.1f} ms "
        f"({1e3 * min(p.measured_s):.1f} to {1e3 * max(p.measured_s):.1f}), error {p.error:+.0%}"
        for p in predictions
    ]
    return "\n".join(lines)


def _medians(records: Sequence[Machine | CodecCosts], without: Sequence[str]) -> dict[str, float]:
    names = [field.name for field in fields(records[0]) if field.name not in without]
    return {name: median(asdict(record)[name] for record in records) for name in names}


def _on_ranks(
    ranks: int, probe: str, arguments: Sequence[int], environ: Mapping[str, str]
) -> dict[str, float]:
    """What ``probe`` says on ``ranks`` ranks of this machine: of each figure the largest."""
    with TemporaryDirectory() as folder:
        out = Path(folder, "records")
        command = ("python", "-m", "psgrad.scale.probe", probe, str(out), *map(str, arguments))
        launch = Launch(ranks, command, system_mpi=environ.get("PSGRAD_MPI") == "system")
        status = run(prepare(launch, environ, terminal=False), environ)
        if status or not out.exists():
            raise LaunchError(
                f"measuring on {ranks} ranks ended with status {status}; leave --calibrate out"
            )
        records = [json.loads(line) for line in out.read_text().splitlines()]
    names = {name for record in records for name in record}
    return {name: max(r[name] for r in records if name in r) for name in names}
