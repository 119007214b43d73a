"""What goes wrong where a script starts ranks: how many, where, with which cores and GPUs."""

from __future__ import annotations

import re
from typing import Final

from psgrad.slurm.finding import Finding, Findings, Site
from psgrad.slurm.script import Script
from psgrad.slurm.words import option

SPEAKS: Final = {"mpich": ("pmi2",), "intel": ("pmi2",), "openmpi": ("pmix",)}
NUMBER: Final = {"srun": ("-n", "--ntasks"), "mpirun": ("-n", "-np", "--np")}
MPIRUN: Final = ("mpirun", "mpiexec")


def srun_has_its_cores(script: Script, site: Site) -> Findings:
    """Since 22.05 srun does not take ``--cpus-per-task`` from the job."""
    cpus = script.find("cpus-per-task")
    if cpus is None or "SRUN_CPUS_PER_TASK" in script.variables:
        return
    for start in script.launches:
        if start.program != "srun" or option(start.launcher, "-c", "--cpus-per-task"):
            continue
        group = cpus.group
        if script.number("cpus-per-task", group) == 1:
            continue
        yield Finding(
            start.command.line,
            f"srun gives each rank one core, not {cpus.value}: since Slurm 22.05 it does not take "
            "--cpus-per-task from the job",
            f"add --cpus-per-task={cpus.value} to srun, or export SRUN_CPUS_PER_TASK={cpus.value}",
        )


def srun_speaks_to_the_mpi(script: Script, site: Site) -> Findings:
    """Ranks of the wrong ``--mpi`` are so many jobs of one rank each, or do not start."""
    for start in script.starts:
        if start.program != "srun":
            continue
        given = option(start.launcher, "--mpi") or script.variables.get("SLURM_MPI_TYPE")
        right = SPEAKS.get(site.mpi)
        line = start.command.line
        if given is None:
            yield Finding(
                line,
                "what srun --mpi is depends on the site, and with none all ranks are 0 of 1",
                f"add --mpi={(right or ('pmi2',))[0]}; srun --mpi=list shows what there is",
            )
        elif right and not given.startswith(right):
            cure = (
                "start it with mpirun instead (--launcher mpirun), or use MPICH"
                if site.mpi == "openmpi"
                else f"write --mpi={right[0]}"
            )
            if site.mpi != "openmpi" and given.startswith("pmix"):
                what = f"{site.mpi} speaks pmix only where it was built for it; if not,"
            else:
                what = f"{site.mpi} does not speak {given}:"
            yield Finding(line, f"{what} all ranks would be 0 of 1", cure)


def starts_ranks_once(script: Script, site: Site) -> Findings:
    """psgrad run inside of a launcher, psgrad train outside of one, or on one node of several."""
    nodes = script.number("nodes") or 1
    for start in script.starts:
        line = start.command.line
        outer = start.command.program
        if start.run is not None and outer in ("srun", *MPIRUN):
            yield Finding(
                line,
                f"{outer} starts psgrad run once for each task, and each of those a job of its own",
                f'turn it round: psgrad run --launcher "{outer} ..." -- ...',
            )
        elif start.run is None and not start.launcher:
            yield Finding(
                line,
                "psgrad train by itself is one rank",
                "start it with psgrad run --launcher mpirun -- ...",
            )
        elif start.run is not None and not start.launcher and (nodes > 1 or script.groups > 1):
            yield Finding(
                line,
                "psgrad run without --launcher starts all ranks on the first node, and the others "
                "lie idle",
                "add --launcher mpirun",
            )
        if start.run and "--elastic" in start.run and start.program == "srun":
            yield Finding(
                line,
                "under srun the death of one rank ends all of them",
                "--elastic needs --launcher mpirun, that of Open MPI 5",
            )


def starts_as_many_as_there_are(script: Script, site: Site) -> Findings:
    """Numbers of ranks that are written down twice, and differ."""
    tasks = script.number("ntasks")
    if tasks is None and (each := script.number("ntasks-per-node")):
        tasks = each * (script.number("nodes") or 1)
    ranks = tasks or script.number("nodes") or 1
    for start in script.starts:
        line = start.command.line
        names = NUMBER.get("srun" if start.program == "srun" else "mpirun", ())
        text = option(start.launcher or start.run or (), *names)
        if text and text.isdecimal() and script.groups == 1 and int(text) > ranks:
            yield Finding(
                line,
                f"{text} ranks are started, and the job has room for {ranks}",
                f"ask for --ntasks={text}, or leave the number away: {start.program or 'Slurm'} "
                "knows it"
                if start.launcher
                else f'ask for --ntasks={text}, or write --np "$SLURM_NTASKS"',
            )
        elif script.groups == 1 and ranks == 1 and not (text and "$" not in text):
            yield Finding(
                line,
                "the job has one task, and psgrad needs a server and a worker at least",
                "add #SBATCH --ntasks=4",
            )


def reaches_all_groups(script: Script, site: Site) -> Findings:
    """In a heterogeneous job a launcher starts group 0 alone, if it is not told otherwise."""
    for start in script.starts if script.groups > 1 else []:
        line = start.command.line
        if start.program == "srun" and option(start.launcher, "--het-group") is None:
            numbers = ",".join(str(group) for group in range(script.groups))
            yield Finding(line, "srun starts group 0 alone", f"add --het-group={numbers}")
        elif start.program in MPIRUN:
            yield Finding(
                line,
                "mpirun knows of the nodes of group 0 alone",
                "use srun --het-group, with MPICH and --mpi=pmi2",
            )


def leaves_servers_without_gpus(script: Script, site: Site) -> Findings:
    """``--gpus-per-task`` gives servers one each, which they do not use."""
    for start in script.starts:
        asked = script.find("gpus-per-task", 0)  # another group has no servers
        if asked or option(start.launcher, "--gpus-per-task"):
            yield Finding(
                asked.line if asked else start.command.line,
                "each server would have a GPU, too, and not use it",
                "write --gpus-per-node=N with N workers on a node, or servers in a group of their "
                "own (slurm/het.sbatch)",
            )


def has_threads_for_its_cores(script: Script, site: Site) -> Findings:
    """More threads than cores make each step many times slower."""
    threads = script.variables.get("OMP_NUM_THREADS", "")
    cores = script.number("cpus-per-task") or 1
    if threads.isdecimal() and int(threads) > cores:
        line = _line(script, r"\bOMP_NUM_THREADS=")
        yield Finding(
            line,
            f"{threads} threads get in each other's way where a rank has --cpus-per-task={cores}",
            "leave OMP_NUM_THREADS away: psgrad sets it by the cores",
        )


def keeps_runs_apart(script: Script, site: Site) -> Findings:
    """Jobs of an array, or several jobs of one script, do not share a run folder."""
    for start in script.starts:
        folder = option(start.train, "--run-dir")
        if folder and "$" not in folder and script.find("array"):
            yield Finding(
                start.command.line,
                f"all jobs of the array have the run folder {folder}",
                f'write --run-dir "{folder}/$SLURM_ARRAY_TASK_ID"',
            )


def _line(script: Script, pattern: str) -> int:
    lines = enumerate(script.text.splitlines(), 1)
    return next((number for number, text in lines if re.search(pattern, text)), 1)


START_RULES: Final = (
    srun_has_its_cores,
    srun_speaks_to_the_mpi,
    starts_ranks_once,
    starts_as_many_as_there_are,
    reaches_all_groups,
    leaves_servers_without_gpus,
    has_threads_for_its_cores,
    keeps_runs_apart,
)
