"""The job of `psgrad run`: what is shown of it, in what order, and that nothing outlives it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest
from installed_mpi import ROOT, environment

from psgrad import jobs
from psgrad.errors import CAUSE, LaunchError
from psgrad.launch import Plan
from psgrad.preemption import MARK

LIMIT_S = 30


def python(code: str, *args: str) -> Plan:
    return Plan((sys.executable, "-c", code, *args), {}, (), "mpich")


def run(code: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = jobs.run(python(code), os.environ)
    return (status, *capfd.readouterr())


# --- what a person sees


@pytest.mark.parametrize(
    ("code", "status", "last"),
    [
        ("raise SystemExit(0)", 0, ""),
        ("raise SystemExit(3)", 3, f"{CAUSE}python ended with status 3\n"),
        (
            "import os; os.kill(os.getpid(), 9)",
            137,
            f"{CAUSE}python ended with status 137 (SIGKILL)\n",
        ),
        (
            "raise SystemExit(11)",
            11,
            f"{CAUSE}python ended with status 11 (SIGSEGV, if a signal ended a rank)\n",
        ),
    ],
)
def test_status_and_closing_line(capfd, code, status, last):
    name = os.path.basename(sys.executable)
    assert run(code, capfd) == (status, "", last.replace("python", name))


@pytest.mark.parametrize("status", [0, 2])
def test_the_first_cause_comes_last(capfd, status):
    code = f"""
import sys
print("out")
sys.stderr.write("before\\n{CAUSE}first\\n{CAUSE}second\\nafter")
sys.exit({status})
"""
    assert run(code, capfd) == (status, "out\n", f"before\nafter\n{CAUSE}first\n")


def test_the_environment_is_the_one_given(capfd):
    code = "import os; print(sorted(k for k in os.environ if k != 'LC_CTYPE'))"
    assert jobs.run(python(code), {"A": "1"}) == 0
    assert capfd.readouterr().out == "['A']\n"


def test_a_program_that_cannot_be_started():
    with pytest.raises(LaunchError, match="cannot start /no/such: No such file"):
        jobs.run(Plan(("/no/such",), {}, (), "mpich"), {})


# --- nothing is left. What the child starts holds our end of a pipe open, through its standard
# output, so that the end of the stream says that all of it is gone, without a look at the clock.

LAUNCHER = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from psgrad import jobs, launch
try:
    status = jobs.run(launch.Plan(tuple(sys.argv[2:]), {{}}, (), sys.argv[1]), os.environ)
finally:
    try:
        os.waitpid(-1, os.WNOHANG)
        os.write(2, b"left a process\\n")
    except ChildProcessError:
        pass
sys.exit(status)
"""
# A rank as Hydra starts it, in a session of its own, and deaf; the launcher's child is its parent.
STRAY = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal; print('ready', flush=True); signal.pause()"
subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
"""
READY = "print('ready', flush=True)\n"


class Launcher:
    """`jobs.run` in a process of its own, which can be sent signals."""

    def __init__(self, code: str, ready: int, *args: str) -> None:
        self.process = subprocess.Popen(
            [*python(LAUNCHER, "mpich").argv, *python(code, *args).argv],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert self.process.stdout is not None
        for _ in range(ready):
            assert self.process.stdout.readline() == b"ready\n"

    def end(self) -> tuple[int, str]:
        """The status and standard error, when every process that came of it is gone."""
        _, err = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, (err or b"").decode()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_passed_on_as_sigterm(signum):
    code = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
    launcher = Launcher(code + READY + "signal.pause()", ready=1)
    launcher.process.send_signal(signum)
    assert launcher.end() == (128 + signum, f"{CAUSE}stopped by {signum.name}\n")


RANK_OF = """
import subprocess, sys
code = '''
import os, signal, sys
mark = os.memfd_create(sys.argv[1])
signal.signal(signal.SIGUSR1, lambda *_: END)
print("ready", flush=True)
while True: signal.pause()
'''
rank = subprocess.Popen([sys.executable, "-c", code, sys.argv[1]])
sys.exit(rank.wait())
"""
ENDS = RANK_OF.replace("END", "sys.exit(75)")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_ranks_that_can_are_asked_to_stop_behind_a_checkpoint(signum):
    launcher = Launcher(ENDS, 1, MARK)
    launcher.process.send_signal(signum)
    status, err = launcher.end()
    assert status == 75
    assert err.startswith("psgrad: stopping behind a checkpoint; a second signal aborts\n")


def test_ranks_that_are_not_up_yet_are_asked_when_they_are(tmp_path, monkeypatch):
    """Where it is known that they will be; a named pipe holds this one up."""
    os.mkfifo(tmp_path / "go")
    late = "open(sys.argv[2]).read()\nprint('ready', flush=True)\nmark"
    code = ENDS.replace("mark", "print('ready', flush=True)\n" + late, 1)
    code = code.replace("sys.argv[1]])", "*sys.argv[1:]])")
    known = LAUNCHER.replace("sys.argv[1])", "sys.argv[1], stoppable=True)")
    monkeypatch.setitem(globals(), "LAUNCHER", known)
    launcher = Launcher(code, 1, MARK, str(tmp_path / "go"))
    launcher.process.send_signal(signal.SIGTERM)
    (tmp_path / "go").write_text("now")
    status, err = launcher.end()
    assert status == 75
    assert err.startswith("psgrad: stopping behind a checkpoint; a second signal aborts\n")


def test_a_program_that_takes_the_signal_and_is_no_rank_is_not_asked():
    launcher = Launcher(ENDS, 1, "of its own")
    launcher.process.send_signal(signal.SIGTERM)
    assert launcher.end() == (143, f"{CAUSE}stopped by SIGTERM\n")


def test_a_request_to_stop_never_kills_however_often_it_comes():
    deaf = RANK_OF.replace("END", "print('ready', flush=True)")
    launcher = Launcher(deaf, 1, MARK)
    for _ in range(3):
        launcher.process.send_signal(signal.SIGUSR1)
    assert launcher.process.stdout is not None
    assert launcher.process.stdout.readline() == b"ready\n", "the rank has it"
    launcher.process.send_signal(signal.SIGTERM)
    launcher.process.send_signal(signal.SIGINT)
    status, err = launcher.end()
    assert (status, err.splitlines()[-1]) == (138, f"{CAUSE}stopped by SIGUSR1")


def test_a_command_that_ends_well_when_it_is_asked_to():
    code = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
    launcher = Launcher(code + READY + "signal.pause()", ready=1)
    launcher.process.send_signal(signal.SIGTERM)
    assert launcher.end() == (0, "")


def test_the_second_signal_kills_all_of_it():
    deaf = "import os\nwhile True: signal.pause(); os.write(2, b'no\\n')\n"
    code = STRAY + "signal.signal(signal.SIGTERM, lambda *_: None)\n" + READY + deaf
    launcher = Launcher(code, ready=2)
    launcher.process.send_signal(signal.SIGTERM)
    assert launcher.process.stderr is not None
    assert launcher.process.stderr.readline() == b"no\n"
    launcher.process.send_signal(signal.SIGINT)
    assert launcher.end() == (143, f"{CAUSE}stopped by SIGTERM\n")


def test_what_outlives_the_command_is_killed():
    launcher = Launcher(STRAY, ready=1)
    assert launcher.end() == (0, "")


def test_a_killed_launcher_takes_the_command_along():
    launcher = Launcher("import signal\n" + READY + "signal.pause()", ready=1)
    launcher.process.kill()
    assert launcher.end()[0] == -signal.SIGKILL


def test_an_error_of_the_launcher_leaves_nothing():
    launcher = Launcher(STRAY + "while True: sys.stderr.write('x\\n')", ready=1)
    assert launcher.process.stderr is not None
    launcher.process.stderr.close()  # its next write there is a BrokenPipeError
    launcher.process.stderr = None
    assert launcher.end()[0] in (1, 120)  # Python's, for an exception; and with stderr broken


# --- the same with ranks, which mpiexec puts into groups and sessions of their own; they hold a
# named pipe open

RANK = """
import os, signal, sys
from mpi4py import MPI
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[2] == "deaf" else signal.SIG_DFL)
held = os.open(sys.argv[1], os.O_WRONLY)
MPI.COMM_WORLD.Barrier()
os.write(held, b"x")
while True: signal.pause()
"""


@pytest.mark.parametrize(
    ("ranks_are", "signals", "status"),
    [
        ("polite", [signal.SIGTERM], 143),
        ("polite", [signal.SIGINT], 130),
        ("deaf", [signal.SIGINT, signal.SIGTERM], 130),
        ("polite", [signal.SIGKILL], -9),
        ("deaf", [signal.SIGKILL], -9),
    ],
)
def test_no_rank_survives(mpi, tmp_path, ranks_are, signals, status):
    os.mkfifo(tmp_path / "held")
    source = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    plan = mpi.plan(3, ["-c", RANK, tmp_path / "held", ranks_are])
    launcher = subprocess.Popen(
        [*python(LAUNCHER, mpi.name).argv, *plan.argv],
        env=plan.environment(environment()),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        written = b""
        while len(written) < 3:
            written += read(source)
        for signum in signals:
            launcher.send_signal(signum)
        assert read(source) == b""  # nobody holds it any more
        assert launcher.wait(LIMIT_S) == status
    finally:
        jobs.kill(jobs.descendants(launcher.pid))
        launcher.kill()
        launcher.wait()
        os.close(source)


def read(source: int) -> bytes:
    """The next bytes of a pipe; empty at its end."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    assert poll.poll(LIMIT_S * 1000), f"nothing happens in {LIMIT_S} s"
    return os.read(source, 99)
