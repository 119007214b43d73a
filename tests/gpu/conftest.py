"""A test here asks for ``gpu``; where there is none it is skipped and says why."""

from __future__ import annotations

import pytest

from psgrad.errors import ConfigError
from psgrad.kernels import load


@pytest.fixture(scope="session")
def gpu():
    try:
        return load("gpu")
    except ConfigError as error:
        pytest.skip(str(error))
