"""psgrad slurm init and check as they are called, and the scripts that come with psgrad."""

from __future__ import annotations

import itertools
import re
import subprocess

import pytest
from installed_mpi import ROOT

from psgrad.cli import main
from psgrad.errors import ConfigError
from psgrad.slurm.check import check
from psgrad.slurm.finding import Site
from psgrad.slurm.init import Wanted, script

SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))
NAMES = ["array", "elastic", "het", "multi-node", "preemptible", "single-node"]
STARTED = {"het": "mpich", "elastic": "openmpi"}  # these are for one MPI alone


def test_all_scripts_are_there():
    assert [path.stem for path in SCRIPTS] == NAMES


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("mpi", ["openmpi", "mpich"])
def test_the_scripts_of_psgrad_are_right(path, mpi, tmp_path):
    text = path.read_text()
    if STARTED.get(path.stem, mpi) == mpi:
        assert check(text, Site(mpi, tmp_path)) == []
    assert all(len(line) <= 100 for line in text.splitlines())
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_options_that_are_switched_off_are_right_as_well(path, tmp_path):
    text = re.sub(r"^##SBATCH", "#SBATCH", path.read_text(), flags=re.MULTILINE)
    assert text.count("\n#SBATCH") > path.read_text().count("\n#SBATCH")
    assert check(text, Site(STARTED.get(path.stem, "openmpi"), tmp_path)) == []


@pytest.mark.parametrize(
    ("nodes", "launcher", "requeue"),
    list(itertools.product((1, 2), ("mpirun", "srun"), (False, True))),
)
def test_what_init_writes_is_right(nodes, launcher, requeue, tmp_path):
    wanted = Wanted(
        nodes=nodes, launcher=launcher, requeue=requeue, cpus_per_task=4, gpus=3, mem="64G",
        partition="gpu", account="me", qos="low", modules=("python/3.11", "openmpi"),
        venv="/home/a b/venv/",
    )  # fmt: skip
    text = script(wanted)
    assert check(text, Site("mpich", tmp_path)) == []
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    for asked in ("--partition=gpu", "--account=me", "--qos=low", "--mem=64G", "--gpus-per-node=3"):
        assert f"#SBATCH {asked} " in text
    assert "module load python/3.11 openmpi\n" in text
    assert "source '/home/a b/venv/bin/activate'\n" in text
    assert all(" # " in line for line in text.splitlines() if line.startswith("#SBATCH"))
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"partition": "a b"}, "--partition must be one word of Slurm's, got 'a b'"),
        ({"account": "x;rm"}, "--account must be one word"),
        ({"modules": ("a", "$(b)")}, "--module must be one word"),
        ({"mem": "1G\n#SBATCH"}, "--mem must be one word"),
        ({"servers": 8}, "8 servers leave no worker among 8 ranks"),
        ({"nodes": 2, "tasks_per_node": 1}, "2 servers leave no worker among 2 ranks"),
        ({"requeue": True, "time": "10"}, "--requeue needs more than 10 minutes, got --time 10"),
    ],
)
def test_scripts_that_cannot_be(change, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        Wanted(**change)


def test_init_writes_a_file_that_check_likes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["slurm", "init", "--gpus", "3", "--module", "cuda", "--output", "my.sbatch"]) == 0
    assert "sbatch my.sbatch" in capsys.readouterr().out
    assert main(["slurm", "check", "my.sbatch", "--mpi", "openmpi"]) == 0
    assert capsys.readouterr().out == "no mistakes found (MPI: openmpi)\n"
    assert main(["slurm", "init", "--output", "my.sbatch"]) == 2
    assert "cannot write my.sbatch: File exists" in capsys.readouterr().err


def test_check_names_file_and_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.sbatch").write_text("#!/bin/sh\n#SBATCH -n 4\nsrun --mpi=pmix psgrad train\n")
    assert main(["slurm", "check", "a.sbatch", "--mpi", "mpich"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("a.sbatch:3: mpich speaks pmix only where it was built for it; ")
    assert said.endswith("; write --mpi=pmi2\n")


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["check", "none.sbatch"], "cannot read none.sbatch: No such file"),
        (["check"], "the following arguments are required: FILE"),
        (["init", "--time", "soon"], "expected minutes, or a time"),
        (["init", "--launcher", "ssh"], "invalid choice: 'ssh'"),
        ([], "required: command"),
    ],
)
def test_wrong_arguments(argv, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["slurm", *argv]) == 2
    assert text in capsys.readouterr().err
