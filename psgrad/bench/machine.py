"""What a record of figures says of the machine that they come from."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from psgrad.kernels import chunks
from psgrad.transport.mpi import load_mpi
from psgrad.version import __version__

CPUINFO: Final = Path("/proc/cpuinfo")


def describe(*, mpi: bool) -> dict[str, Any]:
    """Processor, cores that this process may use, versions and the date (UTC).

    With ``mpi`` also whose MPI it is, which starts it where it does not run yet.
    """
    facts: dict[str, Any] = {
        "host": platform.node(),
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "kernels": chunks.fastest().name,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "psgrad": __version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    if mpi:
        facts["mpi"] = library(load_mpi().Get_library_version())
    return facts


def processor() -> str:
    """The processor's model, by Linux; its architecture where that is not said."""
    try:
        return model_name(CPUINFO.read_text(encoding="utf-8").splitlines())
    except OSError:
        return platform.machine()


def model_name(lines: Iterable[str]) -> str:
    """What the lines of ``/proc/cpuinfo`` call the processor."""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def library(version: str) -> str:
    """The first line of what MPI says of itself, up to the first comma: name and version."""
    first = version.strip("\0 \n").partition("\n")[0].partition(",")[0]
    return " ".join(first.split())
