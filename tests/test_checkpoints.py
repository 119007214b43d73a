"""Checkpoints of runs on real ranks: made, gone on from, and what happens when they cannot be."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_train import ONE_THREAD, train

from psgrad.checkpoint import Checkpoint, found, newest

PROGRAM = Path(__file__).parent / "ranks" / "checkpoints.py"
SMALL = ["--epochs", 3, "--set", "model.hidden=[16]", "--progress", "off"]  # 45 steps on 3 workers
# The only one of a run: no other is still being written, however slow the disk is.
EVERY = ["--checkpoint-every", 30]


def script(mpi, case, folder, ranks=4, **options):
    """What worker 0 says, and the lines of stderr that are psgrad's."""
    arguments = [PROGRAM, case, folder, json.dumps(options)]
    status, stdout, stderr = mpi.run(ranks, arguments, env=ONE_THREAD, timeout=60)
    assert status == 0, stderr
    return json.loads(stdout), [line for line in stderr.splitlines() if line.startswith("psgrad:")]


def making(folder):
    return {"checkpoint_dir": str(folder), "checkpoint_every": "4", "checkpoint_keep": 3}


def names(folder):
    return [path.name for path in found(folder)]


# The built-in trainer


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--codec", "topk:0.05", "--pull-codec", "topk:0.1", "--optimizer", "momentum"),
        ("--codec", "int8", "--overlap", "on", "--accumulate", 2),
        ("--set", "local_steps=3", "--epochs", 9),
    ],
    ids=["plain", "codecs", "overlap", "local steps"],
)
def test_in_sync_mode_a_run_ends_as_if_it_had_not_been_interrupted(any_mpi, tmp_path, more):
    options = ["--mode", "sync", *SMALL, *more]
    every = 15 if "--accumulate" in more else 30
    whole, _ = train(any_mpi, tmp_path / "whole", *options)
    cut, _ = train(any_mpi, tmp_path / "cut", *options, "--checkpoint-every", every)
    folder = tmp_path / "cut" / "checkpoints"
    assert names(folder) == [f"step-{every:08d}"]
    servers = 2 if "--codec" in more else 1
    on, seen = train(
        any_mpi,
        tmp_path / "on",
        *options,
        "--resume",
        folder,
        "--servers",
        servers,
        ranks=3 + servers,
    )
    for summary in (cut, on):
        assert summary["params_sha256"] == whole["params_sha256"]
        assert summary["steps"] == whole["steps"]
    assert "warning" not in seen


@pytest.mark.parametrize(
    ("mode", "workers", "servers"), [("sync", 2, 1), ("ssp", 4, 2), ("async", 2, 2)]
)
def test_on_another_number_of_ranks(mpi, tmp_path, mode, workers, servers):
    options = ["--mode", mode, "--epochs", 10, "--codec", "topk:0.1", "--progress", "off"]
    train(mpi, tmp_path / "one", *options, "--checkpoint-every", 60)
    folder = tmp_path / "one" / "checkpoints"
    summary, _ = train(
        mpi, tmp_path / "two", *options, "--servers", servers, "--resume", folder,
        ranks=workers + servers,
    )  # fmt: skip
    assert (summary["workers"], summary["servers"]) == (workers, servers)
    assert summary["test_accuracy"] >= 0.9


def test_the_same_folder_goes_on_with_auto(any_mpi, tmp_path):
    """As a job that is submitted again and again does."""
    arguments = ["--mode", "sync", *SMALL, *EVERY, "--resume", "auto"]
    arguments += ["--checkpoint-dir", tmp_path / "kept"]
    first, seen = train(any_mpi, tmp_path / "run", *arguments)
    assert "there is no checkpoint in" in seen
    again, seen = train(any_mpi, tmp_path / "again", *arguments)
    assert "there is no checkpoint in" not in seen
    assert again["params_sha256"] == first["params_sha256"]
    assert names(tmp_path / "kept") == ["step-00000030"]


# What goes wrong with the folder


def test_every_checkpoint_of_a_run_and_a_run_that_goes_on(any_mpi, tmp_path):
    folder = tmp_path / "made"
    whole, said = script(any_mpi, "plain", folder, **making(folder))
    assert said == []
    assert (whole["written"], whole["failed"]) == (6, 0)
    assert names(folder) == ["step-00000024", "step-00000020", "step-00000016"]
    on, said = script(any_mpi, "plain", folder, resume=str(folder / "step-00000016"))
    assert said == []
    assert (on["sha256"], on["resumed"]) == (whole["sha256"], 16)


def test_a_folder_that_is_gone_costs_checkpoints_and_nothing_else(any_mpi, tmp_path):
    folder = tmp_path / "made"
    whole, _ = script(any_mpi, "plain", tmp_path)
    summary, said = script(any_mpi, "removed", folder, **making(folder))
    assert summary["sha256"] == whole["sha256"]
    assert (summary["written"], summary["failed"]) == (1, 5)
    assert said == [
        f"psgrad: warning: checkpoint {number} was not written: server-0.safetensors: Not a "
        f"directory; training goes on, the newest one is 4"
        for number in (8, 12, 16, 20, 24)
    ]


def test_a_folder_that_comes_back_is_written_to_again(any_mpi, tmp_path):
    folder = tmp_path / "made"
    summary, said = script(any_mpi, "back again", folder, **making(folder))
    assert (summary["written"], summary["failed"]) == (4, 2)
    assert [line.split()[3] for line in said] == ["8", "12"]
    assert names(folder) == ["step-00000024", "step-00000020", "step-00000016"]


@contextmanager
def small_disk(place, nbytes):
    """A file system of its own, in memory."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_costs_checkpoints_and_nothing_else(any_mpi, tmp_path):
    folder = tmp_path / "disk"
    with small_disk(folder, 4 << 20):
        summary, said = script(any_mpi, "full", folder, **making(folder))
        assert (summary["written"], summary["failed"]) == (4, 2)
        assert [line.split()[3] for line in said] == ["8", "12"]
        assert all("No space left on device; training goes on" in line for line in said)
        assert sorted(os.listdir(folder)) == ["step-00000016", "step-00000020", "step-00000024"]
        assert newest(folder)[0].manifest.step == 24


def test_a_torn_checkpoint_is_named_and_the_one_before_it_is_taken(any_mpi, tmp_path):
    folder = tmp_path / "made"
    whole, _ = script(any_mpi, "plain", folder, **making(folder))
    file = folder / "step-00000024" / "server-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    on, said = script(any_mpi, "plain", folder, resume=str(folder))
    assert len(said) == 1
    assert said[0].startswith(f"psgrad: warning: {file} is damaged: its checksum is ")
    assert (on["sha256"], on["resumed"]) == (whole["sha256"], 20)


# What cannot be


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with one checkpoint, made in this process."""
    from psgrad import cli

    folder = tmp_path_factory.mktemp("made")
    arguments = ["train", "--simulate", "workers=3", "--mode", "sync", *SMALL, *EVERY]
    arguments += ["--codec", "topk:0.1", "--run-dir", folder / "run"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    return folder / "run" / "checkpoints"


FAILS = {
    # Found by `psgrad run` itself, before any rank starts.
    "every 0": (["--checkpoint-every", 0], 2, "checkpoint_every must be a number of steps of at"),
    "every 5x": (["--checkpoint-every", "5x"], 2, "or of seconds, such as 600s, got '5x'"),
    "keep 0": (["--keep", 0], 2, "checkpoint_keep must be at least 1, got 0"),
    "auto": (["--resume", "auto"], 2, "resume auto looks where the run before has written"),
    "record": (["--record", "--checkpoint-every", 5], 2, "checkpoint_every"),
    # Found by the ranks, which agree on it.
    "a file": (["--checkpoint-every", 5, "--checkpoint-dir", "file"], 2, "cannot write checkpoi"),
    "no folder": (["--resume", "nowhere"], 1, "there is no valid checkpoint in nowhere"),
    "no step": (["--resume", "step-00000099"], 1, "step-00000099 is not a checkpoint"),
    "chunks": (["--resume", "MADE", "--chunk-bytes", 4096], 2, "checkpoint 30 was made with"),
    # Found when the parameters are known.
    "model": (["--resume", "MADE", "--set", "model.hidden=[17]"], 2, "checkpoint 30 does not fit"),
    "optimizer": (["--resume", "MADE", "--optimizer", "sgd"], 2, "resume with the optimizer of"),
    "codec": (["--resume", "MADE", "--codec", "none"], 1, "resume with the codec and feedback of"),
    "feedback": (["--resume", "MADE", "--feedback", "none"], 1, "resume with the codec and feed"),
    "dgc": (["--resume", "MADE", "--feedback", "dgc"], 1, "resume with the codec and feedback of"),
}


@pytest.mark.parametrize("case", FAILS)
def test_what_cannot_be_is_one_line(any_mpi, tmp_path, made, case):
    arguments, expected, text = FAILS[case]
    arguments = [made if argument == "MADE" else argument for argument in arguments]
    options = ["--mode", "sync", *SMALL, *([] if "--codec" in arguments else CODEC), *arguments]
    (tmp_path / "file").write_text("no folder")
    status, stdout, stderr = any_mpi.psgrad(["run", "--np", 4, "--", *options], cwd=tmp_path)
    assert status == expected, stderr
    assert stdout == ""
    lines = [line for line in stderr.splitlines() if line.startswith("psgrad: error: ")]
    assert len(lines) == 1, stderr
    assert text in lines[0]
    assert "Traceback" not in stderr
    assert "epoch 1/" not in stderr, "no step was done"
    assert [path for path in tmp_path.rglob("metrics.jsonl") if path.read_text()] == []


CODEC = ["--codec", "topk:0.1"]


def test_the_checkpoint_of_these_cases_is_one_that_can_be_gone_on_from(any_mpi, tmp_path, made):
    options = ["--mode", "sync", *SMALL, *CODEC, "--resume", made]
    summary, _ = train(any_mpi, tmp_path / "run", *options)
    assert summary["steps"] == 135
    assert Checkpoint.open(found(made)[0]).manifest.state["servers"] == 1
