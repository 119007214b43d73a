"""The format of MNIST: images, the labels beside them, and the offset of what is refused."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
from data_files import refused, write

from psgrad.data.idx import read_idx
from psgrad.errors import DataError


def idx(array, kind=0x08):
    sizes = b"".join(struct.pack(">I", size) for size in array.shape)
    return bytes([0, 0, kind, array.ndim]) + sizes + array.tobytes()


IMAGES = np.arange(12, dtype=np.uint8).reshape(3, 2, 2) * 20
LABELS = np.array([2, 0, 1], np.uint8)


def mnist(folder, images, labels, names=("train-images-idx3-ubyte", "train-labels-idx1-ubyte")):
    for name, content in zip(names, (images, labels), strict=True):
        write(folder / name, gzip.compress(content) if name.endswith(".gz") else content)
    return folder / names[0]


@pytest.mark.parametrize(
    "names",
    [
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        ("t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte.gz"),
        ("images.idx.gz", "labels.idx"),
    ],
)
def test_idx(tmp_path, names):
    data = read_idx(mnist(tmp_path, idx(IMAGES), idx(LABELS), names))
    x, labels = data.batch(np.array([2, 0]))
    assert (len(data), data.features, data.classes, data.name) == (3, 4, 3, names[0])
    assert (x.dtype, labels.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(x, np.float32([[160, 180, 200, 220], [0, 20, 40, 60]]) / 255)
    assert labels.tolist() == [1, 2]


HUGE = bytes([0, 0, 8, 3]) + b"\xff" * 12


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (b"", ": offset 0 is b''; an IDX file starts with two zero bytes"),
        (b"\x89PNG....", ": offset 0 is b'\\x89PNG'; an IDX"),
        (idx(IMAGES, kind=0x0D), ": element type 0x0d at offset 2; only unsigned bytes"),
        (bytes([0, 0, 8, 0]), ": 0 dimensions at offset 3, but the file ends"),
        (bytes([0, 0, 8, 3, 0, 0, 0]), ": 3 dimensions at offset 3, but the file ends"),
        (idx(IMAGES.reshape((3, 4) + 31 * (1,))), ": 33 dimensions at offset 3, the limit is 8"),
        (idx(LABELS), ": 1 dimension declared at offset 3; images have at least 2"),
        (idx(IMAGES[:0]), ": shape (0, 2, 2) declared at offset 4 is empty"),
        (idx(IMAGES)[:-1], ": shape (3, 2, 2) at offset 4 declares 12 bytes from offset 16, the"),
        (
            idx(IMAGES) + b"\0",
            ": shape (3, 2, 2) at offset 4 declares 12 bytes from offset 16, the",
        ),
        (HUGE, ": shape (4294967295, 4294967295, 4294967295) at offset 4 declares 792281624"),
    ],
)
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_idx_images_refused(tmp_path, images, text, packed):
    names = (f"images-idx3-ubyte{packed}", f"labels-idx1-ubyte{packed}")
    assert refused(read_idx, mnist(tmp_path, images, idx(LABELS), names)).startswith(text)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (idx(LABELS[:2]), ": shape (2,) declared at offset 4, but train-images-idx3-ubyte has 3"),
        (idx(IMAGES), ": shape (3, 2, 2) declared at offset 4, but train-images"),
        (idx(LABELS + 1), ": row 0, at offset 8: label 3 is out of range, the limit is 2"),
    ],
)
def test_idx_labels_refused(tmp_path, labels, text):
    path = mnist(tmp_path, idx(IMAGES), labels)
    with pytest.raises(DataError) as error:
        read_idx(path, classes=3)
    assert str(error.value).startswith(f"{tmp_path / 'train-labels-idx1-ubyte'}{text}")


def test_idx_names(tmp_path):
    wrong = write(tmp_path / "train-idx3-ubyte", idx(IMAGES))
    assert refused(read_idx, wrong).startswith(": an IDX images file has 'images' in its name")
    alone = write(tmp_path / "images-idx3-ubyte", idx(IMAGES))
    assert refused(read_idx, alone).startswith(": its labels file labels-idx1-ubyte does not exist")
    with pytest.raises(DataError, match="does not exist; check the path"):
        read_idx(tmp_path / "no-images-idx3-ubyte")


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"xx" + b, lambda b: b[:10]])
def test_idx_damaged_gzip(tmp_path, damage):
    names = ("images.idx.gz", "labels.idx.gz")
    path = mnist(tmp_path, idx(IMAGES), idx(LABELS), names)
    path.write_bytes(damage(path.read_bytes()))
    assert refused(read_idx, path).startswith(" is not a sound gzip file (")
