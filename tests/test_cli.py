"""The command line: options to keys, what ranks run, one-line errors, and what is not imported."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys

import pytest

from psgrad import cli, launch, relaunch
from psgrad import train as train_module
from psgrad.config import Config, Source
from psgrad.data import DATASETS, PARTITIONS
from psgrad.errors import ConfigError
from psgrad.models import MODELS
from psgrad.optimizers import OPTIMIZERS
from psgrad.schedules import SCHEDULES
from psgrad.version import __version__

HEAVY = ("numpy", "mpi4py", "cupy", "safetensors")
NONE_BUT_THESE = f"""
import runpy, sys
sys.argv[0] = "psgrad"
try:
    runpy.run_module("psgrad", run_name="__main__", alter_sys=False)
except SystemExit as end:
    status = end.code or 0
loaded = [name for name in {HEAVY!r} if name in sys.modules]
sys.stderr.write(f"\\n{{status}} {{loaded}}")
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """No settings of who runs the tests, and thread counts that ``train`` finds set already."""
    for name in list(os.environ):
        if name.startswith("PSGRAD_"):
            monkeypatch.delenv(name)
    for name in cli.BLAS_THREADS:
        monkeypatch.setenv(name, "1")


@pytest.fixture
def trained(monkeypatch):
    """The configurations that ``psgrad train`` would have run."""
    configurations = []

    def train(configuration, stamp, terminal, about, transport, ends_at):
        assert re.fullmatch(r"\d{8}-\d{6}", stamp)
        assert transport is None  # this process is no rank
        configurations.append(configuration())

    monkeypatch.setattr(train_module, "train", train)
    return configurations


@pytest.fixture
def started(monkeypatch):
    """The launches that ``psgrad run`` would have made."""
    launches, prepared = [], []

    def prepare(asked, environ, terminal):
        prepared.append(asked)
        return launch.Plan(asked.command, {}, (), "mpich")

    def supervise(job, environ, restarts):
        launches.append(prepared[-1])
        return 7

    monkeypatch.setattr(launch, "prepare", prepare)
    monkeypatch.setattr(launch, "describe", lambda plan: shlex.join(plan.argv))
    monkeypatch.setattr(relaunch, "supervise", supervise)
    return launches


def config_of(trained, *argv):
    assert cli.main(["train", *argv]) == 0
    return trained[-1]


def refusal(capsys, *argv):
    """The one line that ``psgrad argv`` ends with, without its prefix; the status must be 2."""
    assert cli.main(list(argv)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert err.startswith("psgrad: error: ")
    return err.removeprefix("psgrad: error: ").rstrip("\n")


# Options are keys


@pytest.mark.parametrize("option", cli.OPTIONS)
def test_every_option_names_a_key(option):
    key, _ = cli.OPTIONS[option]
    with pytest.raises(ConfigError) as caught:  # no key takes a set
        train_module.configure([Source("test", {key: set()})])
    assert "unknown key" not in str(caught.value)
    assert "unknown option" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "text", "key", "value"),
    [
        ("--model", "softmax", "model.name", "softmax"),
        ("--dataset", "a b.csv", "dataset.name", "a b.csv"),
        ("--dataset", "7", "dataset.name", "7"),
        ("--mode", "sync", "mode", "sync"),
        ("--staleness", "5", "staleness", 5),
        ("--servers", "2", "servers", 2),
        ("--placement", "first", "placement", "first"),
        ("--optimizer", "sgd", "optimizer.name", "sgd"),
        ("--learning-rate", "1", "optimizer.learning_rate", 1.0),
        ("--learning-rate", "1e-3", "optimizer.learning_rate", 1e-3),
        ("--schedule", "constant", "schedule.name", "constant"),
        ("--batch-size", "8", "batch_size", 8),
        ("--accumulate", "3", "accumulate", 3),
        ("--local-steps", "8", "local_steps", 8),
        ("--elastic", "0.25", "elastic", 0.25),
        ("--clip-norm", "0.5", "clip_norm", 0.5),
        ("--epochs", "2", "epochs", 2),
        ("--codec", "none", "codec", "none"),
        ("--pull-codec", "none", "pull_codec", "none"),
        ("--feedback", "none", "feedback", "none"),
        ("--zstd", "on", "zstd", "on"),
        ("--aggregate", "mean", "aggregate", "mean"),
        ("--partition", "by-label", "dataset.partition", "by-label"),
        ("--seed", "9", "seed", 9),
        ("--device", "cpu", "device", "cpu"),
        ("--replicas", "0", "replicas", 0),
        ("--spares", "0", "spares", 0),
        ("--chunk-bytes", "65536", "chunk_bytes", 65536),
        ("--overlap", "on", "overlap", "on"),
        ("--precision", "bfloat16", "precision", "bfloat16"),
        ("--loss-scale", "fixed:scale=64", "loss_scale", "fixed:scale=64"),
        ("--shared-memory", "off", "shared_memory", "off"),
        ("--checkpoint-every", "500", "checkpoint_every", "500"),
        ("--checkpoint-dir", "7", "checkpoint_dir", "7"),
        ("--keep", "5", "checkpoint_keep", 5),
        ("--resume", "7", "resume", "7"),
        ("--walltime-margin", "60", "walltime_margin", 60.0),
        ("--run-dir", "2026", "run_dir", "2026"),
        ("--pace", "constant:seconds=1", "pace", "constant:seconds=1"),
        ("--log-level", "warning", "log_level", "warning"),
        ("--progress", "off", "progress", "off"),
    ],
)
def test_an_option_sets_its_key(trained, option, text, key, value):
    assert config_of(trained, option, text).flat()[key] == value
    assert config_of(trained, f"{option}={text}").flat()[key] == value


def test_servers_are_the_first_component_of_a_het_job_unless_said_otherwise(trained, monkeypatch):
    told = {"SIZE": "2", "PROCID": "3", "NTASKS": "7"}
    for name, value in (*told.items(), ("NTASKS_HET_GROUP_0", "3"), ("NTASKS_HET_GROUP_1", "4")):
        monkeypatch.setenv("SLURM_HET_SIZE" if name == "SIZE" else f"SLURM_{name}", value)
    inferred = config_of(trained)
    assert (inferred.servers, inferred.placement) == (3, "first")
    given = config_of(trained, "--servers", "1", "--placement", "spread")
    assert (given.servers, given.placement) == (1, "spread")
    monkeypatch.setenv("PSGRAD_SERVERS", "2")
    assert config_of(trained).servers == 2


def test_gpus_are_shared_only_where_that_is_said(trained):
    assert config_of(trained, "--gpu-share").gpu_share
    assert not config_of(trained).gpu_share


def test_replicas_need_a_second_server(trained, capsys):
    more = ("--fault-tolerant", "--replicas", "1")
    assert config_of(trained, "--servers", "2", *more).replicas == 1
    assert "needs a second server" in refusal(capsys, "train", *more)


def test_the_table_above_has_every_option():
    marks = test_an_option_sets_its_key.pytestmark[0].args[1]
    assert {option for option, *_ in marks} == cli.OPTIONS.keys() - {"--simulate"}


def test_options_that_are_not_in_the_table(trained):
    made = config_of(trained, "--json", "--inject", "a", "--inject", "b", "--set", "window=3")
    assert (made.json, made.inject, made.window) == (True, ("a", "b"), 3)
    made = config_of(trained, "--set", "model.hidden=[3, 4]", "--set", "model.activation=tanh")
    assert (made.model.value.hidden, made.model.value.activation) == ((3, 4), "tanh")


def test_the_order_of_the_sources(trained, tmp_path, monkeypatch):
    path = tmp_path / "run.toml"
    path.write_text("epochs = 1\nseed = 1\nbatch_size = 1\naccumulate = 1\n")
    for key in ("SEED", "BATCH_SIZE", "ACCUMULATE"):
        monkeypatch.setenv(f"PSGRAD_{key}", "2")
    argv = ["--batch-size", "3", "--accumulate", "3", "--set", "accumulate=4", str(path)]
    made = config_of(trained, *argv)
    assert (made.epochs, made.seed, made.batch_size, made.accumulate) == (1, 2, 3, 4)


def test_without_options_it_is_the_default(trained):
    assert config_of(trained) == train_module.configure([])


# Help


def help_of(capsys, *argv):
    with pytest.raises(SystemExit) as end:
        cli.main([*argv, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_of_train_names_every_option(capsys):
    text = help_of(capsys, "train")
    for option, (_, words) in cli.OPTIONS.items():
        assert option in text
        assert words.split()[0] in text


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("--model", MODELS),
        ("--optimizer", OPTIMIZERS),
        ("--schedule", SCHEDULES),
        ("--partition", PARTITIONS),
        ("--dataset", DATASETS),
    ],
)
def test_help_names_every_entry_of_a_table(option, names):
    words = re.findall(r"[\w-]+", cli.OPTIONS[option][1])
    assert set(names) <= set(words)


@pytest.mark.parametrize("option", cli.OPTIONS)
def test_a_default_in_the_help_is_the_default(option):
    key, text = cli.OPTIONS[option]
    stated = re.search(r"\((\d+)\)$", text)
    if stated:
        default = (
            train_module.configure([]).flat().get(key, Config.__dataclass_fields__[key].default)
        )
        expected = train_module.configure([]).bound if key == "staleness" else default
        assert int(stated[1]) == expected


def test_help_of_psgrad_names_the_commands(capsys):
    text = help_of(capsys)
    assert "psgrad run --np 4" in text
    assert "mpirun -n 4 psgrad train" in text


def test_nothing_at_all_is_help(capsys):
    assert cli.main([]) == 0
    assert capsys.readouterr().out.startswith("usage: psgrad")


def test_the_version(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"psgrad {__version__}\n"


# Errors: one line, status 2, before anything is started


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["trian"], "argument COMMAND: invalid choice: 'trian'"),
        (["--bogus"], "the first argument is a command, train or run, got '--bogus'; see psgrad"),
        (["--model", "mlp"], "the first argument is a command, train or run, got '--model'; see p"),
        (["--"], "the first argument is a command, train or run, got '--'; see psgrad --help"),
        (["train", "--bogus"], "unrecognized arguments: --bogus; see psgrad train --help"),
        (["train", "--mod", "sync"], "unrecognized arguments: --mod; see psgrad train --help"),
        (["train", "a.toml", "b.toml"], "unrecognized arguments: b.toml; see psgrad train --help"),
        (["train", "--seed"], "argument --seed: expected one argument; see psgrad train --help"),
        (["run", "--bogus"], "unrecognized arguments: --bogus; see psgrad run --help"),
        (["run", "--model", "mlp"], "unrecognized arguments: --model mlp; see psgrad run --help"),
        (["run", "--np", "0"], "--np must be a whole number of at least 1, got '0'"),
        (["run", "--np", "-1"], "--np must be a whole number of at least 1, got '-1'"),
        (["run", "--np", "four"], "--np must be a whole number of at least 1, got 'four'"),
    ],
)
def test_a_command_line_that_cannot_be_read(capsys, trained, started, argv, text):
    assert refusal(capsys, *argv).startswith(text)
    assert trained == started == []


BAD_OPTIONS = [
    (["none.toml"], "configuration file none.toml does not exist"),
    (["--mode", "synk"], "unknown mode 'synk'; did you mean 'sync'"),
    (["--mode", "sync", "--staleness", "3"], "staleness is 0 in sync mode, got 3"),
    (["--staleness", "-1"], "staleness must be at least 0, got -1"),
    (["--staleness", "two"], "staleness must be an integer, got 'two'"),
    (["--optimizer", "adm"], "unknown optimizer 'adm'; did you mean 'adam'"),
    (["--optimizer", "[1]"], "unknown optimizer [1]"),
    (["--model", "mpl"], "unknown model 'mpl'; did you mean 'mlp'"),
    (["--model", ""], "unknown model ''"),
    (["--schedule", "cosine"], "schedule 'cosine' needs schedule.total; give it a value"),
    (["--batch-size", "1.5"], "batch_size must be an integer, got 1.5"),
    (["--learning-rate", "-1"], "Adam: learning_rate must be at least 0 and finite, got -1.0"),
    (["--set", "window"], "--set takes key=value, got 'window'"),
    (["--set", "windw=3"], "unknown key 'windw'; did you mean 'window'"),
    (["--set", "model.hiden=[3]"], "model.hiden: unknown option of model 'mlp' 'hiden'; did you"),
    (["--set", "model={}x"], "unknown model '{}x'"),
    (["--partition", "label"], "unknown partition 'label'; did you mean 'by-label'"),
]


@pytest.mark.parametrize(("argv", "text"), BAD_OPTIONS)
def test_a_configuration_that_cannot_be(
    capsys, trained, started, argv, text, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert refusal(capsys, "train", *argv).startswith(text)
    assert refusal(capsys, "run", "--np", "4", "--", *argv).startswith(text)
    assert refusal(capsys, "run", "--np", "4", "--", "train", *argv).startswith(text)
    assert trained == started == []


@pytest.mark.parametrize(
    ("ranks", "argv", "text"),
    [
        ("1", [], "psgrad needs at least 2 ranks (a server and a worker), this job has 1"),
        ("4", ["--servers", "4"], "servers must be from 1 to 3 with 4 ranks, got 4"),
    ],
)
def test_roles_that_cannot_be_start_no_job(capsys, started, ranks, argv, text):
    assert refusal(capsys, "run", "--np", ranks, "--", *argv).startswith(text)
    assert started == []


@pytest.mark.parametrize(
    ("spokesman", "told"),
    [(None, "psgrad: error: text\n"), (True, "psgrad: error: text\n"), (False, "")],
)
def test_an_error_that_all_ranks_raise_is_told_by_one(capsys, monkeypatch, spokesman, told):
    def train(configuration, stamp, terminal, about, transport, ends_at):
        error = ConfigError("text")
        error.spokesman = spokesman
        raise error

    monkeypatch.setattr(train_module, "train", train)
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == told


# psgrad run


@pytest.mark.parametrize(
    ("rest", "command"),
    [
        ([], ["python", "-m", "psgrad", "train"]),
        (["--"], ["python", "-m", "psgrad", "train"]),
        (["--", "--seed", "3"], ["python", "-m", "psgrad", "train", "--seed", "3"]),
        (["--", "train", "--seed", "3"], ["python", "-m", "psgrad", "train", "--seed", "3"]),
        (["--", "my.py", "--seed"], ["python", "my.py", "--seed"]),
        (["--", "python", "my.py", "--", "x"], ["python", "my.py", "--", "x"]),
        (["--", "./a program"], ["./a program"]),
    ],
)
def test_what_each_rank_runs(started, capsys, rest, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", *rest]) == 7  # the job's own status
    (asked,) = started
    fixed = asked.command[len(command) :]
    assert list(asked.command[: len(command)]) == command
    if "train" in command:  # all attempts have one folder
        assert fixed[0] == "--run-dir"
        assert re.fullmatch(r"runs/\d{8}-\d{6}-mlp-digits-ssp", fixed[1])
    else:
        assert fixed == ()
    assert list(tmp_path.iterdir()) == []  # one that nothing was written to is removed
    assert started[0].ranks == 4
    assert cli.main(["run", "--np", "2", "--dry-run", *rest]) == 0
    assert capsys.readouterr().out == shlex.join(command) + "\n"
    assert len(started) == 1


def test_a_file_alone_is_a_configuration(started, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("seed = 3\nrun_dir = 'here'\n")
    cli.main(["run", "--", str(path)])
    assert started[0].command == ("python", "-m", "psgrad", "train", str(path))


def test_which_mpi(started, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cli.main(["run", "--np", "3", "--mpiexec", "/opt/mpiexec"])
    monkeypatch.setenv("PSGRAD_MPI", "system")
    cli.main(["run", "-n", "3"])
    assert [(asked.ranks, asked.mpiexec, asked.system_mpi) for asked in started] == [
        (3, "/opt/mpiexec", False),
        (3, None, True),
    ]


@pytest.mark.parametrize(
    ("argv", "rest", "text"),
    [
        (["--restarts", "x"], [], "--restarts must be a whole number of at least 0, got 'x'"),
        (["--restarts", "-1"], [], "--restarts must be a whole number of at least 0, got '-1'"),
        (
            ["--restarts", "3"],
            [],
            "--restarts needs checkpoints to go on from; give --checkpoint-every 500 behind",
        ),
        (
            ["--restarts", "3"],
            ["--checkpoint-every", "9", "--run-dir", "used"],
            "--restarts goes on from the newest checkpoint in used/checkpoints, and those there",
        ),
        (
            ["--restarts", "3"],
            ["--checkpoint-every", "9", "--checkpoint-dir", "used/checkpoints", "--resume", "x"],
            "--restarts goes on from the newest checkpoint in used/checkpoints, and those there",
        ),
    ],
)
def test_restarts_that_cannot_be(started, capsys, tmp_path, monkeypatch, argv, rest, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used" / "checkpoints" / "step-00000009").mkdir(parents=True)
    assert refusal(capsys, "run", *argv, "--", *rest).startswith(text)
    assert started == []


def test_restarts_go_on_from_checkpoints_of_a_run_before_if_asked_to(
    started, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used" / "checkpoints" / "step-00000009").mkdir(parents=True)
    rest = ["--checkpoint-every", "9", "--run-dir", "used", "--resume", "auto"]
    assert cli.main(["run", "--restarts", "3", "--", *rest]) == 7
    assert cli.main(["run", "--restarts", "3", "--", "python", "my.py"]) == 7
    assert len(started) == 2


# Threads


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, dict.fromkeys(cli.BLAS_THREADS, "6")),
        ({"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": ""}, {"OPENBLAS_NUM_THREADS": "3"}),
        ({"OPENBLAS_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "6", "MKL_NUM_THREADS": "6"}),
    ],
)
def test_thread_counts_of_the_user_stay(environ, expected):
    assert cli.blas_threads(environ, 6) == expected


def test_threads_are_settled_before_numpy_loads():
    code = (
        "import os, sys; from psgrad import cli, placement\n"
        "count = cli._threads(None)\n"
        "assert count == len(os.sched_getaffinity(0))\n"
        "import psgrad.transport.mpi\n"
        "assert 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What is not imported


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        ([], 0),
        (["train", "--help"], 0),
        (["run", "--help"], 0),
        (["run", "--np", "0"], 2),
        (["run", "--dry-run", "--mpiexec", "/none", "--", "python", "my.py"], 2),
    ],
)
def test_nothing_heavy_is_imported(argv, status):
    done = subprocess.run(
        [sys.executable, "-c", NONE_BUT_THESE, *argv], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == f"{status} []"


def test_the_check_above_sees_what_is_imported():
    script = NONE_BUT_THESE.replace("import runpy, sys", "import runpy, sys, numpy")
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "0 ['numpy']"


def test_the_public_names_load_on_first_use():
    script = (
        "import sys, psgrad\n"
        f"assert not [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert psgrad.SGD(0.1).learning_rate == 0.1\n"
        "assert all(getattr(psgrad, name) is not None for name in psgrad.__all__)\n"
        "assert set(dir(psgrad)) >= set(psgrad.__all__)\n"
        "assert 'mpi4py' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_name_that_is_not_public():
    import psgrad

    with pytest.raises(AttributeError, match="module 'psgrad' has no attribute 'nonsense'"):
        psgrad.nonsense  # noqa: B018


def test_main_is_what_the_console_script_calls():
    assert inspect.signature(cli.main).parameters["argv"].default is None
