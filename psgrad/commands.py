"""The smaller commands: what each takes and calls. Each returns the exit status."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from psgrad.arguments import Parser, count, output
from psgrad.errors import ConfigError, DataError

BLAS_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def codecs(argv: Sequence[str]) -> int:
    """``psgrad codecs``."""
    Parser(prog="psgrad codecs", description="List the codecs.").parse_args(argv)
    from psgrad.codecs import CODECS

    for name, kind in CODECS.items():
        options = ", ".join(f"{f.name}={f.default}" for f in fields(kind))  # type: ignore[arg-type]
        print(f"{name:10} {kind.summary}" + (f" ({options})" if options else ""))
    return 0


def bench(argv: Sequence[str]) -> int:
    """``psgrad bench``."""
    from psgrad import bench_commands

    return bench_commands.bench(argv, os.environ)


def checkpoint(argv: Sequence[str]) -> int:
    """``psgrad checkpoint``."""
    from psgrad import checkpoint_commands

    return checkpoint_commands.checkpoint(argv)


def doctor(argv: Sequence[str]) -> int:
    """``psgrad doctor``."""
    from psgrad import doctor_command

    return doctor_command.doctor(argv, os.environ)


def slurm(argv: Sequence[str]) -> int:
    """``psgrad slurm``."""
    from psgrad.slurm import command

    return command.slurm(argv, os.environ)


def replay(argv: Sequence[str]) -> int:
    """Repeats a recorded run in this process, with as many BLAS threads as its ranks had."""
    parser = Parser(
        prog="psgrad replay",
        description="Repeat a run that was made with --record, message by message, without MPI, "
        "and compare the parameters bit for bit.",
    )
    parser.add_argument("run", metavar="RUN", help="its run folder")
    parser.add_argument("--json", action="store_true", help="the outcome on the last line")
    arguments = parser.parse_args(argv)
    from psgrad.record import read_all

    records = read_all(Path(arguments.run) / "records")
    os.environ.update(_threads(records[-1].about))
    from psgrad.replay import replay as repeat

    stamp = time.strftime("%Y%m%d-%H%M%S")
    outcome = repeat(Path(arguments.run), records, stamp, about())
    print(outcome.text)
    if arguments.json:
        from psgrad.metrics import to_json

        print(to_json(outcome.record))
    return 0 if outcome.equal else 1


def _threads(about: Mapping[str, Any]) -> dict[str, str]:
    """The BLAS threads of a record; raises ``DataError`` for what is no number of them."""
    said = about.get("threads")
    known = {name: said.get(name) for name in BLAS_THREADS} if isinstance(said, dict) else {}
    for name, value in known.items():
        if not (isinstance(value, str) and value.isascii() and (value.isdecimal() or not value)):
            raise DataError(f"the record has {str(value)[:20]!r} for {name}: it is damaged")
    return {name: str(value) for name, value in known.items()}


def about() -> dict[str, Any]:
    """What a record says of this process: a replay has to have the same."""
    import platform

    import numpy as np

    return {
        "cpu": _cpu() or platform.machine(),
        "numpy": np.__version__,
        "threads": {name: os.environ.get(name, "") for name in BLAS_THREADS},
    }


def _cpu() -> str:
    """The CPU's model; empty where the kernel does not say."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return ""


SCHEDULES: Final = ("seed", "minutes", "seeds", "first", "jobs", "set", "trace")


def simulate(argv: Sequence[str]) -> int:
    """``psgrad simulate``: how a cluster would do, or seeded schedules."""
    from psgrad.scale import study

    parser = Parser(
        prog="psgrad simulate",
        description="How will it scale? Throughput, efficiency, staleness and the servers' load, "
        "by a model of costs. With --seed, --seeds or --minutes instead: seeded schedules of the "
        "real programs, checked after every message.",
        allow_abbrev=False,
    )
    schedules = parser.add_argument_group("seeded schedules")
    which = schedules.add_mutually_exclusive_group()
    which.add_argument("--seed", type=_whole, metavar="N", help="the schedule of this seed")
    which.add_argument("--seeds", type=count, metavar="N", help="N seeds one after another")
    which.add_argument("--minutes", type=float, metavar="M", help="seeds for so long")
    schedules.add_argument("--set", action="append", metavar="FIELD=VALUE", help="change it")
    schedules.add_argument("--first", type=_whole, metavar="N", help="the first of many seeds")
    schedules.add_argument("--jobs", type=count, metavar="N", help="processes for many seeds (1)")
    schedules.add_argument(
        "--trace", type=output, metavar="JSON", help="of the schedule, for Perfetto"
    )
    group = parser.add_argument_group("scale")
    for option in fields(study.Options):
        name, text = _scale_name(option.name), option.metadata["help"]
        if option.default is False:
            group.add_argument(name, action="store_const", const=True, help=text)
        else:
            metavar = name.lstrip("-").upper().replace("-", "_")
            read = partial(_read, option.metadata["read"])
            group.add_argument(name, type=read, metavar=metavar, help=text)
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    mine = [name for name in given if name in SCHEDULES]
    others = [name for name in given if name not in SCHEDULES]
    if mine and others:
        parser.error(f"--{mine[0]} is of schedules, {_scale_name(others[0])} of scale")
    if "minutes" in given or "seeds" in given:
        return _soak(parser, given)
    if alone := [name for name in ("first", "jobs") if name in given]:
        parser.error(f"--{alone[0]} goes with --seeds or --minutes")
    if "seed" in given:
        return _one_schedule(given["seed"], given.get("set", []), given.get("trace"))
    if mine:
        parser.error(f"--{mine[0]} goes with --seed")
    options = {"seed" if key == "pace_seed" else key: value for key, value in given.items()}
    study.simulate(study.Options(**options), os.environ)
    return 0


def _read(read: Callable[[str], Any], text: str) -> Any:
    """``read(text)``; argparse shows the text of no other error than its own."""
    try:
        return read(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _scale_name(field: str) -> str:
    """The option of a field; --seed is a schedule's."""
    return "--pace-seed" if field in ("seed", "pace_seed") else "--" + field.replace("_", "-")


def _soak(parser: Parser, given: Mapping[str, Any]) -> int:
    import secrets

    minutes = given.get("minutes")
    if minutes is not None and not 0 < minutes < math.inf:
        parser.error(f"--minutes must be a number above 0, got {minutes:g}")
    if "set" in given or "trace" in given:
        parser.error("--set and --trace go with --seed")
    from psgrad import soak

    # Many seeds are repeated by others, an hour of them is to find what nobody has found.
    first = secrets.randbits(31) if minutes is not None else 0
    soaked = soak.soak(given.get("first", first), given.get("seeds"), minutes, given.get("jobs", 1))
    if minutes is None:
        print(soak.table(soaked))
    print(soaked.line)
    return 1 if soaked.failed else 0


def _one_schedule(seed: int, settings: Sequence[str], trace: Path | None) -> int:
    from psgrad import rehearsal
    from psgrad.scenario import Scenario
    from psgrad.scenario_text import change, describe
    from psgrad.transport.clockwork import SimulationError
    from psgrad.transport.trace import Event, write_chrome_trace

    scenario = Scenario.of(seed)
    for setting in settings:
        scenario = change(scenario, setting)
    print(describe(scenario))
    events: list[Event] = []
    try:
        outcome = rehearsal.run(scenario, trace=events.append if trace else None)
    except SimulationError as error:
        error.spokesman = None  # to be said once, by the command line
        raise
    finally:
        if trace:
            write_chrome_trace(trace, events, scenario.names)
            print(f"trace of {len(events)} events in {trace}; open it at https://ui.perfetto.dev")
    print(
        f"passed: {outcome.messages} messages in {outcome.seconds:.6g} virtual seconds, "
        f"{outcome.updates} updates, compared with {', '.join(outcome.compared)}"
    )
    return 0


def chaos(argv: Sequence[str]) -> int:
    """``psgrad chaos``: real runs, killed on purpose and judged."""
    parser = Parser(
        prog="psgrad chaos",
        description="Kill and stop ranks and mpiexec of small real runs under psgrad run "
        "--restarts and --elastic, and compare what comes of them with undisturbed ones. Status 1 "
        "if anything is wrong.",
        allow_abbrev=False,
    )
    parser.add_argument("--runs", type=count, default=10, metavar="N", help="how many (10)")
    parser.add_argument("--seed", type=_whole, default=1, metavar="S", help="of the campaign (1)")
    parser.add_argument("--first", type=_whole, default=0, metavar="I", help="the first run (0)")
    parser.add_argument("--jobs", type=count, default=1, metavar="N", help="at the same time (1)")
    parser.add_argument("--spinners", type=_whole, default=0, metavar="N", help="busy loops (0)")
    parser.add_argument(
        "--limit", type=count, default=120, metavar="SECONDS", help="for one run (120)"
    )
    parser.add_argument("--json", type=output, metavar="OUT", help="every run, as JSON")
    from psgrad.chaos.campaign import Options, campaign, kinds
    from psgrad.chaos.trial import KINDS
    from psgrad.metrics import to_json

    parser.add_argument(
        "--kind", choices=tuple(KINDS), help="how ranks may be lost (each that this MPI can)"
    )
    given = parser.parse_args(argv)
    options = Options(
        given.runs, given.seed, given.first, given.jobs, given.spinners, float(given.limit),
        (given.kind,) if given.kind else kinds(os.environ),
    )  # fmt: skip
    done = campaign(options, os.environ)
    if given.json:
        given.json.write_text(to_json([judged.record for judged in done]) + "\n", encoding="utf-8")
    return 1 if any(judged.faults for judged in done) else 0


def _whole(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


COMMANDS: Final[Mapping[str, tuple[str, Callable[[Sequence[str]], int]]]] = MappingProxyType(
    {
        "codecs": ("list the codecs", codecs),
        "bench": ("measure: codecs, steps, latency, memory", bench),
        "doctor": ("what is wrong with ranks, nodes and links, and what mends it", doctor),
        "checkpoint": ("list, verify and convert checkpoints", checkpoint),
        "chaos": ("kill ranks of small real runs, and judge what comes of it", chaos),
        "slurm": ("batch scripts: init writes one for a cluster, check finds mistakes", slurm),
        "simulate": ("how it will scale; seeded schedules in the simulator", simulate),
    }
)
"""Name -> (help, function)."""
