"""The command line: arguments -> configuration -> train or run.

Nothing heavy is imported before it is needed: ``psgrad --help`` starts neither NumPy nor MPI.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from psgrad.arguments import Parser, is_rank, output
from psgrad.commands import BLAS_THREADS, COMMANDS, about, replay
from psgrad.errors import CAUSE, ConfigError, PsgradError
from psgrad.placement import FIRST, Seat, het_servers, threads
from psgrad.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from psgrad.config import Config
    from psgrad.transport import Transport

DESCRIPTION: Final = """\
A parameter server for training over MPI.

  psgrad run --np 4 -- --model mlp --dataset digits --mode ssp    train here, on 4 ranks
  psgrad run --np 4 -- python my.py                               your own script, on 4 ranks
  psgrad run --restarts 3 -- --checkpoint-every 500               from the newest checkpoint on
  mpirun -n 4 psgrad train config.toml                            what each rank runs on a cluster
"""

# Option -> (key of the configuration, help). The value is TOML, or else a string.
OPTIONS: Final[Mapping[str, tuple[str, str]]] = {
    "--model": ("model.name", "mlp, softmax or transformer"),
    "--dataset": ("dataset.name", "digits, or a .npz, .csv, .libsvm, .txt or IDX file"),
    "--mode": ("mode", "sync, ssp (bounded staleness; the default) or async"),
    "--staleness": ("staleness", "bound of ssp: steps a worker may be ahead of the slowest (3)"),
    "--servers": ("servers", "server ranks (1; in a heterogeneous job of Slurm, its group 0)"),
    "--placement": ("placement", "server ranks: spread over the nodes (the default), or first"),
    "--spares": ("spares", "ranks that take the places of workers that are lost (0)"),
    "--optimizer": (
        "optimizer.name",
        "sgd, momentum, nesterov, adam, adamw, adagrad, rmsprop or ftrl",
    ),
    "--learning-rate": ("optimizer.learning_rate", "base learning rate"),
    "--schedule": ("schedule.name", "constant, warmup, step or cosine"),
    "--batch-size": ("batch_size", "samples in a (micro-)batch of one worker (32)"),
    "--accumulate": ("accumulate", "micro-batches in one step (1)"),
    "--local-steps": ("local_steps", "steps that a worker takes by itself between two pushes (1)"),
    "--elastic": ("elastic", "elastic averaging, such as 0.3 (0: off)"),
    "--clip-norm": ("clip_norm", "clip each worker's gradient to this L2 norm"),
    "--epochs": ("epochs", "passes over the training data (20)"),
    "--codec": ("codec", "how gradients travel: topk:0.01, int8, ... (none)"),
    "--pull-codec": ("pull_codec", "how parameters travel, such as int8 or topk:0.02 (none)"),
    "--feedback": (
        "feedback",
        "what becomes of what a codec does not send: auto, none, ef, ef21, dgc",
    ),
    "--aggregate": (
        "aggregate",
        "what of a round of sync is applied: mean, median, trimmed-mean:1 or krum:1 (mean)",
    ),
    "--zstd": ("zstd", "compress payloads once more: auto (where it saves time), on, off"),
    "--partition": ("dataset.partition", "samples to workers: iid, by-label or contiguous"),
    "--seed": ("seed", "of parameters, data split and batches (1)"),
    "--device": ("device", "auto, cpu or gpu"),
    "--precision": ("precision", "of gradients' products: float32, tf32, bfloat16 or float16"),
    "--loss-scale": (
        "loss_scale",
        "auto, none, dynamic:first=65536,every=2000 or fixed:scale=1024",
    ),
    "--chunk-bytes": ("chunk_bytes", "bytes of a chunk (0: the default grid)"),
    "--overlap": ("overlap", "hide communication behind computation: on, off (off)"),
    "--shared-memory": ("shared_memory", "within a node: auto (where it can be), on, off"),
    "--replicas": ("replicas", "copies of each server, on another one: 0 or 1 (0)"),
    "--checkpoint-every": ("checkpoint_every", "steps (500) or seconds (600s) between checkpoints"),
    "--checkpoint-dir": ("checkpoint_dir", "where they are (RUN_DIR/checkpoints)"),
    "--keep": ("checkpoint_keep", "how many of them stay (2)"),
    "--resume": ("resume", "go on from a checkpoint: auto (the newest, if any), or a folder"),
    "--walltime-margin": (
        "walltime_margin",
        "stop behind a checkpoint, status 75, so many seconds before Slurm ends the job (0: never)",
    ),
    "--run-dir": ("run_dir", "run folder (runs/DATE-MODEL-DATASET-MODE)"),
    "--simulate": ("simulate", "all ranks in this process, without MPI: workers=16,servers=2,..."),
    "--pace": ("pace", "how long a simulated step computes (constant:seconds=0.01)"),
    "--log-level": ("log_level", "on the screen: error, warning, info or debug (info)"),
    "--progress": ("progress", "auto, line, plain or off"),
}
# Never TOML: a file may be called 7.
STRINGS: Final = frozenset(
    {"--model", "--dataset", "--run-dir", "--codec", "--pull-codec", "--feedback", "--zstd"}
    | {"--aggregate", "--simulate", "--pace", "--checkpoint-every", "--checkpoint-dir", "--resume"}
    | {"--loss-scale"}
)

# How Open MPI and MPICH (and Intel MPI) tell a rank how many ranks its machine has.
LOCAL_RANKS: Final = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``psgrad``; returns the exit status."""
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except PsgradError as error:
        if error.spokesman is not False:
            sys.stdout.flush()
            sys.stderr.write(f"{CAUSE}{error}\n")
        return error.exit_status


def _main(argv: list[str]) -> int:
    at = argv.index("--") if "--" in argv else len(argv)
    if argv[:1] == ["run"]:
        from psgrad import run_command

        return run_command.run(argv[1:at], argv[at + 1 :], os.environ, _configuration)
    parser = Parser(
        prog="psgrad",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"psgrad {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    commands.add_parser("train", help="train; every rank of an MPI job runs this", add_help=False)
    commands.add_parser("replay", help="repeat a recorded run, bit for bit", add_help=False)
    commands.add_parser("run", help="start an MPI job on this machine", add_help=False)
    for name, (text, _) in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    arguments, rest = parser.parse_known_args(argv[:1])
    if arguments.command is None and argv:
        parser.error(f"the first argument is a command, train or run, got {argv[0]!r}")
    if arguments.command is None:
        parser.print_help()
        return 0
    if arguments.command == "replay":
        return replay(argv[1:])
    if arguments.command in COMMANDS:
        os.environ.update(dict.fromkeys(BLAS_THREADS, "1"))
        return COMMANDS[arguments.command][1](argv[1:])
    return _train([*rest, *argv[1:]])


def _train(argv: Sequence[str]) -> int:
    if {"-h", "--help"} & set(argv):
        _train_parser().parse_args(argv)  # prints and exits
    # Simulated ranks take turns: as many threads as a rank has that shares the machine.
    alone = any(a.partition("=")[0] == "--simulate" for a in argv)
    transport = None if alone or not is_rank(os.environ) else _transport()
    count = 1 if alone else _threads(transport)
    os.environ.update(blas_threads(os.environ, count))
    from psgrad.train import train

    stamp = time.strftime("%Y%m%d-%H%M%S")
    terminal = os.environ.get("PSGRAD_TERMINAL") == "1"

    config = None
    with contextlib.suppress(PsgradError):
        config = _configuration(argv)
    if config is not None and config.simulate:
        return _simulate(config, _train_parser().parse_args(argv).trace, stamp)
    # Wrong arguments, too, are for the ranks to agree on: one of them reports.
    ends_at = _ends_at(os.environ)
    train(
        lambda: _configuration(argv),
        stamp,
        terminal,
        about(),
        transport=transport,
        ends_at=ends_at,
    )
    return 0


def _ends_at(environ: Mapping[str, str]) -> float:
    """When Slurm ends this job, as unix time; 0 where it does not say."""
    said = environ.get("SLURM_JOB_END_TIME", "")
    return float(said) if said.isascii() and said.isdecimal() else 0.0


def _simulate(config: Config, trace: Path | None, stamp: str) -> int:
    """One process is all ranks, so nobody has to agree on anything."""
    from psgrad import simulate

    if _ranks_here(os.environ) > 1:
        raise ConfigError(
            "a simulated run has all its ranks in one process; start it without mpirun and without "
            "psgrad run"
        )
    simulate.train(simulate.configured(config), stamp, sys.stderr.isatty(), trace, about())
    return 0


def blas_threads(environ: Mapping[str, str], count: int) -> dict[str, str]:
    """Thread counts for NumPy's BLAS, to be set before NumPy loads; what the user set stays.

    Without them each rank starts a thread for each core, and ranks that share the cores of a
    machine run many times slower.
    """
    # OpenBLAS and MKL prefer their own variable, but a user may have set the common one.
    text = environ.get("OMP_NUM_THREADS") or str(count)
    return {name: text for name in BLAS_THREADS if name not in environ}


def _ranks_here(environ: Mapping[str, str]) -> int:
    """How many ranks this machine has, as the MPI launcher says; 1 without one."""
    counts = (environ.get(name, "") for name in LOCAL_RANKS)
    return next((int(count) for count in counts if count.isdigit() and int(count) > 0), 1)


def _transport() -> Transport:
    from psgrad.transport.mpi import MpiTransport

    return MpiTransport()


def _threads(transport: Transport | None) -> int:
    """How many threads this rank's cores are for, with what the ranks beside it may use of them.

    Collective, where there are other ranks.
    """
    cores = sorted(os.sched_getaffinity(0))
    if transport is None:
        return len(cores)
    blobs = transport.exchange(json.dumps([transport.host, cores]).encode())
    seats = [Seat(host, frozenset(its)) for host, its in map(json.loads, blobs)]
    return threads(seats)[transport.rank]


def _configuration(argv: Sequence[str]) -> Config:
    """The configuration of ``psgrad train argv``."""
    return _configure(_train_parser().parse_args(argv), os.environ)


def _configure(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Config:
    from pathlib import Path

    from psgrad import config
    from psgrad.train import configure

    sources = []
    if servers := het_servers(environ):
        inferred = {"servers": servers, "placement": FIRST}
        sources.append(config.Source("Slurm's het group 0", inferred))
    if arguments.config:
        sources.append(config.from_toml(Path(arguments.config)))
    sources.append(config.from_environment(environ))
    given: dict[str, Any] = {}
    for option, (key, _) in OPTIONS.items():
        text = getattr(arguments, _attribute(option))
        if text is not None:
            given[key] = text if option in STRINGS else config.parse_value(text)
    for flag in ("json", "record", "fault_tolerant", "rejoin", "gpu_share"):
        if getattr(arguments, flag):
            given[flag] = True
    if arguments.inject:
        given["inject"] = arguments.inject
    sources.append(config.Source("the command line", given))
    sources.append(config.from_settings(arguments.set))
    made = configure(sources)
    if arguments.trace and not made.simulate:
        raise ConfigError("--trace is of a simulated run; give --simulate workers=N as well")
    return made


def _train_parser() -> Parser:
    parser = Parser(
        prog="psgrad train",
        description="Train as one rank of an MPI job. Later sources win: defaults, CONFIG.toml, "
        "PSGRAD_* variables, options, --set.",
        allow_abbrev=False,
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG.toml", help="configuration file")
    for option, (_, text) in OPTIONS.items():
        metavar = option.lstrip("-").upper().replace("-", "_")
        parser.add_argument(option, metavar=metavar, help=text)
    parser.add_argument("--json", action="store_true", help="summary as JSON on the last line")
    parser.add_argument("--record", action="store_true", help="write down what psgrad replay needs")
    parser.add_argument(
        "--trace", type=output, metavar="JSON", help="of a simulated run, for Perfetto"
    )
    parser.add_argument(
        "--fault-tolerant", action="store_true", help="go on without workers that die"
    )
    parser.add_argument("--gpu-share", action="store_true", help="workers may share a GPU")
    parser.add_argument(
        "--rejoin", action="store_true", help="workers that were shut out may come back"
    )
    parser.add_argument(
        "--inject", action="append", metavar="FAULT", help="plant a fault: slow:rank=3,factor=5"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any key, as in TOML: --set 'model.hidden=[512,512]'",
    )
    return parser


def _attribute(option: str) -> str:
    return option.lstrip("-").replace("-", "_")
