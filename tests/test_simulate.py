"""``psgrad train --simulate`` and ``psgrad simulate``: no MPI, the same results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_train import ONE_THREAD, train

from psgrad import cli, simulate, soak
from psgrad.errors import ConfigError
from psgrad.transport.clockwork import RankError

SMALL = ["--epochs", "2", "--set", "model.hidden=[16]", "--progress", "off"]


def psgrad(capsys, *arguments):
    """(status, stdout, stderr) of a command in this process."""
    status = cli.main([str(argument) for argument in arguments])
    seen = capsys.readouterr()
    return status, seen.out, seen.err


def simulated(capsys, folder, text, *more):
    status, out, err = psgrad(
        capsys, "train", "--simulate", text, "--json", "--run-dir", folder, *SMALL, *more
    )
    assert status == 0, err
    return json.loads(out.splitlines()[-1]), err


LEVELS = {
    "error": (),
    "warning": ("psgrad: warning: ",),
    "info": ("psgrad: warning: ", "test accuracy", "samples/s  loss"),
    "debug": ("psgrad: warning: ", "test accuracy", "samples/s  loss", "coordinator-0: "),
}


@pytest.mark.parametrize("level", LEVELS)
def test_what_goes_to_the_screen(capsys, tmp_path, level):
    asked = ["--log-level", level, "--progress", "plain", "--checkpoint-every", "5"]
    folder = tmp_path / "run"
    _, err = simulated(capsys, folder, "workers=2", *asked, "--resume", "auto")
    assert [text for text in LEVELS["debug"] if text in err] == list(LEVELS[level])
    assert "is safe" in (folder / "logs" / "coordinator-0.log").read_text()
    assert f'log_level = "{level}"' in (folder / "config.toml").read_text()


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--accumulate", 2, "--clip-norm", 0.5),
        ("--inject", "nan:rank=2,step=3"),
        ("--codec", "topk:0.05", "--pull-codec", "int8"),
    ],
    ids=["plain", "accumulated and clipped", "not finite", "codecs"],
)
def test_overlap_gives_the_same_parameters_layer_by_layer(capsys, tmp_path, more):
    ranks, options = "workers=3,servers=2,jitter=2", ("--mode", "sync", *more)
    whole, _ = simulated(capsys, tmp_path / "whole", ranks, *options)
    parts, _ = simulated(capsys, tmp_path / "parts", ranks, *options, "--overlap", "on")
    assert parts["params_sha256"] == whole["params_sha256"]
    assert parts["steps"] == whole["steps"]
    assert parts["skipped_steps"] == whole["skipped_steps"] == (1 if "--inject" in more else 0)


def test_a_transformer_gives_the_same_parameters_layer_by_layer(capsys, tmp_path):
    """Many chunks, of several layers each, with a scale that overflows now and then."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{i} and {i * i}, " for i in range(200)))
    said = []
    for overlap in ("off", "on"):
        status, out, err = psgrad(
            capsys, "train", "--simulate", "workers=2,servers=2,jitter=2", "--mode", "sync",
            "--model", "transformer", "--dataset", text, "--set", "model.width=16",
            "--set", "model.context=16", "--epochs", 2, "--batch-size", 8, "--accumulate", 2,
            "--chunk-bytes", 4096, "--precision", "float16", "--loss-scale",
            "dynamic:first=33554432,every=3", "--overlap", overlap, "--progress", "off", "--json",
            "--run-dir", tmp_path / overlap,
        )  # fmt: skip
        assert status == 0, err
        said.append(json.loads(out.splitlines()[-1]))
    assert said[1]["params_sha256"] == said[0]["params_sha256"]
    assert said[1]["skipped_steps"] == said[0]["skipped_steps"] > 0


def test_sync_gives_the_parameters_of_a_real_run(mpi, tmp_path):
    """Bit for bit: other ranks, other clocks, other links, the same arithmetic."""
    real, _ = train(mpi, tmp_path / "real", "--mode", "sync", *SMALL, ranks=4)
    command = [
        sys.executable, "-m", "psgrad", "train", "--simulate", "workers=3,jitter=2",
        "--mode", "sync", "--json", "--run-dir", tmp_path / "simulated", *SMALL,
    ]  # fmt: skip
    done = subprocess.run(
        [*map(str, command)], env=ONE_THREAD, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["params_sha256"] == real["params_sha256"]
    assert summary["steps"] == real["steps"]


@pytest.mark.parametrize("mode", ["sync", "ssp", "async"])
def test_the_same_seed_is_the_same_run(capsys, tmp_path, mode):
    text = "workers=5,servers=2,seed=3,jitter=1"
    more = ["--mode", mode, "--pace", "pareto:mean=0.01,alpha=1.2", "--codec", "topk:0.05"]
    one, other = (simulated(capsys, tmp_path / name, text, *more)[0] for name in ("a", "b"))
    assert one == other
    assert (one["workers"], one["servers"]) == (5, 2)
    assert one["staleness_max"] <= {"sync": 0, "ssp": 3, "async": 1000}[mode]


def test_a_step_takes_as_long_as_the_pace_says(capsys, tmp_path):
    text, more = "workers=2,latency=0,bandwidth=inf", ["--mode", "sync"]
    summary, _ = simulated(
        capsys, tmp_path / "run", text, *more, "--pace", "constant:seconds=2;slow:worker=1,factor=3"
    )
    rounds = summary["steps"] / 2
    assert summary["seconds"] == pytest.approx(6 * rounds, rel=1e-3)


def test_a_step_may_take_hours(capsys, tmp_path):
    summary, _ = simulated(
        capsys, tmp_path / "run", "workers=2", "--mode", "async", "--pace", "constant:seconds=1e5"
    )
    assert summary["seconds"] > 1e5


def test_a_trace_is_written(capsys, tmp_path):
    path = tmp_path / "trace.json"
    simulated(capsys, tmp_path / "run", "workers=2", "--trace", path)
    events = json.loads(path.read_text())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {"rank 0 (server 0)", "rank 1 (worker 0)", "rank 2 (worker 1)"}


def test_a_failure_is_said_once(capsys, tmp_path):
    status, _, err = psgrad(
        capsys, "train", "--simulate", "workers=2", "--run-dir", tmp_path / "run", *SMALL,
        "--inject", "fail:rank=2,step=3",
    )  # fmt: skip
    assert status == 1
    assert err.count("psgrad: error: ") == 1
    assert err.splitlines()[-1] == (
        "psgrad: error: rank 2 (worker, node2): RuntimeError: planted failure at step 3"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("workers=0", "simulate: workers must be at least 1, got 0"),
        ("servers=2", "simulate 'servers=2' needs workers, such as workers=16"),
        ("workers=2,nodes=3", "unknown key 'nodes'"),
        ("workers=2.5", "workers must be a whole number, got '2.5'"),
        ("workers=2,latency=soon", "latency must be a number, got 'soon'"),
        ("workers=2,bandwidth=0", "bandwidth must be"),
        ("workers=2,latency=-1", "latency_s must be"),
    ],
)
def test_clusters_that_cannot_be(text, reason):
    with pytest.raises(ConfigError, match=re.escape(reason)):
        simulate.parse(text)


def test_a_wrong_pace_is_refused_before_anything_runs(capsys, tmp_path):
    status, _, err = psgrad(
        capsys,
        "train",
        "--simulate",
        "workers=2",
        "--pace",
        "slowly",
        "--run-dir",
        tmp_path / "run",
    )
    assert status == 2
    assert "slowly" in err
    assert not (tmp_path / "run").exists()


def test_a_configuration_file_is_enough(capsys, tmp_path):
    """That of a simulated run repeats it."""
    one, _ = simulated(capsys, tmp_path / "one", "workers=2,seed=4", "--mode", "async")
    status, out, err = psgrad(
        capsys, "train", tmp_path / "one" / "config.toml", "--run-dir", tmp_path / "two"
    )
    assert status == 0, err
    assert json.loads(out.splitlines()[-1])["params_sha256"] == one["params_sha256"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--dataset", "no-such-file.csv"], "no-such-file.csv"),
        (["--device", "gpu"], "gpu"),
    ],
)
def test_what_all_ranks_refuse_is_said_once(capsys, tmp_path, more, reason):
    status, _, err = psgrad(
        capsys, "train", "--simulate", "workers=3", "--run-dir", tmp_path / "run", *SMALL, *more
    )
    assert status in (1, 2)
    assert err.count("psgrad: error: ") == 1
    assert reason in err.splitlines()[-1].lower()


def test_a_run_folder_that_is_taken_is_said(capsys, tmp_path):
    simulated(capsys, tmp_path / "run", "workers=2")
    status, _, err = psgrad(
        capsys, "train", "--simulate", "workers=2", "--run-dir", tmp_path / "run", *SMALL
    )
    assert status == 2
    assert "holds a finished run" in err.splitlines()[-1]


def test_a_simulated_run_is_not_started_by_mpi(capsys, tmp_path, monkeypatch):
    status, _, err = psgrad(capsys, "run", "--np", "2", "--", "--simulate", "workers=2")
    assert status == 2
    assert "a simulated run has no MPI ranks" in err
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    status, _, err = psgrad(
        capsys, "train", "--simulate", "workers=2", "--run-dir", tmp_path / "run", *SMALL
    )
    assert status == 2
    assert "has all its ranks in one process" in err


def test_a_trace_of_a_real_run_is_refused(capsys):
    status, _, err = psgrad(capsys, "run", "--np", "2", "--", "--trace", "x.json")
    assert status == 2
    assert "--trace is of a simulated run" in err


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--simulate", "workers=2", *SMALL],
        ["simulate", "--seed", "1"],
    ],
    ids=["train", "simulate"],
)
def test_a_trace_without_a_folder_is_refused_before_the_run(capsys, tmp_path, argv):
    status, out, err = psgrad(capsys, *argv, "--trace", tmp_path / "lost" / "trace.json")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"there is no folder {tmp_path / 'lost'}; make it first" in err


# psgrad simulate


def test_one_schedule(capsys, tmp_path):
    path = tmp_path / "out.json"
    status, out, _ = psgrad(
        capsys, "simulate", "--seed", 7, "--set", "workers=3", "--set", "bound=0", "--trace", path
    )
    assert status == 0
    assert out.startswith("seed=7 workers=3 servers=")
    assert re.search(r"passed: \d+ messages in [\d.]+ virtual seconds, \d+ updates, compared", out)
    assert json.loads(path.read_text())["traceEvents"]


def test_a_schedule_that_fails_leaves_its_trace(capsys, tmp_path, monkeypatch):
    """The line that says why is the last one."""
    from psgrad import rehearsal

    def broken(scenario, *, trace):
        raise RankError(0, "no such luck")

    monkeypatch.setattr(rehearsal, "run", broken)
    path = tmp_path / "out.json"
    status, _, err = psgrad(capsys, "simulate", "--seed", 7, "--trace", path)
    assert status == 1
    assert Path(path).exists()
    assert err.splitlines()[-1] == "psgrad: error: rank 0: no such luck"


def test_soaking(capsys):
    status, out, _ = psgrad(capsys, "simulate", "--minutes", "0.005", "--first", 11)
    assert status == 0
    passed = int(re.fullmatch(r"(\d+) schedules passed, 0 failed; the last seed was \d+\n", out)[1])
    assert passed >= 1


def test_a_range_of_seeds_in_two_processes_is_that_in_one():
    one, two = (soak.soak(40, 205, None, jobs) for jobs in (1, 2))
    assert one == two
    assert (one.first, one.last, one.count, one.failed) == (40, 244, 205, [])
    assert one.line == "205 schedules passed, 0 failed; the last seed was 244"
    for what in ("deaths", "partitions", "partitions and deaths", "messages that come twice"):
        assert one.had[what] >= 10
        assert f"\n{what:30}"[:20] in "\n" + soak.table(one)


def test_a_command_for_a_range_of_seeds(capsys, monkeypatch):
    monkeypatch.setattr(soak, "SAID", 2)
    monkeypatch.setattr(soak, "BLOCK", 1)
    status, out, _ = psgrad(capsys, "simulate", "--seeds", 3, "--first", 7)
    assert status == 0
    first, *_, last = out.splitlines()
    assert re.fullmatch(r"2 schedules passed, 0 failed; the last seed was 8, \d+ s", first)
    assert last == "3 schedules passed, 0 failed; the last seed was 9"


def test_soaking_names_the_seeds_that_fail(capsys, monkeypatch):
    from psgrad import rehearsal

    monkeypatch.setattr(rehearsal, "run", lambda scenario: simulate.parse("workers=0"))
    status, out, err = psgrad(capsys, "simulate", "--minutes", "0.0001", "--first", 11)
    assert status == 1
    assert out.startswith("0 schedules passed, ")
    assert err.startswith("psgrad simulate --seed 11\n    simulate: workers must be at least 1")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--set", "workers=1"], "--set goes with --seed"),
        (["--seed", "3", "--servers", "2"], "--seed is of schedules, --servers of scale"),
        (["--workers", "many"], "expected whole numbers such as 1,16,256, got 'many'"),
        (["--workers", "0"], "workers"),
        (["--seed", "-3"], "expected"),
        (["--seed", "3", "--minutes", "1"], "not allowed with argument"),
        (["--seed", "3", "--set", "werkers=1"], "unknown field of a scenario 'werkers'"),
        (["--seed", "3", "--first", "1"], "--first goes with --seeds or --minutes"),
        (["--seed", "3", "--jobs", "2"], "--jobs goes with --seeds or --minutes"),
        (["--seeds", "3", "--minutes", "1"], "not allowed with argument"),
        (["--seeds", "0"], "expected a count of at least 1"),
        (["--seeds", "3", "--trace", "out"], "--set and --trace go with --seed"),
        (["--minutes", "nan"], "--minutes must be a number above 0, got nan"),
        (["--minutes", "1", "--set", "workers=1"], "--set and --trace go with --seed"),
    ],
)
def test_wrong_arguments(capsys, arguments, reason):
    status, _, err = psgrad(capsys, "simulate", *arguments)
    assert status == 2
    assert reason in err


def test_scale(capsys, tmp_path):
    status, out, _ = psgrad(
        capsys, "simulate", "--workers", "1,8", "--servers", "2", "--params", "1000000", "--steps",
        "20", "--codec", "int8", "--ideal", "--pace-seed", "3", "--json",
    )  # fmt: skip
    assert status == 0
    record = json.loads(out.splitlines()[-1])
    assert record["options"]["seed"] == 3
    rows = record["rows"]
    assert len(rows) == 2 * 3 * 2, "workers, modes, with and without the codec"
    assert {row["workers"] for row in rows} == {1, 8}


# Accuracy, from fixed seeds


@pytest.mark.parametrize("mode", ["ssp", "async"])
@pytest.mark.parametrize(
    ("codec", "pull_codec"), [("topk:0.01", "none"), ("sign", "none"), ("int4", "int8")]
)
def test_compressed_training_learns(tmp_path, mode, codec, pull_codec):
    """The model of tests/test_train.py, in one process."""
    command = [
        sys.executable, "-m", "psgrad", "train", "--simulate", "workers=3,seed=1", "--pace",
        "exponential:mean=0.01", "--mode", mode, "--codec", codec, "--pull-codec", pull_codec,
        "--zstd", "off", "--optimizer", "sgd", "--set", "model.hidden=[512,320]", "--epochs", "12",
        "--progress", "off", "--json", "--run-dir", tmp_path / "run",
    ]  # fmt: skip
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["test_accuracy"] >= 0.94
