"""Writing checkpoints: the order of what is done, pruning, replacing, what comes before it."""

from __future__ import annotations

import os
import shutil

import pytest
from checkpoint_files import content_of, save, tensors
from system_calls import Calls

from psgrad.checkpoint import Store, found, newest, verify
from psgrad.errors import ConfigError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def steps(folder):
    return [int(path.name[-8:]) for path in found(folder)]


# What is written, and in which order


def test_a_checkpoint_is_a_folder_with_a_manifest(tmp_path):
    path = save(tmp_path, 100)
    assert path == tmp_path / "step-00000100"
    assert names(tmp_path) == ["step-00000100"]
    assert names(path) == ["manifest.json", "server-0.safetensors", "server-1.safetensors"]
    verify(path)


def test_until_it_is_committed_it_is_none(tmp_path):
    Store(tmp_path, 1).write(100, "server-0.safetensors", tensors(100, 0))
    assert names(tmp_path) == [".step-00000100.tmp"]
    assert newest(tmp_path) == (None, [])


def test_a_name_comes_after_what_it_stands_for_and_removal_comes_last(tmp_path):
    save(tmp_path, 100)
    with Calls() as calls:
        save(tmp_path, 200, keep=1)
    log = [(name, path.replace(str(tmp_path), "").lstrip("/")) for name, path in calls.log]
    moments = [
        log.index(("fsync", ".step-00000200.tmp/server-0.safetensors")),
        log.index(("fsync", ".step-00000200.tmp/server-1.safetensors")),
        log.index(("fsync", ".step-00000200.tmp/manifest.json.tmp")),
        log.index(("rename", ".step-00000200.tmp/manifest.json")),
        log.index(("fsync", ".step-00000200.tmp")),
        log.index(("rename", "step-00000200")),
        log.index(("fsync", "")),
        log.index(("rename", ".step-00000100.removed")),
    ]
    assert moments == sorted(moments)
    assert min(i for i, (name, _) in enumerate(log) if name == "unlink") > moments[-1]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_stay(tmp_path, keep):
    for step in range(1, 6):
        save(tmp_path, step, keep)
        assert steps(tmp_path) == [*range(step, max(0, step - keep), -1)]
    assert len(names(tmp_path)) == keep
    assert content_of(newest(tmp_path)[0]) == 5


def test_what_is_no_checkpoint_of_ours_stays(tmp_path):
    (tmp_path / "step-00000001").mkdir()  # without a manifest
    (tmp_path / "step-00000002").write_text("a file")
    shutil.copytree(save(tmp_path / "x", 3), tmp_path / "best")
    mine = names(tmp_path)
    for step in (10, 11, 12):
        save(tmp_path, step, keep=1)
    assert names(tmp_path) == sorted([*mine, "step-00000012"])


def test_the_one_just_committed_stays_though_others_have_higher_steps(tmp_path):
    for step in (100, 300, 400):
        save(tmp_path, step)
    save(tmp_path, 200, keep=2)
    assert steps(tmp_path) == [400, 300, 200]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_step_that_is_repeated_replaces_the_one_before(tmp_path, keep):
    save(tmp_path, 100, mode="before")
    save(tmp_path, 100, keep, mode="after")
    assert names(tmp_path) == ["step-00000100"]
    assert newest(tmp_path)[0].manifest.state["mode"] == "after"


def test_a_damaged_one_is_replaced(tmp_path):
    (save(tmp_path, 100) / "manifest.json").unlink()
    save(tmp_path, 100)
    assert names(tmp_path) == ["step-00000100"]
    assert content_of(newest(tmp_path)[0]) == 100


def test_the_same_content_is_the_same_bytes(tmp_path):
    one, other = save(tmp_path / "a", 100), save(tmp_path / "b", 100)
    for name in names(one):
        assert (one / name).read_bytes() == (other / name).read_bytes()


# Before the first one


def test_a_file_that_was_begun_is_begun_again(tmp_path):
    """By who stands in for the server that has died while it wrote."""
    store, name = Store(tmp_path, 1), "server-0.safetensors"
    store.write(100, name, tensors(50, 0))
    record = store.write(100, name, tensors(100, 0))
    verify(store.commit(100, [record], {}))


def test_a_checkpoint_that_was_committed_is_committed(tmp_path):
    """Who did it may have died before it could say so."""
    store = Store(tmp_path, 1)
    record = store.write(100, "server-0.safetensors", tensors(100, 0))
    path = store.commit(100, [record], {"what": 1})
    assert store.commit(100, [record], {"what": 1}) == path
    with pytest.raises(FileNotFoundError):
        store.commit(100, [record], {"what": 2})


def test_prepare_makes_the_folder(tmp_path):
    folder = tmp_path / "a" / "b"
    Store(folder, 1).prepare()
    assert names(folder) == []
    save(folder, 1)
    Store(folder, 1).prepare()
    assert names(folder) == ["step-00000001"]


def test_prepare_sweeps_what_earlier_runs_have_left(tmp_path):
    save(tmp_path, 100)
    Store(tmp_path, 1).write(200, "server-0.safetensors", tensors(200, 0))
    (tmp_path / ".step-00000050.removed").mkdir()
    for mine in (".step-1.tmp", ".git", "step-00000300.tmp"):
        (tmp_path / mine).mkdir()
    Store(tmp_path, 1).prepare()
    assert names(tmp_path) == sorted(["step-00000100", ".step-1.tmp", ".git", "step-00000300.tmp"])


@pytest.mark.parametrize(
    ("target", "left", "mode"),
    [
        ("whole", "step-00000100", "after"),
        ("damaged", "step-00000100.old", "before"),
        ("missing", "step-00000100.old", "before"),
    ],
)
def test_prepare_settles_what_was_being_replaced(tmp_path, target, left, mode):
    save(tmp_path, 100, mode="before").rename(tmp_path / "step-00000100.old")
    if target != "missing":
        path = save(tmp_path / "x", 100, mode="after")
        path.rename(tmp_path / "step-00000100")
        (tmp_path / "x").rmdir()
    if target == "damaged":
        file = tmp_path / "step-00000100" / "server-0.safetensors"
        file.write_bytes(bytes(file.stat().st_size))
    found_before = newest(tmp_path)[0]
    Store(tmp_path, 1).prepare()
    assert names(tmp_path) == [left]
    # Whoever has opened it before goes on reading it.
    assert content_of(found_before) == 100
    assert newest(tmp_path)[0] == found_before
    assert found_before.manifest.state["mode"] == mode
    save(tmp_path, 100, mode="again")
    assert names(tmp_path) == ["step-00000100"]
    assert newest(tmp_path)[0].manifest.state["mode"] == "again"


def test_prepare_wants_a_folder(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(ConfigError, match=r"cannot write checkpoints into .*; choose another"):
            Store(folder, 1).prepare()


def test_prepare_believes_a_file_system_that_does_not_say_its_size(tmp_path, monkeypatch):
    real = os.statvfs(tmp_path)
    said = os.statvfs_result([0 if i in (2, 3, 4) else field for i, field in enumerate(real)])
    monkeypatch.setattr(os, "statvfs", lambda path: said)
    Store(tmp_path, 1).prepare()


@pytest.mark.parametrize("keep", [0, -1])
def test_one_at_least_is_kept(tmp_path, keep):
    with pytest.raises(ConfigError, match=f"to keep must be at least 1, got {keep}"):
        Store(tmp_path, keep)
