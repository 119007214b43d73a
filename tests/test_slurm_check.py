"""psgrad slurm check: every mistake is seen where it is, and what is right is left alone."""

from __future__ import annotations

import pytest

from psgrad.slurm.check import check
from psgrad.slurm.finding import Site
from psgrad.slurm.option_rules import OPTION_RULES
from psgrad.slurm.script import parse
from psgrad.slurm.start_rules import START_RULES

SRUN = """\
#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=01:00:00
#SBATCH --output=%x-%j.out
srun --mpi=pmi2 --cpus-per-task=8 psgrad train --run-dir "runs/$SLURM_JOB_ID" "$@"
"""
RUN = """\
#!/bin/bash
#SBATCH -N 2 --ntasks-per-node 4 # a comment
#SBATCH -t 60
launcher="mpirun --bind-to none"
psgrad run --launcher "$launcher" -- \\
    --checkpoint-every 600s "$@"
"""
AGAIN = """\
#!/bin/bash
#SBATCH --ntasks=4
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
trap 'kill -USR1 "$job"' USR1
psgrad run --np "$SLURM_NTASKS" -- --resume auto --run-dir runs/$SLURM_JOB_ID "$@" & job=$!
wait "$job"
"""
HET = """\
#!/bin/bash
#SBATCH --ntasks=2
#SBATCH hetjob
#SBATCH --ntasks=4
#SBATCH --gpus-per-task=1
srun --mpi=pmi2 --het-group=0,1 psgrad train "$@"
"""
ARRAY = """\
#!/bin/bash
#SBATCH --array=0-3
#SBATCH --ntasks=4
#SBATCH --output=%A-%a.out
rates=(1 2 3 4)
psgrad run --np 4 -- --run-dir runs/${rates[$SLURM_ARRAY_TASK_ID]} "$@"
"""
GOOD = {"srun": SRUN, "run": RUN, "again": AGAIN, "het": HET, "array": ARRAY}

# script, what is replaced, by what, the line of the finding, words of it
PLANTED = [
    (SRUN, "#!/bin/bash\n", "# psgrad\n", 1, "without an interpreter"),
    (SRUN, "nodes=2\n", "nodes=2\r\n", 2, "as on Windows"),
    (SRUN, "#SBATCH --output", "echo\n#SBATCH --output", 7, "behind the first command"),
    (SRUN, "#SBATCH --time", "# SBATCH --time", 5, "a comment for Slurm"),
    (SRUN, "#SBATCH --time", "#sbatch --time", 5, "a comment for Slurm"),
    (SRUN, "#SBATCH --time", "  #SBATCH --time", 5, "a comment for Slurm"),
    (SRUN, "%x-%j.out", "$HOME/out", 6, "no shell reads"),
    (SRUN, "%x-%j.out", "~/%j.out", 6, "no shell reads"),
    (SRUN, "%x-%j.out", "logs/%j.out", 6, "no folder logs"),
    (SRUN, " --cpus-per-task=8 psgrad", " psgrad", 7, "gives each rank one core, not 8"),
    (SRUN, "--cpus-per-task=8 psgrad", "python -m psgrad", 7, "gives each rank one core, not 8"),
    (SRUN, "--mpi=pmi2 ", "", 7, "depends on the site"),
    (SRUN, "--mpi=pmi2", "--mpi=pmix", 7, "mpich speaks pmix only"),
    (SRUN, "psgrad train", "psgrad run --", 7, "once for each task"),
    (SRUN, "--cpus-per-task=8 psgrad", "-c8 -n 16 psgrad", 7, "16 ranks are started"),
    (SRUN, "--cpus-per-task=8 p", "-c 8 --gpus-per-task=1 p", 7, "each server would have a GPU"),
    (SRUN, "srun", "OMP_NUM_THREADS=16 srun", 7, "16 threads"),
    (SRUN, "srun", "export OMP_NUM_THREADS=16; srun", 7, "16 threads"),
    (SRUN, "train", "train --checkpoint-every 3600s", 7, "before its first checkpoint"),
    (SRUN, "srun --mpi=pmi2 --cpus-per-task=8 ", "", 7, "is one rank"),
    (RUN, "-t 60", "-t 10", 5, "before its first checkpoint"),
    (RUN, "--launcher", "--elastic --launcher srun --x", 5, "death of one rank"),
    (RUN, '--launcher "$launcher"', "--np 8", 5, "on the first node"),
    (RUN, "#SBATCH -N 2", "#SBATCH --gpus-per-task=1 -N 2", 2, "each server would have a GPU"),
    (RUN, "none", "none -np 9", 5, "9 ranks are started, and the job has room for 8"),
    (AGAIN, "#SBATCH --requeue\n", "", 5, "may not go back"),
    (AGAIN, "#SBATCH --open-mode=append\n", "", 4, "the output begins anew"),
    (AGAIN, "append", "truncate", 4, "the output begins anew"),
    (AGAIN, "--resume auto ", "", 8, "would not go on"),
    (AGAIN, "--run-dir runs/$SLURM_JOB_ID ", "", 8, "new run folder"),
    (AGAIN, "04:00:00", "5", 6, "stopped as it starts"),
    (AGAIN, "trap 'kill -USR1 \"$job\"' USR1\n", "", 6, "has no trap for it"),
    (AGAIN, '"$@" &', '"$@";', 8, "until this one has ended"),
    (AGAIN, "B:USR1", "USR1", 6, "steps of srun"),
    (AGAIN, '"$SLURM_NTASKS"', "6", 8, "6 ranks are started, and the job has room for 4"),
    (AGAIN, "#SBATCH --ntasks=4\n", "", 7, "the job has one task"),
    (HET, " --het-group=0,1", "", 6, "group 0 alone"),
    (HET, "srun --mpi=pmi2 --het-group=0,1", "mpirun", 6, "group 0 alone"),
    (HET, "#SBATCH --ntasks=2", "#SBATCH --ntasks=2 --gpus-per-task=1", 2, "a GPU"),
    (ARRAY, "%A-%a.out", "%A.out", 4, "all jobs of the array write"),
    (ARRAY, "${rates[$SLURM_ARRAY_TASK_ID]}", "mine", 6, "have the run folder runs/mine"),
]


@pytest.mark.parametrize("name", GOOD)
def test_nothing_is_found_in_what_is_right(name, tmp_path):
    assert check(GOOD[name], Site("mpich", tmp_path)) == []


@pytest.mark.parametrize(("script", "old", "new", "line", "words"), PLANTED)
def test_a_planted_mistake_is_found_where_it_is(script, old, new, line, words, tmp_path):
    assert old in script
    found = check(script.replace(old, new, 1), Site("mpich", tmp_path))
    first, *more = [finding for finding in found if words in finding.what]
    assert (first.line, more) == (line, []), found
    assert first.cure


def test_every_rule_has_been_broken(tmp_path):
    site = Site("mpich", tmp_path)
    scripts = [parse(script.replace(old, new, 1)) for script, old, new, *_ in PLANTED]
    for rule in (*OPTION_RULES, *START_RULES):
        assert any(list(rule(script, site)) for script in scripts), rule.__name__


@pytest.mark.parametrize(
    ("mpi", "given", "right"),
    [
        ("mpich", "pmi2", True), ("mpich", "pmix", False), ("openmpi", "pmix", True),
        ("openmpi", "pmix_v4", True), ("openmpi", "pmi2", False), ("intel", "pmi2", True),
        ("unknown", "pmix", True), ("unknown", "pmi2", True), ("mpich", "none", False),
    ],
)  # fmt: skip
def test_what_srun_must_speak(mpi, given, right, tmp_path):
    found = check(SRUN.replace("pmi2", given), Site(mpi, tmp_path))
    assert (found == []) == right


@pytest.mark.parametrize(
    "change",
    [
        ("--cpus-per-task=8 psgrad", "-c8 psgrad"),
        ("--cpus-per-task=8 psgrad", "-c 8 psgrad"),
        ("srun --mpi=pmi2 --cpus-per-task=8", "export SRUN_CPUS_PER_TASK=8\nsrun --mpi=pmi2"),
        ("srun --mpi=pmi2", "export SLURM_MPI_TYPE=pmi2\nsrun"),
        ("srun --mpi", "exec srun --mpi"),
        ("srun --mpi=pmi2 -", "/opt/slurm/bin/srun --mpi pmi2 -"),
        ("--output=%x-%j.out", "--output=%u/%j.out"),
        ("srun", "# srun psgrad run without anything\nsrun"),
        ("srun", "if true; then srun"),
        ("srun", "cat <<'END'\nit's no command\nEND\nsrun"),
        ("srun", "hostname | tee where\nsrun"),
    ],
)
def test_other_ways_to_write_it(change, tmp_path):
    assert change[0] in SRUN
    assert check(SRUN.replace(*change), Site("mpich", tmp_path)) == []


def test_an_output_folder_that_is_there(tmp_path):
    (tmp_path / "logs").mkdir()
    text = SRUN.replace("%x-%j.out", "logs/%j.out")
    assert check(text, Site("mpich", tmp_path)) == []


def test_a_finding_reads_like_a_compilers():
    (found,) = check(SRUN.replace("--mpi=pmi2 ", ""), Site("mpich"))
    assert str(found) == (
        "7: what srun --mpi is depends on the site, and with none all ranks are 0 of 1; "
        "add --mpi=pmi2; srun --mpi=list shows what there is"
    )
