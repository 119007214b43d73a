"""One run of real ranks, and what is done to it while it goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from psgrad import jobs, runfolder
from psgrad.chaos import processes, tails
from psgrad.chaos.judge import Outcome
from psgrad.chaos.trial import EVERY, KINDS, Trial
from psgrad.chaos.watch import Watch


def command(trial: Trial, folder: Path, *, disturbed: bool) -> list[str]:
    """What starts the run of ``trial`` into ``folder``."""
    run = [sys.executable, "-m", "psgrad", "run", "--np", str(trial.ranks), *KINDS[trial.kind].run]
    train = ["--", *trial.arguments, "--run-dir", str(folder)]
    if disturbed:
        run += ["--restarts", str(trial.restarts)]
        train += ["--checkpoint-every", str(EVERY)]
    return [*run, *train]


def carry_out(
    trial: Trial, folder: Path, environ: Mapping[str, str], limit_s: float, *, disturbed: bool
) -> Outcome:
    """Runs ``trial`` into ``folder``, which is not there yet, and strikes as it says.

    A run that is not over after ``limit_s`` seconds is ended by force.
    """
    log = folder.with_name(folder.name + ".log")
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command(trial, folder, disturbed=disturbed),
            env=dict(environ), stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    watch = Watch(trial, process, folder, start + limit_s)
    hung = False
    try:
        if disturbed:
            for strike in trial.strikes:
                watch.strike(strike)
            watch.settled()
        process.wait(max(0.0, start + limit_s - time.monotonic()))
    except (subprocess.TimeoutExpired, TimeoutError):
        hung = True
    finally:
        seconds = time.monotonic() - start
        if process.poll() is None:
            jobs.kill({*jobs.descendants(process.pid), process.pid})
        process.wait()
    metrics = [folder / runfolder.metrics(worker) for worker in range(trial.workers)]
    return Outcome(
        seconds=seconds,
        status=process.returncode,
        hung=hung,
        summary=_summary(folder),
        left=[*(f"process {pid}" for pid in processes.naming(folder)), *watch.files_left()],
        struck=tuple(watch.struck),
        samples=tails.samples(metrics),
        steps=tails.steps(metrics),
        stderr=log.read_text(errors="replace"),
    )


def _summary(folder: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        return found
    return None
