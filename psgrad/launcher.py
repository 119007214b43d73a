"""``psgrad run --launcher``: a job on several nodes, started by the launcher of the cluster.

:mod:`psgrad.launch` forks ranks on this machine and keeps a batch system out of it. Here the words
of the user start them, ``srun --mpi=pmi2`` or ``mpirun``, inside of an allocation that says where.
What comes of the job is supervised alike: its cause comes last, ``--restarts`` start it again.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from psgrad import launch
from psgrad.errors import LaunchError
from psgrad.launch import ELASTIC, SETTINGS, Plan

MPIEXEC: Final = ("mpirun", "mpiexec")  # by these names, the one that fits this Python's mpi4py
# What survives the death of a rank of Open MPI.
SURVIVES: Final = ("OMPI_MCA_pml", "OMPI_MCA_btl", "OMPI_MCA_osc")


def prepare(
    words: Sequence[str],
    command: Sequence[str],
    environ: Mapping[str, str],
    *,
    elastic: bool = False,
    terminal: bool = False,
) -> Plan:
    """How ``words`` start ``command``; ``python`` in it is the interpreter that runs now.

    Raises ``LaunchError`` where there is no such launcher, and where ranks are to survive
    (``elastic``) but cannot with it.
    """
    if not words:
        raise LaunchError("--launcher is empty; name one, such as 'srun --mpi=pmi2' or mpirun")
    if command[0] in ("python", "python3"):
        command = (sys.executable, *command[1:])
    program = _find(words[0], environ)
    vendor = launch.identify(program, environ)
    flags = list(words[1:])
    env: dict[str, str] = {}
    if vendor == "openmpi" and os.geteuid() == 0:
        flags = ["--allow-run-as-root", *flags]
    if elastic:
        if vendor != "openmpi":
            raise LaunchError(
                f"--elastic needs the mpirun of Open MPI 5, got --launcher {words[0]}; where one "
                "rank's death ends the job, use --restarts instead"
            )
        flags = [*ELASTIC, *flags]
        env = {key: SETTINGS[vendor][key] for key in SURVIVES if not environ.get(key)}
    if terminal:
        env["PSGRAD_TERMINAL"] = "1"
    env.update(launch.library(program, vendor, environ))
    return Plan((str(program), *flags, *command), env, (), vendor, elastic, scattered=True)


def _find(program: str, environ: Mapping[str, str]) -> Path:
    if program in MPIEXEC:
        system = environ.get("PSGRAD_MPI") == "system"
        return launch.find_mpiexec(launch.Launch(1, ("-",), system_mpi=system), environ)
    found = shutil.which(program, path=environ.get("PATH", os.defpath))
    if found is None:
        raise LaunchError(
            f"--launcher: no program {program!r} on PATH; run this where the cluster's are, "
            "in a batch script or on a login node"
        )
    return Path(found).absolute()
