"""The doctor's checks, each with its faults planted in a table of facts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from psgrad.doctor import cuda, job, nodes
from psgrad.doctor.facts import Facts
from psgrad.doctor.finding import Finding, in_bytes, numbers, ranks, worst
from psgrad.doctor.job import Mpiexec
from psgrad.doctor.launched import Launched
from psgrad.doctor.links import Link, Measured
from psgrad.doctor.nodes import Wanted

GIB, MIB = 1 << 30, 1 << 20
HEALTHY = Facts(
    versions={"psgrad": "0.1.0", "NumPy": "2.0"},
    mpi="Open MPI v5.0.11",
    standard="MPI 3.1",
    library="/opt/mpi/lib/libmpi.so.40",
    thread_level="serialized",
    machine_cores=8,
    shm_total=8 * GIB,
    shm_free=8 * GIB,
    memory=16 * GIB,
    folder="/scratch",
    folder_free=100 * GIB,
)
NOTHING_WANTED = Wanted()


def job_of(hosts, **changes):
    """Healthy ranks on ``hosts``, each with two cores; ``changes`` are by rank, or of all."""
    size = len(hosts)
    found = []
    for rank, host in enumerate(hosts):
        before = hosts[:rank].count(host)
        own = {
            name: value[rank] if isinstance(value, list) else value
            for name, value in changes.items()
        }
        base = replace(
            HEALTHY,
            rank=rank,
            size=size,
            host=host,
            launched=Launched("openmpi", rank, size, "5.0.11", pmix=True),
            cores=(2 * before, 2 * before + 1),
        )
        found.append(replace(base, **own))
    return found


def is_(finding, state, *words):
    """Whether it is so, and says so; a fault comes with a cure."""
    assert finding.state == state, finding
    for word in words:
        assert word in f"{finding.seen} -> {finding.cure}"
    assert bool(finding.cure) == (state != "ok"), finding


def test_a_healthy_job_has_no_findings():
    facts = job_of("aabb")
    measured = Measured((Link(0, 1, 1, 1e10), Link(0, 2, 2, 1e9)), 2, (0.0, 1e-6, 2e-6, 1e-5))
    found = [
        job.launch(facts), job.library(facts), job.launcher(facts, Mpiexec()), job.threads(facts),
        job.tolerance(facts), job.versions(facts), job.clocks(facts, measured.clocks),
        job.links(facts, measured), nodes.cores(facts, NOTHING_WANTED),
        nodes.gpus(facts, NOTHING_WANTED), nodes.cuda_aware(facts, [""] * 4), nodes.memlock(facts),
        nodes.shared_memory(facts), nodes.memory(facts, NOTHING_WANTED),
        nodes.folder(facts, NOTHING_WANTED),
    ]  # fmt: skip
    for finding in found:
        is_(finding, "ok")
    assert worst(found) == "ok"


# The job


@pytest.mark.parametrize(
    ("launched", "words"),
    [
        (Launched("srun", 0, 8), ("srun has started 8 ranks, and each is rank 0 of 1", "--mpi=")),
        (
            Launched("openmpi", 0, 3),
            ("Open MPI's mpiexec has started 3", "start them with /opt/mpi/bin/mpiexec"),
        ),
        (Launched("hydra", 0, 2), ("MPICH or Intel MPI has started 2", "MPI4PY_LIBMPI")),
    ],
)
def test_ranks_that_do_not_know_of_each_other(launched, words):
    is_(job.launch([replace(HEALTHY, launched=launched)]), "FAIL", *words)


def test_a_mixed_mpi():
    problem = "srun speaks PMI-2, Open MPI v5.0.11 needs PMIx"
    one = replace(HEALTHY, problem=problem, launched=Launched("srun", 0, 8, pmi=True))
    is_(job.launch([one]), "FAIL", problem, "each of 8 ranks is a job of its own", "--mpi=pmix")


def test_two_jobs_where_one_was_meant():
    facts = job_of("aa", launched=Launched("srun", 0, 4))
    is_(job.launch(facts), "FAIL", "srun tells of 4 ranks, MPI has 2")


def test_a_process_alone():
    is_(job.launch([HEALTHY]), "ok", "one process, alone")
    inside = replace(HEALTHY, launched=Launched(allocation=6))
    is_(job.launch([inside]), "warn", "in a Slurm job of 6 tasks", "srun psgrad doctor")


def test_no_mpi_library():
    one = replace(HEALTHY, mpi="", problem="cannot load an MPI library; pip install it")
    is_(job.library([one]), "FAIL", "cannot load", "pip install it")


def test_two_mpi_libraries():
    facts = job_of("aab", mpi=["Open MPI v5.0.11", "Open MPI v5.0.11", "Open MPI v5.0.7"])
    is_(job.library(facts), "FAIL", "v5.0.11, MPI 3.1 on ranks 0-1", "v5.0.7, MPI 3.1 on rank 2")


@pytest.mark.parametrize(
    ("version", "state"), [("5.0.11", "ok"), ("5.0.7", "warn"), ("4.1.4", "FAIL"), ("", "ok")]
)
def test_the_version_of_the_launcher(version, state):
    facts = job_of("aa", launched=Launched("openmpi", 0, 2, version, pmix=True))
    is_(job.launcher(facts, Mpiexec()), state, version)


@pytest.mark.parametrize(
    ("mpiexec", "state"),
    [
        (Mpiexec("/usr/bin/mpiexec", "mpich"), "warn"),
        (Mpiexec("/usr/bin/mpiexec", "openmpi"), "ok"),
        (Mpiexec("/usr/bin/mpiexec", "unknown"), "ok"),
        (Mpiexec(), "ok"),
    ],
)
def test_alone_the_mpiexec_on_path_is_looked_at(mpiexec, state):
    is_(job.launcher([HEALTHY], mpiexec), state, mpiexec.path)


@pytest.mark.parametrize(
    ("level", "state"),
    [("multiple", "ok"), ("serialized", "ok"), ("funneled", "warn"), ("single", "warn")],
)
def test_thread_levels(level, state):
    facts = job_of("ab", thread_level=["serialized", level])
    is_(job.threads(facts), state, level)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "available: mpirun --with-ft ulfm"),
        ({"launched": Launched("openmpi", 0, 1, tolerant=True)}, "on: "),
        ({"launched": Launched("srun", 0, 1)}, "not where srun starts"),
        ({"mpi": "Open MPI v4.1.4"}, "not with Open MPI v4.1.4"),
        ({"mpi": "MPICH 5.0.2"}, "not with MPICH 5.0.2; psgrad run --restarts"),
    ],
)
def test_whether_workers_may_die(changes, word):
    is_(job.tolerance([replace(HEALTHY, **changes)]), "ok", word)


def test_two_versions_of_psgrad():
    other = {"psgrad": "0.0.9", "NumPy": "1.26"}
    facts = job_of("aab", versions=[HEALTHY.versions, other, HEALTHY.versions])
    words = ("psgrad 0.1.0 on ranks 0, 2, 0.0.9 on rank 1", "NumPy 2.0 on ranks 0, 2, 1.26")
    is_(job.versions(facts), "FAIL", *words)


def test_two_versions_of_something_else():
    facts = job_of("ab", versions=[HEALTHY.versions, {"psgrad": "0.1.0"}])
    is_(job.versions(facts), "warn", "NumPy 2.0 on rank 0, none on rank 1")


def test_clocks():
    facts = job_of("abb")
    is_(job.clocks(facts, (0.0, 0.4, -0.9)), "ok", "900 ms")
    is_(job.clocks(facts, (0.0, 0.4, -7.0)), "warn", "b (rank 2) is 7 s behind a (rank 0)", "NTP")
    is_(job.clocks(facts, (0.0, 90.0, 0.0)), "warn", "b (rank 1) is 90 s ahead of")
    is_(job.clocks(facts, (0.0,)), "ok")


def test_a_slow_node():
    rates = {(0, 1): 1e9, (0, 2): 1e8, (1, 2): 1e8}
    measured = Measured(tuple(Link(a, b, 5, rate) for (a, b), rate in rates.items()), 3)
    words = ("c: every link is slow. 2 of 3", "rank 0 (a) to rank 2 (c) 100 MB/s, 10 times worse")
    is_(job.links(job_of("abc"), measured), "warn", *words, "srun --exclude=c")


def test_a_slow_link_on_one_machine():
    measured = Measured((Link(0, 1, 1, 1e10), Link(0, 2, 1, 1e10), Link(1, 2, 1, 1e9)), 3)
    finding = job.links(job_of("aaa"), measured)
    is_(finding, "warn", "1 of 3 slow: rank 1 (a) to rank 2 (a) 1 GB/s", "binding")
    assert "exclude" not in finding.cure


def test_a_slow_link_between_two_nodes_is_nobodys_fault():
    rates = {(0, 1): 1e9, (0, 2): 1e9, (0, 3): 1e9, (1, 2): 1e9, (1, 3): 1e8, (2, 3): 1e9}
    measured = Measured(tuple(Link(a, b, 5, rate) for (a, b), rate in rates.items()), 6)
    finding = job.links(job_of("abcd"), measured)
    is_(finding, "warn", "1 of 6 slow: rank 1 (b) to rank 3 (d)", "network between b and d")


def test_links_that_were_not_measured():
    one = Link(0, 1, 1.5, 1e10)
    finding = job.links(job_of("aaa"), Measured((one,), 3))
    is_(finding, "ok", "1 pair: on a node at least 10 GB/s, at most 1.5 us; 2 more not measured")
    is_(job.links(job_of("aa"), Measured()), "ok", "none measured")


def test_a_rank_that_is_silent():
    found = job.links(job_of("ab"), Measured((), 1, (0.0,), (0, 1)))
    is_(found, "FAIL", "no answer from rank 0 (a) and rank 1 (b)", "firewall")


# The nodes


def test_more_ranks_than_cores():
    facts = job_of("aaa", cores=(0, 1), machine_cores=2)
    finding = nodes.cores(facts, NOTHING_WANTED)
    is_(finding, "warn", "3 ranks share cores 0-1 of a", "at most")


def test_ranks_bound_to_the_same_core_of_a_large_machine():
    facts = job_of("aab", cores=[(0,), (0,), (1,)], machine_cores=64)
    finding = nodes.cores(facts, NOTHING_WANTED)
    is_(finding, "warn", "2 ranks share core 0 of a", "--bind-to none")


def test_cores_that_srun_did_not_pass_on():
    told = [Launched("srun", rank, 2, cpus_per_task=8) for rank in range(2)]
    finding = nodes.cores(job_of("ab", launched=told), NOTHING_WANTED)
    is_(finding, "warn", "ranks 0-1: 2 cores where the job has --cpus-per-task=8", "srun -c")


def test_a_gpu_bound_twice():
    facts = job_of("aaab", gpus=("0000:3B:00.0",))
    wanted = Wanted(servers=(True, False, False, False))
    words = ("ranks 1 and 2 on a have GPU 0000:3B:00.0 both", "--gpus-per-task=1")
    is_(nodes.gpus(facts, wanted), "FAIL", *words)
    is_(nodes.gpus(facts, replace(wanted, gpu_share=True)), "ok", "3 workers on 2 GPUs")


def test_workers_with_and_without_a_gpu():
    facts = job_of("abb", gpus=[("x",), (), ()])
    is_(nodes.gpus(facts, NOTHING_WANTED), "ok", "1 worker on 1 GPU; ranks 1-2 compute on CPUs")


def test_a_gpu_that_nobody_can_use():
    facts = job_of("a", gpu_cards=4, gpu_problem="no CuPy: pip install it")
    is_(nodes.gpus(facts, NOTHING_WANTED), "warn", "a has 4, and no rank can use one", "pip")


def test_whether_mpi_takes_a_gpus_memory_is_only_told():
    said = nodes.cuda_aware(job_of("ab"), ["no, the attempt ended with SIGSEGV", ""])
    is_(said, "ok", "a: no, the attempt ended with SIGSEGV")


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "yes"),
        (-11, "no, the attempt ended with SIGSEGV"),
        (-99, "no, the attempt ended with signal 99"),
        (3, "no, MPI does not carry it"),
        (1, "not known, the attempt ended with status 1"),
    ],
)
def test_what_the_attempt_says(status, text):
    assert cuda.outcome(status) == text


def test_an_attempt_without_a_gpu_fails_and_harms_nobody():
    assert cuda.attempt({"PATH": "/usr/bin:/bin"}) == "not known, the attempt ended with status 1"


@pytest.mark.parametrize(
    ("memlock", "infiniband", "state", "word"),
    [
        (-1, True, "ok", "unlimited"),
        (64 << 10, False, "ok", "64 KiB, and no InfiniBand"),
        (64 << 10, True, "warn", "64 KiB on b"),
    ],
)
def test_memory_that_may_be_locked(memlock, infiniband, state, word):
    facts = job_of("ab", memlock=[-1, memlock], infiniband=infiniband)
    is_(nodes.memlock(facts), state, word)


@pytest.mark.parametrize(
    ("free", "mpi", "state"),
    [
        (64 * MIB, "Open MPI v5.0.11", "warn"),  # Docker's, and three ranks
        (40 * MIB, "Open MPI v5.0.11", "FAIL"),
        (40 * MIB, "MPICH 5.0.2", "ok"),
        (4 * MIB, "MPICH 5.0.2", "FAIL"),
    ],
)
def test_too_little_shared_memory(free, mpi, state):
    facts = job_of("abbb", mpi=mpi, shm_free=[8 * GIB, free, free, free])
    words = (f"{free // MIB} MiB free of 8 GiB on b", "--shm-size") if state != "ok" else ()
    is_(nodes.shared_memory(facts), state, *words)


def test_shared_memory_that_is_not_there_or_not_given_back():
    is_(nodes.shared_memory(job_of("a", shm_free=-1)), "warn", "no /dev/shm on a")
    left = job_of("ab", shm_left=[0, 2 * GIB])
    is_(nodes.shared_memory(left), "warn", "2 GiB belong to MPI jobs that are over", "rm ")


def test_too_little_memory():
    facts = job_of("aab", memory=[16 * GIB, 16 * GIB, 3 * GIB])
    wanted = Wanted(need=(5 * GIB, 4 * GIB, 4 * GIB))
    is_(nodes.memory(facts, wanted), "FAIL", "3 GiB on b, for 1 rank it takes 4 GiB")
    is_(nodes.memory(facts, replace(wanted, need=(5 * GIB, 4 * GIB, GIB))), "ok", "is enough")
    is_(nodes.memory(job_of("a", memory=-1), NOTHING_WANTED), "ok", "unknown")


def test_a_folder_that_cannot_be_written():
    facts = job_of("aab", folder_problem=["", "", "Read-only file system"])
    words = ("rank 2 on b cannot write in /scratch: Read-only file system", "--checkpoint-dir")
    is_(nodes.folder(facts, NOTHING_WANTED), "FAIL", *words)


def test_a_folder_that_is_another_one_on_another_node():
    facts = job_of("aab", folder_shared=[True, True, False])
    words = ("b does not see what a writes in /scratch", "that all nodes share")
    is_(nodes.folder(facts, NOTHING_WANTED), "FAIL", *words)


def test_a_folder_that_is_full():
    facts = job_of("ab", folder_free=[GIB, GIB // 2])
    is_(
        nodes.folder(facts, NOTHING_WANTED), "warn", "512 MiB free", "they may take more than 1 GiB"
    )
    wanted = Wanted(nbytes=64 * MIB, state=2)
    is_(nodes.folder(facts, wanted), "warn", "three checkpoints take 576 MiB")
    is_(nodes.folder(facts, replace(wanted, nbytes=32 * MIB)), "ok")


# Facts on their way, and words


def test_facts_survive_the_way_to_rank_0():
    (facts,) = job_of("a", gpus=("x", "y"))
    assert Facts.from_json(facts.to_json()) == facts


def test_facts_of_another_version_are_taken_as_far_as_they_are_understood():
    said = json.loads(HEALTHY.to_json())
    said.update(host=7, cores="all", colour="green", launched={"size": 4, "rank": "x", "new": 1})
    del said["memory"]
    found = Facts.from_json(json.dumps(said).encode())
    expected = replace(HEALTHY, memory=-1, launched=Launched(size=4))
    assert found == expected
    assert Facts.from_json(b"{}") == Facts()


@pytest.mark.parametrize(
    ("values", "text"),
    [([], ""), ([3], "3"), ([0, 1, 2, 5], "0-2, 5"), ([9, 1, 8, 1], "1, 8-9")],
)
def test_numbers(values, text):
    assert numbers(values) == text


def test_words():
    assert (ranks([2]), ranks([0, 1])) == ("rank 2", "ranks 0-1")
    assert [in_bytes(n) for n in (0, 5, 64 << 10, 1000 << 20, 3 << 29, 5 << 40, 2000 << 40)] == [
        "0 bytes", "5 bytes", "64 KiB", "1000 MiB", "1.5 GiB", "5 TiB", "2000 TiB"
    ]  # fmt: skip
    assert [job.rate(r) for r in (5e5, 8.5e8, 1.25e10)] == ["0.5 MB/s", "850 MB/s", "12.5 GB/s"]
    assert worst([Finding("a", "ok", ""), Finding("b", "FAIL", ""), Finding("c", "warn", "")]) == (
        "FAIL"
    )
    assert worst([]) == "ok"
