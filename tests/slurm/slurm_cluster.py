"""A real Slurm of two nodes on this machine, for as long as a test session needs it.

The daemons are Debian's; they and all jobs live in namespaces of their own (``slurm_keeper``),
which the kernel ends with the first process in them, also when the tests are killed. To play::

    python tests/slurm/slurm_cluster.py        a shell on the login node

It needs root, Linux namespaces and the packages that ``PACKAGES`` names.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

KEEPER: Final = Path(__file__).with_name("slurm_keeper.py")
PACKAGES: Final = "munge slurmctld slurmd slurm-client"
PROGRAMS: Final = ("munged", "slurmctld", "slurmd", "sbatch", "unshare", "nsenter", "ip")
NAMESPACES: Final = ("--pid", "--net", "--uts", "--mount")
UNSHARE: Final = ("unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc")
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OVER: Final = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL")
POLL_S: Final = 0.1
PR_SET_PDEATHSIG: Final = 1


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    if os.geteuid() != 0:
        return "a test cluster of Slurm needs root"
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"no {absent[0]} on this machine; apt install {PACKAGES}"
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True)
    return f"no namespaces of our own: {tried.stderr.strip()}" if tried.returncode else ""


class Cluster:
    """A running cluster; ``call`` runs a program on its login node."""

    def __init__(self, folder: Path, keeper: int) -> None:
        self.folder = folder
        self._keeper = keeper

    def call(
        self,
        argv: Iterable[object],
        *,
        cwd: Path = Path("/"),
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Runs ``argv`` on the login node. ``env`` is added to an environment of a fresh login."""
        return subprocess.run(
            self.command(argv, cwd),
            env={"PATH": PATH, "HOME": str(self.folder), "LANG": "C.UTF-8",
                 "SLURM_CONF": str(self.folder / "slurm.conf"), **(env or {})},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    def command(self, argv: Iterable[object], cwd: Path = Path("/")) -> list[str]:
        """What runs ``argv`` on the login node in ``cwd``."""
        enter = ["nsenter", "--target", str(self._keeper), *NAMESPACES]
        return [*enter, "env", "-C", str(cwd), *map(str, argv)]

    def ask(self, *argv: object) -> str:
        """The output of a command of Slurm's that must work."""
        done = self.call(argv)
        if done.returncode:
            raise AssertionError(f"{' '.join(map(str, argv))}: {done.stderr.strip()}")
        return done.stdout

    def submit(self, *argv: object, cwd: Path, env: Mapping[str, str] | None = None) -> int:
        """``sbatch argv`` in ``cwd``; the number of the job."""
        done = self.call(["sbatch", *argv], cwd=cwd, env=env)
        found = re.search(r"Submitted batch job (\d+)", done.stdout)
        if done.returncode or found is None:
            raise AssertionError(f"sbatch has refused it: {done.stderr.strip()}")
        return int(found[1])

    def about(self, job: int) -> dict[str, str]:
        """What ``scontrol show job`` says; of the first one of a heterogeneous job."""
        first = self.ask("scontrol", "show", "job", job).split("\n\n")[0]
        return dict(re.findall(r"(\S+?)=(\S*)", first))

    def until(self, condition, what: str, limit_s: float = 60.0):
        """Waits for ``condition()`` to be true, and returns it."""
        end = time.monotonic() + limit_s
        while not (value := condition()):
            if time.monotonic() > end:
                raise AssertionError(f"not within {limit_s:g} s: {what}")
            time.sleep(POLL_S)
        return value

    @contextmanager
    def without(self, key: str) -> Iterator[None]:
        """The cluster as it is without a key of its slurm.conf."""
        conf = self.folder / "slurm.conf"
        before = conf.read_text()
        conf.write_text(re.sub(rf"^{key}=.*\n", "", before, flags=re.MULTILINE))
        try:
            self.ask("scontrol", "reconfigure")
            yield
        finally:
            conf.write_text(before)
            self.ask("scontrol", "reconfigure")

    def end_of(self, job: int, limit_s: float = 90.0) -> dict[str, str]:
        """Waits for the end of a job, and returns what ``about`` says then."""
        self.until(lambda: self.about(job)["JobState"] in OVER, f"the end of job {job}", limit_s)
        return self.about(job)


@contextmanager
def running() -> Iterator[Cluster]:
    """A cluster, with nothing on it; nothing is left of it afterwards."""
    # munge wants a folder that all may enter; a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="psgrad-slurm-", dir="/tmp"))
    folder.chmod(0o755)
    keeper = subprocess.Popen(
        [*UNSHARE, sys.executable, str(KEEPER), str(folder)],
        env={"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, preexec_fn=_end_with_us,
    )  # fmt: skip
    try:
        assert keeper.stdout is not None
        said = keeper.stdout.readline()
        if said != "ready\n":
            raise AssertionError(f"no cluster: {said}{keeper.stdout.read()}")
        children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text()
        yield Cluster(folder, int(children.split()[0]))
    finally:
        keeper.kill()  # unshare --kill-child: the first process in the namespace, and so all
        keeper.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def _end_with_us() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> int:
    if why := missing():
        sys.stderr.write(f"{why}\n")
        return 2
    with running() as cluster:
        shell = cluster.command([os.environ.get("SHELL", "/bin/sh")], Path.cwd())
        return subprocess.call(
            shell, env={**os.environ, "SLURM_CONF": str(cluster.folder / "slurm.conf")}
        )


if __name__ == "__main__":
    sys.exit(main())
