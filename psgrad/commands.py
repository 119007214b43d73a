"""The smaller commands: what each takes and calls. Each returns the exit status."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from psgrad.arguments import Parser as Parser


def codecs(argv: Sequence[str]) -> int:
    """``psgrad codecs``."""
    Parser(prog="psgrad codecs", description="List the codecs.").parse_args(argv)
    from dataclasses import fields

    from psgrad.codecs import CODECS

    for name, kind in CODECS.items():
        options = ", ".join(f"{f.name}={f.default}" for f in fields(kind))  # type: ignore[arg-type]
        print(f"{name:10} {kind.summary}" + (f" ({options})" if options else ""))
    return 0


def bench(argv: Sequence[str]) -> int:
    """``psgrad bench``."""
    from psgrad import bench_commands

    return bench_commands.bench(argv, os.environ)


def simulate(argv: Sequence[str]) -> int:
    """``psgrad simulate``."""
    parser = Parser(
        prog="psgrad simulate",
        description="Run seeded schedules in the simulator and check what must hold after every "
        "message: one (--seed N), or fresh ones for a while (--minutes M).",
        allow_abbrev=False,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=_whole, metavar="N", help="the schedule of this seed")
    which.add_argument("--minutes", type=float, metavar="M", help="seeds one after another")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change the schedule"
    )
    parser.add_argument("--first", type=_whole, metavar="N", help="the first seed of --minutes")
    parser.add_argument("--trace", metavar="JSON", help="write a trace for Perfetto or Chrome")
    arguments = parser.parse_args(argv)
    if arguments.minutes is not None:
        if not 0 < arguments.minutes < math.inf:
            parser.error(f"--minutes must be a number above 0, got {arguments.minutes:g}")
        if arguments.set or arguments.trace:
            parser.error("--set and --trace go with --seed")
        return _soak(arguments.minutes, arguments.first)
    if arguments.first is not None:
        parser.error("--first goes with --minutes")
    return _one_schedule(arguments.seed, arguments.set, arguments.trace)


def _one_schedule(seed: int, settings: Sequence[str], trace: str | None) -> int:
    from psgrad import rehearsal
    from psgrad.scenario import Scenario, change, describe
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
            write_chrome_trace(Path(trace), events, scenario.names)
            print(f"trace of {len(events)} events in {trace}; open it at https://ui.perfetto.dev")
    print(
        f"passed: {outcome.messages} messages in {outcome.seconds:.6g} virtual seconds, "
        f"{outcome.updates} updates, compared with {', '.join(outcome.compared)}"
    )
    return 0


def _soak(minutes: float, first: int | None) -> int:
    import secrets
    import time

    from psgrad import rehearsal
    from psgrad.errors import PsgradError
    from psgrad.scenario import Scenario, command

    seed = secrets.randbits(31) if first is None else first
    end = time.monotonic() + 60 * minutes
    passed, failed = 0, 0
    while time.monotonic() < end:
        try:
            rehearsal.run(Scenario.of(seed))
            passed += 1
        except PsgradError as error:
            failed += 1
            sys.stderr.write(f"{command(Scenario.of(seed))}\n    {error}\n")
        seed += 1
    print(f"{passed} schedules passed, {failed} failed; the last seed was {seed - 1}")
    return 1 if failed else 0


def _whole(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


COMMANDS: Final[Mapping[str, tuple[str, Callable[[Sequence[str]], int]]]] = MappingProxyType(
    {
        "codecs": ("list the codecs", codecs),
        "bench": ("measure: codecs, steps, latency, memory", bench),
        "simulate": ("seeded schedules in the simulator", simulate),
    }
)
"""Name -> (help, function)."""
