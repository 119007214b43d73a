"""The MPI carrier, on real ranks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import transport_losses
from transport_losses import LOSSES, VICTIM
from transport_scenarios import RANKS, REFUSED, SCENARIOS

PROGRAM = Path(__file__).parent / "ranks" / "transport.py"


def test_contract(mpi):
    """All scenarios in one job: it is the start of the ranks that takes long."""
    status, stdout, stderr = mpi.run(RANKS, [PROGRAM, *SCENARIOS])
    assert status == 0, stderr
    assert Counter(stdout.split()) == dict.fromkeys(SCENARIOS, RANKS)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(mpi, name):
    _, expected, text = REFUSED[name]
    status, _, stderr = mpi.run(2, [PROGRAM, name])
    assert status == expected
    assert text in stderr


@pytest.mark.parametrize("name", LOSSES)
def test_ranks_may_die(mpi, name):
    if mpi.name != "openmpi":
        pytest.skip(f"ranks may die on Open MPI 5, this is {mpi.name}")
    status, stdout, stderr = mpi.run(transport_losses.RANKS, [PROGRAM, name], elastic=True)
    assert status == 0, stderr
    alive = RANKS if name.startswith("who_") else VICTIM
    assert stdout.split() == [name] * alive
    assert "Traceback" not in stderr
