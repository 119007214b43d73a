"""NumPy archives: what is read, what is refused, and that no declared size is believed."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import pytest
from data_files import refused, write

from psgrad.data.npz import read_npz
from psgrad.errors import DataError


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["?", "u1", ">i4", "<f2", "f4", "f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_any_real_dtype(tmp_path, save, dtype, order):
    x = np.asarray([[0, 1, 1], [1, 0, 1]], dtype, order=order)
    save(tmp_path / "a.npz", x=x, y=np.array([1, 0]), extra=np.zeros(3))
    data = read_npz(tmp_path / "a.npz")
    batch, labels = data.batch(np.array([1, 0, 1]))
    assert (data.classes, batch.dtype, batch.flags.c_contiguous) == (2, np.float32, True)
    assert batch.tolist() == [[1, 0, 1], [0, 1, 1], [1, 0, 1]]
    assert labels.tolist() == [0, 1, 0]


def test_npz_flattens_and_takes_whole_floats_as_labels(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(12).reshape(2, 2, 3), y=np.array([2.0, 0.0]))
    data = read_npz(tmp_path / "a.npz", divisor=2.0)
    assert data.x[1].tolist() == [3, 3.5, 4, 4.5, 5, 5.5]
    assert (data.labels.dtype, data.labels.tolist(), data.classes) == (np.int64, [2, 0], 3)


X, Y = np.zeros((3, 2)), np.array([0, 1, 2])


def x_with(value, dtype=np.float64):
    x = np.zeros((3, 2), dtype)
    x[1, 0] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": X}, " has no array 'y' (found: x); write it with np.savez"),
        ({"data": X, "y": Y}, " has no array 'x' (found: data, y); write"),
        ({"x": X, "y": Y[:2]}, ": x has 3 rows but y has 2"),
        ({"x": X[:, 0], "y": Y}, ": x must be [rows, features], got shape (3,)"),
        ({"x": X, "y": Y[:, None]}, ": y must be [rows], got shape (3, 1); try y.ravel()"),
        ({"x": X[:0], "y": Y[:0]}, ": x is empty, shape (0, 2); at least 1 row"),
        ({"x": X[:, :0], "y": Y}, ": x is empty, shape (3, 0); at least 1 row and 1 feature"),
        ({"x": X.astype(complex), "y": Y}, ": array 'x' has dtype complex128; it must be"),
        ({"x": X, "y": Y.astype(str)}, ": array 'y' has dtype <U"),
        ({"x": X.astype(object), "y": Y}, ": array 'x' has dtype object; it must be"),
        ({"x": x_with(np.nan), "y": Y}, ": x[1, 0] is nan: row 1, column 0 (from 0) is not"),
        ({"x": x_with(-np.inf), "y": Y}, ": x[1, 0] is -inf: row 1, column 0"),
        ({"x": x_with(1e39), "y": Y}, ": x[1, 0] is 1e+39: row 1, column 0"),
        ({"x": X, "y": Y - 1}, ": y[0]: label -1 is negative; number the classes from 0"),
        ({"x": X, "y": Y / 2}, ": y[1]: label 0.5 is not a whole number; labels are 0 to"),
        ({"x": X, "y": np.array([0, 1, np.nan])}, ": y[2]: label nan is not a whole number"),
        ({"x": X, "y": np.array([0, np.inf, 1])}, ": y[1]: label inf is not a whole number"),
        ({"x": X, "y": Y + 65535}, ": y[1]: label 65536 is out of range, the limit is 65535"),
    ],
)
def test_npz_refused(tmp_path, arrays, text):
    np.savez(tmp_path / "a.npz", **arrays)
    assert refused(read_npz, tmp_path / "a.npz").startswith(text)


def test_npz_label_beyond_the_classes(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    text = refused(read_npz, tmp_path / "a.npz", classes=2)
    assert text == ": y[2]: label 2 is out of range, the limit is 1"


@pytest.mark.parametrize("shape", [(1 << 40, 64), (3, 3), (2, 2), (-3, -2)])
def test_npz_declared_size_is_not_believed(tmp_path, shape):
    member = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
    member.write(bytes(48))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", member.getvalue())
    text = refused(read_npz, tmp_path / "a.npz")
    assert "it is damaged" in text or "is not a sound npz file" in text


def test_npz_size_in_the_zip_directory_is_not_believed(tmp_path):
    member = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (1 << 25, 100)}
    np.lib.format.write_array_header_1_0(member, header)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("x.npy", member.getvalue())
    true, claimed = member.tell(), member.tell() + (100 << 25)
    lie = content.getvalue().replace(struct.pack("<I", true), struct.pack("<I", claimed))
    path = write(tmp_path / "a.npz", lie)
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("x.npy").file_size == claimed
    text = refused(read_npz, path)
    # Newer zipfile modules refuse the directory themselves.
    declares = ": array 'x' declares 3355443200 bytes (33554432, 100), but the file"
    assert text.startswith(declares) or "is not a sound npz file" in text


@pytest.mark.parametrize("content", [b"", b"not a zip", b"\x93NUMPY", b"PK\5\6" + bytes(18)])
def test_npz_that_is_another_file(tmp_path, content):
    assert "np.savez" in refused(read_npz, write(tmp_path / "a.npz", content))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': ,6, 0), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (3L, 2), }",  # as Python 2 wrote it
        "{[]: '<f8'}",
        "{'descr': '<f8', 'fortran_order': False}",
        "{'descr': 7, 'fortran_order': False, 'shape': (3, 2)}",
        "\0",
        "(" * 300,
        "  x\n y",
        "'",
    ],
)
def test_npz_with_a_header_that_numpy_cannot_read(tmp_path, header):
    text = header.encode() + b"\n"
    member = b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + bytes(48)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", member)
    assert "is not a sound npz file" in refused(read_npz, tmp_path / "a.npz")


def test_npz_with_names_that_are_none(tmp_path):
    np.savez(tmp_path / "a.npz", **{"a\nb": X, "y": Y})
    assert refused(read_npz, tmp_path / "a.npz").startswith(
        " has no array 'x' (found: 'a\\nb', y); write"
    )
    np.savez(tmp_path / "a.npz", **{f"a{i}": Y for i in range(20)})
    assert "a7); write" in refused(read_npz, tmp_path / "a.npz")


def test_npz_cut_short_or_flipped_anywhere_is_refused_or_read(tmp_path):
    np.savez_compressed(tmp_path / "good.npz", x=X, y=Y)
    good = (tmp_path / "good.npz").read_bytes()
    for at in range(0, len(good), 3):
        refused(read_npz, write(tmp_path / "cut.npz", good[:at]))
        flipped = good[:at] + bytes([good[at] ^ 0x15]) + good[at + 1 :]
        try:
            data = read_npz(write(tmp_path / "flip.npz", flipped))
        except DataError:
            continue
        # What is left are fields that do not matter, such as dates: the checksum holds the rest.
        assert data.labels.tolist() == Y.tolist()
        assert data.x.tolist() == X.tolist()
