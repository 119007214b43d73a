"""The built-in trainer through ``psgrad run`` and under bare mpiexec, on real ranks."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from twin import Twin

from psgrad import config
from psgrad.cli import OPTIONS, STRINGS
from psgrad.train import configure

SUMMARY = {
    "test_accuracy", "test_loss", "steps", "skipped_steps", "updates", "seconds",
    "samples_per_second", "mode", "staleness_bound", "staleness_max", "workers", "servers",
    "shard_balance", "bytes_pushed", "bytes_pulled", "params_sha256", "psgrad_version",
}  # fmt: skip

# The bits of a product depend on how many threads BLAS has.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def train(mpi, folder, *arguments, ranks=4, timeout=60):
    """``psgrad run``: (summary, what a person saw)."""
    command = ["run", "--np", ranks, "--", "train", "--json", "--run-dir", folder, *arguments]
    status, stdout, stderr = mpi.psgrad(command, timeout=timeout, env=ONE_THREAD)
    assert status == 0, stderr
    return json.loads(stdout.splitlines()[-1]), stderr


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("mode", ["sync", "ssp", "async"])
def test_every_mode_learns(mpi, tmp_path, mode, servers):
    summary, _ = train(
        mpi, tmp_path / "run", "--model", "mlp", "--dataset", "digits", "--mode", mode,
        "--servers", servers, ranks=3 + servers,
    )  # fmt: skip
    assert summary["test_accuracy"] >= 0.96
    assert set(summary) == SUMMARY
    assert summary["steps"] == 3 * 20 * 15
    assert (summary["workers"], summary["servers"], summary["mode"]) == (3, servers, mode)
    assert summary["staleness_bound"] == {"sync": 0, "ssp": 3, "async": None}[mode]
    assert summary["staleness_max"] <= {"sync": 0, "ssp": 3, "async": 300}[mode]
    assert summary["shard_balance"] <= 1.05
    # 50,826 float32 each way for each step, and headers; pulls also bring the first parameters.
    pushed = 4 * 50_826 * summary["steps"]
    assert pushed < summary["bytes_pushed"] < 1.01 * pushed
    # Where workers copy parameters out, what meets an update each time comes once more by message.
    assert pushed < summary["bytes_pulled"] < (1.02 if mode == "sync" else 1.5) * pushed


def test_a_straggler_does_not_break_the_bound(mpi, tmp_path):
    summary, _ = train(
        mpi, tmp_path / "run", "--mode", "ssp", "--staleness", 3, "--inject",
        "slow:rank=3,factor=5",
    )  # fmt: skip
    assert summary["test_accuracy"] >= 0.96
    assert 0 < summary["staleness_max"] <= 3


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_sync_repeats_and_equals_the_naive_twin_bit_for_bit(any_mpi, tmp_path, optimizer):
    """Whatever the arrival order, the number of servers, the chunks and the window."""
    # 1438 samples on 3 workers: batches end short, and on different workers differently.
    options = ["--mode", "sync", "--epochs", 3, "--batch-size", 37, "--optimizer", optimizer]
    twin = Twin(configure([_command_line(options)]), workers=3)
    twin.train(twin.mean_of_workers)
    for name, ranks, more in [
        ("first", 4, []),
        ("again", 4, ["--inject", "slow:rank=1,factor=3"]),
        ("two servers", 5, ["--servers", 2]),
        ("small chunks", 5, ["--servers", 2, "--chunk-bytes", 4096, "--set", "window=2"]),
        ("by message", 5, ["--servers", 2, "--shared-memory", "off"]),
    ]:
        summary, _ = train(any_mpi, tmp_path / name, *options, *more, ranks=ranks)
        assert summary["params_sha256"] == twin.sha256, name


def test_the_mean_of_workers_is_the_union_of_their_batches():
    """After 200 steps within 1e-5 relative: the twin that sync runs equal, against one batch."""
    options = ["--epochs", 20, "--optimizer", "sgd"]
    separate, union = (Twin(configure([_command_line(options)]), workers=3) for _ in range(2))
    a = separate.train(separate.mean_of_workers, limit=200)
    b = union.train(union.union, limit=200)
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)
    assert not np.array_equal(a, b), "the two are computed differently"


def test_run_folder(any_mpi, tmp_path):
    folder = tmp_path / "a folder"
    summary, seen = train(any_mpi, folder, "--epochs", 2, "--set", "model.hidden=[16]", ranks=3)
    assert {path.name for path in folder.iterdir()} == {
        "config.toml", "metrics.jsonl", "model.safetensors", "summary.json", "logs",
    }  # fmt: skip
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert sorted(path.name for path in (folder / "logs").iterdir()) == [
        "coordinator-0.log", "worker-1.log", "worker-2.log",
    ]  # fmt: skip
    saved = config.tomllib.loads((folder / "config.toml").read_text())
    assert saved["model"] == {"name": "mlp", "hidden": [16], "activation": "relu"}
    assert saved["epochs"] == 2
    parameters = load_file(folder / "model.safetensors")
    assert {name: value.shape for name, value in parameters.items()} == {
        "layer0.weight": (64, 16), "layer0.bias": (16,),
        "layer1.weight": (16, 10), "layer1.bias": (10,),
    }  # fmt: skip
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["step"] for record in steps] == list(range(1, len(steps) + 1))
    assert records[-1]["kind"] == "summary"
    for line in (
        "psgrad 0.1.0: mlp with 1,210 parameters on digits, 1 server, 2 workers, ssp, staleness 3",
        "shard balance (max/mean bytes) 1.000, run folder",
        "test accuracy  ",
        "wall time      ",
        "bytes moved    ",
        "staleness      at most ",
    ):
        assert line in seen
    assert re.search(r"epoch 2/2  step \d+  [\d,]+ samples/s  loss ", seen)


def test_the_saved_configuration_repeats_the_run(any_mpi, tmp_path):
    options = ["--mode", "sync", "--epochs", 1, "--set", "model.hidden=[8]", "--accumulate", 2]
    first, _ = train(any_mpi, tmp_path / "first", *options, ranks=3)
    saved = tmp_path / "first" / "config.toml"
    again, _ = train(any_mpi, tmp_path / "again", saved, ranks=3)
    assert again["params_sha256"] == first["params_sha256"]


def test_under_bare_mpiexec(mpi, tmp_path):
    """``mpirun -n 4 psgrad train`` does what ``psgrad run --np 4`` does."""
    arguments = ["--mode", "sync", "--epochs", 2, "--json", "--run-dir"]
    status, stdout, stderr = mpi.run(
        4, ["-m", "psgrad", "train", *arguments, tmp_path / "bare"], env=ONE_THREAD
    )
    assert status == 0, stderr
    bare = json.loads(stdout.splitlines()[-1])
    relayed, _ = train(mpi, tmp_path / "run", *arguments[:-2])
    assert bare["params_sha256"] == relayed["params_sha256"]


def test_a_non_finite_step_is_skipped_and_counted(any_mpi, tmp_path):
    summary, seen = train(
        any_mpi, tmp_path / "run", "--mode", "sync", "--inject", "nan:rank=2,step=5,steps=3"
    )
    assert summary["skipped_steps"] == 3
    assert "skipped        3 steps were not finite" in seen
    assert summary["test_accuracy"] >= 0.96


@pytest.mark.parametrize("mode", ["sync", "ssp", "async"])
@pytest.mark.parametrize(
    ("codec", "pull_codec", "smaller"),
    [
        ("topk:0.01", "none", 25),
        ("int4", "none", 6.5),
        ("sign", "none", 18),
        ("int8", "int8", 3.8),
        ("topk:0.01", "topk:0.02", 25),
    ],
)
def test_compressed_training(any_mpi, tmp_path, codec, pull_codec, smaller, mode):
    summary, seen = train(
        any_mpi, tmp_path / "run", "--mode", mode, "--codec", codec, "--pull-codec", pull_codec,
        "--optimizer", "sgd", "--set", "model.hidden=[512,320]",
    )  # fmt: skip
    assert summary["test_accuracy"] >= 0.94
    dense = 4 * 200_650 * summary["steps"]
    assert summary["bytes_pushed"] * smaller < dense
    # Copies out of shared memory that meet an update each time come once more by message.
    pulled = {"none": 1.02 if mode == "sync" else 1.5, "int8": 1 / 3.5, "topk:0.02": 1 / 20}
    assert summary["bytes_pulled"] < pulled[pull_codec] * dense
    copies = "one copy" if mode == "sync" else "a copy for each worker"
    said = f"pull codec topk keeps {copies} of the parameters as the workers have them: up to"
    assert (said in seen) == (pull_codec == "topk:0.02")


@pytest.mark.parametrize("partition", ["by-label", "contiguous"])
def test_partitions(any_mpi, tmp_path, partition):
    summary, _ = train(any_mpi, tmp_path / "run", "--mode", "sync", "--partition", partition)
    assert summary["test_accuracy"] >= 0.9


def test_more_workers_than_samples(any_mpi, tmp_path):
    """Workers without data leave at once."""
    path = tmp_path / "tiny.csv"
    path.write_text("0,1,0\n1,0,1\n1,1,1\n0,0,0\n0,2,0\n")
    summary, _ = train(
        any_mpi, tmp_path / "run", "--dataset", path, "--mode", "sync", "--epochs", 3,
        "--set", "dataset.test_fraction=0.5", ranks=6,
    )  # fmt: skip
    assert summary["steps"] in (6, 9)


FAILS = {
    # Found by `psgrad run` itself, before any rank starts.
    "mode": (["--mode", "assync"], "unknown mode 'assync'; did you mean 'async' or 'sync'?"),
    "model": (["--model", "mpl"], "unknown model 'mpl'; did you mean 'mlp'?"),
    "optimizer": (["--optimizer", "adm"], "unknown optimizer 'adm'; did you mean 'adam'"),
    "staleness": (["--staleness", "-1"], "staleness must be at least 0, got -1"),
    "servers": (["--servers", "4"], "servers must be from 1 to 3 with 4 ranks, got 4"),
    "key": (["--set", "modle.hidden=3"], "unknown key 'modle.hidden'; did you mean 'model.hidden'"),
    "toml": (["no.toml"], "configuration file no.toml does not exist"),
    # Found by the ranks, which agree on it.
    "dataset": (["--dataset", "digts"], "unknown dataset 'digts'; did you mean 'digits'?"),
    "file": (["--dataset", "none/x.csv"], "none/x.csv"),
    "malformed": (["--dataset", "bad.csv"], "bad.csv:2:"),
    "nan": (["--dataset", "nan.csv"], "nan.csv"),
    "label": (
        ["--dataset", "label.csv", "--set", "dataset.classes=2"],
        "label.csv",
    ),
    "inject": (["--inject", "slow:rank=0,factor=2"], "rank must be a worker, 1 to 3, got 0"),
    "run_dir": (["--run-dir", "used"], "run_dir used holds a finished run"),
}


@pytest.mark.parametrize("case", FAILS)
def test_bad_input_is_one_line_and_status_2(any_mpi, tmp_path, case):
    arguments, text = FAILS[case]
    (tmp_path / "bad.csv").write_text("1,2,0\n1,x,1\n")
    (tmp_path / "nan.csv").write_text("1,2,0\n1,nan,1\n")
    (tmp_path / "label.csv").write_text("1,2,0\n1,3,7\n1,2,1\n")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "summary.json").write_text("{}")
    status, stdout, stderr = any_mpi.psgrad(["run", "--np", 4, "--", *arguments], cwd=tmp_path)
    assert status == 2, stderr
    assert stdout == ""
    lines = stderr.splitlines()
    assert lines[-1].startswith("psgrad: error: "), stderr
    assert text in lines[-1]
    assert sum(line.startswith("psgrad: error: ") for line in lines) == 1
    assert not (tmp_path / "runs").exists(), "nothing was begun"


def test_ranks_that_were_told_different_things(mpi, tmp_path):
    program = tmp_path / "ranks.py"
    program.write_text(
        "import os, sys\n"
        "from psgrad import cli, version\n"
        "ranks = ('OMPI_COMM_WORLD_RANK', 'PMI_RANK')\n"
        "rank = next(int(os.environ[name]) for name in ranks if name in os.environ)\n"
        "if sys.argv[1] == 'version' and rank == 2:\n"
        "    import psgrad.session\n"
        "    psgrad.session.__version__ = '9.9'\n"
        "if sys.argv[1] == 'epochs' and rank == 2:\n"
        "    sys.argv.append('--epochs=7')\n"
        "raise SystemExit(cli.main(['train', *sys.argv[2:]]))\n"
    )
    for case, text in [
        ("epochs", "epochs differs between ranks: 20 on ranks 0, 1, 3; 7 on rank 2"),
        ("version", "psgrad_version differs between ranks: 0.1.0 on ranks 0, 1, 3; 9.9 on rank 2"),
    ]:
        status, _, stderr = mpi.run(4, [program, case], cwd=tmp_path, timeout=20)
        assert status == 2
        assert f"psgrad: error: {text}\n" in stderr


def test_a_rank_that_raises_ends_the_job_with_its_cause_last(mpi, tmp_path):
    command = ["run", "--np", 4, "--", "--inject", "fail:rank=2,step=5"]
    status, _, stderr = mpi.psgrad(command, cwd=tmp_path, timeout=20)
    assert status == 1
    last = stderr.splitlines()[-1]
    assert re.fullmatch(
        r"psgrad: error: rank 2 \(worker, .+\): RuntimeError: planted failure at step 5", last
    )


def test_real_text(any_mpi, tmp_path):
    text = Path(__file__).parents[1].parent / "shared" / "data" / "tinyshakespeare.txt"
    if not text.exists():
        pytest.skip(f"no {text.name} in shared/data beside the checkout")
    part = tmp_path / "part.txt"
    part.write_bytes(text.read_bytes()[:30_000])
    summary, _ = train(
        any_mpi, tmp_path / "run", "--dataset", part, "--epochs", 3, "--set", "model.hidden=[32]",
        "--batch-size", 64, "--learning-rate", 0.01,
    )  # fmt: skip
    assert summary["test_accuracy"] > 0.25


@pytest.mark.parametrize("more", [("sync",), ("async", "--precision", "float16")], ids=" ".join)
def test_a_transformer_learns_text(any_mpi, tmp_path, more):
    """Words in any order: better than knowing how often each character occurs."""
    words = ["gradient", "worker", "server", "shard", "chunk", "push", "pull", "clock"]
    text = " ".join(np.random.default_rng(0).choice(words, 3400))[:20_000]
    (tmp_path / "words.txt").write_text(text)
    counts = np.array(list(Counter(text).values()))
    unigram = -np.sum(counts / counts.sum() * np.log(counts / counts.sum()))
    summary, seen = train(
        any_mpi, tmp_path / "run", "--model", "transformer", "--dataset", tmp_path / "words.txt",
        "--epochs", 3, "--set", "model.width=32", "--set", "model.context=32", "--batch-size", 16,
        "--learning-rate", 0.005, "--mode", *more, ranks=3,
    )  # fmt: skip
    assert "transformer with " in seen
    assert summary["steps"] == 2 * 3 * 16, "windows do not overlap"
    assert summary["test_loss"] < unigram - 0.3
    assert 0.25 < summary["test_accuracy"] < 1
    assert summary.get("precision", "float32") == ("float16" if "float16" in more else "float32")


def _command_line(options):
    """The configuration source of a few options, as the command line would read them."""
    texts = dict(zip(options[::2], map(str, options[1::2]), strict=True))
    values = {
        OPTIONS[option][0]: text if option in STRINGS else config.parse_value(text)
        for option, text in texts.items()
    }
    return config.Source("the command line", values)
