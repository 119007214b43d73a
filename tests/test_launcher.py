"""psgrad run --launcher: the words of a cluster's launcher, and what is added to them."""

from __future__ import annotations

import pytest

from psgrad import launch, launcher
from psgrad.errors import LaunchError

SAYS = {
    "srun": "slurm-wlm 22.05.8",
    "mpirun": "mpirun (Open MPI) 5.0.11",
    "hydra": "HYDRA build details:",
    "jsrun": "jsrun 1.2",
}


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The environment of a cluster whose programs say who they are."""
    for name, text in SAYS.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho '{text}'\n")
        program.chmod(0o755)
    (tmp_path / "mpiexec").symlink_to("mpirun")
    monkeypatch.setattr("psgrad.launcher.os.geteuid", lambda: 1000)
    return {"PATH": f"{tmp_path}:/usr/bin:/bin", "PSGRAD_MPI": "system"}


@pytest.mark.parametrize(
    ("words", "vendor"),
    [
        ("srun --mpi=pmi2 --het-group=0,1", "slurm"),
        ("mpirun --bind-to none", "openmpi"),
        ("hydra -ppn 4", "mpich"),
        ("jsrun", "unknown"),
    ],
)
def test_the_words_come_first_and_nothing_is_taken_away(words, vendor, site):
    environ = {**site, "SLURM_JOB_ID": "7", "PMIX_MCA_gds": "hash"}
    plan = launcher.prepare(words.split(), ("prog", "arg"), environ)
    program, *flags = words.split()
    assert plan.vendor == vendor
    assert plan.argv[1:] == (*flags, "prog", "arg")
    assert plan.argv[0].rpartition("/")[2] in (program, "mpiexec")
    assert (plan.unset, plan.env, plan.elastic) == ((), {}, False)


def test_python_is_the_one_that_has_psgrad(site):
    import sys

    plan = launcher.prepare(["srun"], ("python", "my.py"), site)
    assert plan.argv[1:] == (sys.executable, "my.py")


def test_mpirun_may_be_roots(site, monkeypatch):
    monkeypatch.setattr("psgrad.launcher.os.geteuid", lambda: 0)
    assert "--allow-run-as-root" in launcher.prepare(["mpirun"], ("prog",), site).argv
    assert "--allow-run-as-root" not in launcher.prepare(["srun"], ("prog",), site).argv


def test_ranks_may_die_under_open_mpi_alone(site):
    plan = launcher.prepare(["mpirun", "-x"], ("prog",), site, elastic=True)
    assert plan.argv[1:] == (*launch.ELASTIC, "-x", "prog")
    assert plan.elastic
    assert plan.env.keys() == set(launcher.SURVIVES)
    chosen = {**site, "OMPI_MCA_btl": "tcp,self"}
    kept = launcher.prepare(["mpirun"], ("prog",), chosen, elastic=True)
    assert kept.env.keys() == set(launcher.SURVIVES) - {"OMPI_MCA_btl"}
    for words in (["srun"], ["hydra"]):
        with pytest.raises(LaunchError, match="needs the mpirun of Open MPI 5"):
            launcher.prepare(words, ("prog",), site, elastic=True)


@pytest.mark.parametrize(
    ("words", "text"), [([], "--launcher is empty"), (["aprun", "-n"], "no program 'aprun'")]
)
def test_launchers_that_cannot_be(words, text, site):
    with pytest.raises(LaunchError, match=text):
        launcher.prepare(words, ("prog",), site)


def test_the_library_of_a_sites_mpirun_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("psgrad.launcher.os.geteuid", lambda: 1000)
    mpirun = tmp_path / "bin" / "mpirun"
    library = tmp_path / "lib" / "libmpi.so.40"
    for path in (mpirun, library):
        path.parent.mkdir()
        path.write_text("#!/bin/sh\necho 'mpirun (Open MPI) 5.0.11'\n")
        path.chmod(0o755)
    plan = launcher.prepare([str(mpirun)], ("prog",), {"PATH": "/usr/bin:/bin"})
    assert plan.env == {"MPI4PY_LIBMPI": str(library)}
