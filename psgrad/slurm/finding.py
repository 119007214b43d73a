"""What ``psgrad slurm check`` says, and what it knows besides the script."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from psgrad.launch import Vendor


@dataclass(frozen=True)
class Finding:
    """A mistake in ``line``, counted from 1: what it does, and what to write instead."""

    line: int
    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.line}: {self.what}; {self.cure}"


@dataclass(frozen=True)
class Site:
    """``mpi`` is whose MPI the ranks will load; ``folder`` is where sbatch will be called."""

    mpi: Vendor = "unknown"
    folder: Path = Path()


Findings = Iterator[Finding]
