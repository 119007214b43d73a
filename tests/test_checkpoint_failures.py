"""Every way in which writing a checkpoint fails: what was there before is valid."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess

import numpy as np
import pytest
from checkpoint_files import content_of, save, state, tensors
from system_calls import Calls

from psgrad.checkpoint import FileRecord, Store, newest, verify
from psgrad.errors import CheckpointError, ConfigError

NONE = FileRecord("server-0.safetensors", 1, "crc32:00000000")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "none", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root, and only where it may mount, has a disk that is full")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def error_of(work):
    try:
        work()
    except OSError as error:
        return error
    return None


def fails(folder, step=200):
    """Writes a checkpoint, which fails; the one before is valid, and nothing else is left."""
    store = Store(folder, 1)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        save(folder, step, keep=1)
    store.abandon(step)
    assert newest(folder)[0].manifest.step == 100
    return caught.value


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize(("before", "step"), [((100,), 200), ((50, 100), 100)])
def test_an_error_of_any_call(tmp_path, error, before, step):
    """Each call in turn fails, until none does."""
    outcomes = []
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        with Calls():
            for one in before:
                save(folder, one, mode="before")
        with Calls(at, error=error) as calls:
            caught = error_of(lambda f=folder: save(f, step, keep=1, mode="after"))
        outcomes.append("written" if caught is None else "failed")
        assert caught is None or caught.errno == error
        Store(folder, 1).abandon(step)
        checkpoint, skipped = newest(folder)
        assert skipped == []
        mode = checkpoint.manifest.state["mode"]
        assert content_of(checkpoint) == (step if mode == "after" else before[-1])
        assert caught or mode == "after"
        assert not any(name.endswith(".tmp") for name in names(folder))
        # What is left is swept by the next run.
        Store(folder, 1).prepare()
        left = {name.removesuffix(".old") for name in names(folder)}
        assert left <= {f"step-{n:08d}" for n in (*before, step)}
        assert newest(folder)[0] == checkpoint
        if len(calls.log) < at:
            break
    # Once the new one is there, what cannot be removed is no error.
    assert outcomes == sorted(outcomes)  # failed, then written
    assert 15 < outcomes.count("failed") < len(outcomes) - 1


def test_a_disk_that_is_full(small_disk):
    save(small_disk, 100)
    big = {"chunk/0/params": np.zeros(1 << 18, np.float32)}
    store = Store(small_disk, 1)
    with pytest.raises(OSError, match="No space left on device"):
        store.write(200, "server-0.safetensors", big)
    store.abandon(200)
    assert names(small_disk) == ["step-00000100"]
    space = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(space.f_bavail * space.f_frsize))
    assert fails(small_disk).errno == errno.ENOSPC
    (small_disk / "filler").unlink()
    save(small_disk, 300, keep=1)
    assert names(small_disk) == ["step-00000300"]


def test_a_folder_that_can_only_be_read(small_disk):
    save(small_disk, 100)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert fails(small_disk).errno == errno.EROFS
    with pytest.raises(ConfigError, match=r"cannot write checkpoints .*: Read-only file system"):
        Store(small_disk, 1).prepare()


def test_a_folder_that_can_only_be_read_by_its_mode(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root writes whatever the mode says")
    save(tmp_path, 100)
    tmp_path.chmod(0o500)
    assert fails(tmp_path).errno == errno.EACCES
    with pytest.raises(ConfigError, match=r"cannot write checkpoints .*: Permission denied"):
        Store(tmp_path, 1).prepare()
    tmp_path.chmod(0o700)


def test_a_folder_that_vanishes(tmp_path):
    store = Store(tmp_path / "a", 1)
    store.prepare()
    record = store.write(1, "server-0.safetensors", tensors(1, 0))
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        store.commit(1, [record], state())
    with pytest.raises(FileNotFoundError):
        store.write(2, "server-0.safetensors", tensors(2, 0))
    store.abandon(1)
    assert newest(tmp_path / "a") == (None, [])


def test_a_server_that_writes_elsewhere(tmp_path):
    """As on two nodes, each with a folder of that name on its own disk."""
    here, there = Store(tmp_path / "here", 1), Store(tmp_path / "there", 1)
    for store in (here, there):
        store.prepare()
    records = [
        here.write(1, "server-0.safetensors", tensors(1, 0)),
        there.write(1, "server-1.safetensors", tensors(1, 1)),
    ]
    with pytest.raises(FileNotFoundError, match=r"server-1.safetensors is not there; all servers"):
        here.commit(1, records, state())
    here.write(1, "server-1.safetensors", {})
    with pytest.raises(OSError, match=r"has 16 bytes instead of \d+; all servers must share"):
        here.commit(1, records, state())
    assert newest(tmp_path / "here") == (None, [])


def test_a_file_whose_writer_has_died_is_written_by_another_one(tmp_path):
    store = Store(tmp_path, 1)
    store.write(1, "server-0.safetensors", tensors(2, 0))
    record = store.write(1, "server-0.safetensors", tensors(1, 0))
    path = store.commit(1, [record], state())
    np.testing.assert_array_equal(
        newest(tmp_path)[0].tensor("chunk/0/params"), tensors(1, 0)["chunk/0/params"]
    )
    verify(path)
    assert store.commit(1, [record], state()) == path, "who committed it died before it said so"


@pytest.mark.parametrize("name", ["../a", "manifest.json", "", "a/b"])
def test_a_name_that_is_none(tmp_path, name):
    with pytest.raises(CheckpointError, match="is not the name of a file inside a checkpoint"):
        Store(tmp_path, 1).write(1, name, tensors(1, 0))
    assert names(tmp_path) == []


def test_what_is_no_manifest_is_not_committed(tmp_path):
    store = Store(tmp_path, 1)
    store.write(1, NONE.name, {})
    with pytest.raises(CheckpointError, match="a file is there twice"):
        store.commit(1, [NONE, NONE], state())
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.commit(1, [], {"a": float("nan")})
    assert names(tmp_path) == [".step-00000001.tmp"]
    store.abandon(1)
    store.abandon(1)
    assert names(tmp_path) == []


def test_prepare_wants_room_for_one(tmp_path, small_disk):
    with pytest.raises(ConfigError, match=r"\d+ bytes are left for .*, one needs 1048576; make"):
        Store(small_disk, 1).prepare()
    Store(tmp_path, 1).prepare(1 << 20)
    with pytest.raises(ConfigError, match=f"one needs {1 << 60}; make room or choose another"):
        Store(tmp_path, 1).prepare(1 << 60)
