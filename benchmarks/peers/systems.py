"""The systems that are compared, and how each one is started. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from peers.case import Case

OPENMPI: Final = "openmpi"
MPICH: Final = "mpich"
PSGRAD: Final = "psgrad"
# MPICH's ranks spin while they wait: with more of them than cores, each step costs time slices.
SPINNING_STEPS: Final = 5


@dataclass(frozen=True)
class System:
    """One bar of the picture.

    ``servers``: ranks beside the workers, where ``psgrad run`` starts the ranks by ``mpiexec``;
    None for a program that starts its own processes. ``package``: what must have been installed in
    ``environment``.
    """

    name: str
    label: str
    module: str
    environment: str = OPENMPI
    package: str = PSGRAD
    servers: int | None = None
    options: tuple[str, ...] = ()

    @property
    def required(self) -> bool:
        """Whether a comparison without it says nothing: psgrad itself, and the copy."""
        return self.module in ("psgrad_step", "memcpy")


MEMCPY: Final = System("memcpy", "a copy by one core", "memcpy")
IN_PLACE: Final = System("psgrad", "psgrad, in place", "psgrad_step", servers=1)


def _allreduce(vendor: str, label: str) -> tuple[System, System]:
    return (
        System(
            f"{vendor}-allreduce",
            f"MPI_Allreduce + SGD, {label}",
            "mpi_allreduce",
            environment=vendor,
            servers=0,
        ),
        System(
            f"{vendor}-allreduce-blocks",
            f"MPI_Allreduce + SGD in blocks, {label}",
            "mpi_allreduce",
            environment=vendor,
            servers=0,
            options=("--update=blocks",),
        ),
    )


SYSTEMS: Final = (
    IN_PLACE,
    System(
        "psgrad-copied",
        "psgrad, copied in and out",
        "psgrad_step",
        servers=1,
        options=("--way=copied",),
    ),
    System(
        "psgrad-messages",
        "psgrad, by message",
        "psgrad_step",
        servers=1,
        options=("--shared-memory=off",),
    ),
    *_allreduce(OPENMPI, "Open MPI"),
    *_allreduce(MPICH, "MPICH"),
    System("mpi4py-server", "server in 30 lines of mpi4py", "mpi_server", servers=1),
    System("torch-ddp", "PyTorch DDP, gloo", "torch_ddp", package="torch"),
    System("torch-rpc", "PyTorch RPC server", "torch_rpc", package="torch"),
    System("ray", "Ray actors", "ray_actors", package="ray"),
)
BY_NAME: Final[Mapping[str, System]] = MappingProxyType({s.name: s for s in (*SYSTEMS, MEMCPY)})

# One thread for arithmetic in each process, as many processes as workers and servers; gloo,
# TensorPipe and Ray add threads of their own for their input and output. All of them on loopback.
ENVIRONMENT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "TP_SOCKET_IFNAME": "lo",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
)
THREADS: Final = "1 thread for arithmetic in each process, by OMP_NUM_THREADS=1"


def command(system: System, python: Path, case: Case) -> tuple[str, ...]:
    """What starts a run of ``system``, by the ``python`` of its environment."""
    told = (f"--system={system.name}", *case.arguments(), *system.options)
    program = ("-m", f"peers.{system.module}", *told)
    if system.servers is None:
        return (str(python), *program)
    ranks = case.workers + system.servers
    return (str(python), "-m", "psgrad", "run", "--np", str(ranks), "--", "python", *program)


def steps_of(system: System, workers: int, cores: int, steps: int) -> int:
    """How many steps are timed in a run of ``system``: fewer where its ranks spin in the way."""
    ranks = workers + (system.servers or 0)
    if system.environment == MPICH and ranks > cores:
        return min(steps, SPINNING_STEPS)
    return steps
