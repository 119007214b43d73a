"""``psgrad doctor``: its arguments, and the ranks that it runs on."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from psgrad.arguments import Parser, count, size
from psgrad.placement import FIRST, PLACEMENTS, SPREAD, het_servers

DESCRIPTION: Final = """\
What is wrong with the ranks, their nodes and the links between them: each line
ok, warn or FAIL, with what mends it.

  psgrad doctor                          this process and this machine
  psgrad doctor --np 4                   on 4 ranks of this machine
  mpirun -n 16 psgrad doctor             on the ranks of a job, as training will have them
  srun psgrad doctor --checkpoint-dir /scratch/run --size 2G

Exit status: 0 if nothing is wrong, 1 if a line says FAIL (with --strict: or warn).
"""


def doctor(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """``psgrad doctor`` in the environment ``environ``; returns the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.np is not None and not arguments.as_launched:
        return _launch(arguments, argv, environ)
    from psgrad.doctor.examine import Plan, examine

    servers = het_servers(environ)  # as training would have it
    plan = Plan(
        Path(arguments.checkpoint_dir),
        arguments.servers or servers or 1,
        arguments.placement or (FIRST if servers else SPREAD),
        arguments.gpu_share,
        arguments.size,
        arguments.seconds,
        arguments.strict,
        arguments.json,
    )
    return examine(plan, environ, _show)


def _launch(arguments: argparse.Namespace, argv: Sequence[str], environ: Mapping[str, str]) -> int:
    from psgrad.jobs import run
    from psgrad.launch import Launch, prepare

    command = ("python", "-m", "psgrad", "doctor", *argv, "--as-launched")
    system = environ.get("PSGRAD_MPI") == "system"
    launch = Launch(arguments.np, command, arguments.mpiexec, system)
    return run(prepare(launch, environ, terminal=sys.stderr.isatty()), environ)


def _parser() -> Parser:
    parser = Parser(
        prog="psgrad doctor",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--np", "-n", type=count, metavar="N", help="start N ranks on this machine")
    parser.add_argument("--mpiexec", metavar="PATH", help="the mpiexec to start them with")
    parser.add_argument(
        "--checkpoint-dir", default=".", metavar="DIR", help="where checkpoints will be (.)"
    )
    parser.add_argument(
        "--servers", type=count, metavar="S", help="server ranks (1; of a het job, group 0)"
    )
    parser.add_argument("--placement", choices=PLACEMENTS, help="of them, as for psgrad train")
    parser.add_argument(
        "--size", type=size, default=0, metavar="BYTES",
        help="of the parameters, such as 64M: is there memory for them, and room on the disk",
    )  # fmt: skip
    parser.add_argument(
        "--gpu-share", action="store_true", help="several workers on one GPU are meant"
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=20.0, metavar="T", help="for the links, at most (20)"
    )
    parser.add_argument("--strict", action="store_true", help="a warning counts as a failure")
    parser.add_argument("--json", action="store_true", help="the findings on the last line")
    parser.add_argument("--as-launched", action="store_true", help=argparse.SUPPRESS)
    return parser


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds, 0 at least, got {text!r}")
    return value


def _show(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
