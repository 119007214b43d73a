"""``psgrad slurm init``: one script for a cluster, each line with what it is for."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from psgrad.errors import ConfigError
from psgrad.slurm.words import seconds

WORD: Final = re.compile(r"[\w.@%+:,/=-]+")
LEAD_S: Final = 300  # of the signal before the end of the job
COLUMN: Final = 40


@dataclass(frozen=True)
class Wanted:
    """What the script asks for; ``servers`` None: one on each node."""

    nodes: int = 2
    tasks_per_node: int = 4
    servers: int | None = None
    cpus_per_task: int = 1
    gpus: int | None = None
    mem: str | None = None
    time: str = "04:00:00"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    modules: tuple[str, ...] = ()
    venv: str | None = None
    launcher: str = "mpirun"
    mpi: str = "pmi2"
    requeue: bool = False

    def __post_init__(self) -> None:
        named = ("mem", "partition", "account", "qos", "mpi")
        for name, value in [(n, getattr(self, n)) for n in named] + [
            ("module", m) for m in self.modules
        ]:
            if value is not None and not WORD.fullmatch(value):
                raise ConfigError(f"--{name} must be one word of Slurm's, got {value!r}")
        ranks, servers = self.nodes * self.tasks_per_node, self.servers or self.nodes
        if servers >= ranks:
            raise ConfigError(
                f"{servers} servers leave no worker among {ranks} ranks; raise --tasks-per-node, "
                "or lower --servers"
            )
        if self.requeue and (seconds(self.time) or 0) <= 2 * LEAD_S:
            raise ConfigError(
                f"--requeue needs more than {2 * LEAD_S // 60} minutes, got --time {self.time}: "
                f"the job stops {LEAD_S} s before its end"
            )


def script(wanted: Wanted) -> str:
    """The text of the script; it passes ``psgrad slurm check``."""
    parts = [HEAD, _options(wanted), SET, *_software(wanted), _start(wanted)]
    return "\n".join(parts)


HEAD: Final = """\
#!/bin/bash
# Trains with psgrad; what follows the name of this script goes to psgrad train:
#
#     sbatch SCRIPT --model mlp --dataset digits --mode ssp
#
# After a change, psgrad slurm check SCRIPT says what will go wrong.
"""

SET: Final = """\
# A command that fails ends the job, instead of the next one running without it.
set -eo pipefail
"""

INHERITED: Final = """\
# psgrad is that of the environment from which sbatch was called.
"""

REQUEUE: Final = """\
job=$!

# The signal is passed on. It ends the wait, but not the job: that stops behind a checkpoint.
asked=no
trap 'asked=yes; kill -USR1 "$job" 2>/dev/null || true' USR1 TERM
status=0
wait "$job" || status=$?
while [ "$asked" = yes ]; do
    asked=no
    status=0
    wait "$job" || status=$?
done

# A site that sends no signal when it preempts a job ends the ranks with SIGTERM.
preempted() {
    scontrol show job "$SLURM_JOB_ID" | grep " PreemptTime=[0-9]" >/dev/null
}

# 75: all is safe, and there is more to do. Started again, the job goes on where it was.
if [ "$status" -eq 75 ] || { [ "$status" -ne 0 ] && preempted; }; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""

STARTS: Final = MappingProxyType(
    {
        "fork": (
            "# On one node psgrad starts the ranks itself, with the MPI of its environment.",
            'psgrad run --np "$SLURM_NTASKS"',
        ),
        "srun": (
            "# srun starts the ranks. --mpi is the language of psgrad's MPI; the cores of a rank\n"
            "# must be said again, since Slurm 22.05.",
            'psgrad run --launcher "srun --mpi={mpi} --cpus-per-task={cpus}"',
        ),
        "mpirun": (
            "# mpirun asks Slurm for the nodes and the number of ranks. Unbound, the ranks of a\n"
            "# node share the cores that the job has there.",
            'psgrad run --launcher "mpirun --bind-to none"',
        ),
    }
)
WATCHED: Final = (
    "# psgrad run watches over it: its last line says which rank has failed, where and why."
)


def _options(wanted: Wanted) -> str:
    lines = [
        ("job-name=psgrad", "what squeue shows"),
        ("output=%x-%j.out", "NAME-NUMBER.out, in the folder of sbatch"),
        (f"nodes={wanted.nodes}", "machines"),
        (f"ntasks-per-node={wanted.tasks_per_node}", "ranks on each; --servers are servers"),
        (f"cpus-per-task={wanted.cpus_per_task}", "cores for each rank"),
        (f"time={wanted.time}", "the job is killed after that"),
    ]
    more = (
        ("gpus-per-node", wanted.gpus, "of the workers of a node; servers take none"),
        ("mem", wanted.mem, "of each node"),
        ("partition", wanted.partition, "sinfo lists them"),
        ("account", wanted.account, "whom the time is charged to"),
        ("qos", wanted.qos, "limits and priority"),
    )
    lines += [(f"{name}={value}", text) for name, value, text in more if value]
    if wanted.requeue:
        lines += [
            ("requeue", "the job may go back into the queue"),
            ("open-mode=append", "and its output then goes on"),
            (f"signal=B:USR1@{LEAD_S}", f"to this script, {LEAD_S} s before the end"),
        ]
    written = (f"#SBATCH --{option}".ljust(COLUMN) + f" # {text}" for option, text in lines)
    return "\n".join([*written, ""])


def _software(wanted: Wanted) -> list[str]:
    found = []
    if wanted.modules:
        names = shlex.join(wanted.modules)
        found += [
            "# The cluster's own software. Without the purge, what was loaded at sbatch stays.",
            f"module purge\nmodule load {names}\n",
        ]
    if wanted.venv:
        activate = shlex.quote(wanted.venv.rstrip("/") + "/bin/activate")
        found += [
            "# The Python environment that has psgrad; all nodes must see it under this path.",
            f"source {activate}\n",
        ]
    return found or [INHERITED]


def _start(wanted: Wanted) -> str:
    comment, start = STARTS["fork" if wanted.nodes == 1 else wanted.launcher]
    start = start.format(mpi=wanted.mpi, cpus=wanted.cpus_per_task)
    train = [f"--servers {wanted.servers or wanted.nodes}", '--run-dir "runs/$SLURM_JOB_ID"']
    if wanted.requeue:
        train += ["--checkpoint-every 600s", "--resume auto"]
    end = ' "$@" &\n' + REQUEUE if wanted.requeue else ' "$@"\n'
    return f"{comment}\n{WATCHED}\n{start} -- \\\n    {' '.join(train)}{end}"
