"""Whether MPI takes a GPU's memory: tried in a process of its own, which may crash.

A library that is not CUDA-aware takes the address for one of the host's and reads there.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import numpy as np

from psgrad import kernels
from psgrad.launch import NESTED, SITE
from psgrad.transport.mpi import load_mpi

LIMIT_S: Final = 60.0
REFUSED: Final = 3  # status of the process where MPI does not do it, or not well
N: Final = 1 << 16


def attempt(environ: Mapping[str, str]) -> str:
    """What came of it, in words. The process is a job of its own, of one rank."""
    own = {
        name: value
        for name, value in environ.items()
        if name.startswith(SITE) or not name.startswith((*NESTED, "SLURM_"))
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            env=own,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return f"not known, the attempt was not over after {LIMIT_S:g} s"
    return outcome(done.returncode)


def outcome(status: int) -> str:
    """What the status of the process says."""
    if status in (0, REFUSED):
        return "no, MPI does not carry it" if status else "yes"
    if status < 0:
        name = f"signal {-status}"
        with suppress(ValueError):
            name = signal.Signals(-status).name
        return f"no, the attempt ended with {name}"
    return f"not known, the attempt ended with status {status}"


def main() -> None:
    """A message from one array of the GPU to another one."""
    gpu = kernels.load("gpu")
    sent = np.arange(N, dtype=np.float32)
    source, target = gpu.asarray(sent), gpu.asarray(np.zeros_like(sent))
    gpu.synchronize()
    mpi = load_mpi()
    try:
        mpi.COMM_SELF.Sendrecv(source, 0, recvbuf=target, source=0)
    except mpi.Exception:
        raise SystemExit(REFUSED) from None
    got = np.empty_like(sent)
    gpu.copy_to_host(target, got)
    if not np.array_equal(sent, got):
        raise SystemExit(REFUSED)


if __name__ == "__main__":
    main()
