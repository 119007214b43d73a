"""Who has started a rank, as its environment says, and whether that goes with its MPI library.

A library that its launcher does not know makes each rank a job of its own (``0 of 1``), or ends it
inside of MPI_Init. So this is looked at before MPI starts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

Launcher = Literal["openmpi", "hydra", "srun", ""]

LOCAL_RANKS: Final = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
LOCAL_SIZES: Final = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")

NAMES: Final[Mapping[str, str]] = {
    "openmpi": "Open MPI's mpiexec",
    "hydra": "the mpiexec of MPICH or Intel MPI",
    "srun": "srun",
}
# What tells a rank who it is, and how many there are: launcher, rank, how many.
TELLS: Final[tuple[tuple[Launcher, str, tuple[str, ...]], ...]] = (
    ("openmpi", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",)),
    ("srun", "SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")),
    ("hydra", "PMI_RANK", ("PMI_SIZE",)),
)


@dataclass(frozen=True)
class Launched:
    """By whom a rank was started; ``rank`` 0 and ``size`` 1 where nobody says."""

    launcher: Launcher = ""
    rank: int = 0
    size: int = 1
    version: str = ""  # of the launcher, where it tells
    pmix: bool = False  # how a library would find the other ranks
    pmi: bool = False
    allocation: int = 0  # tasks of the Slurm job around, where no srun has started this
    cpus_per_task: int = 0  # as Slurm was asked for; 0: it was not
    tolerant: bool = False  # Open MPI goes on when a rank dies
    local_rank: int = 0  # among the ranks of its node
    local_size: int = 1  # of them, as far as that is said

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Launched:
        """What ``environ`` says."""
        told: dict[str, Any] = {
            "pmix": "PMIX_RANK" in environ,
            "pmi": "PMI_RANK" in environ or "PMI_FD" in environ,
            "cpus_per_task": _whole(environ.get("SLURM_CPUS_PER_TASK")) or 0,
            "local_rank": _first(environ, LOCAL_RANKS, 0),
            "local_size": max(1, _first(environ, LOCAL_SIZES, 1)),
            "tolerant": environ.get("OMPI_MCA_mpi_ft_enable", "") not in ("", "0", "false"),
        }
        if "SLURM_JOB_ID" in environ and not _in_step(environ):
            told["allocation"] = _whole(environ.get("SLURM_NTASKS")) or 0
        for launcher, its_rank, its_sizes in TELLS:
            if launcher == "srun" and not (_in_step(environ) and _started_by_srun(environ)):
                continue
            rank = _whole(environ.get(its_rank))
            # Of a step over several components of a job, one of Slurm's numbers is of all.
            size = max(_whole(environ.get(name)) or 0 for name in its_sizes)
            if rank is not None and size:
                version = environ.get("OMPI_VERSION", "") if launcher == "openmpi" else ""
                return cls(launcher, rank, size, version, **told)
        return cls(**told)

    @property
    def name(self) -> str:
        """For a person."""
        return NAMES[self.launcher] if self.launcher else "no launcher"


def vendor(library: str) -> str:
    """Whose ``library`` is, the first line that MPI says of itself: openmpi, mpich, intel or ""."""
    for words, name in (("Open MPI", "openmpi"), ("Intel", "intel"), ("MPICH", "mpich")):
        if words.lower() in library.lower():
            return name
    return ""


def version(library: str) -> str:
    """The first version number in what MPI says of itself; empty if there is none."""
    found = re.search(r"\d+\.\d+[\w.]*", library)
    return found[0] if found else ""


def mismatch(launched: Launched, library: str) -> str:
    """Why ``library`` cannot find the ranks that ``launched`` tells of; empty if it may."""
    its = vendor(library)
    if launched.size < 2 or not its:
        return ""
    if launched.launcher == "openmpi" and its != "openmpi":
        return f"{launched.name} starts ranks that load {library}"
    if launched.launcher == "hydra" and its == "openmpi":
        return f"{launched.name} starts ranks that load {library}"
    if launched.launcher == "srun":
        modern = its == "openmpi" and int(version(library).partition(".")[0] or 0) >= 5
        if not (launched.pmix or launched.pmi):
            return "srun tells the ranks nothing of each other (--mpi=none)"
        if modern and not launched.pmix:
            return f"srun speaks PMI-2, {library} needs PMIx"
    return ""


def _first(environ: Mapping[str, str], names: Sequence[str], default: int) -> int:
    """The first of ``names`` that is a number."""
    found = (_whole(environ.get(name)) for name in names)
    return next((number for number in found if number is not None), default)


def _in_step(environ: Mapping[str, str]) -> bool:
    """Whether an srun has started this process, or what has started it."""
    return (_whole(environ.get("SLURM_STEP_ID")) or 0) < 1 << 31 and "SLURM_STEP_ID" in environ


def _started_by_srun(environ: Mapping[str, str]) -> bool:
    """Whether that was no Hydra, which may start its ranks through srun."""
    return not any(name.startswith(("HYDI_", "MPI_LOCALNRANKS")) for name in environ)


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdecimal() else None
