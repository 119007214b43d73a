"""Checkpoints that are there: which is the newest whole one, whatever happened to the others."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from checkpoint_files import content_of, flat, save, tensors

from psgrad.checkpoint import Checkpoint, Store, found, newest, verify
from psgrad.checkpoint.opened import folder_name, step_of
from psgrad.errors import CheckpointError


@pytest.fixture
def folder(tmp_path):
    """A folder with checkpoints of the steps 100 and 200."""
    save(tmp_path, 100)
    save(tmp_path, 200)
    return tmp_path


def files_of(path):
    return sorted(path.iterdir())


# Names


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-00000000", 0),
        ("step-00000100", 100),
        ("step-00000100.old", 100),
        ("step-123456789", 123456789),
        ("step-012345678", None),
        ("step-100", None),
        (".step-00000100.tmp", None),
        ("step-00000100.tmp", None),
        ("step-00000100\n", None),
        ("step-٠٠٠٠٠١٠٠", None),
        ("best", None),
    ],
)
def test_the_step_that_a_name_says(name, step):
    assert step_of(name) == step
    if step is not None:
        assert folder_name(step) == name.removesuffix(".old")


def test_found_are_those_with_a_name_newest_first(tmp_path):
    names = ["step-123456789", "step-99999999", "step-00000007", "step-00000007.old"]
    for name in [*names[::-1], "step-7", ".step-00000008.tmp", "notes"]:
        (tmp_path / name).mkdir()
    assert [path.name for path in found(tmp_path)] == names


def test_there_is_nothing_where_there_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        assert found(path) == []
        assert newest(path) == (None, [])


# One that is whole


def test_a_checkpoint_has_what_was_written(folder):
    checkpoint = Checkpoint.open(folder / "step-00000200")
    assert content_of(checkpoint) == 200
    assert checkpoint.manifest.state["mode"] == "ssp"
    with pytest.raises(CheckpointError, match="has no tensor 'chunk/99/params'"):
        checkpoint.tensor("chunk/99/params")


def test_the_newest_is_taken_and_nothing_is_skipped(folder):
    checkpoint, skipped = newest(folder)
    assert (content_of(checkpoint), skipped) == (200, [])


def test_another_name_is_a_checkpoint_all_the_same(folder):
    (folder / "step-00000200").rename(folder / "best")
    verify(folder / "best")
    assert content_of(Checkpoint.open(folder / "best")) == 200


def test_what_was_moved_aside_counts_where_there_is_no_other(folder):
    (folder / "step-00000200").rename(folder / "step-00000200.old")
    assert content_of(newest(folder)[0]) == 200
    save(folder / "other", 200, mode="sync")
    (folder / "other" / "step-00000200").rename(folder / "step-00000200")
    assert newest(folder)[0].manifest.state["mode"] == "sync"


# One that is not


def remove_the_manifest(path):
    (path / "manifest.json").unlink()


def remove_a_file(path):
    (path / "server-1.safetensors").unlink()


def empty_a_file(path):
    os.truncate(path / "server-1.safetensors", 0)


def lengthen_a_file(path):
    with (path / "server-1.safetensors").open("ab") as file:
        file.write(b"\0")


def swap_the_files(path):
    (path / "server-0.safetensors").rename(path / "x")
    (path / "server-1.safetensors").rename(path / "server-0.safetensors")
    (path / "x").rename(path / "server-1.safetensors")


def take_the_manifest_of_another(path):
    shutil.copy(path.parent / "step-00000100" / "manifest.json", path)


def take_a_file_of_another(path):
    shutil.copy(path.parent / "step-00000100" / "server-0.safetensors", path)


def be_a_file(path):
    shutil.rmtree(path)
    path.touch()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (remove_the_manifest, "is not a checkpoint: it has no manifest.json"),
        (remove_a_file, "server-1.safetensors is missing"),
        (empty_a_file, "server-1.safetensors has 0 bytes instead of"),
        (lengthen_a_file, "server-1.safetensors has"),
        (swap_the_files, "server-0.safetensors"),
        (take_the_manifest_of_another, "has another step in its manifest: 100"),
        (take_a_file_of_another, "server-0.safetensors is damaged"),
        (be_a_file, "is not a checkpoint"),
    ],
)
def test_the_one_before_is_taken_where_the_newest_is_damaged(folder, damage, text):
    path = folder / "step-00000200"
    damage(path)
    with pytest.raises(CheckpointError, match=text):
        verify(path)
    checkpoint, skipped = newest(folder)
    assert content_of(checkpoint) == 100
    assert len(skipped) == 1
    assert text in skipped[0]
    assert str(path) in skipped[0]


def test_each_that_was_skipped_has_its_line(folder):
    for path in found(folder):
        remove_the_manifest(path)
    checkpoint, skipped = newest(folder)
    assert checkpoint is None
    assert [line.split()[0] for line in skipped] == [str(path) for path in found(folder)]


def test_a_tensor_that_two_files_have(tmp_path):
    store = Store(tmp_path, 1)
    records = [store.write(1, name, tensors(1, 0)) for name in ("a", "b")]
    path = store.commit(1, records, {})
    with pytest.raises(CheckpointError, match=r"has tensor 'chunk/\d/params' twice, in a and b"):
        verify(path)


def test_every_truncation_of_every_file_falls_back(folder):
    for file in files_of(folder / "step-00000200"):
        content = file.read_bytes()
        for size in range(len(content)):
            os.truncate(file, size)
            checkpoint, skipped = newest(folder)
            assert checkpoint.manifest.step == 100
            assert file.name in skipped[0]
            file.write_bytes(content)
    assert content_of(newest(folder)[0]) == 200


def test_ten_thousand_flipped_bits_fall_back(folder):
    """In any file of the newest checkpoint; one in a hundred is opened and compared."""
    contents = {file: file.read_bytes() for file in files_of(folder / "step-00000200")}
    ends = np.cumsum([len(content) for content in contents.values()])
    rng = np.random.default_rng(20261122)
    for count, bit in enumerate(rng.integers(8 * ends[-1], size=10_000).tolist()):
        which = int(np.searchsorted(ends, bit // 8, side="right"))
        file, content = list(contents.items())[which]
        at = bit // 8 - (int(ends[which - 1]) if which else 0)
        with file.open("r+b", buffering=0) as opened:
            opened.seek(at)
            opened.write(bytes([content[at] ^ 1 << bit % 8]))
            checkpoint, skipped = newest(folder)
            opened.seek(at)
            opened.write(content[at : at + 1])
        assert checkpoint.path.name == "step-00000100"
        assert len(skipped) == 1
        assert file.name in skipped[0]
        if count % 100 == 0:
            assert content_of(checkpoint) == 100
            np.testing.assert_array_equal(checkpoint.tensor("chunk/0/params"), flat(100)[:16])
    assert content_of(newest(folder)[0]) == 200
