"""What records say of the machine."""

from __future__ import annotations

import platform
import re

import pytest

from psgrad.bench import machine


def test_the_facts():
    facts = machine.describe(mpi=False)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", facts["date"])
    assert facts["cores"] >= 1
    assert all(facts[name] for name in ("host", "cpu", "kernels", "python", "numpy", "psgrad"))
    assert "mpi" not in facts


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (["processor\t: 0", "model name\t: A Processor: fast", "model name\t: B"], "A Processor: "
                                                                                  "fast"),
        (["processor : 0", "CPU part : 0xd0c"], platform.machine()),
        ([], platform.machine()),
    ],
)  # fmt: skip
def test_the_model_of_the_processor(lines, name):
    assert machine.model_name(lines) == name


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("Open MPI v5.0.11, package: Open MPI x, ident: 5.0.11\0", "Open MPI v5.0.11"),
        ("MPICH Version:      5.0.2\nMPICH Release date: x", "MPICH Version: 5.0.2"),
        ("Intel(R) MPI Library 2021.17 for Linux* OS\n", "Intel(R) MPI Library 2021.17 for Linux* "
                                                         "OS"),
    ],
)  # fmt: skip
def test_the_name_of_the_mpi(version, name):
    assert machine.library(version) == name
