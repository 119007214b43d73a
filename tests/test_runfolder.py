"""The run folder: its name, its files, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from psgrad import config, runfolder
from psgrad.config import Source
from psgrad.errors import ConfigError
from psgrad.train import configure

SUMMARY = {
    "test_accuracy": 0.975,
    "test_loss": 0.1234,
    "seconds": 12.5,
    "steps": 3000,
    "samples_per_second": 12345.6,
    "bytes_pushed": 12_340_000,
    "bytes_pulled": 56_780_000,
    "staleness_max": 2,
    "staleness_bound": 3,
    "skipped_steps": 0,
}


def make(**values):
    return configure([Source("test", values)])


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "runs/S-mlp-digits-ssp"),
        ({"mode": "sync", "model.name": "softmax"}, "runs/S-softmax-digits-sync"),
        ({"dataset.name": "/data/my set.csv", "mode": "async"}, "runs/S-mlp-my set-async"),
    ],
)
def test_the_default_name(values, name):
    assert runfolder.default_name(make(**values), "S") == name


def test_the_configuration_in_the_folder_repeats_the_run(tmp_path):
    original = make(**{"model.hidden": [7, 5], "optimizer.name": "adamw", "clip_norm": 2})
    original = replace(original, run_dir=str(tmp_path / "a" / "b"))
    runfolder.create(original, "S")
    assert configure([config.from_toml(tmp_path / "a" / "b" / "config.toml")]) == replace(
        original, run_dir=""
    )
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["config.toml"]


def test_a_finished_run_is_not_overwritten(tmp_path):
    runfolder.create(make(run_dir=str(tmp_path)), "S")
    runfolder.create(make(run_dir=str(tmp_path), seed=2), "S")  # it never ended: it may begin again
    runfolder.save_summary(tmp_path, SUMMARY)
    with pytest.raises(ConfigError, match="holds a finished run; choose another --run-dir or rem"):
        runfolder.create(make(run_dir=str(tmp_path)), "S")


def test_runs_of_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [str(runfolder.create(make(), "S")) for _ in range(3)]
    assert names == [f"runs/S-mlp-digits-ssp{suffix}" for suffix in ("", "-2", "-3")]


@pytest.mark.parametrize(
    ("name", "problem"),
    [("file", "File exists"), ("file/run", "Not a directory"), ("x" * 300, "File name too long")],
)
def test_a_folder_that_cannot_be(tmp_path, name, problem):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        runfolder.create(make(run_dir=str(tmp_path / name)), "S")
    assert str(caught.value) == (
        f"cannot write the run folder {tmp_path / name}: {problem}; choose another --run-dir"
    )


def test_the_model_comes_back(tmp_path):
    flat = np.arange(20, dtype=np.float32)
    params = {"w": flat[:12].reshape(3, 4), "column": flat[12:20].reshape(4, 2)[:, 1],
              "scalar": flat[3:4].reshape(())}  # fmt: skip
    runfolder.save_model(tmp_path, params)
    loaded = load_file(tmp_path / "model.safetensors")
    assert loaded.keys() == params.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(loaded[name], value)
        assert loaded[name].dtype == np.float32


def test_a_file_is_replaced_as_a_whole(tmp_path):
    runfolder.save_summary(tmp_path, {"steps": 1})
    runfolder.save_summary(tmp_path, SUMMARY)
    assert json.loads((tmp_path / "summary.json").read_text()) == SUMMARY
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    runfolder.save_summary(tmp_path, SUMMARY)
    with pytest.raises(TypeError):
        runfolder.save_summary(tmp_path, {"steps": object()})
    assert json.loads((tmp_path / "summary.json").read_text()) == SUMMARY


def test_the_digest_is_of_the_bits():
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float32)
    assert runfolder.sha256({"a": a, "b": b}) == runfolder.sha256({"a": a.copy(), "b": b.copy()})
    others = [{"a": a + 1, "b": b}, {"b": b, "a": a}, {"a": a.T, "b": b}, {"a": -0.0 * a, "b": b}]
    assert len({runfolder.sha256(params) for params in [{"a": a, "b": b}, *others]}) == 5
    zero = np.zeros(1, np.float32)
    assert runfolder.sha256({"a": zero}) != runfolder.sha256({"a": -zero})


def test_the_closing_lines(tmp_path):
    assert runfolder.closing(SUMMARY, tmp_path) == (
        "test accuracy  0.9750 (loss 0.1234)\n"
        "wall time      12.50 s, 3000 steps, 12,346 samples/s\n"
        "bytes moved    12.3 MB pushed, 56.8 MB pulled\n"
        "staleness      at most 2 seen, bound 3\n"
        f"run folder     {tmp_path}"
    )


def test_the_closing_lines_without_a_bound_and_with_skipped_steps(tmp_path):
    text = runfolder.closing({**SUMMARY, "staleness_bound": None, "skipped_steps": 4}, tmp_path)
    assert "at most 2 seen, bound none" in text
    assert text.endswith("skipped        4 steps were not finite")


def test_the_configuration_of_a_run_that_was_resumed_begins_at_the_start(tmp_path):
    original = make(run_dir=str(tmp_path / "a"), resume="auto", checkpoint_every="5")
    runfolder.create(original, "S")
    assert configure([config.from_toml(tmp_path / "a" / "config.toml")]) == replace(
        original, run_dir="", resume=""
    )


def test_a_finished_run_is_found_by_who_would_resume_it(tmp_path, capsys):
    asked = make(run_dir=str(tmp_path), resume="auto", json=True)
    assert runfolder.finished(asked) is None
    runfolder.save_summary(tmp_path, SUMMARY)
    text = runfolder.finished(asked)
    assert text is not None
    assert json.loads(text) == SUMMARY
    assert runfolder.finished(replace(asked, resume="")) is None
    assert runfolder.finished(replace(asked, resume=str(tmp_path))) is None
    assert runfolder.finished(replace(asked, run_dir="", checkpoint_dir="c")) is None
    runfolder.say_finished(asked, text)
    runfolder.say_finished(replace(asked, json=False), text)
    said = f"psgrad: run folder {tmp_path} holds a finished run: nothing to do\n"
    assert capsys.readouterr() == (text, 2 * said)


def test_a_folder_is_made_before_the_ranks_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [runfolder.make(make(), "S") for _ in range(2)]
    assert [str(path) for path in made] == [
        f"runs/S-mlp-digits-ssp{suffix}" for suffix in ("", "-2")
    ]
    (tmp_path / "runs" / "x").write_text("")
    monkeypatch.setattr(runfolder, "default_name", lambda config, stamp: "runs/x/y")
    with pytest.raises(ConfigError, match="cannot write the run folder runs/x/y: File exists"):
        runfolder.make(make(), "S")
