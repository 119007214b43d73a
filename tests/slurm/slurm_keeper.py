"""A Slurm cluster of two nodes, as long as this process lives: ``slurm_keeper.py FOLDER``.

``slurm_cluster.Cluster`` starts it as the first process of PID, network, host-name and mount
namespaces of its own, so whatever ends it ends every daemon and every job, and nothing of it can be
seen or reached from outside. Each node has its own network, host name and ``/dev/shm``; all share
the file system, as on a cluster. It writes ``ready`` when the nodes are up, and ends when its
standard input does.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from slurm_files import LOGIN, NODES, Address, write_files

START_S: Final = 30.0
POLL_S: Final = 0.05


def main(folder: Path) -> int:
    write_files(folder)
    _network(folder)
    daemons = {"munged": _start(folder, "munged", *_munged(folder))}
    _until(lambda: (folder / "munge.socket").exists(), folder, daemons)
    conf = folder / "slurm.conf"
    daemons["slurmctld"] = _start(folder, "slurmctld", "slurmctld", "-D", "-f", str(conf))
    for node in NODES:
        daemons[node.name] = _start(folder, node.name, *_slurmd(node, conf))
    _until(lambda: _idle() == len(NODES), folder, daemons)
    print("ready", flush=True)
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], 0.2)
        if readable and not os.read(0, 1):
            return 0
        _reap()


def _network(folder: Path) -> None:
    """One switch with the login node and all others on it."""
    _call("mount", "--bind", str(folder / "hosts"), "/etc/hosts")
    Path("/run/netns").mkdir(exist_ok=True)
    _call("mount", "-t", "tmpfs", "netns", "/run/netns")
    _call("hostname", LOGIN.name)
    _call("mount", "-t", "tmpfs", "shm", "/dev/shm")
    _call("ip", "link", "set", "lo", "up")
    _call("ip", "link", "add", "switch", "type", "bridge")
    _call("ip", "address", "add", f"{LOGIN.ip}/24", "dev", "switch")
    _call("ip", "link", "set", "switch", "up")
    for node in NODES:
        _call("ip", "netns", "add", node.name)
        _call("ip", "link", "add", "eth0", "netns", node.name, "type", "veth",
              "peer", "name", node.name)  # fmt: skip
        _call("ip", "link", "set", node.name, "master", "switch", "up")
        within = ("ip", "-n", node.name)
        _call(*within, "address", "add", f"{node.ip}/24", "dev", "eth0")
        _call(*within, "link", "set", "eth0", "up")
        _call(*within, "link", "set", "lo", "up")


def _munged(folder: Path) -> list[str]:
    names = {
        "key-file": "munge.key",
        "log-file": "munged.log",
        "pid-file": "munged.pid",
        "seed-file": "munge.seed",
        "socket": "munge.socket",
    }
    options = [f"--{option}={folder / name}" for option, name in names.items()]
    return ["munged", "--foreground", "--num-threads=2", *options]


def _slurmd(node: Address, conf: Path) -> list[str]:
    own = f"hostname {node.name} && mount -t tmpfs shm /dev/shm && exec slurmd -D -N {node.name}"
    inside = ["unshare", "--uts", "--mount", "sh", "-c", f"{own} -f {conf}"]
    return ["ip", "netns", "exec", node.name, *inside]


def _start(folder: Path, name: str, *argv: str) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.out").open("wb") as output:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )


def _until(condition, folder: Path, daemons: dict[str, subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + START_S
    while not condition():
        for name, process in daemons.items():
            if process.poll() is not None:
                said = (folder / f"{name}.out").read_text(errors="replace")[-500:]
                raise SystemExit(f"{name} has ended with {process.returncode}: {said}")
        if time.monotonic() > end:
            raise SystemExit(f"the cluster is not up after {START_S:g} s; see {folder}/*.log")
        time.sleep(POLL_S)


def _idle() -> int:
    found = subprocess.run(
        ["sinfo", "-h", "-N", "-p", "batch", "-t", "idle", "-o", "%N %t"],
        capture_output=True, text=True,
    )  # fmt: skip
    return len(found.stdout.splitlines())


def _call(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)}: {done.stderr.strip()}")


def _reap() -> None:
    """The first process of a PID namespace inherits all orphans."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
