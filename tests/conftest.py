"""The ``mpi`` fixture: real ranks, on each MPI that is installed, under a hard limit of time.

A test that asks for it runs once an MPI, one that asks for ``any_mpi`` once. Both carry the mark
``mpi``: ``pytest -m "not mpi"``. The
MPIs are that of the Python environment that runs pytest and that of ``.venv-mpich`` (``bin/test``
makes both), or with ``PSGRAD_MPI=system`` the one on PATH alone.
"""

from __future__ import annotations

import pytest
from installed_mpi import Mpi, installed

MPIS = installed()


@pytest.fixture(params=list(MPIS))
def mpi(request: pytest.FixtureRequest) -> Mpi:
    """An installed MPI: ``status, stdout, stderr = mpi.run(4, ["-c", "..."], timeout=60)``."""
    found = MPIS[request.param]
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def any_mpi() -> Mpi:
    """One installed MPI, for what cannot differ between them: files, codecs, words."""
    found = next((each for each in MPIS.values() if isinstance(each, Mpi)), None)
    if found is None:
        pytest.skip("; ".join(map(str, MPIS.values())))
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"mpi", "any_mpi"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.mpi)
