"""One step by psgrad and by its peers on this machine: ``python benchmarks/peers/run.py``.

It makes two virtual environments (Open MPI with PyTorch and Ray; MPICH), runs every system once in
each round, in rotated order and each in processes of its own, prints the tables, and writes the
record ``benchmarks/results/peers.json`` and the picture ``docs/peers.png``. The status is 1 if the
parameters of any system were wrong, or psgrad did not run.

    benchmarks/peers/run.py --quick                 1 MiB, 2 rounds of 5 steps: does it all work?
    benchmarks/peers/run.py --workers 3 --systems psgrad,torch-ddp
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from peers import environments, jobs, systems, table  # noqa: E402
from peers.case import Case  # noqa: E402
from peers.rounds import Entry, Measured, entries, measure  # noqa: E402
from peers.systems import OPENMPI, System  # noqa: E402
from psgrad.arguments import count, size  # noqa: E402

CACHE = ROOT / "build" / "peers"
RESULTS = (ROOT / "benchmarks" / "results" / "peers.json", ROOT / "docs" / "peers.png")
QUICK = (CACHE / "quick.json", CACHE / "quick.png")
TIMEOUT_S = 180


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    nbytes: int
    workers: tuple[int, ...]
    rounds: int
    warm_up: int
    steps: int
    systems: tuple[System, ...]

    def case(self, entry: Entry, cores: int) -> Case:
        """What ``entry`` is told on so many cores; raises ``ValueError`` for what cannot be."""
        steps = systems.steps_of(entry.system, entry.workers, cores, self.steps)
        return Case(entry.workers, self.nbytes, self.warm_up, steps)


def nbytes_of(text: str) -> int:
    """Bytes of float32: 4096, 64M or 64MiB."""
    return size(text.removesuffix("iB"))


def counts(text: str) -> tuple[int, ...]:
    """Several numbers of workers, each once: 2,3."""
    return tuple(dict.fromkeys(count(part.strip()) for part in text.split(",")))


def named(text: str) -> tuple[System, ...]:
    """Systems by name, each once: psgrad,ray."""
    names = dict.fromkeys(part.strip() for part in text.split(","))
    known = {system.name: system for system in systems.SYSTEMS}
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"no system {name!r}; there are {', '.join(known)}")
    return tuple(known[name] for name in names)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    assert __doc__ is not None
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("--size", type=nbytes_of, metavar="BYTES", help="of the gradient, float32 (64MiB)")
    add("--workers", type=counts, default=(2, 3), metavar="LIST", help="numbers of them (2,3)")
    add("--rounds", type=count, metavar="N", help="runs of each system (5)")
    add("--steps", type=count, metavar="N", help="timed in a run (20)")
    add("--warm-up", type=count, default=5, metavar="N", help="steps before those (5)")
    add("--systems", type=named, default=systems.SYSTEMS, metavar="LIST", help="only these")
    add("--quick", action="store_true", help="1 MiB, 2 rounds, 5 steps, into build/peers")
    add("--envs", type=Path, default=CACHE, metavar="DIR", help="of environments (build/peers)")
    add("--torch", default=environments.TORCH, metavar="REQ", help="what pip installs as PyTorch")
    add("--timeout", type=count, default=TIMEOUT_S, metavar="S", help=f"of a run ({TIMEOUT_S})")
    add("--json", type=Path, metavar="FILE", help="the record (benchmarks/results/peers.json)")
    add("--plot", type=Path, metavar="FILE", help="the picture (docs/peers.png)")
    return found


def plan_of(arguments: argparse.Namespace) -> Plan:
    """What the options, and --quick for those not given, ask for."""
    nbytes, rounds, steps = (1 << 20, 2, 5) if arguments.quick else (64 << 20, 5, 20)
    return Plan(
        nbytes=arguments.size or nbytes,
        workers=arguments.workers,
        rounds=arguments.rounds or rounds,
        warm_up=arguments.warm_up,
        steps=arguments.steps or steps,
        systems=arguments.systems,
    )


def provide(
    plan: Plan, folder: Path, torch: str, say: Callable[[str], None]
) -> dict[str, dict[str, str]]:
    """Installs what the plan needs; for each environment, why a package is missing."""
    names = {OPENMPI, *(system.environment for system in plan.systems)}
    packages = {systems.PSGRAD, *(system.package for system in plan.systems)}
    state = hashlib.sha256((ROOT / "setup.cfg").read_bytes()).hexdigest()
    return {
        one.name: environments.provide(folder, one.only(packages), state, environments.install, say)
        for one in environments.wanted(ROOT, torch)
        if one.name in names
    }


def start(entry: Entry, plan: Plan, folder: Path, timeout_s: float) -> jobs.Ended:
    """One run of a system."""
    case = plan.case(entry, len(os.sched_getaffinity(0)))
    python = environments.python_of(folder, entry.system.environment)
    argv = systems.command(entry.system, python, case)
    return jobs.run(argv, surroundings(os.environ), timeout_s)


def surroundings(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of every system."""
    paths = os.pathsep.join((str(ROOT / "benchmarks"), str(ROOT)))
    # PSGRAD_MPI would lead away from the environment's own MPI.
    kept = {name: value for name, value in environ.items() if not name.startswith("PSGRAD_")}
    return {**kept, **systems.ENVIRONMENT, "PYTHONPATH": paths}


def record_of(plan: Plan, measured: Measured, load: Sequence[float], day: str) -> dict[str, Any]:
    """All that was measured, for a program. ``load``: the machine's, before anything ran."""
    versions = {run["system"]: run["versions"] for run in measured.runs}
    return {
        "what": "peers",
        "date": day,
        "machine": {
            **versions.pop(systems.MEMCPY.name, {}),
            "load": [round(value, 2) for value in load],
        },
        "threads": systems.THREADS,
        "versions": versions,
        "nbytes": plan.nbytes,
        "workers": list(plan.workers),
        "rounds": plan.rounds,
        "labels": {system.name: system.label for system in plan.systems},
        "skipped": measured.skipped,
        "runs": [
            {key: value for key, value in run.items() if key not in ("versions", "nbytes", "error")}
            for run in measured.runs
        ],
    }


def written(record: Mapping[str, Any]) -> str:
    """The record as JSON, each run on a line."""
    head = json.dumps({**record, "runs": None}, indent=1).removesuffix("null\n}")
    runs = ",\n".join(f"  {json.dumps(run)}" for run in record["runs"])
    return f"{head}[\n{runs}\n ]\n}}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Installs, measures, prints and writes; returns the exit status."""
    arguments = parser().parse_args(argv)
    plan = plan_of(arguments)
    listed = entries(plan.systems, plan.workers)
    try:
        for entry in listed:
            plan.case(entry, cores=1)
    except ValueError as error:
        parser().error(str(error))
    say = partial(print, file=sys.stderr, flush=True)
    folder = arguments.envs.resolve()
    missing = provide(plan, folder, arguments.torch, say)
    if systems.PSGRAD in missing[OPENMPI]:
        say(f"psgrad: error: cannot install psgrad: {missing[OPENMPI][systems.PSGRAD]}")
        return 2
    jobs.adopt_orphans()
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))  # not without cleaning
    load, day = os.getloadavg(), datetime.now(timezone.utc).date().isoformat()
    run = partial(start, plan=plan, folder=folder, timeout_s=arguments.timeout)
    measured = measure(listed, plan.rounds, plan.nbytes, missing, run, say)
    record = record_of(plan, measured, load, day)
    print(table.text(record))
    defaults = QUICK if arguments.quick else RESULTS
    file, picture = arguments.json or defaults[0], arguments.plot or defaults[1]
    for path in (file, picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(written(record), encoding="utf-8")
    python = environments.python_of(folder, OPENMPI)
    draw = [str(python), "-m", "peers.plot", str(file), str(picture)]
    subprocess.run(draw, env=surroundings(os.environ), check=True, timeout=arguments.timeout)
    say(f"wrote {file} and {picture}")
    return int(measured.failed)


if __name__ == "__main__":
    sys.exit(main())
