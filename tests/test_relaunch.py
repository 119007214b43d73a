"""Whether a job is started again, after how long and why; then real jobs that lose something."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from installed_mpi import environment

from psgrad import jobs, relaunch
from psgrad.errors import CAUSE
from psgrad.launch import Plan
from psgrad.relaunch import Decision, End, Job, decide

LIMIT_S = 60
INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.mark.parametrize(
    ("end", "restarts", "decision"),
    [
        # It is done.
        (End(1, 0), 0, Decision(None, 0)),
        (End(1, 0, complete=True), 3, Decision(None, 0)),
        # The launcher says so, but the record is not there.
        (End(1, 0, complete=False), 0, Decision(None, 1)),
        (End(1, 0, complete=False), 3, Decision(1.0, 1, "restart 1 of 3 in 1 s")),
        # Something was lost.
        (End(1, 137), 0, Decision(None, 137)),
        (End(1, 137), 3, Decision(1.0, 137, "restart 1 of 3 in 1 s")),
        (End(2, 9, complete=False), 3, Decision(2.0, 9, "restart 2 of 3 in 2 s")),
        (End(3, 1), 3, Decision(4.0, 1, "restart 3 of 3 in 4 s")),
        (End(4, 1), 3, Decision(None, 1, "given up after 3 restarts")),
        (End(2, 213), 1, Decision(None, 213, "given up after 1 restart")),
        (End(7, 1), 9, Decision(60.0, 1, "restart 7 of 9 in 60 s")),
        (End(5000, 1), 9999, Decision(60.0, 1, "restart 5000 of 9999 in 60 s")),
        # It was lost behind the result.
        (
            End(1, 137, complete=True),
            3,
            Decision(None, 0, "the run is complete, though its end has status 137"),
        ),
        (End(1, 137, complete=True), 0, Decision(None, 137)),
        # Another attempt would end alike, or is for somebody else to make.
        (End(1, 2), 3, Decision(None, 2)),
        (End(1, 75), 3, Decision(None, 75)),
        # We were asked to stop.
        (End(1, 143, stopped=TERM), 3, Decision(None, 143)),
        (End(1, 75, stopped=TERM), 3, Decision(None, 75)),
        (End(1, 0, stopped=INT), 3, Decision(None, 0)),
        (End(1, 0, complete=True, stopped=INT), 3, Decision(None, 0)),
        (End(1, 0, complete=False, stopped=INT), 3, Decision(None, 130)),
    ],
)
def test_decisions(end, restarts, decision):
    assert decide(end, restarts) == decision


@given(
    st.integers(1, 99), st.integers(0, 255), st.sampled_from([None, True, False]),
    st.sampled_from([0, int(INT), int(TERM)]), st.integers(0, 99),
)  # fmt: skip
@settings(derandomize=True, deadline=None)
def test_of_every_decision(attempt, status, complete, stopped, restarts):
    decision = decide(End(attempt, status, complete, stopped), restarts)
    if decision.again:
        assert attempt <= restarts
        assert not stopped
        assert status not in (2, 75)
        assert 1.0 <= decision.delay_s <= 60.0
        assert decision.status != 0
    if decision.status == 0 and not decision.again:
        assert complete is not False
        assert status == 0 or (complete and restarts)
    if complete is False and not decision.again:
        assert decision.status != 0


# --- the loop, on programs instead of mpiexec


def python(code: str) -> Plan:
    return Plan((sys.executable, "-c", code), {}, (), "mpich")


@pytest.fixture
def no_delay(monkeypatch):
    monkeypatch.setattr(relaunch, "FIRST_DELAY_S", 0.0)


COUNT = """
import os, sys
path = {path!r}
n = len(open(path).read()) if os.path.exists(path) else 0
open(path, "a").write("x")
"""


def test_it_is_started_again_until_it_ends_well(tmp_path, capfd, no_delay):
    code = COUNT.format(path=str(tmp_path / "n")) + "sys.exit(0 if n == 2 else 3)"
    assert relaunch.supervise(Job(python(code)), os.environ, 5) == 0
    name = os.path.basename(sys.executable)
    assert capfd.readouterr().err == "".join(
        f"psgrad: restart {k} of 5 in 0 s, the same command; it ended with: "
        f"{name} ended with status 3\n"
        for k in (1, 2)
    )


def test_giving_up_says_the_cause_last(tmp_path, capfd, no_delay):
    code = f"import sys; sys.stderr.write({CAUSE + 'rank 1: why'!r} + '\\nmore\\n'); sys.exit(3)"
    assert relaunch.supervise(Job(python(code)), os.environ, 1) == 3
    assert capfd.readouterr().err == (
        "more\npsgrad: restart 1 of 1 in 0 s, the same command; it ended with: rank 1: why\n"
        f"more\npsgrad: given up after 1 restart\n{CAUSE}rank 1: why\n"
    )


def test_without_restarts_it_is_as_jobs_run(capfd):
    assert relaunch.supervise(Job(python("raise SystemExit(3)")), os.environ) == 3
    ours = capfd.readouterr()
    assert jobs.run(python("raise SystemExit(3)"), os.environ) == 3
    assert ours == capfd.readouterr()


@pytest.mark.parametrize("there", [False, True], ids=["none", "an old one"])
def test_a_record_that_was_not_written_is_status_1(tmp_path, capfd, there):
    record = tmp_path / "summary.json"
    if there:
        record.write_text("{}")
    assert relaunch.supervise(Job(python("pass"), record=record), os.environ) == 1
    assert capfd.readouterr().err == (
        f"{CAUSE}the job ended with status 0, but has not written {record}\n"
    )
    code = f"open({str(record)!r} + '.tmp', 'w'); import os; "
    code += f"os.replace({str(record)!r} + '.tmp', {str(record)!r})"
    assert relaunch.supervise(Job(python(code), record=record), os.environ) == 0


@pytest.mark.parametrize(("stoppable", "status"), [(False, 143), (True, 75)])
def test_a_signal_between_attempts_loses_nothing_where_there_are_checkpoints(
    monkeypatch, stoppable, status
):
    def wait(stops, seconds):
        stops.signums.append(signal.SIGTERM)
        return True

    monkeypatch.setattr(jobs, "attempt", lambda *_: jobs.Ended(137, b""))
    monkeypatch.setattr(relaunch.Stops, "wait", wait)
    plan = replace(python("pass"), stoppable=stoppable)
    assert relaunch.supervise(Job(plan), os.environ, 3) == status


@pytest.mark.parametrize(("stoppable", "said"), [(False, "; nothing is saved: "), (True, "")])
def test_a_training_without_checkpoints_that_is_stopped_is_said_to_be_lost(
    tmp_path, capfd, monkeypatch, stoppable, said
):
    def attempt(plan, environ, stops):
        stops.signums.append(signal.SIGINT)
        return jobs.Ended(130, f"{CAUSE}stopped by SIGINT".encode())

    monkeypatch.setattr(jobs, "attempt", attempt)
    plan = replace(python("pass"), stoppable=stoppable)
    assert relaunch.supervise(Job(plan, record=tmp_path / "summary.json"), os.environ) == 130
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{CAUSE}stopped by SIGINT{said}")
    assert last.endswith("SIGINT") is stoppable


def test_a_run_that_is_complete_is_not_started_again(tmp_path, capfd, no_delay):
    record = tmp_path / "summary.json"
    code = f"open({str(record)!r}, 'w'); raise SystemExit(9)"
    assert relaunch.supervise(Job(python(code), record=record), os.environ, 3) == 0
    assert capfd.readouterr().err == ("psgrad: the run is complete, though its end has status 9\n")


SUPERVISOR = """
import os, sys
from psgrad import launch, relaunch
relaunch.FIRST_DELAY_S = 60.0
plan = launch.Plan((sys.executable, "-c", "raise SystemExit(7)"), {}, (), "mpich")
sys.exit(relaunch.supervise(relaunch.Job(plan), os.environ, 3))
"""


@pytest.mark.parametrize("signum", [INT, TERM])
def test_a_signal_ends_the_wait_between_attempts(signum):
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR],
        env=environment(),
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(INT, signal.default_int_handler),
    )
    try:
        assert process.stderr is not None
        assert b"restart 1 of 3 in 60 s" in process.stderr.readline()
        process.send_signal(signum)
        _, err = process.communicate(timeout=LIMIT_S / 2)
    finally:
        process.kill()
        process.wait()
    name = signal.Signals(signum).name
    assert err.decode() == f"{CAUSE}stopped by {name} before the restart\n"
    assert process.returncode == 128 + signum


# --- real training: one that kills itself once, at a step after a checkpoint

SYNC = [
    "--mode", "sync", "--epochs", "4", "--progress", "off", "--checkpoint-every", "20",
]  # fmt: skip
# A rank of the first attempt that ends in the middle of its run, unasked.
ONCE = """
import os, signal, sys
from pathlib import Path
from psgrad import cli, trainer
once, place = Path(sys.argv[1]), Path(sys.argv[2])
true = trainer.Tally.add
def add(tally, samples, loss, accuracy):
    true(tally, samples, loss, accuracy)
    if tally.steps == 50 and not once.exists() and tally._worker.rank == 2:
        while not any(place.glob("step-*/manifest.json")):  # that there is one to go on from
            pass
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
trainer.Tally.add = add
sys.exit(cli.main(sys.argv[3:]))
"""


def test_a_killed_rank_changes_no_bit(mpi, tmp_path):
    def summary(name):
        return json.loads((tmp_path / name / "summary.json").read_text())

    plain = mpi.psgrad(["run", "--", *SYNC, "--run-dir", "plain"], cwd=tmp_path)
    assert plain.status == 0, plain.stderr
    # `psgrad train` of the ranks is one that kills itself.
    folder = tmp_path / "package" / "sitecustomize.py"
    folder.parent.mkdir()
    program = tmp_path / "once.py"
    program.write_text(ONCE)
    own = tmp_path / "killed"
    folder.write_text(f"""
import sys
orig = getattr(sys, "orig_argv", [])
if orig[1:4] == ["-m", "psgrad", "train"]:
    import os
    os.execv(sys.executable, [sys.executable, {str(program)!r}, {str(tmp_path / "once")!r},
             {str(own / "checkpoints")!r}, *orig[3:]])
""")
    path = os.pathsep.join([str(folder.parent), environment()["PYTHONPATH"]])
    status, _, err = mpi.psgrad(
        ["run", "--restarts", "2", "--", *SYNC, "--run-dir", "killed"],
        cwd=tmp_path, env={"PYTHONPATH": path}, timeout=LIMIT_S,
    )  # fmt: skip
    assert status == 0, err
    assert (tmp_path / "once").exists()
    lines = [line for line in err.splitlines() if line.startswith("psgrad: restart")]
    assert len(lines) == 1
    assert re.match(
        r"psgrad: restart 1 of 2 in 1 s, from killed/checkpoints/step-0+[24]0; ", *lines
    )
    assert summary("killed")["params_sha256"] == summary("plain")["params_sha256"]
    assert summary("killed")["steps"] == summary("plain")["steps"]


def test_a_finished_run_has_nothing_to_do(mpi, tmp_path):
    again = ["--mode", "sync", "--epochs", "1", "--run-dir", "r", "--resume", "auto", "--json"]
    first = mpi.psgrad(["run", "--", *again], cwd=tmp_path)
    assert first.status == 0, first.stderr
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "r").rglob("*"))
    second = mpi.psgrad(["run", "--restarts", "1", "--", *again], cwd=tmp_path)
    third = mpi.run(4, ["-m", "psgrad", "train", *again], cwd=tmp_path)
    for ended in (second, third):
        assert (ended.status, ended.stdout.splitlines()[-1]) == (0, first.stdout.splitlines()[-1])
        assert ended.stderr == "psgrad: run folder r holds a finished run: nothing to do\n"
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "r").rglob("*"))
    fresh = mpi.psgrad(["run", "--", *again[:-3]], cwd=tmp_path)
    assert fresh.status == 2
    assert "holds a finished run; choose another --run-dir" in fresh.stderr


def test_a_rank_that_asks_to_be_started_again_later_is_passed_on(mpi):
    abort = "from mpi4py import MPI; MPI.COMM_WORLD.rank or MPI.COMM_WORLD.Abort(75)"
    status, _, err = mpi.psgrad(
        ["run", "--np", "2", "--restarts", "3", "--", "python", "-c", abort]
    )
    assert status == 75
    assert "restart 1" not in err
    assert err.endswith("psgrad: error: status 75: the ranks ask to be started again, with "
                        "--resume auto\n")  # fmt: skip
