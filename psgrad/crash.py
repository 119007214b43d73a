"""Last words: the line that says why a rank ends, and the hook that takes the other ranks along.

An uncaught exception on one rank of an MPI job leaves the others waiting for it for ever, in a
message or in MPI_Finalize. ``import psgrad`` installs a hook that ends the whole job instead.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Final

from psgrad.errors import CAUSE, PsgradError

WARNING: Final = "psgrad: warning: "
FORWARD_S: Final = 0.25  # for a launcher to pass on what a rank has printed


def say(text: str) -> None:
    """Prints the line that says why this rank ends, in one write: ranks' lines do not mix."""
    sys.stdout.flush()
    sys.stderr.write(f"{CAUSE}{text}\n")
    sys.stderr.flush()
    # MPI_Abort ends the launcher's helpers too and was seen to overtake the line.
    time.sleep(FORWARD_S)


def warn(text: str) -> None:
    """Prints a line about something that goes wrong and does not end this rank, in one write."""
    sys.stdout.flush()
    sys.stderr.write(f"{WARNING}{text}\n")
    sys.stderr.flush()


def describe(error: BaseException) -> str:
    """``ValueError: text``, the first line of the text only."""
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")


def exit_status(error: BaseException) -> int:
    """What the job ends with because of ``error``; never 0."""
    if isinstance(error, PsgradError):
        return error.exit_status
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code or 1
    return 1


def install() -> None:
    """Puts the hook before the one that is there; does nothing when it is there already."""
    previous = sys.excepthook
    if getattr(previous, "psgrad", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, PsgradError) and error.spokesman is not None:
            # Every rank raises it, so every rank ends by itself; one line is enough.
            if error.spokesman:
                say(str(error))
            raise SystemExit(error.exit_status)
        previous(kind, error, trace)
        _abort(error)

    hook.psgrad = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def _abort(error: BaseException) -> None:
    # Never imports mpi4py: where it is not loaded, this process is no rank that others wait for.
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized():
        return
    world = mpi.COMM_WORLD
    if world.size > 1:
        say(f"rank {world.rank} ({mpi.Get_processor_name()}): {describe(error)}")
        world.Abort(exit_status(error))
