"""The ways to move gradients that are compared, and how each is started on the hosts.

Host 0 is the server's and hosts 1 to W are the workers', whoever brings their gradients together.
With as many servers as workers a host has one of each, and host 0 has nothing to do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from network.lan import ENTER, INTERFACE, NETWORK, Lan, LanError
from network.task import Task

HERE: Final = Path(__file__).parent
PORT: Final = 29_500  # where gloo's ranks meet
THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Way:
    """``servers`` 0 is DDP; as many as there are workers, one on each worker's host.

    ``overlap``: a layer's gradient leaves while the others are computed, and a forward pass waits
    for one layer after the other, as DDP always does the first half of it.
    """

    name: str
    servers: int = 1
    codec: str = "none"
    pull_codec: str = "none"
    chunk_bytes: int = 0
    overlap: bool = False

    @property
    def ddp(self) -> bool:
        """Whether PyTorch does it."""
        return self.servers == 0

    def options(self) -> dict[str, Any]:
        """For ``psgrad.run``."""
        return {
            "servers": self.servers,
            "codec": self.codec,
            "pull_codec": self.pull_codec,
            "chunk_bytes": self.chunk_bytes,
        }

    def places(self, workers: int) -> list[int]:
        """The host of each rank, servers first."""
        others = list(range(1, workers + 1))
        if self.servers <= 1:
            return [0] * self.servers + others
        if self.servers != workers:
            raise LanError(
                f"{self.name}: servers must be 1 or as many as workers, {workers}, got "
                f"{self.servers}"
            )
        return others + others

    def ranks(self, workers: int) -> list[str]:
        """What each rank is, servers first."""
        return [f"server {i}" for i in range(self.servers)] + [
            f"worker {i}" for i in range(workers)
        ]


# The last chunk goes through both directions alone, which is time lost, so where the wire counts
# chunks are small; each payload of a codec costs time whatever its size, so where that counts they
# are large.
SPARSE: Final = "topk:0.01+int8"
DDP: Final = "DDP, gloo"
WAYS: Final = (
    Way(DDP, servers=0),
    Way("dense", chunk_bytes=128 << 10),
    Way("dense, 3 servers", servers=3, chunk_bytes=128 << 10),
    Way("int8 both ways", codec="int8", pull_codec="int8", chunk_bytes=512 << 10),
    Way("topk push, int8 pull", codec=SPARSE, pull_codec="int8", chunk_bytes=1 << 20),
    Way("topk both ways", codec=SPARSE, pull_codec=SPARSE, chunk_bytes=4 << 20),
)
QUICK: Final = (WAYS[0], WAYS[1], WAYS[5])


@dataclass(frozen=True)
class Tools:
    """The programs that a run needs; ``torch`` is a Python with torch and NumPy, if any."""

    mpiexec: Path
    torch: Path | None = None
    python: Path = Path(sys.executable)
    mca: tuple[tuple[str, str], ...] = ()  # settings of Open MPI

    def __post_init__(self) -> None:
        if " " in str(self.mpiexec):
            raise LanError(
                f"Open MPI starts other hosts from a path without spaces only, this one is at "
                f"{self.mpiexec}; make the environment in another folder"
            )

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """For every rank, whoever starts it."""
        settings = {"pml": "ob1", "btl": "self,sm,tcp", "btl_tcp_if_include": NETWORK,
                    "osc": "^ucx", **dict(self.mca)}  # fmt: skip
        return {
            **environ,
            **dict.fromkeys(THREADS, "1"),
            **{f"OMPI_MCA_{name}": value for name, value in settings.items()},
            "GLOO_SOCKET_IFNAME": INTERFACE,
        }


def place(way: Way, lan: Lan, task: Task) -> dict[str, Any]:
    """What the ranks of a job have to know, as they read it from a file."""
    return {
        "task": json.loads(task.to_json()),
        "options": way.options(),
        "overlap": way.overlap,
        "ranks": way.ranks(task.workers),
        "switch": lan.switch,
        "hosts": lan.names,
        "meeting": f"tcp://{lan.address(1)}:{PORT}",
    }


def commands(way: Way, lan: Lan, task: Task, tools: Tools, file: Path) -> list[list[str]]:
    """What starts the ranks of a job, whose ``place`` is in ``file``, and ``ENTER`` beside it.

    Open MPI takes a space in the path of its agent for the end of it.
    """
    if way.ddp:
        if tools.torch is None:
            raise LanError(f"{way.name} needs a Python with torch and NumPy; give --torch-python")
        script = [str(tools.torch), str(HERE / "train_ddp.py"), str(file)]
        hosts = way.places(task.workers)
        return [lan.on_host(host, [*script, str(rank)]) for rank, host in enumerate(hosts)]
    hosts = way.places(task.workers)
    slots = ",".join(f"{lan.host(host)}:{hosts.count(host)}" for host in dict.fromkeys(hosts))
    launcher: Sequence[str] = [
        str(tools.mpiexec), "--allow-run-as-root", "--bind-to", "none", "--map-by", "node",
        "--prtemca", "plm", "ssh", "--prtemca", "plm_ssh_agent", str(file.with_name(ENTER.name)),
        "--prtemca", "prte_if_include", NETWORK, "--host", slots, "-n", str(len(hosts)),
    ]  # fmt: skip
    return [lan.at_switch([*launcher, str(tools.python), str(HERE / "train_psgrad.py"), str(file)])]
