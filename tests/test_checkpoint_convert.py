"""The parameters of a checkpoint by name, in files that other tools read."""

from __future__ import annotations

import os

import numpy as np
import pytest
from checkpoint_files import CHUNK_BYTES, SHAPES, flat, layout, save, state, tensors
from safetensors.numpy import load_file
from system_calls import Calls

from psgrad.checkpoint import Checkpoint, Store
from psgrad.checkpoint.convert import convert, parameters
from psgrad.errors import CheckpointError, ConfigError


def named(step):
    return layout().views(flat(step))


def assert_named(step, got):
    assert {name: array.shape for name, array in got.items()} == SHAPES
    for name, array in named(step).items():
        np.testing.assert_array_equal(got[name], array)


def assert_only(folder, *names):
    assert sorted(os.listdir(folder)) == sorted(names)


def test_the_parameters_by_name(tmp_path):
    path = save(tmp_path, 100)
    assert len(layout().chunks(CHUNK_BYTES)) > 2
    assert_named(100, parameters(Checkpoint.open(path)))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_file_for_others(tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    assert convert(save(tmp_path, 100), out) == len(SHAPES)
    assert_only(tmp_path, "step-00000100", out.name)
    if suffix == ".npz":
        with np.load(out, allow_pickle=False) as archive:
            assert_named(100, dict(archive))
    else:
        assert_named(100, load_file(out))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_the_same_parameters_are_the_same_bytes(tmp_path, suffix):
    outs = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for out in outs:
        convert(save(tmp_path, 100), out)
    assert outs[0].read_bytes() == outs[1].read_bytes()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("out.pt", r"out.pt must end with .safetensors or .npz, which .*, got '.pt'"),
        ("out", "got ''"),
        ("out.NPZ", "got '.NPZ'"),
        ("there.npz", "there.npz is there already; remove it or choose another name"),
        ("none/out.npz", "cannot write .*out.npz: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be(tmp_path, name, text):
    path = save(tmp_path, 100)
    (tmp_path / "there.npz").write_text("mine")
    with pytest.raises(ConfigError, match=text):
        convert(path, tmp_path / name)
    assert (tmp_path / "there.npz").read_text() == "mine"
    assert_only(tmp_path, "step-00000100", "there.npz")


def test_a_disk_that_is_full_leaves_nothing(tmp_path):
    path = save(tmp_path, 100)
    with Calls(2, error=28) as calls, pytest.raises(ConfigError, match="No space left on device"):
        convert(path, tmp_path / "out.safetensors")
    assert calls.log[1][0] == "open"
    assert_only(tmp_path, "step-00000100")


def test_what_a_conversion_that_was_killed_has_left_is_in_nobodys_way(tmp_path):
    (tmp_path / ".out.npz.tmp").write_text("half")
    convert(save(tmp_path, 100), tmp_path / "out.npz")
    assert_only(tmp_path, "step-00000100", "out.npz")


def test_a_damaged_checkpoint_is_not_converted(tmp_path):
    path = save(tmp_path, 100)
    content = bytearray((path / "server-0.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "server-0.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"server-0.safetensors is damaged"):
        convert(path, tmp_path / "out.npz")
    assert_only(tmp_path, "step-00000100")


LAYOUT = state()["layout"]
BAD_STATES = [
    {},
    {"layout": LAYOUT},
    {"chunk_bytes": CHUNK_BYTES},
    state(layout=None),
    state(chunk_bytes=None),
    state(layout={**LAYOUT, "tensors": [{"name": "w"}]}),
    state(layout={**LAYOUT, "tensors": [{**LAYOUT["tensors"][0], "stop": 999}]}),
    state(layout={**LAYOUT, "tensors": [{**LAYOUT["tensors"][0], "shape": [9, 9]}]}),
    state(chunk_bytes="64"),
    state(chunk_bytes=1),
    state(chunk_bytes=128),
]


@pytest.mark.parametrize("said", BAD_STATES, ids=lambda said: str(said)[-60:])
def test_a_layout_that_does_not_fit(tmp_path, said):
    store = Store(tmp_path, 1)
    records = [store.write(1, f"server-{i}.safetensors", tensors(1, i)) for i in range(2)]
    path = store.commit(1, records, said)
    with pytest.raises(CheckpointError, match=r"has no layout that fits|as float32\[|no tensor"):
        parameters(Checkpoint.open(path))


def test_a_chunk_that_is_missing(tmp_path):
    store = Store(tmp_path, 1)
    path = store.commit(1, [store.write(1, "server-0.safetensors", tensors(1, 0))], state())
    with pytest.raises(CheckpointError, match="has no tensor 'chunk/1/params'"):
        parameters(Checkpoint.open(path))
