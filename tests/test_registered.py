"""A worker's chunks, once the parameters are known."""

from __future__ import annotations

import numpy as np
import pytest

from psgrad.errors import ProtocolError
from psgrad.layout import Layout
from psgrad.optimizers import SGD
from psgrad.options import Options
from psgrad.registered import Registered
from psgrad.sharing import WorkerMemory

LAYOUT = Layout.of({"w": np.zeros(64, np.float32)})


def test_a_chunk_that_there_is_not_is_refused():
    """Its number comes by message."""
    options = Options(optimizer=SGD(1.0), chunk_bytes=128)
    state = Registered.of(LAYOUT, options, 1, 0, WorkerMemory.private(LAYOUT.size))
    assert [state.params_of(i).size for i in range(2)] == [32, 32]
    for read in (state.params_of, state.take_shared):
        with pytest.raises(ProtocolError, match="a server sends chunk 2, there are 2"):
            read(2)
