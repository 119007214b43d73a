"""``psgrad run --restarts N``: a job that has lost something goes on from its newest checkpoint.

:func:`decide` says whether a job is started again, after how long and why, a pure function of how
it ended; :func:`supervise` does what it says. The limit is one for the whole life of the job:
progress does not give restarts back, so a fault that comes again and again ends it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Final

from psgrad import jobs
from psgrad.errors import CAUSE, CheckpointError
from psgrad.launch import Plan
from psgrad.stops import Stops

FIRST_DELAY_S: Final = 1.0
LONGEST_DELAY_S: Final = 60.0
REFUSED: Final = 2  # of a wrong configuration, and of a Python that cannot find its script
SAID: Final = "psgrad: "


@dataclass(frozen=True)
class End:
    """How an attempt has ended; attempts count from 1."""

    attempt: int
    status: int  # of the launcher
    complete: bool | None = None  # whether the completion record is there; None: there is none
    stopped: int = 0  # the first signal that asked us to stop
    elastic: bool = False  # ranks may die, and the run is complete without them


@dataclass(frozen=True)
class Decision:
    """``delay_s`` until it is started again, None: not; then ``status`` is that of the whole."""

    delay_s: float | None
    status: int
    reason: str = ""  # what a person has to be told; empty: the cause of the attempt says it all

    @property
    def again(self) -> bool:
        """Whether the job is started again."""
        return self.delay_s is not None


def decide(end: End, restarts: int) -> Decision:
    """What comes after an attempt, where a job is started again at most ``restarts`` times."""
    done = end.status == 0 and end.complete is not False
    if done:
        return Decision(None, 0)
    status = end.status or 1
    if end.stopped:
        return Decision(None, end.status or 128 + end.stopped)
    if status in (REFUSED, jobs.REQUEUE):
        return Decision(None, status)
    if end.complete and (restarts or end.elastic):
        return Decision(None, 0, f"the run is complete, though its end has status {status}")
    if end.attempt <= restarts:
        delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(end.attempt - 1, 60))
        return Decision(delay_s, status, f"restart {end.attempt} of {restarts} in {delay_s:g} s")
    if restarts:
        return Decision(None, status, f"given up after {_times(restarts)}")
    return Decision(None, status)


def _times(restarts: int) -> str:
    return "1 restart" if restarts == 1 else f"{restarts} restarts"


@dataclass(frozen=True)
class Job:
    """What is started: ``resumed`` instead of ``first`` as soon as there is a checkpoint.

    ``record`` is the file that a job writes when all of it is done. A program of a user's may have
    neither.
    """

    first: Plan
    resumed: Plan | None = None
    checkpoints: Path | None = None
    record: Path | None = None


def supervise(job: Job, environ: Mapping[str, str], restarts: int = 0) -> int:
    """Runs ``job`` until it is done, given up or stopped; returns the exit status.

    That is 0 only if the completion record, where the job has one, was written meanwhile. Raises
    ``LaunchError`` as ``jobs.run`` does. Call it from the main thread.
    """
    before = _identity(job.record)
    plan = job.first
    with Stops() as stops:
        for attempt in itertools.count(1):
            ended = jobs.attempt(plan, environ, stops)
            complete = None if job.record is None else _identity(job.record) not in (None, before)
            stopped = stops.signums[0] if stops.signums else 0
            end = End(attempt, ended.status, complete, stopped, plan.elastic)
            decision = decide(end, restarts)
            cause = ended.cause.decode(errors="replace").removeprefix(CAUSE)
            if ended.status == 0 and complete is False:
                cause = f"the job ended with status 0, but has not written {job.record}"
            if stopped and job.record is not None and not plan.stoppable and decision.status:
                cause += "; nothing is saved: give --checkpoint-every to stop behind a checkpoint"
            if not decision.again:
                break
            plan, where = _next(job)
            jobs.write(f"{SAID}{decision.reason}, {where}; it ended with: {cause}\n".encode())
            if stops.wait(decision.delay_s or 0.0):
                safe = plan.stoppable  # nothing is lost that was not
                decision = Decision(None, jobs.REQUEUE if safe else 128 + stops.signums[0])
                cause = f"stopped by {Signals(stops.signums[0]).name} before the restart"
                break
    if decision.reason:
        jobs.write(f"{SAID}{decision.reason}\n".encode())
    if cause and (decision.status or not decision.reason):
        jobs.write(f"{CAUSE}{cause}\n".encode())
    return decision.status


def _next(job: Job) -> tuple[Plan, str]:
    """What is started again, and the checkpoint it goes on from, in words."""
    if job.resumed is None or job.checkpoints is None:
        return job.first, "the same command"
    from psgrad import checkpoint

    try:
        newest, skipped = checkpoint.newest(job.checkpoints)
    except CheckpointError as error:
        return job.resumed, str(error)
    if newest is not None:
        return job.resumed, f"from {newest.path}"
    if skipped:  # the ranks say what is wrong with each, and begin nothing anew
        return job.resumed, f"with no valid checkpoint in {job.checkpoints}"
    return job.first, f"from where it began: there is no checkpoint in {job.checkpoints} yet"


def _identity(record: Path | None) -> tuple[int, int] | None:
    """Which file it is: one that is written anew is another one. None where there is none."""
    try:
        about = None if record is None else record.stat()
    except OSError:
        return None
    return None if about is None else (about.st_ino, about.st_mtime_ns)
