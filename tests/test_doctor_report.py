"""What the doctor looks at on this machine, and what it writes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from test_doctor_checks import HEALTHY, job_of

from psgrad import doctor_command, jobs, launch
from psgrad.doctor import examine, facts, report
from psgrad.doctor.finding import Finding
from psgrad.doctor.job import Mpiexec
from psgrad.doctor.links import Link, Measured
from psgrad.doctor.nodes import Wanted
from psgrad.errors import ConfigError, LaunchError
from psgrad.version import __version__

FINE = Finding("a", "ok", "b")

# What is looked at


def test_a_folder_is_tried_and_left_as_it_was(tmp_path):
    found = facts._folder(tmp_path / "to" / "come")
    assert found.keys() == {"folder", "folder_free"}
    assert found["folder"] == str(tmp_path)
    assert found["folder_free"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    found = facts._folder(tmp_path / "file" / "checkpoints")
    assert found == {"folder": str(tmp_path / "file"), "folder_problem": "Not a directory"}


def test_shared_memory_counts_what_nobody_uses(tmp_path):
    mine = tmp_path / "sm_segment.mine"
    mine.write_bytes(bytes(1 << 20))
    (tmp_path / "another").write_bytes(bytes(1 << 20))
    with mine.open("rb"):
        assert facts._shared_memory(tmp_path)["shm_left"] == 0
    found = facts._shared_memory(tmp_path)
    assert 1 << 20 <= found["shm_left"] < 2 << 20
    assert found["shm_total"] >= found["shm_free"] > 0
    assert facts._shared_memory(tmp_path / "none") == {}


def test_this_machine(tmp_path):
    found = facts.look({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, tmp_path)
    assert found.launched.size == 2
    assert found.cores == tuple(sorted(os.sched_getaffinity(0)))
    assert found.versions["psgrad"] == __version__
    assert found.memory > 0
    assert found.host


class Library:
    """What mpi4py's module says before MPI starts."""

    def __init__(self, text, abi=(-1, -1)):
        self.Get_library_version = lambda: text
        self.Get_abi_version = lambda: abi
        self.Get_version = lambda: (5, 0)


@pytest.mark.parametrize(
    ("library", "name", "standard"),
    [
        (
            Library("Open MPI v5.0.11, package: Open MPI me@here Distribution, ident\0"),
            "Open MPI v5.0.11",
            "MPI 5.0, no standard ABI",
        ),
        (
            Library("MPICH Version:      5.0.2\nMPICH Release date: today", (1, 0)),
            "MPICH 5.0.2",
            "MPI 5.0, ABI 1.0",
        ),
    ],
)
def test_what_a_library_says_of_itself(library, name, standard):
    found = facts.with_mpi(HEALTHY, library)
    assert (found.mpi, found.standard) == (name, standard)


# What is written


def test_the_report():
    ranks = job_of("aab", gpus=[("w", "x"), ("w", "x"), ("y",)])
    wanted = Wanted((True, False, False))
    rates = {(0, 1): 1e10, (0, 2): 1e9, (1, 2): 2e8}
    measured = Measured(tuple(Link(a, b, 2.5, rate) for (a, b), rate in rates.items()), 3)
    found = [Finding("MPI", "ok", "it is"), Finding("links", "warn", "slow", "mend it")]
    assert report.text(ranks, wanted, measured, found).splitlines() == [
        "rank  role    host  cores  GPU",
        "0     server  a     0-1    -",
        "1     worker  a     2-3    w",
        "2     worker  b     0-1    y",
        "",
        "link  to 1               to 2   (! slow)",
        "0     10 GB/s 2.5 us     1 GB/s 2.5 us",
        "1                        200 MB/s 2.5 us !",
        "",
        "ok   MPI         it is",
        "warn links       slow",
        "                 -> mend it",
        "",
        "psgrad doctor: 0 FAIL, 1 warn, 1 ok",
    ]


def test_gpus_that_cannot_be_dealt_out_are_all_shown():
    assert report.gpus_of(job_of("aa", gpus=("x",)), Wanted((False, False))) == ["x", "x"]


def test_many_ranks_share_lines_and_only_the_slowest_links_are_shown():
    hosts = [f"n{i // 32}" for i in range(64)]
    ranks = job_of(hosts, cores=tuple(range(32)))
    wanted = Wanted((True, *[False] * 63))
    links = tuple(Link(0, b, 1.0, 1e9 * b) for b in range(1, 20))
    lines = report.text(ranks, wanted, Measured(links, 19), [FINE]).splitlines()
    assert lines[1:4] == [
        "0      server  n0    0-31   -",
        "1-31   worker  n0    0-31   -",
        "32-63  worker  n1    0-31   -",
    ]
    assert lines[5] == "the slowest of 19 links (! slow)"
    assert lines[6] == "0 (n0) to 1 (n0): 1 GB/s 1 us !"
    assert lines[10:] == [
        "0 (n0) to 5 (n0): 5 GB/s 1 us",
        "",
        "ok   a           b",
        "",
        "psgrad doctor: 0 FAIL, 0 warn, 1 ok",
    ]


def test_the_record_is_json():
    ranks, wanted = job_of("ab", gpus=("x",)), Wanted((True, False))
    measured = Measured((Link(0, 1, 2.0, 1e9),), 1, (0.0, 0.5))
    found = [Finding("clocks", "warn", "apart", "NTP")]
    record = json.loads(json.dumps(report.record(ranks, wanted, measured, found)))
    assert (record["what"], record["state"]) == ("doctor", "warn")
    assert record["findings"] == [
        {"check": "clocks", "state": "warn", "seen": "apart", "cure": "NTP"}
    ]
    said = [(rank["host"], rank["role"], rank["gpu"]) for rank in record["ranks"]]
    assert said == [("a", "server", "-"), ("b", "worker", "x")]
    assert record["links"] == [{"a": 0, "b": 1, "latency_us": 2.0, "bandwidth": 1e9, "slow": False}]
    assert record["clocks_s"] == [0.0, 0.5]


# The command


@pytest.fixture
def started(monkeypatch):
    """The launches that would have been made."""
    made = []
    monkeypatch.setattr(launch, "prepare", lambda asked, environ, terminal: asked)
    monkeypatch.setattr(jobs, "run", lambda plan, environ: made.append(plan) or 7)
    return made


def test_ranks_are_started_where_that_is_asked_for(started):
    argv = ["--np", "3", "--size", "64M", "--mpiexec", "/opt/mpiexec"]
    assert doctor_command.doctor(argv, {"PSGRAD_MPI": "system"}) == 7
    command = ("python", "-m", "psgrad", "doctor", *argv, "--as-launched")
    assert started == [launch.Launch(3, command, "/opt/mpiexec", True)]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--np", "0"], "argument --np/-n: expected a count of at least 1"),
        (["--size", "7"], "argument --size: expected bytes of float32"),
        (["--seconds", "-1"], "argument --seconds: expected seconds, 0 at least, got '-1'"),
        (["--seconds", "inf"], "argument --seconds: expected seconds"),
        (["--speed"], "unrecognized arguments: --speed; see psgrad doctor --help"),
    ],
)
def test_mistakes(started, argv, text):
    with pytest.raises(ConfigError) as caught:
        doctor_command.doctor(argv, {})
    assert text in str(caught.value)
    assert started == []


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        doctor_command.doctor(["--help"], {})
    assert end.value.code == 0
    assert "Exit status: 0 if nothing is wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("states", "strict", "status"),
    [
        (["ok"], True, 0),
        (["ok", "warn"], False, 0),
        (["ok", "warn"], True, 1),
        (["FAIL", "ok"], False, 1),
    ],
)
def test_the_exit_status(states, strict, status):
    found = [Finding("a", state, "") for state in states]
    assert examine._status(examine.Plan(strict=strict), found) == status


def test_without_an_mpi_library_the_rest_is_looked_at(monkeypatch, tmp_path):
    def none(start=True):
        raise LaunchError("mpi4py cannot load an MPI library; load your site's MPI module")

    monkeypatch.setattr(examine, "load_mpi", none)
    shown = []
    plan = examine.Plan(tmp_path, json=True)
    assert examine.examine(plan, {"PATH": "/nowhere"}, shown.append) == 1
    found = {f["check"]: f for f in json.loads(shown[-1])["findings"]}
    assert found["MPI"]["state"] == "FAIL"
    assert found["MPI"]["cure"] == "load your site's MPI module"
    assert found["checkpoints"]["state"] == "ok"
    assert not found.keys() & {"launch", "launcher", "threads", "ULFM"}


def test_the_mpiexec_on_path(tmp_path):
    program = tmp_path / "mpiexec"
    program.write_text("#!/bin/sh\necho HYDRA build details\n")
    program.chmod(0o755)
    assert examine._mpiexec({"PATH": str(tmp_path)}) == Mpiexec(str(program), "mpich")
    program.write_text("#!/nowhere\n")
    assert examine._mpiexec({"PATH": str(tmp_path)}) == Mpiexec(str(program), "unknown")
    assert examine._mpiexec({"PATH": "/nowhere"}) == Mpiexec()


def test_what_a_model_takes_is_known_by_rank():
    wanted = examine._wanted(examine.Plan(nbytes=64 << 20), "aab")
    assert wanted.servers == (True, False, False)
    assert wanted.need[0] > 3 * (64 << 20)  # parameters and Adam's two
    assert wanted.need[1] == wanted.need[2] >= 64 << 20


def test_servers_are_where_training_would_have_them():
    plan = examine.Plan(servers=2)
    assert examine._wanted(plan, "aab").servers == (True, False, True)
    assert examine._wanted(replace(plan, placement="first"), "aab").servers == (True, True, False)
    assert examine._wanted(replace(plan, servers=9), "aa").servers == (True, False)
    assert examine._wanted(plan, "aab").need == ()


HET = {
    "SLURM_HET_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "7",
    "SLURM_NTASKS_HET_GROUP_0": "3", "SLURM_NTASKS_HET_GROUP_1": "4",
}  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "environ", "expected"),
    [
        ([], {}, (1, "spread")),
        (["--servers", "2", "--placement", "first"], {}, (2, "first")),
        ([], HET, (3, "first")),
        (["--servers", "2"], HET, (2, "first")),
        (["--placement", "spread"], HET, (3, "spread")),
    ],
)
def test_a_het_job_says_who_the_servers_are(monkeypatch, argv, environ, expected):
    plans = []
    monkeypatch.setattr(examine, "examine", lambda plan, *_: plans.append(plan) or 0)
    assert doctor_command.doctor(argv, environ) == 0
    assert [(plan.servers, plan.placement) for plan in plans] == [expected]


@pytest.mark.parametrize(("there", "shared"), [(True, True), (False, False)])
def test_a_file_of_rank_0_is_looked_for(monkeypatch, tmp_path, there, shared):
    monkeypatch.setattr(examine, "SEEN_S", 0.0)

    class Others:
        """Rank 0 says its file's name, then that it is written."""

        def __init__(self):
            self.said = [b"token", b"1", b""]

        def exchange(self, blob):
            return [self.said.pop(0)]

    if there:
        Path(tmp_path, "token").write_text("")
    mine = replace(HEALTHY, rank=1, folder=str(tmp_path))
    assert examine._look_for_file(mine, Others()).folder_shared is shared
