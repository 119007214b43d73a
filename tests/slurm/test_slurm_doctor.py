"""The doctor, and the placement of servers, in a heterogeneous job of a real Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from installed_mpi import environment

# srun of this Slurm and the MPICH of PyPI both speak PMI-2.
SCRIPT = """\
#!/bin/bash
#SBATCH --nodes=1 --ntasks=2 --output=job.out
#SBATCH hetjob
#SBATCH --nodes=1 --ntasks=3
srun --mpi=pmi2 --het-group=0,1 psgrad doctor --json --checkpoint-dir . >one-job.out
srun --mpi=none --het-group=0,1 psgrad doctor --json --checkpoint-dir . >singletons.out
srun --mpi=pmi2 --het-group=0,1 psgrad train --epochs 1 --run-dir run
"""


def findings(file):
    """Check -> finding, and the record."""
    record = json.loads(file.read_text().splitlines()[-1])
    return {finding["check"]: finding for finding in record["findings"]}, record


@pytest.mark.parametrize("mpi", ["mpich"], indirect=True)
def test_a_het_job(cluster, mpi, tmp_path):
    search, psgrad = f"{mpi.python.parent}:/usr/bin:/bin", environment()["PYTHONPATH"]
    script = tmp_path / "het.sbatch"
    script.write_text(SCRIPT)
    job = cluster.submit(script, cwd=tmp_path, env={"PATH": search, "PYTHONPATH": psgrad})
    about = cluster.end_of(job)
    assert about["JobState"] == "COMPLETED", (tmp_path / "job.out").read_text()

    found, record = findings(tmp_path / "one-job.out")
    assert found["launch"]["seen"] == "5 ranks by srun"
    assert "FAIL" not in {finding["state"] for finding in found.values()}
    roles = [(rank["host"], rank["role"]) for rank in record["ranks"]]
    (servers,) = {host for host, role in roles if role == "server"}
    (workers,) = {host for host, role in roles if role == "worker"}
    assert (len(roles), roles.count((servers, "server"))) == (5, 2)
    assert servers != workers
    assert len(record["links"]) == 10

    found, record = findings(tmp_path / "singletons.out")
    assert found["launch"]["state"] == "FAIL"
    assert "so each of 5 ranks is a job of its own" in found["launch"]["seen"]
    assert (tmp_path / "singletons.out").read_text().count("psgrad doctor: ") == 1

    summary = json.loads(Path(tmp_path, "run", "summary.json").read_text())
    assert (summary["servers"], summary["workers"]) == (2, 3)
