"""A command under a hard limit of time, that leaves no process behind.

What it starts may leave its session and lose its parent (ranks, Ray's daemons). This process adopts
that (Linux, "child subreaper") and ends it by its ids.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psgrad.jobs import descendants, kill

PR_SET_CHILD_SUBREAPER: Final = 36
TIDY_S: Final = 5.0  # for a command to end by itself when it is asked to
GONE_S: Final = 10.0  # for killed processes to disappear


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status, or None if time was over, and what it wrote."""

    status: int | None
    stdout: str
    stderr: str


def adopt_orphans() -> None:
    """From now on, what loses its parent below this process becomes its child."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def run(argv: Sequence[str], environ: Mapping[str, str], timeout_s: float) -> Ended:
    """Runs ``argv`` in an empty folder, its TMPDIR; then ends all that it has started."""
    strangers = descendants(os.getpid())
    # A short name: sockets lie below it, and their paths have at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as folder:
        out, err = Path(folder, "stdout"), Path(folder, "stderr")
        # Files and not pipes: a daemon may keep them open for longer than the command runs.
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                list(argv),
                env={**environ, "TMPDIR": folder},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
            status = None
            try:
                with suppress(subprocess.TimeoutExpired):
                    status = process.wait(timeout_s)
            finally:
                _end(process, strangers)
        return Ended(status, out.read_text(errors="replace"), err.read_text(errors="replace"))


def _end(process: subprocess.Popen[bytes], strangers: set[int]) -> None:
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(TIDY_S)
    until = time.monotonic() + GONE_S
    while time.monotonic() < until:
        left = descendants(os.getpid()) - strangers
        if not left:
            break
        kill(left)
        process.poll()
        for pid in left - {process.pid}:
            with suppress(ChildProcessError):  # its own parent is still there
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.05)
    process.wait(GONE_S)
