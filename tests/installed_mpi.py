"""The MPIs that are installed, and programs run on their ranks under a hard limit of time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from psgrad import jobs, launch
from psgrad.errors import LaunchError

ROOT: Final = Path(__file__).resolve().parents[1]
TIDY_S: Final = 2.0
LAUNCHER_GAVE_UP = "The PMIx server's listener thread failed to start"


class Result(NamedTuple):
    """How a program ended, and what it wrote."""

    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Mpi:
    """One installed MPI and the Python that has mpi4py for it."""

    name: launch.Vendor
    mpiexec: Path
    python: Path

    def plan(self, ranks: int, args: Iterable[object], *, elastic: bool = False) -> launch.Plan:
        """What starts ``python args...`` on ``ranks`` ranks, as ``psgrad run`` would."""
        libmpi = launch.find_libmpi(self.mpiexec, self.name)
        machine = launch.Machine(
            mpiexec=self.mpiexec,
            vendor=self.name,
            libmpi=libmpi,
            own=libmpi is not None and libmpi.parent == self.mpiexec.resolve().parents[1] / "lib",
            site=False,
            cores=len(os.sched_getaffinity(0)),
            root=os.geteuid() == 0,
            terminal=False,
        )
        command = (str(self.python), *map(str, args))
        asked = launch.Launch(ranks, command, elastic=elastic)
        return launch.plan(asked, machine, environment())

    def run(
        self,
        ranks: int,
        args: Iterable[object],
        *,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        elastic: bool = False,
    ) -> Result:
        """Runs ``python args...`` on ``ranks`` ranks under bare mpiexec.

        ``env`` is added to the environment; in ``elastic`` jobs ranks may die. The test fails if it
        takes over ``timeout`` seconds.
        """
        plan = self.plan(ranks, args, elastic=elastic)
        return execute(plan.argv, {**plan.environment(environment()), **(env or {})}, timeout, cwd)

    def psgrad(
        self,
        args: Iterable[object],
        *,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> Result:
        """Runs ``psgrad args...``; ``psgrad run`` then starts this MPI's ranks."""
        argv = [str(self.python), "-m", "psgrad", *map(str, args)]
        return execute(argv, {**environment(), **(env or {})}, timeout, cwd)


def environment() -> dict[str, str]:
    """Ours, with this checkout importable and without the settings of who runs the tests."""
    # Unbuffered, the newline of a print is a write of its own, and ranks write into each other's
    # lines.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PSGRAD_", "PYTHONUNBUF"))}
    if "PSGRAD_MPI" in os.environ:
        kept["PSGRAD_MPI"] = os.environ["PSGRAD_MPI"]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}


def execute(
    argv: Iterable[str],
    environ: Mapping[str, str],
    timeout: float,
    cwd: str | os.PathLike[str] | None = None,
) -> Result:
    """Runs a program; kills it with all that it started, and fails the test, when time is over.

    Once in hundreds of starts Open MPI's launcher gives up before it has started a rank. That is
    tried once more; it says nothing about psgrad.
    """
    command = list(argv)
    result = _execute(command, environ, timeout, cwd)
    if result.status == 213 and LAUNCHER_GAVE_UP in result.stderr:
        result = _execute(command, environ, timeout, cwd)
    return result


def _execute(
    argv: Iterable[str],
    environ: Mapping[str, str],
    timeout: float,
    cwd: str | os.PathLike[str] | None,
) -> Result:
    process = subprocess.Popen(
        list(argv),
        env=dict(environ),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    over = False
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        over = True
    finally:
        _end(process)
    if over:
        out, err = process.communicate()
    result = Result(process.returncode, out.decode(), err.decode())
    if over:
        pytest.fail(
            f"not over after {timeout} s: {' '.join(argv)}\n"
            f"--- stdout\n{result.stdout[-2000:]}\n--- stderr\n{result.stderr[-2000:]}"
        )
    return result


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        # The ranks first: mpiexec then ends by itself and removes its files.
        jobs.kill(jobs.descendants(process.pid))
        with suppress(subprocess.TimeoutExpired):
            process.wait(TIDY_S)
    if process.poll() is None:
        jobs.kill({process.pid, *jobs.descendants(process.pid)})
        process.wait()


def installed() -> dict[str, Mpi | str]:
    """The MPIs to test by name, or why one of them cannot be."""
    own = Path(sys.executable)
    system = os.environ.get("PSGRAD_MPI") == "system"
    found: dict[str, Mpi | str] = {}
    try:
        mpiexec = launch.find_mpiexec(launch.Launch(1, ("-",), system_mpi=system), os.environ)
        name = launch.identify(mpiexec, os.environ)
        found[name] = Mpi(name, mpiexec, own)
    except LaunchError as error:
        found["openmpi"] = str(error)
    if "mpich" not in found and not system:
        place = ROOT / ".venv-mpich" / "bin"
        found["mpich"] = Mpi("mpich", place / "mpiexec", place / "python")
        if not (place / "mpiexec").exists():
            found["mpich"] = "no MPICH in .venv-mpich; bin/test installs it"
    return found
