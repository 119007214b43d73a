"""``psgrad run``: from its arguments to a job that is supervised."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from psgrad.arguments import Parser
from psgrad.checkpointing import AUTO
from psgrad.errors import ConfigError, LaunchError

if TYPE_CHECKING:
    import argparse

    from psgrad.config import Config
    from psgrad.launch import Plan

RANKS: Final = 4


def run(
    argv: Sequence[str],
    rest: Sequence[str],
    environ: Mapping[str, str],
    configure: Callable[[Sequence[str]], Config],
) -> int:
    """``psgrad run argv -- rest``; ``configure`` makes the configuration of a training command."""
    from psgrad import launch, relaunch

    arguments = _parser().parse_args(argv)
    training = train_arguments(rest)
    if arguments.elastic and training is not None and "--fault-tolerant" not in training:
        training.append("--fault-tolerant")
    config = None
    if training is None:
        command = ["python", *rest] if rest[0].endswith(".py") else list(rest)
    else:
        command = ["python", "-m", "psgrad", "train", *training]
        config = _checked(configure(training), 0 if arguments.launcher else arguments.np or RANKS)

    if arguments.dry_run:
        print(launch.describe(_prepare(arguments, command, environ)))
        return 0
    if config is None:
        return relaunch.supervise(
            relaunch.Job(_prepare(arguments, command, environ)), environ, arguments.restarts
        )
    from psgrad import runfolder

    if (done := runfolder.finished(config)) is not None:
        runfolder.say_finished(config, done)
        return 0
    if arguments.restarts:
        _check_restarts(config)
    made = None if config.run_dir else runfolder.make(config, time.strftime("%Y%m%d-%H%M%S"))
    folder = Path(config.run_dir) if made is None else made
    try:
        own = () if made is None else ("--run-dir", str(folder))
        first = _prepare(arguments, [*command, *own], environ)
        first = replace(first, stoppable=bool(config.checkpoint_every))
        # A setting goes before what the user gives, in whatever way.
        resumed = replace(first, argv=(*first.argv, "--set", f"resume={AUTO}"))
        checkpoints = Path(config.checkpoint_dir or runfolder.checkpoints(folder))
        job = relaunch.Job(first, resumed, checkpoints, folder / runfolder.SUMMARY)
        return relaunch.supervise(job, environ, arguments.restarts)
    finally:
        if made is not None:  # a job that was refused has left nothing in it
            with suppress(OSError):
                made.rmdir()
                made.parent.rmdir()


def _prepare(
    arguments: argparse.Namespace, command: Sequence[str], environ: Mapping[str, str]
) -> Plan:
    """How ``command`` is started: on this machine, or by the launcher that was named."""
    from psgrad import launch, launcher

    words, terminal = arguments.launcher, sys.stderr.isatty()
    if words is None:
        ranks, system = arguments.np or RANKS, environ.get("PSGRAD_MPI") == "system"
        asked = launch.Launch(ranks, tuple(command), arguments.mpiexec, system, arguments.elastic)
        return launch.prepare(asked, environ, terminal=terminal)
    if arguments.np or arguments.mpiexec:
        wrong = "--np" if arguments.np else "--mpiexec"
        raise LaunchError(
            f"{wrong} is for ranks on this machine; --launcher says it in its own words, such as "
            "--launcher 'mpirun -n 8'"
        )
    return launcher.prepare(words, command, environ, elastic=arguments.elastic, terminal=terminal)


def train_arguments(rest: Sequence[str]) -> list[str] | None:
    """The arguments of ``psgrad train`` where ``rest`` stands for it; None: it is a program."""
    first = rest[0] if rest else "train"
    if first == "train":
        return list(rest[1:])
    if first.startswith("-") or first.endswith(".toml"):
        return list(rest)
    return None


def _checked(config: Config, ranks: int) -> Config:
    """Every rank would find the same mistake; here it costs no MPI job. 0 ranks: nobody knows."""
    from psgrad.roles import Roles

    if config.simulate:
        raise ConfigError("a simulated run has no MPI ranks; use psgrad train --simulate")
    if ranks:
        Roles(ranks, config.servers)
    return config


def _check_restarts(config: Config) -> None:
    """That there will be checkpoints, and that the newest one will be of this run."""
    if not config.checkpoint_every:
        raise ConfigError(
            "--restarts needs checkpoints to go on from; give --checkpoint-every 500 behind the -- "
            "as well"
        )
    from psgrad import checkpoint, runfolder

    own = config.checkpoint_dir or (config.run_dir and runfolder.checkpoints(Path(config.run_dir)))
    if own and config.resume != AUTO and checkpoint.found(Path(own)):
        raise ConfigError(
            f"--restarts goes on from the newest checkpoint in {own}, and those there now are of "
            f"a run before; go on from them with --resume auto, or choose another folder"
        )


def _parser() -> Parser:
    parser = Parser(
        prog="psgrad run",
        usage="psgrad run [--np N | --launcher WORDS] [--elastic] [--restarts N] [--dry-run] "
        "[-- COMMAND]",
        description="Start an MPI job on this machine, or on those of a batch job. COMMAND is a "
        "psgrad train command line (--model mlp ...; nothing: the default run) or a program "
        "(python my.py).",
        allow_abbrev=False,
    )
    parser.add_argument("--np", "-n", type=_ranks, metavar="N", help=f"ranks ({RANKS})")
    parser.add_argument(
        "--launcher", type=shlex.split, metavar="WORDS",
        help="what starts the ranks on the nodes of a batch job: 'srun --mpi=pmi2', mpirun",
    )  # fmt: skip
    parser.add_argument(
        "--restarts", type=_restarts, default=0, metavar="N",
        help="start a job that lost something again, from its newest checkpoint, N times (0)",
    )  # fmt: skip
    parser.add_argument(
        "--elastic", action="store_true", help="workers may die: training goes on without them"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the command, start nothing")
    parser.add_argument("--mpiexec", metavar="PATH", help="the mpiexec to use")
    return parser


def _ranks(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise LaunchError(f"--np must be a whole number of at least 1, got {text!r}")
    return int(text)


def _restarts(text: str) -> int:
    if not (text.isdecimal() and text.isascii()) or len(text) > 9:
        raise LaunchError(f"--restarts must be a whole number of at least 0, got {text!r}")
    return int(text)
