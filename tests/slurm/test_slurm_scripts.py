"""Every script of ``slurm/`` under a real Slurm of two nodes, as a user submits it."""

from __future__ import annotations

import functools
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from installed_mpi import ROOT, environment

from psgrad.chaos.tails import Tail

TRAINING = ("--mode", "sync", "--epochs", "3")
QUIET = {"OMP_NUM_THREADS": "1", "PSGRAD_PROGRESS": "off"}
# A node here claims more cores than there are, so Open MPI does not see that ranks share them.
YIELDING = {"OMPI_MCA_mpi_yield_when_idle": "1"}
RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")


class Job(NamedTuple):
    """A job that is over: its state, the text of its output, its summary (None: not written)."""

    state: str
    text: str
    summary: dict | None

    @property
    def last(self) -> str:
        return self.text.splitlines()[-1]


def login(mpi):
    """The environment of a user who has activated psgrad's."""
    search = f"{mpi.python.parent}:/usr/bin:/bin"
    return {"PATH": search, "PYTHONPATH": environment()["PYTHONPATH"], **QUIET, **YIELDING}


def submit(cluster, mpi, folder, script, *arguments, options=()):
    return cluster.submit(
        *options, ROOT / "slurm" / f"{script}.sbatch", *arguments, cwd=folder, env=login(mpi)
    )


def read(cluster, folder, job):
    about = cluster.end_of(job)
    summary = folder / "runs" / str(job) / "summary.json"
    return Job(
        about["JobState"],
        Path(about["StdOut"]).read_text(),
        json.loads(summary.read_text()) if summary.exists() else None,
    )


def run(cluster, mpi, folder, script, *arguments, options=()):
    job = submit(cluster, mpi, folder, script, *arguments, options=options)
    return read(cluster, folder, job)


def has_trained(job, servers, workers):
    assert (job.state, job.summary is not None) == ("COMPLETED", True), job.text
    assert "psgrad: error" not in job.text
    found = job.summary
    assert (found["servers"], found["workers"]) == (servers, workers)
    assert found["test_accuracy"] > 0.8, job.text
    assert "test accuracy" in job.text


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """``undisturbed(mpi, *arguments)``: the digest of the parameters of such a run on this machine,
    with 2 servers and 6 workers."""

    @functools.cache
    def run_once(mpi, *arguments):
        place = tmp_path_factory.mktemp("undisturbed") / "run"
        done = mpi.psgrad(
            ["run", "--np", "8", "--", "--servers", "2", "--run-dir", place, *arguments], env=QUIET
        )
        assert done.status == 0, done.stderr
        return json.loads((place / "summary.json").read_text())["params_sha256"]

    return run_once


def test_single_node(cluster, mpi, tmp_path):
    has_trained(run(cluster, mpi, tmp_path, "single-node", *TRAINING), 1, 3)


def test_several_nodes_come_to_the_bits_of_one(cluster, mpi, tmp_path, undisturbed):
    """Synchronous sums are in worker order, whatever carries them and wherever ranks are."""
    many = run(cluster, mpi, tmp_path, "multi-node", *TRAINING)
    has_trained(many, 2, 6)
    assert many.summary["params_sha256"] == undisturbed(mpi, *TRAINING)


@pytest.mark.parametrize("mpi", ["mpich"], indirect=True)  # what srun --mpi=pmi2 starts
def test_a_heterogeneous_job_has_its_servers_in_group_0(cluster, mpi, tmp_path):
    where = "import os; print(os.environ['SLURM_PROCID'], os.uname().nodename)"
    job = run(cluster, mpi, tmp_path, "het", *TRAINING)
    has_trained(job, 2, 2)
    script = (ROOT / "slurm" / "het.sbatch").read_text()
    head, _, _ = script.partition("# One MPI job")
    asked = tmp_path / "where.sbatch"
    asked.write_text(f'{head}srun --het-group=0,1 --cpus-per-task=1 python -c "{where}"\n')
    number = cluster.submit(asked, cwd=tmp_path, env=login(mpi))
    assert sorted(read(cluster, tmp_path, number).text.splitlines()) == [
        "0 node1", "1 node1", "2 node2", "3 node2",
    ]  # fmt: skip


@pytest.mark.parametrize("mpi", ["mpich"], indirect=True)
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_script_that_was_written_for_a_site(nodes, cluster, mpi, tmp_path):
    made = tmp_path / "mine.sbatch"
    options = f"--nodes {nodes} --tasks-per-node 2 --cpus-per-task 2 --launcher srun".split()
    done = mpi.psgrad(["slurm", "init", *options, "--output", made])
    assert done.status == 0, done.stderr
    job = cluster.submit(made, *TRAINING, cwd=tmp_path, env=login(mpi))
    has_trained(read(cluster, tmp_path, job), nodes, nodes)


@pytest.mark.parametrize("mpi", ["openmpi"], indirect=True)  # its jobs are those of one node
def test_a_sweep(cluster, mpi, tmp_path):
    job = submit(cluster, mpi, tmp_path, "array", *TRAINING, options=["--array=0,2"])
    accuracies = {}
    for rate in ("0.003", "0.03"):
        summary = tmp_path / "runs" / str(job) / f"rate-{rate}" / "summary.json"
        cluster.until(summary.exists, f"the end of rate {rate}")
        accuracies[rate] = json.loads(summary.read_text())["test_accuracy"]
    assert min(accuracies.values()) > 0.8
    assert len(set(accuracies.values())) == 2


@pytest.mark.parametrize("mpi", ["openmpi"], indirect=True)  # it alone lets ranks die
def test_elastic_training_goes_on_without_a_worker(cluster, mpi, tmp_path):
    arguments = ("--mode", "sync", "--epochs", "10", "--inject", "slow:rank=2,factor=40")
    job = submit(cluster, mpi, tmp_path, "elastic", *arguments)
    to_step(10, cluster, tmp_path, job)
    os.kill(rank_of(7, job), signal.SIGKILL)
    done = read(cluster, tmp_path, job)
    assert done.state == "COMPLETED", done.text
    assert done.summary["workers_lost"] == [5]
    assert done.summary["test_accuracy"] > 0.9


def to_step(number, cluster, folder, job):
    """Waits until worker 0 of a job has come to a step."""
    tail = Tail(folder / "runs" / str(job) / "metrics.jsonl")

    def is_there():
        tail.read()
        return tail.step >= number

    cluster.until(is_there, f"step {number}")


def rank_of(rank, job):
    """The process of a rank of a job, as this PID namespace numbers it."""
    marks = [{f"{name}={rank}".encode(), f"SLURM_JOB_ID={job}".encode()} for name in RANK]
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = set((place / "environ").read_bytes().split(b"\0"))
            if any(mark <= words for mark in marks):
                return int(place.name)
    raise AssertionError(f"no rank {rank} of job {job}")


def test_a_rank_that_fails_has_the_last_word(cluster, mpi, tmp_path):
    job = run(cluster, mpi, tmp_path, "multi-node", *TRAINING, "--inject", "fail:rank=6,step=10")
    assert (job.state, job.summary) == ("FAILED", None)
    reason = "rank 6 (worker, node2): RuntimeError: planted failure at step 10"
    assert job.last == f"psgrad: error: {reason}", job.text


LONG = ("--mode", "sync", "--epochs", "15")
SLOW = ("--inject", "slow:rank=7,factor=20")
URGENT = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=urgent.out")


def preempt(cluster, mpi, folder, step, *arguments):
    """A job that another one preempts when it has come to a step; what it comes to after that.

    One worker stands still meanwhile, so that the run cannot end before that.
    """
    job = submit(cluster, mpi, folder, "preemptible", *LONG, *SLOW, *arguments)
    to_step(step, cluster, folder, job)
    worker = rank_of(7, job)
    os.kill(worker, signal.SIGSTOP)
    try:
        urgent = cluster.submit(*URGENT, "--wrap=hostname", cwd=folder)
        cluster.until(lambda: cluster.about(job).get("PreemptTime", "None") != "None", "preemption")
    finally:
        with suppress(ProcessLookupError):  # killed already
            os.kill(worker, signal.SIGCONT)
    cluster.end_of(urgent)
    done = read(cluster, folder, job)
    assert (done.state, cluster.about(job)["Restarts"]) == ("COMPLETED", "1"), done.text
    assert "goes on from checkpoint" in done.text
    assert done.text.count("test accuracy") == 1
    return done


def test_a_preempted_job_ends_with_the_bits_of_one_that_nobody_stopped(
    cluster, mpi, tmp_path, undisturbed
):
    done = preempt(cluster, mpi, tmp_path, 5)
    assert "psgrad: error: stopped by SIGUSR1" in done.text
    assert done.summary["params_sha256"] == undisturbed(mpi, *LONG)


@pytest.mark.parametrize("mpi", ["openmpi"], indirect=True)  # whose daemons end by SIGTERM
def test_a_job_that_is_preempted_without_a_warning_is_not_lost(cluster, mpi, tmp_path, undisturbed):
    with cluster.without("SlurmctldParameters"):
        done = preempt(cluster, mpi, tmp_path, 15, "--checkpoint-every", "5")
    assert "SIGUSR1" not in done.text
    assert done.summary["params_sha256"] == undisturbed(mpi, *LONG)
