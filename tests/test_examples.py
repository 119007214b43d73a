"""The examples on real ranks: each prints what it has learned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RANKS = 4

pytestmark = pytest.mark.mpi


def output_of(mpi, name):
    status, stdout, stderr = mpi.run(RANKS, [EXAMPLES / name], timeout=60)
    assert status == 0, stderr
    return stdout


def accuracy_in(stdout):
    found = re.search(r"test accuracy (0\.\d+|1\.0+)", stdout)
    assert found, stdout
    return float(found[1])


def test_linear_regression(mpi):
    assert output_of(mpi, "linear_regression.py") == "w = [1. 2. 3. 4. 5.]\n"


def test_own_model(mpi):
    assert accuracy_in(output_of(mpi, "own_model.py")) >= 0.93


def test_custom_loop(mpi):
    stdout = output_of(mpi, "custom_loop.py")
    assert "steps by worker [450, 900, 1350], last rate 0.1" in stdout
    assert accuracy_in(stdout) >= 0.93
