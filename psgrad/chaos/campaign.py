"""Many runs that are disturbed, one after another or a few at a time, and what came of them."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from psgrad.chaos.judge import Outcome, Reference, judge, reference
from psgrad.chaos.trial import Trial, draw
from psgrad.chaos.victims import carry_out
from psgrad.errors import PsgradError

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
        what = f"{trial.mode} {trial.codec} {trial.servers} servers: " + ", ".join(
            str(kill) for kill in trial.kills
        )
        again = " ".join(f"{s:.1f}" for s in outcome.recoveries)
        verdict = "FAILED: " + "; ".join(self.faults) if self.faults else "ok"
        struck = f"{outcome.killed} of {len(trial.kills)} struck, recovery [{again}] s"
        return f"{trial.index:4} {what}; {struck}, {outcome.seconds:.1f} s: {verdict}"

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
    _known: dict[tuple[str, str], Reference] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, trial: Trial) -> Reference:
        """For ``trial``. The number of servers does not matter: it must not change a result."""
        key = trial.mode, trial.codec
        with self._lock:
            if key not in self._known:
                self._known[key] = self._make(trial)
            return self._known[key]

    def _make(self, trial: Trial) -> Reference:
        summaries = []
        for number in range(1 if trial.mode == "sync" else UNDISTURBED):
            folder = self.place / f"undisturbed-{trial.mode}-{trial.codec}-{number}"
            made = carry_out(trial, folder, self.environ, self.limit_s, disturbed=False)
            if made.status or made.summary is None or made.hung:
                raise PsgradError(
                    f"the undisturbed run in {folder} failed with status {made.status}; its output "
                    f"is in {folder}.log"
                )
            summaries.append(made.summary)
        return reference(summaries)


def campaign(options: Options, environ: Mapping[str, str]) -> list[Judged]:
    """Carries it out, with a line for each run on standard output and a table at the end.

    The folders of runs that failed stay, and the line after theirs is how to repeat them.
    """
    place = Path(tempfile.mkdtemp(prefix="psgrad-chaos-"))
    references = References(place, environ, options.limit_s)

    def one(index: int) -> Judged:
        trial = draw(options.seed, index)
        expected = references.of(trial)
        folder = place / f"run-{index}"
        outcome = carry_out(trial, folder, environ, options.limit_s, disturbed=True)
        judged = Judged(trial, outcome, judge(trial, outcome, expected))
        if not judged.faults:
            shutil.rmtree(folder)
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
    print(table(done))
    return done


def table(done: Sequence[Judged]) -> str:
    """What all of it has come to."""
    hangs = sum(judged.outcome.hung for judged in done)
    wrong = sum(bool(judged.faults) and not judged.outcome.hung for judged in done)
    missed = sum(not judged.outcome.killed for judged in done)
    times = sorted(second for judged in done for second in judged.outcome.recoveries)
    rows = {
        "runs": str(len(done)),
        "kills": f"{sum(judged.outcome.killed for judged in done)}, "
        f"{sum(len(judged.outcome.ends) for judged in done)} attempts ended by them",
        "over before a kill": str(missed),
        "hangs": str(hangs),
        "wrong": str(wrong),
        "recovery": f"median {statistics.median(times):.2f} s, p90 "
        f"{times[int(0.9 * (len(times) - 1) + 0.5)]:.2f} s, max {times[-1]:.2f} s"
        if times
        else "none",
    }
    return "\n".join(f"{name:19} {value}" for name, value in rows.items())


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
