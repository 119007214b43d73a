"""Real runs, repeated in one process: only the order of messages makes two runs differ."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from test_train import train

from psgrad import cli
from psgrad.record import CHOSE

SMALL = ("--epochs", 3, "--set", "model.hidden=[16]", "--progress", "off", "--record")


def replay(capsys, run):
    """(status, outcome, what a person saw)."""
    status = cli.main(["replay", str(run), "--json"])
    seen = capsys.readouterr()
    lines = seen.out.splitlines()
    return status, json.loads(lines[-1]) if lines else None, seen.out + seen.err


@pytest.mark.parametrize(
    ("mode", "more"),
    [
        ("async", ["--optimizer", "adam", "--schedule", "cosine", "--set", "schedule.total=60"]),
        ("async", ["--codec", "adaptive", "--pull-codec", "topk:0.1", "--optimizer", "sgd"]),
        ("ssp", ["--codec", "topk:0.05,select=threshold", "--zstd", "on"]),
        ("sync", ["--inject", "nan:rank=3,step=2"]),
        ("async", ["--inject", "slow:rank=2,factor=2"]),
    ],
)
def test_a_run_is_repeated_bit_for_bit(mpi, tmp_path, capsys, mode, more):
    folder = tmp_path / "run"
    summary, _ = train(mpi, folder, "--mode", mode, "--servers", 2, *SMALL, *more, ranks=5)
    before = {path.name for path in folder.iterdir()}
    status, outcome, seen = replay(capsys, folder)
    assert status == 0, seen
    assert outcome["equal"]
    assert outcome["repeated"] == outcome["recorded"] == summary["params_sha256"]
    assert outcome["ranks"] == 5
    assert outcome["entries"] >= 2 * summary["steps"], "each push, at both ends"
    assert "parameters equal bit for bit" in seen
    assert {path.name for path in folder.iterdir()} == before, "a replay leaves the run alone"


def test_another_order_is_another_run(any_mpi, tmp_path, capsys):
    """Who is told to take messages in an order that was not the run's comes to something else."""
    folder = tmp_path / "run"
    train(any_mpi, folder, "--mode", "async", *SMALL, ranks=4)
    path = folder / "records" / "rank-0.record"
    line, _, rest = path.read_bytes().partition(b"\n")
    entries = [rest[i : i + 40] for i in range(0, len(rest), 40)]
    took = [i for i, entry in enumerate(entries) if entry[0] == 1 and entry[1] == 6]
    peers = [entries[i][4:8] for i in took]
    i = next(i for i in range(len(took) // 2, len(took) - 1) if peers[i] != peers[i + 1])
    one, other = took[i], took[i + 1]
    entries[one], entries[other] = entries[other], entries[one]
    path.write_bytes(line + b"\n" + b"".join(entries))
    status, outcome, seen = replay(capsys, folder)
    assert status == 1
    assert not outcome["equal"]
    assert "the replay is not the run" in seen


def test_a_run_without_a_record(any_mpi, tmp_path, capsys):
    folder = tmp_path / "run"
    train(any_mpi, folder, *SMALL[:-1], ranks=2)
    status, _, seen = replay(capsys, folder)
    assert status == 2
    assert "there is no record in" in seen
    assert "psgrad train --record writes one" in seen


def test_a_run_that_did_not_end(any_mpi, tmp_path, capsys):
    folder = tmp_path / "run"
    train(any_mpi, folder, *SMALL, ranks=2)
    (folder / "summary.json").unlink()
    status, _, seen = replay(capsys, folder)
    assert status == 2
    assert "is not the folder of a run that has ended well" in seen


# Damaged folders, of a run in the simulator: without MPI


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded") / "run"
    argv = ["train", "--simulate", "workers=1", "--codec", "adaptive", "--run-dir", folder, *SMALL]
    assert cli.main([*map(str, argv)]) == 0
    return folder


@pytest.fixture
def damaged(recorded, tmp_path):
    return Path(shutil.copytree(recorded, tmp_path / "run"))


def changed(path, **fields):
    """Of the first line of a record."""
    line, _, rest = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps({**json.loads(line), **fields}).encode() + b"\n" + rest)


@pytest.mark.parametrize("threads", ["4; rm", "-1", 4, "\0", "²"])
def test_threads_that_are_no_number_are_refused(capsys, damaged, threads):
    """They become variables of the environment."""
    changed(damaged / "records" / "rank-1.record", threads={"OMP_NUM_THREADS": threads})
    status, _, seen = replay(capsys, damaged)
    assert status == 2
    assert "for OMP_NUM_THREADS: it is damaged" in seen


def test_no_other_variable_is_set(capsys, damaged, monkeypatch):
    monkeypatch.delenv("PSGRAD_TEST", raising=False)
    threads = dict.fromkeys(cli.BLAS_THREADS, "1")
    changed(damaged / "records" / "rank-1.record", threads={**threads, "PSGRAD_TEST": "1"})
    status, outcome, seen = replay(capsys, damaged)
    assert (status, outcome["equal"]) == (0, True), seen
    assert "PSGRAD_TEST" not in os.environ


@pytest.mark.parametrize("text", ["[]", "{}", '{"params_sha256": 7}', "[" * 100_000])
def test_a_summary_of_another_shape(capsys, damaged, text):
    (damaged / "summary.json").write_text(text)
    status, _, seen = replay(capsys, damaged)
    assert status == 2
    assert seen.count("\n") == 1
    assert "params_sha256" in seen or "is not the folder of a run" in seen


def test_a_codec_that_there_is_not(capsys, damaged):
    path = damaged / "records" / "rank-1.record"
    line, _, rest = path.read_bytes().partition(b"\n")
    entries = [bytearray(rest[i : i + 40]) for i in range(0, len(rest), 40)]
    [*_, last] = [entry for entry in entries if entry[0] == CHOSE]
    last[1] = 99
    path.write_bytes(line + b"\n" + b"".join(entries))
    status, _, seen = replay(capsys, damaged)
    assert status != 0
    assert "the record has chosen codec 99, which this run does not have" in seen
