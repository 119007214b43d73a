"""``psgrad bench step`` on tiny arrays: what it measures and says, never how fast it is."""

from __future__ import annotations

import json

import numpy as np
import pytest

from psgrad.bench import step
from psgrad.bench.figures import WAYS, head, lines, rows
from psgrad.errors import ConfigError
from psgrad.optimizers import SGD
from psgrad.roles import Roles

COMMAND = ["bench", "step", "--sizes", "4K,64K", "--rounds", "2", "--json"]
STAGED = """
import sys
import numpy as np
import psgrad
from psgrad.bench.figures import ALLREDUCE, COPIED, GUARD, IN_PLACE, MEMCPY, TUNED
from psgrad.bench.step import RATE, Stage

def main(worker):
    stage = Stage(worker, 400_000, int(sys.argv[1]))
    params = lambda: np.concatenate(list(worker.params.values()))
    assert len(worker.params) == int(sys.argv[1])
    gradients = np.zeros((worker.size, 100_000), np.float32)
    worker.comm.Allgather(stage.gradient, gradients)
    moved = -np.float32(0.1) * gradients.mean(axis=0)
    stage.call(IN_PLACE)
    assert np.allclose(params(), moved, atol=1e-6)
    assert not stage.params.any()
    stage.call(COPIED)
    assert np.allclose(stage.params, 2 * moved, atol=1e-6)
    stage.sum[:] = stage.gradient
    for way, reduced in ((ALLREDUCE, stage.total), (TUNED, stage.sum)):
        stage.params.fill(1)
        stage.call(way)
        assert np.allclose(reduced, gradients.sum(axis=0), atol=1e-5)
        assert np.allclose(stage.params, 1 - RATE * gradients.mean(axis=0), atol=1e-6)
    stage.call(GUARD)
    stage.call(MEMCPY)
    assert np.array_equal(stage.params, stage.gradient)
    assert not np.array_equal(gradients[0], gradients[1])
    assert worker.clock == 2

psgrad.run(main, optimizer=psgrad.SGD(0.1))
"""


@pytest.mark.parametrize("n", [1, 5, 8, 20])
def test_the_local_update(n):
    rng = np.random.default_rng(n)
    params, grads = rng.standard_normal((2, n), np.float32)
    expected = params - np.float32(0.25) * grads
    step.descend(params, grads, np.float32(0.25), np.zeros(8, np.float32))
    assert np.allclose(params, expected)


@pytest.mark.parametrize(
    ("nbytes", "times"),
    [(4, 50), (4096, 50), (64 << 10, 50), (1 << 20, 4), (4 << 20, 1), (256 << 20, 1)],
)
def test_how_many_steps_a_sample_has(nbytes, times):
    assert step.in_a_row(nbytes) == times


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"sizes": (4096, 6)}, "a size must be a multiple of 4 bytes .*, got 6"),
        ({"sizes": (0,)}, "a size must be a multiple of 4 bytes .*, got 0"),
        ({"sizes": ()}, "at least one size and one round, got 0 and 11"),
        (
            {"sizes": (64,), "tensors": 17},
            "tensors must be from 1 to the 16 elements of 64 .* got 17",
        ),
        (
            {"sizes": (64,), "tensors": 0},
            "tensors must be from 1 to the 16 elements of 64 .* got 0",
        ),
        ({"sizes": (4096,), "rounds": 0}, "at least one size and one round, got 1 and 0"),
    ],
)
def test_plans_that_cannot_be(values, error):
    with pytest.raises(ConfigError, match=error):
        step.StepPlan(**values)


def test_a_plan_knows_the_roles():
    plan = step.StepPlan((4096,), run={"servers": 2, "staleness": 3, "codec": "int8"})
    assert plan.roles(5) == Roles(5, 2)
    with pytest.raises(ConfigError, match="servers must be from 1 to 1 with 2 ranks"):
        plan.roles(2)
    assert step.opening(plan, plan.roles(5)) == (
        "servers 2, workers 3, ssp, staleness 3, codec int8, pull codec none, 11 rounds; the "
        "slowest worker of each"
    )
    plan = step.StepPlan((4096,), run={"aggregate": "median"})
    assert step.opening(plan, plan.roles(4)).endswith("slowest worker of each; aggregate median")


@pytest.mark.parametrize("tensors", [1, 100])
def test_each_way_does_what_it_says(mpi, tensors):
    status, _, stderr = mpi.run(3, ["-c", STAGED, tensors])
    assert status == 0, stderr


def figures_of(stdout):
    """(record of the last line, lines of the table) of a run with --json."""
    *table, last = stdout.splitlines()
    return json.loads(last), table


def test_it_starts_its_ranks_and_prints_a_table(mpi):
    status, stdout, stderr = mpi.psgrad([*COMMAND, "--np", "3"])
    assert status == 0, stderr
    record, table = figures_of(stdout)
    assert (record["ranks"], record["servers"], record["workers"]) == (3, 1, 2)
    assert record["rounds"] == 2
    assert record["run"]["codec"] == "none"
    assert set(record["machine"]) == {
        "host", "cpu", "cores", "kernels", "python", "numpy", "psgrad", "date", "mpi"
    }  # fmt: skip
    vendor = {"openmpi": "Open MPI", "mpich": "MPICH", "intel": "Intel"}[mpi.name]
    assert record["machine"]["mpi"].startswith(vendor)
    assert [(row["nbytes"], row["way"]) for row in record["rows"]] == [
        (nbytes, way) for nbytes in (4096, 65536) for way in WAYS
    ]
    assert all(len(row["samples"]) == 2 and min(row["samples"]) > 0 for row in record["rows"])
    # What is printed is what the samples give.
    assert table[0].startswith("servers 1, workers 2, sync, codec none, pull codec none, 2 rounds")
    expected = [head()]
    for nbytes in (4096, 65536):
        samples = {r["way"]: r["samples"] for r in record["rows"] if r["nbytes"] == nbytes}
        again = rows(nbytes, samples, workers=2, together=True)
        expected += lines(again).splitlines()
        for row, mine in zip([r for r in record["rows"] if r["nbytes"] == nbytes], again,
                             strict=True):  # fmt: skip
            assert row == json.loads(json.dumps(mine.record()))
    assert table[1:] == expected


def test_it_runs_as_launched_with_codecs_and_several_servers(mpi):
    command = [
        "-m", "psgrad", "bench", "step", "--sizes", "64K", "--rounds", "1", "--servers", "2",
        "--mode", "ssp", "--staleness", "2", "--codec", "topk:0.05", "--pull-codec", "int8",
        "--json",
    ]  # fmt: skip
    status, stdout, stderr = mpi.run(4, command)
    assert status == 0, stderr
    record, table = figures_of(stdout)
    assert table[0].startswith("servers 2, workers 2, ssp, staleness 2, codec topk:0.05, pull")
    assert len(table) == 2 + len(WAYS) + 1
    memcpy = record["rows"][-1]["median_s"]
    # Each push is an update of its own: 3 n bytes for each worker.
    assert record["rows"][0]["limit_s"] == pytest.approx(3 * memcpy)


def test_allreduce_alone(mpi):
    status, stdout, stderr = mpi.psgrad(["bench", "allreduce", "--sizes", "4K", "--rounds", "1"])
    assert status == 0, stderr
    assert [line.split()[0] for line in stdout.splitlines()[2:]] == ["4", "tuned", "memcpy"]
    assert "Allreduce" in stdout.splitlines()[2]


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--np", "3"], "--np 3, but this job has 2 ranks; leave --np out"),
        (["--sizes", "4K,5"], "argument --sizes: expected bytes of float32"),
        (["--servers", "2"], "servers must be from 1 to 1 with 2 ranks, got 2"),
    ],
)
def test_a_mistake_on_all_ranks_is_said_once(mpi, argv, error):
    status, stdout, stderr = mpi.run(2, ["-m", "psgrad", "bench", "step", *argv])
    assert status != 0
    assert stdout == ""
    assert stderr.count("psgrad: error: ") == 1
    assert f"psgrad: error: {error}" in stderr


def test_ranks_that_are_told_different_things(mpi):
    program = (
        "import os, sys; from psgrad.cli import main; "
        "from mpi4py import MPI; rank = MPI.COMM_WORLD.rank; "
        "sys.exit(main(['bench', 'step', '--as-launched', '--rounds', str(1 + rank)]))"
    )
    status, _, stderr = mpi.run(2, ["-c", program])
    assert status != 0
    assert "the measurement differs between ranks" in stderr


def test_a_picture(tmp_path):
    samples = {way: [0.01, 0.02, 0.03] for way in WAYS}
    found = [r.record() for n in (4096, 1 << 20) for r in rows(n, samples, 2, together=True)]
    record = {"rows": found, "workers": 2, "servers": 1}
    path = tmp_path / "step.png"
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"pip install 'psgrad\[plot\]'"):
            step.plot(record, path)
    else:
        step.plot(record, path)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_plans_are_compared_by_what_they_say():
    one = step.StepPlan((4096,), run={"optimizer": SGD(0.1)})
    assert repr(one) == repr(step.StepPlan((4096,), run={"optimizer": SGD(0.1)}))
    assert repr(one) != repr(step.StepPlan((4096,), run={"optimizer": SGD(0.2)}))


class Alone:
    """A worker whose steps take as long as a table says."""

    rank, size = 0, 2

    def __init__(self, monkeypatch, seconds):
        self.asked = []

        def sample(worker, stage, way, times):
            self.asked.append(way)
            return seconds[way]

        monkeypatch.setattr(step, "Stage", lambda worker, nbytes, tensors: None)
        monkeypatch.setattr(step, "sample", sample)


def test_rounds_take_the_ways_in_turn(monkeypatch):
    worker = Alone(monkeypatch, {"a": 1.0, "b": 2.0, "c": 3.0})
    plan = step.StepPlan((8 << 20,), rounds=2, ways=("a", "b", "c"))
    found = step.measure(worker, plan, 8 << 20)
    assert worker.asked == ["b", "c", "a", "c", "a", "b", "a", "b", "c"]
    assert [(row.way, row.samples) for row in found] == [
        ("a", (1.0, 1.0)),
        ("b", (2.0, 2.0)),
        ("c", (3.0, 3.0)),
    ]


def test_a_way_that_takes_very_long_is_asked_once(monkeypatch):
    worker = Alone(monkeypatch, {"a": 1.0, "b": 21.0, "c": 3.0})
    found = step.measure(worker, step.StepPlan((8 << 20,), 3, ("a", "b", "c")), 8 << 20)
    assert worker.asked.count("b") == 1
    assert [len(row.samples) for row in found] == [3, 1, 3]


def test_patience_is_for_a_whole_sample(monkeypatch):
    worker = Alone(monkeypatch, {"a": 0.5, "b": 0.1})
    found = step.measure(worker, step.StepPlan((4096,), 2, ("a", "b")), 4096)
    assert [len(row.samples) for row in found] == [1, 2], "50 steps in a row"
