"""Many runs that are disturbed, one after another or a few at a time, and what came of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from psgrad import launch
from psgrad.chaos.figures import table
from psgrad.chaos.judge import Outcome, Reference, judge, reference
from psgrad.chaos.trial import ANYWHERE, KINDS, Trial, draw
from psgrad.chaos.victims import carry_out
from psgrad.errors import LaunchError, PsgradError

UNDISTURBED: Final = 5  # runs that are compared with, where not all of them give the same
# Ends when what started it is gone.
SPIN: Final = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"


@dataclass(frozen=True)
class Options:
    """A campaign: runs ``first`` to ``first + runs - 1`` of ``seed``."""

    runs: int
    seed: int
    first: int = 0
    jobs: int = 1  # at the same time
    spinners: int = 0  # busy processes beside them
    limit_s: float = 120.0  # for one run
    kinds: tuple[str, ...] = tuple(KINDS)


@dataclass(frozen=True)
class Judged:
    """A trial, what came of it, and what is wrong with that."""

    trial: Trial
    outcome: Outcome
    faults: list[str]

    @property
    def line(self) -> str:
        """The same for a person."""
        trial, outcome = self.trial, self.outcome
        servers = f"{trial.servers} server" + "s" * (trial.servers > 1)
        what = f"{trial.kind} {trial.mode} {trial.codec} {servers}: "
        what += ", ".join(str(strike) for strike in trial.strikes)
        again = " ".join(f"{s.resumed_s:.2f}" for s in outcome.struck if s.resumed_s is not None)
        verdict = "FAILED: " + "; ".join(self.faults) if self.faults else "ok"
        struck = f"{len(outcome.struck)} of {len(trial.strikes)} struck, resumed [{again}] s"
        status = f"status {outcome.status}, {outcome.seconds:.1f} s"
        return f"{trial.index:4} {what}; {struck}, {status}: {verdict}"

    @property
    def record(self) -> dict[str, Any]:
        """The same for a program."""
        return {
            "trial": asdict(self.trial), "outcome": asdict(self.outcome), "faults": self.faults,
            "repeat": self.trial.repeat,
        }  # fmt: skip


@dataclass
class References:
    """What undisturbed runs give, each made when it is first asked for."""

    place: Path
    environ: Mapping[str, str]
    limit_s: float
    _known: dict[Trial, list[Outcome]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, trial: Trial) -> Reference:
        """For ``trial``. The number of servers does not matter: it must not change a result."""
        # Nor must it whether ranks may die, and servers have replicas.
        calm = Trial(0, 0, "restarts", trial.mode, trial.codec, 1, (), epochs=trial.epochs)
        losing = any(strike.loses for strike in trial.strikes)
        fewer = range(1, trial.workers) if losing else ()
        with self._lock:
            whole = self._runs(calm, 1 if trial.mode == "sync" else UNDISTURBED)
            return reference(whole, [self._runs(replace(calm, workers=n), 1)[0] for n in fewer])

    def _runs(self, trial: Trial, count: int) -> list[Outcome]:
        if trial not in self._known:
            self._known[trial] = [self._run(trial, number) for number in range(count)]
        return self._known[trial]

    def _run(self, trial: Trial, number: int) -> Outcome:
        name = f"undisturbed-{trial.epochs}-{trial.mode}-{trial.codec}-{trial.workers}-{number}"
        folder = self.place / name
        made = carry_out(trial, folder, self.environ, self.limit_s, disturbed=False)
        if made.status or made.summary is None or made.hung:
            raise PsgradError(
                f"the undisturbed run in {folder} failed with status {made.status}; its output "
                f"is in {folder}.log"
            )
        return made


def kinds(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The kinds that the MPI of ``psgrad run`` can."""
    system = environ.get("PSGRAD_MPI") == "system"
    asked = launch.Launch(1, ("python",), system_mpi=system, elastic=True)
    try:
        launch.prepare(asked, environ, terminal=False)
    except LaunchError:
        return ANYWHERE
    return tuple(KINDS)


def campaign(options: Options, environ: Mapping[str, str]) -> list[Judged]:
    """Carries it out, with a line for each run on standard output and a table at the end.

    The folders of runs that failed stay, and the line after theirs is how to repeat them.
    """
    place = Path(tempfile.mkdtemp(prefix="psgrad-chaos-"))
    references = References(place, environ, options.limit_s)

    def one(index: int) -> Judged:
        trial = draw(options.seed, index, options.kinds)
        expected = references.of(trial)
        folder = place / f"run-{index}"
        outcome = carry_out(trial, folder, environ, options.limit_s, disturbed=True)
        judged = Judged(trial, outcome, judge(trial, outcome, expected))
        if not judged.faults:
            shutil.rmtree(folder, ignore_errors=True)  # a run that was killed early has none
            folder.with_name(folder.name + ".log").unlink()
        return judged

    done = []
    indices = range(options.first, options.first + options.runs)
    with _spinning(options.spinners), ThreadPoolExecutor(options.jobs) as pool:
        try:
            for judged in pool.map(one, indices):
                done.append(judged)
                print(judged.line, flush=True)
                if judged.faults:
                    print(f"     again: {judged.trial.repeat}    its files: {place}", flush=True)
        finally:  # what has begun ends by itself, and leaves nothing
            pool.shutdown(cancel_futures=True)
    if not any(judged.faults for judged in done):
        shutil.rmtree(place)
    print(table([(j.trial, j.outcome, j.faults) for j in done]))
    return done


@contextmanager
def _spinning(count: int) -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            with suppress(ProcessLookupError):
                os.kill(process.pid, 9)
            process.wait()
