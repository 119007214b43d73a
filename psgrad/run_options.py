"""Options of ``psgrad bench`` that are arguments of ``psgrad.run``, by one table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from psgrad.arguments import Parser, count
from psgrad.errors import ConfigError
from psgrad.placement import FIRST

# Option of psgrad bench -> (keyword of psgrad.run, kind of value, help).
RUN_OPTIONS: Final[Mapping[str, tuple[str, Callable[[str], Any], str]]] = MappingProxyType(
    {
        "--servers": ("servers", count, "server ranks (1)"),
        "--codec": ("codec", str, "how gradients travel: topk:0.01, int8, ... (none)"),
        "--pull-codec": ("pull_codec", str, "how parameters travel (none)"),
        "--feedback": ("feedback", str, "what becomes of what a codec does not send (auto)"),
        "--zstd": ("zstd", str, "compress payloads once more: auto, on, off (auto)"),
        "--shared-memory": ("shared_memory", str, "on one node: auto, on, off (auto)"),
        "--server-threads": (
            "server_threads",
            count,
            "threads of a server's arithmetic (by cores)",
        ),
        "--chunk-bytes": ("chunk_bytes", count, "bytes of a chunk (the default grid)"),
        "--aggregate": ("aggregate", str, "what a round is: mean, median, krum:1, ... (mean)"),
        "--window": ("window", count, "unanswered chunks of a worker at a server (8)"),
    }
)
MODES: Final = ("sync", "ssp", "async")


def rank_parser(what: str, text: str, ranks: int, leave_out: Sequence[str] = ()) -> Parser:
    """For ``psgrad bench WHAT`` on so many ranks; ``leave_out``: of ``RUN_OPTIONS``."""
    parser = Parser(
        prog=f"psgrad bench {what}",
        description=f"{text} Starts the ranks itself; under mpirun or srun it uses those.",
        allow_abbrev=False,
    )
    parser.set_defaults(ranks=ranks)
    parser.add_argument("--np", "-n", type=count, metavar="N", help=f"ranks to start ({ranks})")
    parser.add_argument("--mpiexec", metavar="PATH", help="the mpiexec to start them with")
    parser.add_argument(
        "--as-launched", action="store_true", help="this is a rank of an MPI job, start none"
    )
    add_run_options(parser, leave_out)
    return parser


def add_run_options(parser: Parser, leave_out: Sequence[str] = ()) -> None:
    """Adds them, but for those of ``RUN_OPTIONS`` that ``leave_out`` names."""
    parser.add_argument("--mode", choices=MODES, default="sync", help="sync, ssp or async (sync)")
    parser.add_argument("--staleness", type=count, metavar="S", help="the bound of ssp (3)")
    parser.add_argument("--optimizer", metavar="NAME", default="sgd", help="the servers' (sgd)")
    for option, (keyword, kind, text) in RUN_OPTIONS.items():
        if option not in leave_out:
            metavar = option.lstrip("-").upper().replace("-", "_")
            parser.add_argument(option, dest=keyword, type=kind, metavar=metavar, help=text)


def run_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """What ``psgrad.run`` is to be called with; raises ``ConfigError`` for what cannot be."""
    from psgrad.errors import unknown_name
    from psgrad.optimizers import OPTIMIZERS
    from psgrad.options import Options

    if arguments.staleness is not None and arguments.mode != "ssp":
        raise ConfigError(f"--staleness is for --mode ssp, got --mode {arguments.mode}")
    if arguments.optimizer not in OPTIMIZERS:
        raise ConfigError(unknown_name("optimizer", arguments.optimizer, OPTIMIZERS))
    bound = {"sync": 0, "ssp": arguments.staleness or 3, "async": None}[arguments.mode]
    given = {keyword: getattr(arguments, keyword, None) for keyword, *_ in RUN_OPTIONS.values()}
    run = {
        "staleness": bound,
        "placement": FIRST,  # measurements know ranks by the number that MPI gives them
        "optimizer": OPTIMIZERS[arguments.optimizer](),
        **{keyword: value for keyword, value in given.items() if value is not None},
    }
    Options(**run)
    return run
