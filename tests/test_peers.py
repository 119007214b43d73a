"""``benchmarks/peers``: what is compared and how it is read, never how fast anything is."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from peers import contract, environments, plot, run, systems, table  # noqa: E402
from peers.case import Case  # noqa: E402
from peers.contract import RATE, Trace, drive, gradient, wrong  # noqa: E402
from peers.jobs import Ended  # noqa: E402
from peers.rounds import Entry, UnusableError, entries, measure, order, read  # noqa: E402
from peers.systems import BY_NAME, MEMCPY, MPICH, OPENMPI, PSGRAD, SYSTEMS  # noqa: E402

PATHS = {"PYTHONPATH": f"{ROOT / 'benchmarks'}:{ROOT}"}
N = contract.PATTERN + 100
CASE = Case(workers=2, nbytes=4 * N, warm_up=2, steps=3)
RAY, DDP, OURS = BY_NAME["ray"], BY_NAME["torch-ddp"], BY_NAME["psgrad"]


# What every system does


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"nbytes": 0}, "a multiple of 4 bytes .*, got 0"),
        ({"nbytes": 6}, "a multiple of 4 bytes .*, got 6"),
        ({"warm_up": 1}, "warm-up must be at least 2 steps, got 1"),
        ({"steps": 0}, "steps must be from 1 to 998 after 2 of warm-up, got 0"),
        ({"steps": 999}, "steps must be from 1 to 998 after 2 of warm-up, got 999"),
    ],
)
def test_cases_that_cannot_be(values, error):
    with pytest.raises(ValueError, match=error):
        Case(**{"workers": 2, "nbytes": 4, "warm_up": 2, "steps": 3, **values})


def test_a_case_travels_as_arguments():
    found = contract.parse(["--system=a", *CASE.arguments(), "--way=b"], way=("a", "b"))
    assert (found.system, found.case, found.way) == ("a", CASE, "b")
    assert contract.parse(["--system=a", *CASE.arguments()], way=("a", "b")).way == "a"


def params_after(steps, workers=2):
    mean = np.mean([gradient(w, N) for w in range(workers)], axis=0)
    return np.float32(-RATE * steps) * mean


def test_the_expected_parameters_are_those_of_the_mean():
    assert wrong(params_after(5), CASE, 5) is None


def one_element(value):
    params = params_after(5)
    params[-1] = value
    return params


@pytest.mark.parametrize(
    ("params", "error"),
    [
        (params_after(4), "element 0 is .* after 5 steps, expected"),
        (params_after(5, workers=3), "element 0 is"),
        (one_element(0), f"element {N - 1} is 0 after 5 steps"),
        (one_element(np.nan), f"element {N - 1} is nan"),
        (params_after(5)[1:], rf"got float32\[{N - 1}\], expected float32\[{N}\]"),
        (params_after(5).astype(np.float64), r"got float64"),
    ],
)
def test_wrong_parameters(params, error):
    assert re.search(error, wrong(params, CASE, 5))


def test_a_step_too_few_of_the_most_is_seen():
    case = Case(2, 4 * N, 2, 998)
    assert wrong(params_after(1000), case, 1000) is None
    assert wrong(params_after(999), case, 1000) is not None


class Stepper:
    """A system in one process. ``late``: what it holds is so many steps old."""

    def __init__(self, late=0):
        self.taken, self.late = 0, late

    def step(self):
        self.taken += 1

    def params(self):
        return params_after(self.taken - self.late)


def test_driving_takes_all_steps_and_checks_them():
    system = Stepper()
    trace = drive(system.step, system.params, CASE)
    assert system.taken == 5
    assert len(trace.ends) == 4
    assert trace.error is None
    assert "after 1 steps" in drive(system.step, Stepper(late=1).params, CASE).error


def test_times_are_between_the_last_workers():
    assert contract.times_ms([[1.0, 2.0, 4.0], [1.5, 1.75, 4.5]]) == [500.0, 2500.0]


def test_a_record_names_the_worker_that_was_wrong():
    traces = [Trace([1.0, 2.0], None), Trace([1.0, 2.5], "element 7 is 0")]
    record = contract.record("a", CASE, traces, {"torch": "2"})
    assert record["times_ms"] == [1500.0]
    assert record["error"] == "worker 1: element 7 is 0"
    assert contract.record("a", CASE, traces[:1], {})["error"] == (
        "1 workers took part, expected 2"
    )


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 8, 20])
def test_the_update_of_servers(n, workers):
    rng = np.random.default_rng(n)
    params, *grads = rng.standard_normal((1 + workers, n), np.float32)
    expected = params - np.float32(0.25) * np.sum(grads, axis=0)
    before = np.copy(grads)
    contract.descend(params, grads, 0.25, np.zeros(8, np.float32))
    assert np.allclose(params, expected, atol=1e-6)
    assert np.array_equal(grads, before)


@pytest.mark.parametrize(
    "name",
    ["psgrad", "psgrad-copied", "psgrad-messages", "openmpi-allreduce",
     "openmpi-allreduce-blocks", "mpi4py-server"],
)  # fmt: skip
def test_systems_of_ranks(mpi, name):
    system = BY_NAME[name]
    argv = systems.command(system, mpi.python, CASE)
    ranks, program = int(argv[argv.index("--np") + 1]), argv[argv.index("python") + 1 :]
    status, stdout, stderr = mpi.run(ranks, program, env=PATHS)
    found = read(Ended(status, stdout, stderr), Entry(system, 2), CASE.nbytes)
    assert len(found["times_ms"]) == CASE.steps


def test_a_run_with_more_workers_than_it_was_told_is_wrong(mpi):
    program = ["-m", "peers.mpi_allreduce", "--system=openmpi-allreduce", *CASE.arguments()]
    ended = Ended(*mpi.run(3, program, env=PATHS))
    with pytest.raises(UnusableError, match=r"wrong parameters: worker 0: element 0"):
        read(ended, Entry(BY_NAME["openmpi-allreduce"], 2), CASE.nbytes)


def test_the_copy():
    case = Case(1, 4096, 2, 3)
    argv = systems.command(MEMCPY, Path(sys.executable), case)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=PATHS)
    found = read(Ended(done.returncode, done.stdout, done.stderr), Entry(MEMCPY, 1), 4096)
    assert len(found["times_ms"]) == 3
    assert set(found["versions"]) == {"cpu", "cores", "python", "numpy"}


# The table of systems


def test_systems_have_names_and_files():
    assert len({s.name for s in SYSTEMS}) == len({s.label for s in SYSTEMS}) == len(SYSTEMS)
    for system in BY_NAME.values():
        assert (ROOT / "benchmarks" / "peers" / f"{system.module}.py").exists()
    assert [s.name for s in BY_NAME.values() if s.required] == [
        "psgrad", "psgrad-copied", "psgrad-messages", "memcpy"
    ]  # fmt: skip
    wanted = {e.name: e.packages for e in environments.wanted(ROOT)}
    assert all(s.package in wanted[s.environment] for s in BY_NAME.values())


def test_commands():
    python, case = Path("env/bin/python"), Case(3, 4096, 2, 7)
    told = ("--workers=3", "--nbytes=4096", "--warm-up=2", "--steps=7")
    assert systems.command(BY_NAME["psgrad-messages"], python, case) == (
        "env/bin/python", "-m", "psgrad", "run", "--np", "4", "--", "python", "-m",
        "peers.psgrad_step", "--system=psgrad-messages", *told, "--shared-memory=off",
    )  # fmt: skip
    assert systems.command(RAY, python, case) == (
        "env/bin/python", "-m", "peers.ray_actors", "--system=ray", *told
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "workers", "steps"),
    [
        ("mpich-allreduce", 2, 20),
        ("mpich-allreduce", 3, 5),
        ("openmpi-allreduce", 3, 20),
        ("psgrad", 3, 20),
    ],
)
def test_mpich_takes_fewer_steps_where_its_ranks_spin(name, workers, steps):
    assert systems.steps_of(BY_NAME[name], workers, 2, 20) == steps
    assert systems.steps_of(BY_NAME[name], workers, 2, 4) == 4


# Rounds


@given(st.integers(1, 40), st.integers(1, 12))
def test_each_round_has_everything_and_begins_elsewhere(count, rounds):
    found = [order(range(count), number, rounds) for number in range(rounds)]
    assert found[0] == list(range(count))
    for one in found:
        assert [(i - one[0]) % count for i in one] == list(range(count))
    starts = Counter(one[0] for one in found)
    assert max(starts.values()) == -(-rounds // count)


def test_a_round_has_a_copy_for_each_number_of_workers():
    found = [(e.system.name, e.workers) for e in entries([OURS, RAY], (2, 3))]
    assert found == [
        ("memcpy", 1), ("psgrad", 2), ("ray", 2), ("memcpy", 1), ("psgrad", 3), ("ray", 3)
    ]  # fmt: skip


def printed(entry, times=(1.0, 2.0, 9.0), **changes):
    record = contract.record(entry.system.name, CASE, [], {"mpi": "MPI 1"})
    return json.dumps(
        {**record, "workers": entry.workers, "error": None, "times_ms": list(times), **changes}
    )


def test_a_record_is_found_among_other_output():
    entry = Entry(RAY, 3)
    ended = Ended(0, f"a warning\n{printed(entry)}\n{{}}\n[1]\nbye\n", "")
    assert read(ended, entry, CASE.nbytes)["times_ms"] == [1.0, 2.0, 9.0]


@pytest.mark.parametrize(
    ("ended", "error", "again"),
    [
        (Ended(None, "", "x"), "not over in time; --timeout gives it more", False),
        (Ended(1, "", "a\n\nlast\n"), "status 1 and no figures: last", True),
        (Ended(0, '{"system": "ray"}\n', ""), "status 0 and no figures", True),
        (Ended(0, printed(Entry(DDP, 2)), ""), "the figures are of torch-ddp, 2 workers", False),
        (Ended(0, printed(Entry(RAY, 3)), ""), "the figures are of ray, 3 workers", False),
        (Ended(0, printed(Entry(RAY, 2), nbytes=4), ""), "the figures are of ray", False),
        (Ended(7, printed(Entry(RAY, 2)), "oh"), "status 7 after the figures: oh", False),
        (Ended(0, printed(Entry(RAY, 2), ()), ""), r"times must be above 0, got \[\]", False),
        (Ended(0, printed(Entry(RAY, 2), (1, 0)), ""), "times must be above 0, got", False),
        (Ended(0, printed(Entry(RAY, 2), error="no"), ""), "wrong parameters: no", False),
    ],
)
def test_runs_that_cannot_be_used(ended, error, again):
    with pytest.raises(UnusableError, match=error) as caught:
        read(ended, Entry(RAY, 2), CASE.nbytes)
    assert caught.value.again == again
    assert caught.value.wrong == ("wrong" in error)


class Machine:
    """Starts entries as scripted: by name what each start gives; the last one stays."""

    def __init__(self, **script):
        self.script = script
        self.started = []
        self.said = []

    def start(self, entry):
        name = entry.system.name
        self.started.append(name)
        given = self.script.get(name, ["good"])
        given = given.pop(0) if len(given) > 1 else given[0]
        outcomes = {
            "good": Ended(0, printed(entry), ""),
            "wrong": Ended(0, printed(entry, error="no"), ""),
            "crash": Ended(1, "", "cannot bind"),
            "hang": Ended(None, "", ""),
        }
        return outcomes[given]

    def measure(self, listed, rounds=3, missing=None):
        return measure(listed, rounds, CASE.nbytes, missing or {}, self.start, self.said.append)


PAIR = [Entry(OURS, 2), Entry(RAY, 2)]


def test_everything_runs_once_a_round():
    machine = Machine()
    measured = machine.measure(PAIR)
    assert machine.started == ["psgrad", "ray", "psgrad", "ray", "ray", "psgrad"]
    assert [run["round"] for run in measured.runs] == [0, 0, 1, 1, 2, 2]
    assert not measured.skipped
    assert not measured.failed
    assert machine.said[0] == "round 1 of 3: psgrad, workers 2: 2.00 ms"


@pytest.mark.parametrize(
    ("script", "starts", "number", "reason", "failed"),
    [
        (["crash"], 2, 0, "status 1 and no figures: cannot bind", False),
        (["hang"], 1, 0, "not over in time", False),
        (["wrong"], 1, 0, "wrong parameters: no", True),
        (["good", "crash"], 3, 1, "status 1 and no figures: cannot bind", False),
    ],
)
def test_what_fails_is_left_out_with_the_reason(script, starts, number, reason, failed):
    machine = Machine(ray=script)
    measured = machine.measure(PAIR)
    assert machine.started.count("ray") == starts
    assert machine.started.count("psgrad") == 3
    (skipped,) = measured.skipped
    assert (skipped["system"], skipped["workers"], skipped["round"]) == ("ray", 2, number)
    assert skipped["reason"].startswith(reason)
    assert measured.failed == skipped["wrong"] == failed
    assert any(text.startswith(f"skipped ray, workers 2: {reason}") for text in machine.said)


def test_one_bad_start_is_forgiven():
    machine = Machine(ray=["crash", "good"])
    assert not machine.measure(PAIR).skipped
    assert machine.started.count("ray") == 4


@pytest.mark.parametrize("name", ["psgrad", "memcpy"])
def test_psgrad_and_the_copy_must_run(name):
    listed = [Entry(MEMCPY, 1), *PAIR]
    assert Machine(**{name: ["crash"]}).measure(listed).failed


def test_what_is_not_installed_is_never_started():
    machine = Machine()
    both = [*PAIR, Entry(RAY, 3)]
    measured = machine.measure(both, missing={OPENMPI: {"ray": "no wheel"}, MPICH: {PSGRAD: "x"}})
    assert machine.started == ["psgrad"] * 3
    assert [(one["workers"], one["reason"]) for one in measured.skipped] == [
        (2, "no wheel"), (3, "no wheel")
    ]  # fmt: skip
    assert machine.said[:2] == [f"skipped ray, workers {w}: no wheel" for w in (2, 3)]
    assert not measured.failed


# Environments


class Pip:
    """An ``install`` that fails for the packages it is told."""

    def __init__(self, *bad):
        self.bad, self.asked = bad, []

    def __call__(self, place, arguments):
        self.asked.append((place.name, arguments[-1]))
        return "no wheel" if arguments[-1] in self.bad else None


ENVIRONMENT = environments.Environment("e", {PSGRAD: ("-e", "."), "torch": ("t",), "ray": ("r",)})


def provide(folder, pip, environment=ENVIRONMENT, state="1"):
    return environments.provide(folder, environment, state, pip, [].append)


def test_what_is_installed_stays(tmp_path):
    first, second, changed = Pip("r"), Pip(), Pip()
    assert provide(tmp_path, first) == {"ray": "no wheel"}
    assert first.asked == [("e", "."), ("e", "t"), ("e", "r")]
    assert provide(tmp_path, second) == {}
    assert second.asked == [("e", "r")]
    assert provide(tmp_path, changed, state="2") == {}
    assert len(changed.asked) == 3
    other = environments.Environment("e", {**ENVIRONMENT.packages, "torch": ("t2",)})
    third = Pip()
    provide(tmp_path, third, other, "2")
    assert third.asked == [("e", "t2")]


def test_without_psgrad_nothing_is_installed(tmp_path):
    pip = Pip(".")
    reason = "psgrad could not be installed: no wheel"
    assert provide(tmp_path, pip) == {PSGRAD: "no wheel", "torch": reason, "ray": reason}
    assert len(pip.asked) == 1


def test_only_what_is_needed_is_installed(tmp_path):
    pip = Pip()
    provide(tmp_path, pip, ENVIRONMENT.only({PSGRAD, "ray"}))
    assert [package for _, package in pip.asked] == [".", "r"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a\nERROR: Could not find x (from versions: none)\nERROR: No matching x\nnotice\n",
         "No matching x"),
        ("Traceback\nOSError: disk\n\n", "OSError: disk"),
        ("", "pip failed and wrote nothing"),
    ],
)  # fmt: skip
def test_why_pip_failed(text, reason):
    assert environments.why(text) == reason


# Jobs

LEAVES_A_DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1], "w").write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
while not (os.path.exists(sys.argv[1]) and open(sys.argv[1]).read()):
    time.sleep(0.01)
print("done", os.environ["TMPDIR"] == os.getcwd() == os.path.realpath(os.getcwd()))
time.sleep(float(sys.argv[2]))
"""
RUNS_IT = """
import os, sys
from peers import jobs
jobs.adopt_orphans()
ended = jobs.run([sys.executable, "-c", *sys.argv[1:4]], os.environ, float(sys.argv[4]))
print(ended.status, ended.stdout.split())
"""


@pytest.mark.parametrize(("sleep", "timeout", "status"), [("0", "60", "0"), ("600", "2", "None")])
def test_a_job_leaves_no_process(tmp_path, sleep, timeout, status):
    file = tmp_path / "pid"
    argv = [sys.executable, "-c", RUNS_IT, LEAVES_A_DAEMON, str(file), sleep, timeout]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=PATHS)
    assert done.stderr == ""
    assert done.stdout.startswith(f"{status} [")
    if status == "0":
        assert file.exists()
        assert done.stdout == "0 ['done', 'True']\n"
    daemon = file.read_text() if file.exists() else ""  # on a busy machine time is over before
    assert not (daemon and Path("/proc", daemon).exists())


# Figures


def measured_record(**changes):
    runs = [
        {"round": r, "system": name, "workers": workers, "times_ms": times}
        for r, name, workers, times in [
            (0, "memcpy", 1, [10.0, 8.0, 10.0]),
            (0, "psgrad", 2, [20.0, 30.0, 25.0]),
            (0, "ray", 2, [100.0]),
            (1, "memcpy", 1, [10.0]),
            (1, "psgrad", 2, [35.0]),
        ]
    ]
    skipped = [
        {"system": "ray", "workers": 2, "round": 1, "reason": "it hung", "wrong": False},
        {"system": "torch-ddp", "workers": 2, "round": 0, "reason": "no wheel", "wrong": False},
    ]
    base = {"nbytes": 64 << 20, "workers": [2], "rounds": 2, "runs": runs, "skipped": skipped}
    return {**base, **changes}


def test_the_table():
    head, columns, *lines = table.text(measured_record()).splitlines()
    assert head == "64 MiB, 2 workers, medians of 2 rounds; limit 20.00 ms"
    assert columns.split() == ["ms", "least", "-", "most", "of", "limit", "x", "psgrad"]
    assert [line[table.WIDTH :].split(maxsplit=6) for line in lines] == [
        ["30.00", "25.00", "-", "35.00", "0.67", "1.00"],
        ["-", "no", "wheel"],
        ["100.0", "100.0", "-", "100.0", "0.20", "3.33", "1 rounds: it hung"],
    ]
    assert [line[: table.WIDTH].strip() for line in lines] == [OURS.label, DDP.label, RAY.label]


def test_a_wrong_result_has_no_time():
    skipped = [{"system": "ray", "workers": 2, "round": 1, "reason": "bad", "wrong": True}]
    rows = {row.system: row for row in table.rows(measured_record(skipped=skipped), 2)}
    assert rows["ray"].spread is None
    assert rows["psgrad"].spread.median == 30.0


def test_without_psgrad_and_without_a_copy():
    runs = [run for run in measured_record()["runs"] if run["system"] == "ray"]
    text = table.text(measured_record(runs=runs, skipped=[]))
    assert "limit not known" in text
    assert text.splitlines()[2].split() == ["Ray", "actors", "100.0", "100.0", "-", "100.0"]


@pytest.mark.parametrize(
    ("medians", "expected"), [([], False), ([1, 29], False), ([1, 30], True), ([5], False)]
)
def test_bars_far_apart_need_a_logarithm(medians, expected):
    assert plot.is_logarithmic(medians) == expected


@pytest.mark.parametrize("longest", [100.0, 5000.0])
def test_the_picture(tmp_path, longest):
    pytest.importorskip("matplotlib")
    record = measured_record(workers=[2, 3])
    record["runs"].append({"round": 0, "system": "ray", "workers": 3, "times_ms": [longest]})
    plot.plot(record, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# The command


def asked(*argv):
    return run.plan_of(run.parser().parse_args(argv))


def test_defaults():
    plan = asked()
    assert (plan.nbytes, plan.workers, plan.rounds, plan.warm_up, plan.steps) == (
        64 << 20, (2, 3), 5, 5, 20
    )  # fmt: skip
    assert plan.systems == SYSTEMS
    quick = asked("--quick", "--steps", "9")
    assert (quick.nbytes, quick.rounds, quick.steps) == (1 << 20, 2, 9)


@pytest.mark.parametrize(
    ("text", "nbytes"), [("64MiB", 64 << 20), ("4K", 4096), ("4096", 4096), ("1GiB", 1 << 30)]
)
def test_sizes(text, nbytes):
    assert run.nbytes_of(text) == nbytes


def test_lists():
    assert asked("--workers", "3, 1,3").workers == (3, 1)
    assert asked("--systems", "ray,psgrad,ray").systems == (RAY, OURS)
    with pytest.raises(argparse.ArgumentTypeError, match="no system 'raye'; there are psgrad, "):
        run.named("raye")
    with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
        run.counts("2,0")


def test_a_plan_that_cannot_be_is_an_error_before_anything_is_installed(capsys, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        run.main(["--warm-up", "1", "--envs", str(tmp_path / "none")])
    assert "warm-up must be at least 2 steps, got 1" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_surroundings_of_a_run():
    found = run.surroundings({"PSGRAD_MPI": "system", "HOME": "h", "OMP_NUM_THREADS": "8"})
    assert found["HOME"] == "h"
    assert "PSGRAD_MPI" not in found
    assert (found["OMP_NUM_THREADS"], found["GLOO_SOCKET_IFNAME"]) == ("1", "lo")


def test_the_record_of_a_run_is_read_again(tmp_path):
    machine, plan = Machine(ray=["crash"]), asked("--quick", "--workers", "2")
    measured = machine.measure([Entry(MEMCPY, 1), *PAIR])
    record = run.record_of(plan, measured, (0.5, 0.25, 0.125), "2026-01-02")
    again = json.loads(run.written(record))
    assert again == record
    assert again["machine"] == {"mpi": "MPI 1", "load": [0.5, 0.25, 0.12]}
    assert again["versions"] == {"psgrad": {"mpi": "MPI 1"}}
    assert [one["system"] for one in again["skipped"]] == ["ray"]
    assert len(again["runs"]) == 6
    assert again["runs"][0].keys() >= {"round", "system", "workers", "steps", "times_ms"}
    assert "limit 4.000 ms" in table.text(again)
