"""Who started a rank, by its environment; and which launchers and libraries do not go together."""

from __future__ import annotations

import pytest

from psgrad.doctor.launched import Launched, mismatch, vendor, version

OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_VERSION": "5.0.11",
    "PMIX_RANK": "2",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "3", "PMI_FD": "9", "HYDI_CONTROL_FD": "7"}
JOB = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "6", "SLURM_PROCID": "0"}
STEP = {**JOB, "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6"}
OMPI5, OMPI4, MPICH, INTEL = (
    "Open MPI v5.0.11",
    "Open MPI v4.1.4",
    "MPICH 5.0.2",
    "Intel(R) MPI Library 2021.13 for Linux* OS",
)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Launched()),
        (OPENMPI, Launched("openmpi", 2, 4, "5.0.11", pmix=True)),
        (
            {**OPENMPI, "OMPI_MCA_mpi_ft_enable": "1"},
            Launched("openmpi", 2, 4, "5.0.11", pmix=True, tolerant=True),
        ),
        (HYDRA, Launched("hydra", 1, 3, pmi=True)),
        (STEP, Launched("srun", 5, 6)),
        ({**STEP, "PMI_RANK": "5", "PMI_SIZE": "6"}, Launched("srun", 5, 6, pmi=True)),
        ({**STEP, "PMIX_RANK": "5"}, Launched("srun", 5, 6, pmix=True)),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "2"}, Launched("srun", 5, 6)),  # of one component
        (
            {**STEP, "SLURM_CPUS_PER_TASK": "8"},
            Launched("srun", 5, 6, cpus_per_task=8),
        ),
        # Launchers that have started their ranks through srun, or within a batch script.
        ({**STEP, **OPENMPI}, Launched("openmpi", 2, 4, "5.0.11", pmix=True)),
        ({**STEP, **HYDRA}, Launched("hydra", 1, 3, pmi=True)),
        ({**JOB, **OPENMPI}, Launched("openmpi", 2, 4, "5.0.11", pmix=True, allocation=6)),
        # A batch script itself.
        (JOB, Launched(allocation=6)),
        ({**JOB, "SLURM_STEP_ID": "4294967291"}, Launched(allocation=6)),
        ({"OMPI_COMM_WORLD_RANK": "x", "OMPI_COMM_WORLD_SIZE": "4"}, Launched()),
        ({"PMI_RANK": "0"}, Launched(pmi=True)),
    ],
)
def test_who_started_this_rank(environ, expected):
    assert Launched.of(environ) == expected


@pytest.mark.parametrize(
    ("environ", "rank", "size"),
    [
        ({}, 0, 1),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 2, 4),
        ({"MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "3"}, 1, 3),
        ({"SLURM_LOCALID": "5"}, 5, 1),
        ({"MPI_LOCALRANKID": "x", "MPI_LOCALNRANKS": "0"}, 0, 1),
    ],
)
def test_places_on_the_node(environ, rank, size):
    found = Launched.of(environ)
    assert (found.local_rank, found.local_size) == (rank, size)


@pytest.mark.parametrize(
    ("library", "name", "number"),
    [
        (OMPI5, "openmpi", "5.0.11"),
        (OMPI4, "openmpi", "4.1.4"),
        (MPICH, "mpich", "5.0.2"),
        (INTEL, "intel", "2021.13"),
        ("CRAY MPICH version 8.1.29", "mpich", "8.1.29"),
        ("Something else", "", ""),
        ("", "", ""),
    ],
)
def test_whose_library(library, name, number):
    assert (vendor(library), version(library)) == (name, number)


MPIEXEC = Launched("openmpi", 0, 4, "5.0.11", pmix=True)
HYDRAS = Launched("hydra", 0, 4, pmi=True)


@pytest.mark.parametrize(
    ("launched", "library", "text"),
    [
        (MPIEXEC, MPICH, "Open MPI's mpiexec starts ranks that load MPICH 5.0.2"),
        (MPIEXEC, INTEL, "Open MPI's mpiexec starts ranks that load Intel(R) MPI"),
        (HYDRAS, OMPI5, "the mpiexec of MPICH or Intel MPI starts ranks that load Open MPI v5"),
        (Launched("srun", 0, 4), MPICH, "nothing of each other (--mpi=none)"),
        (Launched("srun", 0, 4), OMPI5, "nothing of each other (--mpi=none)"),
        (Launched("srun", 0, 4, pmi=True), OMPI5, "srun speaks PMI-2, Open MPI v5.0.11 needs PMIx"),
    ],
)
def test_what_does_not_go_together(launched, library, text):
    assert text in mismatch(launched, library)


@pytest.mark.parametrize(
    ("launched", "library"),
    [
        (MPIEXEC, OMPI5),
        (HYDRAS, MPICH),
        (HYDRAS, INTEL),
        (Launched("srun", 0, 4, pmi=True), MPICH),
        (Launched("srun", 0, 4, pmix=True), OMPI5),
        (Launched("srun", 0, 4, pmi=True), OMPI4),  # built with PMI-2, maybe
        (Launched("hydra", 0, 1, pmi=True), OMPI5),  # one rank is what it would be anyway
        (Launched(), OMPI5),
        (MPIEXEC, "Something else"),
    ],
)
def test_what_may_go_together(launched, library):
    assert mismatch(launched, library) == ""
