"""``psgrad bench``: which ranks it starts, and what it refuses before it starts any."""

from __future__ import annotations

import json

import pytest

from psgrad import bench_commands, jobs, launch
from psgrad.errors import ConfigError

RANK_KINDS = ["step", "allreduce", "latency", "tune"]


@pytest.fixture
def launches(monkeypatch):
    """The launches that would have been made."""
    made = []
    monkeypatch.setattr(launch, "prepare", lambda asked, environ, terminal: asked)
    monkeypatch.setattr(jobs, "run", lambda plan, environ: made.append(plan) or 7)
    return made


@pytest.mark.parametrize(
    ("argv", "ranks"),
    [
        (["step"], 3),
        (["step", "--np", "5", "--servers", "2", "--sizes", "4K", "--codec", "int8"], 5),
        (["allreduce", "-n", "4"], 4),
        (["latency"], 2),
        (["tune", "--chunk-bytes", "1M,2M", "--mode", "async"], 3),
    ],
)
def test_ranks_run_the_same_command(launches, argv, ranks):
    assert bench_commands.bench(argv, {}) == 7
    (made,) = launches
    assert made == launch.Launch(ranks, ("python", "-m", "psgrad", "bench", *argv, "--as-launched"))


def test_the_mpiexec_is_handed_on(launches):
    bench_commands.bench(["latency", "--mpiexec", "/opt/mpi/bin/mpiexec"], {"PSGRAD_MPI": "system"})
    assert launches[0].mpiexec == "/opt/mpi/bin/mpiexec"
    assert launches[0].system_mpi


@pytest.mark.parametrize("kind", RANK_KINDS)
@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--np", "1"], "2 ranks"),
        (["--servers", "9"], "servers must be from 1 to"),
        (["--codec", "int9"], "unknown codec 'int9'"),
        (["--mode", "later"], "argument --mode: invalid choice"),
        (["--speed", "9"], "unrecognized arguments: --speed 9"),
        (["--n", "0"], "argument --np/-n: expected a count of at least 1"),
    ],
)
def test_mistakes_cost_no_job(launches, kind, argv, error):
    if argv[0] == "--n":
        argv = ["-n", "0"]
    with pytest.raises(ConfigError, match=error):
        bench_commands.bench([kind, *argv], {})
    assert launches == []


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["step", "--sizes", ""], "argument --sizes: expected a count of at least 1"),
        (["step", "--sizes", "4K,,1M"], "argument --sizes: expected a count of at least 1"),
        (["step", "--sizes", "4K,10"], "argument --sizes: expected bytes of float32"),
        (["step", "--rounds", "0"], "argument --rounds: expected a count of at least 1"),
        (["latency", "--size", "2"], "argument --size: expected bytes of float32"),
        (["latency", "--steps", "5"], "at least 10 steps, got 5"),
        (["latency", "--np", "3"], "takes 2 ranks, a server and a worker, this job has 3"),
        (["tune", "--chunk-bytes", "8"], "chunk_bytes must be from 64"),
        ([], "name what to measure: codec, step, allreduce, latency, overlap, memory, tune"),
        (["stop"], "invalid choice: 'stop'"),
    ],
)
def test_other_mistakes(launches, argv, error):
    with pytest.raises(ConfigError, match=error):
        bench_commands.bench(argv, {})
    assert launches == []


@pytest.mark.parametrize("kind", [*RANK_KINDS, "codec", "memory"])
def test_each_kind_has_help(capsys, kind):
    with pytest.raises(SystemExit) as end:
        bench_commands.bench([kind, "--help"], {})
    assert end.value.code == 0
    assert f"usage: psgrad bench {kind}" in capsys.readouterr().out


def test_memory_as_a_command(capsys):
    argv = ["memory", "--size", "64K", "--repeats", "1", "--np", "4", "--json"]
    assert bench_commands.bench([*argv, "--optimizer", "adam"], {}) == 0
    *_, last = capsys.readouterr().out.splitlines()
    record = json.loads(last)
    assert (record["workers"], record["nbytes"]) == (3, 65536)
    assert {"what": "optimizer state", "nbytes": 131072} in record["items"]["server"]
