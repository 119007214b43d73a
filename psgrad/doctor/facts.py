"""What a rank sees of itself, its node and its MPI."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import resource
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np

from psgrad import kernels, leftovers
from psgrad.doctor.launched import Launched
from psgrad.errors import ConfigError
from psgrad.version import __version__

UNLIMITED: Final = -1
MAPS: Final = Path("/proc/self/maps")
MEMINFO: Final = Path("/proc/meminfo")
INFINIBAND: Final = Path("/sys/class/infiniband")
NVIDIA: Final = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Facts:
    """Of one rank. Sizes are bytes; -1 is a limit that there is not, or what nobody knows."""

    rank: int = 0
    size: int = 1
    host: str = ""
    launched: Launched = field(default_factory=Launched)
    versions: Mapping[str, str] = field(default_factory=dict)
    mpi: str = ""  # what the library says of itself, its first line; empty: there is none
    standard: str = ""  # of MPI, and of its ABI where the library has that
    library: str = ""  # the file
    thread_level: str = ""
    problem: str = ""  # why MPI was not started
    cores: tuple[int, ...] = ()
    machine_cores: int = 0
    gpus: tuple[str, ...] = ()  # PCI ids
    gpu_problem: str = ""
    gpu_cards: int = 0  # that the driver of the node knows
    memlock: int = UNLIMITED
    infiniband: bool = False
    shm_total: int = UNLIMITED
    shm_free: int = UNLIMITED
    shm_left: int = 0  # held in /dev/shm by files that jobs before have left
    memory: int = UNLIMITED  # that programs may still have
    folder: str = ""  # where it tried to write for checkpoints
    folder_problem: str = ""
    folder_free: int = UNLIMITED
    folder_shared: bool = True  # whether it sees there what rank 0 has written

    def to_json(self) -> bytes:
        """For rank 0."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, blob: bytes) -> Facts:
        """The facts of a rank, which may have another version of psgrad: what it does not say, or
        says in other words, is left at the default."""
        found: dict[str, Any] = json.loads(blob)
        launched = found.pop("launched", None)
        known = _known(cls, found)
        if isinstance(launched, dict):
            known["launched"] = Launched(**_known(Launched, launched))
        return cls(**known)


def _known(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Of ``values``, those that are fields of ``kind`` and like their defaults."""
    made = kind()
    known: dict[str, Any] = {}
    for entry in dataclasses.fields(made):
        default, value = getattr(made, entry.name), values.get(entry.name)
        if isinstance(default, tuple) and isinstance(value, list):
            known[entry.name] = tuple(value)
        elif type(value) is type(default):
            known[entry.name] = value
    return known


def look(environ: Mapping[str, str], folder: Path) -> Facts:
    """All that can be seen without MPI. ``folder`` is where checkpoints would be written."""
    return Facts(
        host=platform.node(),
        launched=Launched.of(environ),
        versions=_versions(),
        cores=tuple(sorted(os.sched_getaffinity(0))),
        machine_cores=os.cpu_count() or 1,
        **_gpus(),
        memlock=_memlock(),
        infiniband=_holds_something(INFINIBAND),
        **_shared_memory(leftovers.SHARED_MEMORY),
        memory=_memory(),
        **_folder(folder),
    )


def _versions() -> dict[str, str]:
    return {
        "psgrad": __version__,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "mpi4py": _installed("mpi4py"),
    }


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _gpus() -> dict[str, Any]:
    cards = 0
    with suppress(OSError):
        cards = len(list(NVIDIA.iterdir()))
    try:
        return {"gpus": kernels.gpus(), "gpu_cards": cards}
    except ConfigError as error:
        return {"gpu_problem": str(error), "gpu_cards": cards}


def _memlock() -> int:
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


def _holds_something(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:
        return False


def _shared_memory(folder: Path) -> dict[str, Any]:
    with suppress(OSError):
        about = os.statvfs(folder)
        left = 0
        for segment in leftovers.orphans(leftovers.segments(folder)):
            with suppress(OSError):
                left += segment.path.stat().st_blocks * 512
        total, free = about.f_blocks * about.f_frsize, about.f_bavail * about.f_frsize
        return {"shm_total": total, "shm_free": free, "shm_left": left}
    return {}


def _memory() -> int:
    with suppress(OSError):
        for line in MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return UNLIMITED


def _folder(folder: Path) -> dict[str, Any]:
    """Writes, syncs and removes a file in ``folder``, or in what there is of its path."""
    place = folder.absolute()
    while place != place.parent and not os.path.lexists(place):
        place = place.parent
    found: dict[str, Any] = {"folder": str(place)}
    file = place / f".psgrad-doctor-{platform.node()}-{os.getpid()}"
    try:
        try:
            with file.open("xb") as out:
                out.write(b"psgrad doctor\n")
                out.flush()
                os.fsync(out.fileno())
        finally:
            file.unlink(missing_ok=True)
        about = os.statvfs(place)
        found["folder_free"] = about.f_bavail * about.f_frsize
    except OSError as error:
        found["folder_problem"] = error.strerror or str(error)
    return found


def with_mpi(facts: Facts, mpi: Any) -> Facts:
    """``facts`` with what mpi4py's module says, of whose functions only those before the start of
    MPI are called."""
    library = str(mpi.Get_library_version()).strip("\0 \n").partition("\n")[0]
    return dataclasses.replace(
        facts,
        mpi=" ".join(library.partition(",")[0].replace("Version:", "").split()),
        standard=_standard(mpi),
        library=_library_file(),
    )


def _standard(mpi: Any) -> str:
    said = "MPI " + ".".join(map(str, mpi.Get_version()))
    abi = getattr(mpi, "Get_abi_version", lambda: (-1, -1))()
    return said + (f", ABI {abi[0]}.{abi[1]}" if abi[0] >= 0 else ", no standard ABI")


def _library_file() -> str:
    """The libmpi that this process has mapped."""
    with suppress(OSError):
        for line in MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
            path = line.split(None, 5)[-1]
            if "/libmpi" in path and ".so" in path:
                return path
    return ""
