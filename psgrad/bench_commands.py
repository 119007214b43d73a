"""``psgrad bench``: what each measurement takes, and the ranks that it runs on.

Outside of MPI, a measurement of ranks starts them: the same command line once more for each, with
``--as-launched``. Under ``mpirun`` or ``srun`` it runs on the ranks that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from psgrad.arguments import Parser, count, is_rank, size, sizes
from psgrad.errors import ConfigError
from psgrad.run_options import add_run_options, rank_parser, run_arguments

if TYPE_CHECKING:
    from psgrad.roles import Roles

SIZES: Final = "4K,64K,1M,16M,64M,256M"


class Plan(Protocol):
    """What is measured on ranks, checked before there are any."""

    def roles(self, ranks: int) -> Roles: ...


P = TypeVar("P", bound=Plan)


def bench(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """``psgrad bench WHAT ...`` in the environment ``environ``; returns the exit status."""
    parser = Parser(prog="psgrad bench", description="Measure on this machine.")
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", parser_class=Parser)
    for name, (text, _) in KINDS.items():
        kinds.add_parser(name, help=text, add_help=False)
    arguments, _ = parser.parse_known_args(list(argv[:1]))
    if arguments.what is None:
        parser.error(f"name what to measure: {', '.join(KINDS)}")
    return KINDS[arguments.what][1](argv[1:], environ)


def codec(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """``psgrad bench codec``."""
    parser = Parser(prog="psgrad bench codec", description="Every codec's cost and error.")
    parser.add_argument("--n", type=count, default="16M", help="elements: 4096, 64K, 16M (16M)")
    parser.add_argument("--codec", action="append", metavar="SPEC", help="only these")
    parser.add_argument("--repeats", type=count, default="5", help="of which the median is taken")
    _output(parser, "draw error against bits")
    arguments = parser.parse_args(argv)
    _check_plot(arguments)
    from psgrad.bench import codec as measure

    specs = arguments.codec or measure.SPECS
    rows = measure.bench_codecs(arguments.n, specs, arguments.repeats, lambda _: None)
    print(measure.table(rows, arguments.n))
    if arguments.plot:
        measure.plot(rows, Path(arguments.plot))
    if arguments.json:
        print(json.dumps({"n": arguments.n, "rows": measure.records(rows)}))
    return 0


def step(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """``psgrad bench step``."""
    return _steps("step", "A step of all ranks beside Allreduce and a copy.", argv, environ)


def allreduce(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """``psgrad bench allreduce``: the part of ``step`` that needs no psgrad."""
    text = "MPI_Allreduce over the worker ranks and a local update, beside a copy."
    return _steps("allreduce", text, argv, environ)


def _steps(what: str, text: str, argv: Sequence[str], environ: Mapping[str, str]) -> int:
    parser = rank_parser(what, text, ranks=3)
    parser.add_argument(
        "--sizes", type=sizes, default=SIZES, metavar="LIST", help=f"bytes of float32 ({SIZES})"
    )
    parser.add_argument("--rounds", type=count, default="11", help="measured rounds (11)")
    parser.add_argument("--tensors", type=count, default="1", help="that the bytes are of (1)")
    _output(parser, "draw time against size")

    def plan(arguments: argparse.Namespace) -> Any:
        from psgrad.bench.figures import ALLREDUCE, MEMCPY, TUNED, WAYS
        from psgrad.bench.step import StepPlan

        ways = WAYS if what == "step" else (ALLREDUCE, TUNED, MEMCPY)
        return StepPlan(
            arguments.sizes, arguments.rounds, ways, arguments.tensors, run_arguments(arguments)
        )

    def measure(plan: Any, arguments: argparse.Namespace) -> dict[str, Any] | None:
        from psgrad.bench.step import bench_steps, plot

        record = bench_steps(plan, _show)
        if record is not None and arguments.plot:
            plot(record, Path(arguments.plot))
        return record

    return _on_ranks(what, parser, argv, environ, plan, measure)


def latency(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """``psgrad bench latency``."""
    text = "The shortest step of a worker and a server, beside a bare exchange of the same bytes."
    parser = rank_parser("latency", text, ranks=2)
    parser.add_argument("--size", type=size, default="4K", help="bytes of float32 (4K)")
    parser.add_argument("--steps", type=count, default="2000", help="that are timed (2000)")
    _json(parser)

    def plan(arguments: argparse.Namespace) -> Any:
        from psgrad.bench.latency import LatencyPlan

        return LatencyPlan(arguments.size, arguments.steps, run_arguments(arguments))

    def measure(plan: Any, arguments: argparse.Namespace) -> dict[str, Any] | None:
        from psgrad.bench.latency import bench_latency

        return bench_latency(plan, _show)

    return _on_ranks("latency", parser, argv, environ, plan, measure)


def overlap(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """``psgrad bench overlap``."""
    text = "How much of the communication hides behind computation, for a perceptron."
    parser = rank_parser("overlap", text, ranks=2)
    parser.add_argument("--layers", type=count, default="10", help="dense layers (10)")
    parser.add_argument("--width", type=count, default="1024", help="of each of them (1024)")
    parser.add_argument("--batch", type=count, default="256", help="rows of a batch (256)")
    parser.add_argument("--rounds", type=count, default="11", help="measured rounds (11)")
    _json(parser)

    def plan(arguments: argparse.Namespace) -> Any:
        from psgrad.bench.overlap import OverlapPlan

        sizes = (arguments.layers, arguments.width, arguments.batch, arguments.rounds)
        return OverlapPlan(*sizes, run_arguments(arguments))

    def measure(plan: Any, arguments: argparse.Namespace) -> dict[str, Any] | None:
        from psgrad.bench.overlap import bench_overlap

        return bench_overlap(plan, _show)

    return _on_ranks("overlap", parser, argv, environ, plan, measure)


def tune(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """``psgrad bench tune``."""
    text = "Which chunk size suits this machine. It suggests, and changes nothing."
    parser = rank_parser("tune", text, ranks=3, leave_out=("--chunk-bytes",))
    parser.add_argument("--size", type=size, default="64M", help="bytes of float32 (64M)")
    parser.add_argument("--rounds", type=count, default="5", help="measured rounds of a pass (5)")
    parser.add_argument(
        "--chunk-bytes", type=sizes, default=(), dest="candidates", metavar="LIST",
        help="what to try (a few around the default grid's)",
    )  # fmt: skip
    _json(parser)

    def plan(arguments: argparse.Namespace) -> Any:
        from psgrad.bench.tune import TunePlan

        run = run_arguments(arguments)
        return TunePlan.of(arguments.size, arguments.rounds, arguments.candidates, run)

    def measure(plan: Any, arguments: argparse.Namespace) -> dict[str, Any] | None:
        from psgrad.bench.tune import bench_chunks

        return bench_chunks(plan, _show)

    return _on_ranks("tune", parser, argv, environ, plan, measure)


def memory(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """``psgrad bench memory``."""
    text = "What memory gives on this machine, and what a server and a worker take of it."
    parser = Parser(prog="psgrad bench memory", description=text, allow_abbrev=False)
    parser.add_argument("--size", type=size, default="64M", help="bytes of float32 (64M)")
    parser.add_argument("--np", type=count, default="3", metavar="N", help="ranks (3)")
    parser.add_argument("--repeats", type=count, default="11", help="of which the median is taken")
    add_run_options(parser)
    _json(parser)
    arguments = parser.parse_args(argv)
    from psgrad.bench.memory import bench_memory
    from psgrad.options import Options

    options = Options(**run_arguments(arguments))
    roles = options.roles(arguments.np)
    record = bench_memory(arguments.size, arguments.repeats, options, roles, _show)
    if arguments.json:
        print(json.dumps(record))
    return 0


KINDS: Final[Mapping[str, tuple[str, Callable[[Sequence[str], Mapping[str, str]], int]]]] = (
    MappingProxyType(
        {
            "codec": ("every codec's cost and error", codec),
            "step": ("a step of all ranks beside Allreduce and a copy", step),
            "allreduce": ("Allreduce and a local update, of the worker ranks", allreduce),
            "latency": ("the shortest step beside a bare exchange", latency),
            "overlap": ("how much communication hides behind computation", overlap),
            "memory": ("what memory gives, and what ranks take of it", memory),
            "tune": ("which --chunk-bytes suits this machine", tune),
        }
    )
)


def _on_ranks(
    what: str,
    parser: Parser,
    argv: Sequence[str],
    environ: Mapping[str, str],
    plan: Callable[[argparse.Namespace], P],
    measure: Callable[[P, argparse.Namespace], dict[str, Any] | None],
) -> int:
    """Starts the ranks for ``argv``, or measures as one of them."""
    if "--as-launched" not in argv and not is_rank(environ):
        arguments = parser.parse_args(argv)
        # Every rank would find the same mistake; here it costs no MPI job.
        _check_plot(arguments)
        plan(arguments).roles(arguments.np or parser.get_default("ranks"))
        return _launch(what, arguments, parser, argv, environ)

    def checked() -> tuple[P, argparse.Namespace]:
        arguments = parser.parse_args(argv)
        _check_plot(arguments)
        if arguments.np not in (None, session.size):
            raise ConfigError(
                f"--np {arguments.np}, but this job has {session.size} ranks; leave --np out"
            )
        found = plan(arguments)
        found.roles(session.size)
        return found, arguments

    from psgrad.session import Session

    with Session() as session:
        agreed, arguments = session.agree(checked)
        session.compare({"the measurement": agreed})
    record = measure(agreed, arguments)
    if record is not None and arguments.json:
        _show(json.dumps(record))
    return 0


def _launch(
    what: str,
    arguments: argparse.Namespace,
    parser: Parser,
    argv: Sequence[str],
    environ: Mapping[str, str],
) -> int:
    from psgrad.jobs import run
    from psgrad.launch import Launch, prepare

    command = ("python", "-m", "psgrad", "bench", what, *argv, "--as-launched")
    ranks = arguments.np or parser.get_default("ranks")
    system = environ.get("PSGRAD_MPI") == "system"
    launch = Launch(ranks, command, arguments.mpiexec, system)
    return run(prepare(launch, environ, terminal=sys.stderr.isatty()), environ)


def _output(parser: Parser, picture: str) -> None:
    parser.add_argument("--plot", metavar="PNG", help=picture)
    _json(parser)


def _json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="the figures on the last line")


def _check_plot(arguments: argparse.Namespace) -> None:
    """Before anything is measured that could then not be drawn."""
    if getattr(arguments, "plot", None):
        from psgrad.bench.plots import check

        check(arguments.plot)


def _show(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
