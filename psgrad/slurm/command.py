"""``psgrad slurm``: scripts for a site, and a look for mistakes in them."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from psgrad import launch
from psgrad.arguments import Parser, count
from psgrad.errors import ConfigError, LaunchError
from psgrad.slurm.check import check
from psgrad.slurm.finding import Site

MPIS: Final = ("openmpi", "mpich", "intel")


def slurm(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Runs ``psgrad slurm argv``; the exit status is 1 where ``check`` has found something."""
    parser = Parser(
        prog="psgrad slurm",
        description="Batch scripts: write one for your cluster, or look for mistakes in one.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    _check_options(commands.add_parser("check", help="what will go wrong in a script"))
    _init_options(commands.add_parser("init", help="a script for a cluster, each line explained"))
    given = parser.parse_args(argv)
    if given.command == "check":
        return _check(given, environ)
    return _init(given)


def _check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument(
        "--mpi", choices=MPIS, help="the MPI of the ranks (that of this Python environment)"
    )


def _check(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    mistakes = 0
    site = Site(given.mpi or _own_mpi(environ))
    for file in given.files:
        try:
            # Line ends are looked at, too.
            text = file.read_bytes().decode(errors="replace")
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from error
        found = check(text, site)
        for finding in found:
            print(f"{file}:{finding}")
        mistakes += len(found)
    if not mistakes:
        print(f"no mistakes found (MPI: {site.mpi})")
    return 1 if mistakes else 0


def _own_mpi(environ: Mapping[str, str]) -> launch.Vendor:
    system = environ.get("PSGRAD_MPI") == "system"
    try:
        mpiexec = launch.find_mpiexec(launch.Launch(1, ("-",), system_mpi=system), environ)
        return launch.identify(mpiexec, environ)
    except LaunchError:
        return "unknown"


def _init_options(parser: argparse.ArgumentParser) -> None:
    from psgrad.slurm.words import seconds

    def limit(text: str) -> str:
        if not seconds(text):
            raise argparse.ArgumentTypeError(
                f"expected minutes, or a time such as 04:00:00 or 2-00:00:00, got {text!r}"
            )
        return text

    parser.add_argument("--nodes", type=count, default=2, metavar="N", help="(2)")
    parser.add_argument(
        "--tasks-per-node", type=count, default=4, metavar="N", help="ranks on each node (4)"
    )
    parser.add_argument("--servers", type=count, metavar="N", help="server ranks (one a node)")
    parser.add_argument("--cpus-per-task", type=count, default=1, metavar="N", help="cores (1)")
    parser.add_argument("--gpus", type=count, metavar="N", help="GPUs on each node (none)")
    parser.add_argument("--mem", metavar="SIZE", help="memory of each node, such as 64G")
    parser.add_argument("--time", type=limit, default="04:00:00", help="limit (04:00:00)")
    parser.add_argument("--partition", metavar="NAME")
    parser.add_argument("--account", metavar="NAME")
    parser.add_argument("--qos", metavar="NAME")
    parser.add_argument("--module", action="append", default=[], metavar="NAME", help="to load")
    parser.add_argument("--venv", metavar="FOLDER", help="the Python environment to activate")
    parser.add_argument(
        "--launcher", choices=("mpirun", "srun"), default="mpirun", help="for several nodes"
    )
    parser.add_argument("--mpi", default="pmi2", help="of srun: pmi2 for MPICH, pmix (pmi2)")
    parser.add_argument(
        "--requeue", action="store_true", help="stop behind a checkpoint and go on later"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it there (print it)")


def _init(given: argparse.Namespace) -> int:
    from psgrad.slurm.init import Wanted, script

    wanted = Wanted(
        **{k: v for k, v in vars(given).items() if k not in ("command", "output", "module")},
        modules=tuple(given.module),
    )
    text = script(wanted)
    if given.output is None:
        sys.stdout.write(text)
        return 0
    try:
        with given.output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"cannot write {given.output}: {error.strerror}") from error
    print(f"{given.output}: start it with sbatch {shlex.quote(str(given.output))} --model mlp ...")
    return 0
