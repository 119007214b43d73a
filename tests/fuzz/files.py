"""Data files and configurations: each input is a file, in memory where that can be."""

from __future__ import annotations

import atexit
import gzip
import io
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from fuzz.engine import Target
from psgrad import config, train
from psgrad.data import DatasetOptions, load

_MEMORY = Path("/dev/shm")
FOLDER = Path(tempfile.mkdtemp(prefix="psgrad-fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
LIMIT = 32 << 20  # a packed file of some KiB may hold a thousand times as much

X = np.arange(24, dtype=np.float32).reshape(6, 4)
Y = np.array([0, 1, 2, 0, 1, 2])


def loaded(name: str, **options: object) -> None:
    dataset = load(DatasetOptions(str(FOLDER / name), **options))
    assert len(dataset) > 0
    x, labels = dataset.batch(np.arange(min(3, len(dataset))))
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    assert labels.min() >= 0
    assert labels.max() < dataset.classes


def reader(name: str, **options: object):
    def read(sample: int, data: bytes) -> None:
        (FOLDER / name).write_bytes(data)
        loaded(name, **options)

    return read


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def read_member(sample: int, data: bytes) -> None:
    """The bytes of ``x``, in an archive whose checksums are right."""
    with zipfile.ZipFile(FOLDER / "member.npz", "w") as archive:
        archive.writestr("x.npy", data)
        archive.writestr("y.npy", npy(Y))
    loaded("member.npz")


def idx(array: np.ndarray) -> bytes:
    shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes()


def read_idx(sample: int, data: bytes) -> None:
    """Images, or labels, or images behind gzip, as the sample is."""
    parts = {"images": IDX[0], "labels": IDX[1], "packed": None}
    parts[("images", "labels", "packed")[sample]] = data
    name = "f-images-idx3-ubyte"
    (FOLDER / "f-labels-idx1-ubyte").write_bytes(parts["labels"])
    (FOLDER / name).write_bytes(parts["images"])
    if parts["packed"] is not None:
        name += ".gz"
        (FOLDER / name).write_bytes(parts["packed"])
    loaded(name)


def read_config(sample: int, data: bytes) -> None:
    path = FOLDER / "run.toml"
    path.write_bytes(data)
    train.configure([config.from_toml(path)])


IDX = (idx(np.arange(96).reshape(6, 4, 4)), idx(Y), gzip.compress(idx(np.arange(24).reshape(6, 4))))
TOML = b"""\
mode = "ssp"
staleness = 3
seed = 1
clip_norm = 0.5
codec = "topk:0.01+int8"
[model]
name = "mlp"
hidden = [32, 16]
[dataset]
name = "digits"
test_fraction = 0.25
[optimizer]
name = "adam"
learning_rate = 1e-3
[[segments]]
match = "*.bias"
weight_decay = 0.0
"""

FILES = tuple(
    Target(name, samples, read, limit=LIMIT, wire=False)
    for name, samples, read in (
        ("npz", (npz(x=X, y=Y), npz(y=Y, x=X.astype(np.float64))), reader("a.npz")),
        ("npy", (npy(X), npy(X.T), npy(np.zeros((6, 0)))), read_member),
        ("csv", (b"a,b,label\n1,2.5,0\n-3,4e2,1\n\n5,6,2\n", b"1,0\n2,1\n"), reader("a.csv")),
        ("libsvm", (b"1 1:0.5 3:2\n-1 2:1e3 # x\n+1\n", b"0 0:1\n1 0:2\n"), reader("a.svm")),
        ("idx", IDX, read_idx),
        ("text", ("Größe, so far; 1234567890".encode(), b"abcabcabcabc"), reader("a.txt")),
        ("config", (TOML,), read_config),
    )
)
