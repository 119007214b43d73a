"""Runs one way on the network, under a hard limit of time, and reads what its ranks wrote down."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, BinaryIO, Final

from network import lan as network
from network.lan import ENTER, Lan, LanError
from network.task import Task
from network.ways import Tools, Way, commands, place

POLL_S: Final = 0.1
LAST_LINES: Final = 12
NOISE: Final = ("setpgid", "hostname of the client socket")


def run(way: Way, lan: Lan, task: Task, tools: Tools, folder: Path, limit_s: float) -> list[Any]:
    """The diaries of all workers, as plain JSON.

    Raises ``LanError`` with the last words of the ranks where one fails, or takes too long. No
    process of the job is left.
    """
    folder.mkdir(parents=True)
    file, log = folder / "place.json", folder / "log.txt"
    shutil.copy(ENTER, folder)
    file.write_text(json.dumps(place(way, lan, task)), encoding="utf-8")
    environment = {**tools.environment(os.environ), "TMPDIR": str(folder)}
    started: list[subprocess.Popen[bytes]] = []
    try:
        with log.open("wb") as out:
            for command in commands(way, lan, task, tools, file):
                # One by one: where the next one fails, those before it are to be ended.
                started.append(start(command, environment, out))  # noqa: PERF401
        problem = watch(started, limit_s)
    finally:
        end(started, lan)
    if problem:
        raise LanError(f"{way.name}: {problem}; its last words:\n{last_words(log.read_text())}")
    return [
        json.loads((folder / f"worker-{rank}.json").read_text()) for rank in range(task.workers)
    ]


def start(
    command: list[str], environment: dict[str, str], out: BinaryIO
) -> subprocess.Popen[bytes]:
    """A process that an interrupt from the terminal does not reach: that is for us."""
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        start_new_session=True,
    )


def watch(started: list[subprocess.Popen[bytes]], limit_s: float) -> str:
    """Waits for all to end well; returns why not, or nothing."""
    deadline = time.monotonic() + limit_s
    while True:
        states = [process.poll() for process in started]
        failed = [state for state in states if state]
        if failed:
            return f"a process ended with status {failed[0]}"
        if None not in states:
            return ""
        if time.monotonic() > deadline:
            return f"not done after {limit_s:g} s (--timeout)"
        time.sleep(POLL_S)


def end(started: list[subprocess.Popen[bytes]], lan: Lan) -> None:
    """Ends the processes of a job: its starters, and whatever else is on a host."""
    waiting = [process for process in started if process.poll() is None]
    for process in waiting:
        process.terminate()
    names = (*lan.names, lan.switch)
    network.end(lambda: [pid for name in names for pid in network.inhabitants(name)])
    for process in started:
        process.wait(network.END_S)


def last_words(text: str) -> str:
    """The end of a log, without what is said in every run."""
    lines = [line for line in text.splitlines() if not any(word in line for word in NOISE)]
    return "\n".join(lines[-LAST_LINES:]) or "none"
