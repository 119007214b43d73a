"""The test cluster itself: nodes apart from each other, and nothing left of it whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ALONE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from slurm_cluster import running
with running() as cluster:
    print(cluster.folder, flush=True)
    time.sleep(300)
"""


def test_nodes_have_networks_and_memory_of_their_own(cluster):
    where = "hostname; ip -o -4 address show eth0; touch /dev/shm/$(hostname); ls -A /dev/shm"
    said = cluster.ask("srun", "--nodes=2", "--label", "sh", "-c", where)
    for number, (name, ip) in enumerate((("node1", "10.77.0.11"), ("node2", "10.77.0.12"))):
        lines = [line[3:] for line in said.splitlines() if line.startswith(f"{number}: ")]
        assert lines[0] == lines[2] == name
        assert f" {ip}/24 " in lines[1]


def test_nothing_outlives_who_started_it(cluster):
    """``cluster`` is asked for, so that this is skipped where there can be none."""
    folder = Path(__file__).parent
    holder = subprocess.Popen(
        [sys.executable, "-c", ALONE, str(folder)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        place = holder.stdout.readline().strip()
        assert daemons(place) >= {"munged", "slurmctld", "slurmd"}
        os.kill(holder.pid, signal.SIGKILL)
    end = time.monotonic() + 20
    while (left := daemons(place)) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == set()
    subprocess.run(["rm", "-r", place], check=True)


def daemons(place):
    """The names of the processes that have files below ``place`` on their command lines."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if any(place in word for word in words):
            found.add(words[0].rpartition("/")[2])
    return found
