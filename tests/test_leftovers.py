"""What an MPI has left is removed, and nothing of anybody else's."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from psgrad import jobs, leftovers
from psgrad.launch import Plan

NAMES = ("sm_segment.host.0.1a790000.0", "vader_segment.host.0.1a79.1", "mpich_shm_10342058_0")
FOREIGN = ("sem.mp-2t_jzcht", "psgrad-mine", "my_sm_segment.0", "mpich")


def plant(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(bytes(4096))


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_came_since_goes_and_what_was_there_stays(tmp_path):
    plant(tmp_path, "sm_segment.before", *FOREIGN)
    before = leftovers.segments(tmp_path)
    plant(tmp_path, *NAMES, "also", "sem.new")
    removed = leftovers.sweep(before, tmp_path)
    assert {path.name for path in removed} == set(NAMES)
    assert left(tmp_path) == {"sm_segment.before", *FOREIGN, "also", "sem.new"}


def test_a_file_that_was_made_anew_under_its_name_is_another_one(tmp_path):
    plant(tmp_path, NAMES[0])
    before = leftovers.segments(tmp_path)
    plant(tmp_path, "new")
    os.replace(tmp_path / "new", tmp_path / NAMES[0])
    assert leftovers.sweep(before, tmp_path) == [tmp_path / NAMES[0]]


def test_what_a_process_uses_stays(tmp_path):
    plant(tmp_path, *NAMES)
    with (tmp_path / NAMES[1]).open("r+b") as opened, (tmp_path / NAMES[2]).open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 4096)
        file.close()
        leftovers.sweep((), tmp_path)
        assert left(tmp_path) == {NAMES[1], NAMES[2]}
        opened.close()
        leftovers.sweep((), tmp_path)
        assert left(tmp_path) == {NAMES[2]}
        memory.close()
    leftovers.sweep((), tmp_path)
    assert left(tmp_path) == set()


def test_links_folders_and_a_missing_place_are_left_alone(tmp_path):
    plant(tmp_path, "target")
    (tmp_path / "sm_segment.link").symlink_to(tmp_path / "target")
    (tmp_path / "mpich_shm_folder").mkdir()
    assert leftovers.sweep((), tmp_path) == []
    assert leftovers.segments(tmp_path / "none") == frozenset()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_another_user_stay(tmp_path):
    plant(tmp_path, *NAMES)
    os.chown(tmp_path / NAMES[0], 12345, 12345)
    leftovers.sweep((), tmp_path)
    assert left(tmp_path) == {NAMES[0]}


def test_the_session_of_one_mpiexec(tmp_path):
    uid = os.geteuid()
    ours = ["ompi.77", f"prte.host.{uid}/dvm.77", f"ompi.host.{uid}/pid.77"]
    others = ["ompi.777", "ompi.7", f"prte.host.{uid}/dvm.78", f"prte.host.{uid + 1}/dvm.77"]
    for name in (*ours, *others):
        (tmp_path / name / "inner").mkdir(parents=True)
    removed = leftovers.sweep_session(77, tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in removed} == set(ours)
    assert all((tmp_path / name / "inner").is_dir() for name in others)
    (tmp_path / "ompi.78").symlink_to(tmp_path / "ompi.7")
    assert leftovers.sweep_session(78, tmp_path) == [tmp_path / f"prte.host.{uid}/dvm.78"]


# --- real ranks, killed; a file of a job that runs beside them has to survive

DIES = """
import os, signal, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
world.Barrier()
names = [n for n in os.listdir("/dev/shm") if n.startswith(("sm_segment", "mpich_shm"))]
mapped = open("/proc/self/maps").read()
mine = [n for n in names if n in mapped]
with open(os.path.join(sys.argv[1], f"rank-{world.rank}"), "w") as file:
    file.write(" ".join(mine))
world.Barrier()
if world.rank == world.size - 1:
    victim = os.getpid()
    for _ in range({levels}):
        victim = int(open(f"/proc/{victim}/stat").read().rpartition(")")[2].split()[1])
    os.kill(victim, signal.SIGKILL)
signal.pause()
"""


@pytest.mark.parametrize("victim", ["a rank", "mpiexec"])
def test_killed_ranks_leave_nothing(mpi, tmp_path, victim):
    if not leftovers.SHARED_MEMORY.is_dir():
        pytest.skip("there is no /dev/shm")
    mine = leftovers.SHARED_MEMORY / f"sm_segment.test.{os.getpid()}.0"
    holder = (
        f"import time; f = open({str(mine)!r}, 'wb'); print('ready', flush=True); time.sleep(600)"
    )
    places = tmp_path / "told", tmp_path / "temporary"
    for place in places:
        place.mkdir()
    levels = 0 if victim == "a rank" else 2 if mpi.name == "mpich" else 1  # a Hydra has proxies
    plan = mpi.plan(3, ["-c", DIES.replace("{levels}", str(levels)), places[0]])
    foreign = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE)
    # It begins while the job goes on, as far as a look before and one behind can see.
    seen = leftovers.segments()
    try:
        assert foreign.stdout is not None
        assert foreign.stdout.readline() == b"ready\n"
        environ = dict(os.environ, TMPDIR=str(places[1]))
        assert jobs.run(Plan(plan.argv, plan.env, plan.unset, plan.vendor), environ) != 0
        names = {n for path in places[0].iterdir() for n in path.read_text().split()}
        assert names
        leftovers.sweep(seen)  # the same as a job that had begun before the foreign one
        assert mine.exists()
        assert not {path.name for path in leftovers.SHARED_MEMORY.iterdir()} & names
        assert [p for p in places[1].iterdir() if not p.name.startswith("hydra_hwloc")] == []
    finally:
        foreign.send_signal(signal.SIGKILL)
        foreign.communicate()
        mine.unlink(missing_ok=True)
