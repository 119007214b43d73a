"""The MPI carrier, on real ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "ranks" / "transport.py"


@pytest.mark.parametrize("case", ["messages", "exchange", "subgroup"])
def test_contract(mpi, case):
    status, stdout, stderr = mpi.run(3, [PROGRAM, case])
    assert status == 0, stderr
    assert stdout.split() == ["ok"] * 3


def test_a_place_of_another_size_is_refused(mpi):
    status, _, stderr = mpi.run(2, [PROGRAM, "mismatch"])
    assert status == 1
    assert "rank 0 announces 8 bytes of PUSH where 9 are expected" in stderr
