"""Whatever bytes a file holds, a reader gives sound data or a DataError."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from data_files import fuzz, write
from hypothesis import given
from hypothesis import strategies as st

from psgrad.data.csv import read_csv
from psgrad.data.idx import read_idx
from psgrad.data.libsvm import read_libsvm
from psgrad.data.npz import read_npz
from psgrad.data.text import read_text
from psgrad.errors import DataError

READERS = {
    "npz": read_npz,
    "csv": read_csv,
    "libsvm": read_libsvm,
    "idx": read_idx,
    "text": lambda path: read_text(path, context=2),
}


@pytest.mark.parametrize("kind", READERS)
@fuzz
@given(content=st.binary(max_size=40))
def test_any_bytes_are_data_or_a_data_error(tmp_path, kind, content):
    write(tmp_path / "labels-idx1-ubyte", struct.pack(">BBBBI3B", 0, 0, 8, 1, 3, 2, 0, 1))
    path = write(tmp_path / "images-idx3-ubyte", content)
    try:
        data = READERS[kind](path)
    except DataError:
        return
    x, labels = data.batch(np.arange(len(data)))
    assert x.shape == (len(data), data.features)
    assert np.isfinite(x).all()
    assert labels.min() >= 0
    assert labels.max() < data.classes


@pytest.mark.parametrize("kind", READERS)
def test_a_missing_file(tmp_path, kind):
    with pytest.raises(DataError, match=r"data file .*images\.none does not exist; check the path"):
        READERS[kind](tmp_path / "images.none")
