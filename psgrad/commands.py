"""The smaller commands: what each takes and calls. Each returns the exit status."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn

from psgrad.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """argparse with errors that read like psgrad's own: one line, status 2."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


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
    """``psgrad bench codec``."""
    arguments = _bench_parser().parse_args(argv)
    from psgrad import bench as measure

    specs = arguments.codec or measure.SPECS
    rows = measure.bench_codecs(arguments.n, specs, arguments.repeats, lambda _: None)
    print(measure.table(rows, arguments.n))
    if arguments.plot:
        measure.plot(rows, Path(arguments.plot))
    if arguments.json:
        print(json.dumps({"n": arguments.n, "rows": measure.records(rows)}))
    return 0


def _bench_parser() -> Parser:
    parser = Parser(prog="psgrad bench", description="Measure on this machine, in one process.")
    parser.add_argument("what", choices=["codec"], help="codec: every codec's cost and error")
    parser.add_argument("--n", type=count, default="16M", help="elements: 4096, 64K, 16M (16M)")
    parser.add_argument("--codec", action="append", metavar="SPEC", help="only these")
    parser.add_argument("--repeats", type=count, default="5", help="of which the median is taken")
    parser.add_argument("--plot", metavar="PNG", help="draw error against bits")
    parser.add_argument("--json", action="store_true", help="the figures on the last line")
    return parser


def count(text: str) -> int:
    """4096, 64K or 16M."""
    number, scale = text[:-1], {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:].upper())
    if scale is None:
        number, scale = text, 1
    if not number.isdigit() or int(number) < 1:
        raise argparse.ArgumentTypeError(
            f"expected a count of at least 1, such as 4096, 64K or 16M, got {text!r}"
        )
    return int(number) * scale


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
        return _soak(arguments.minutes, arguments.first)
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
        "bench": ("measure: bench codec", bench),
        "simulate": ("seeded schedules in the simulator", simulate),
    }
)
"""Name -> (help, function)."""
