"""``psgrad doctor ARGUMENTS`` on ranks of whom some have a fault: FAULTS ARGUMENTS..."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from mpi4py import MPI

from psgrad import doctor_command
from psgrad.doctor import cuda, examine

RANK = MPI.COMM_WORLD.rank
LOOK = examine.look


def look(environ, folder):
    """What ``look`` sees, but for what is planted."""
    if "folder" in FAULTS and RANK == 2:
        folder = Path("/proc/none/checkpoints")
    facts = LOOK(environ, folder)
    changes = {}
    if "version" in FAULTS and RANK == 1:
        changes["versions"] = {**facts.versions, "psgrad": "0.0.9"}
    if "gpu" in FAULTS:
        changes["gpus"] = ("0000:3B:00.0",)
    if "shm" in FAULTS:
        changes.update(shm_total=1 << 20, shm_free=1 << 20)
    return dataclasses.replace(facts, **changes)


FAULTS = sys.argv[1].split(",")
examine.look = look
cuda.attempt = lambda environ: "not tried"
sys.exit(doctor_command.doctor(sys.argv[2:], {}))
