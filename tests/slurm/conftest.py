"""A real Slurm for the tests here; where there can be none they are skipped, and say why."""

from __future__ import annotations

import pytest
from slurm_cluster import missing, running


@pytest.fixture(scope="session")
def cluster():
    if why := missing():
        pytest.skip(why)
    with running() as found:
        yield found
