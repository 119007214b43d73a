"""What the daemons of the test cluster read: addresses, slurm.conf, gres.conf, the munge key.

``node1`` has no GPU and ``node2`` has two, which are files and no devices: enough for Slurm to
schedule by them. Nodes have more CPUs than the machine, so that ranks find room; they are bound to
none. Jobs in ``urgent`` preempt those in ``batch``, which are told by their own signal first, and
are requeued.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

CPUS: Final = 8  # of a node, as Slurm is told
GPUS: Final = 2
REQUEUED_AFTER_S: Final = 5  # before a requeued job may start again; Slurm's own default is 120


class Address(NamedTuple):
    name: str
    ip: str


LOGIN: Final = Address("login", "10.77.0.1")
NODES: Final = (Address("node1", "10.77.0.11"), Address("node2", "10.77.0.12"))

SLURM_CONF: Final = """\
ClusterName=psgrad
SlurmctldHost={login.name}({login.ip})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={delay}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MpiDefault=none
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=0
ReturnToService=2
KillWait=5
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
{nodes}
PartitionName=batch Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE
"""


def write_files(folder: Path) -> None:
    """Writes all of it into ``folder``, with absolute paths."""
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    hosts = [Address("localhost", "127.0.0.1"), LOGIN, *NODES]
    (folder / "hosts").write_text("".join(f"{ip} {name}\n" for name, ip in hosts))
    (folder / "state").mkdir()
    lines = []
    for node in NODES:
        (folder / f"spool-{node.name}").mkdir()
        # By its weight, a job without GPUs is kept off the node that has some.
        gpus = f" Gres=gpu:{GPUS} Weight=2" if node == NODES[-1] else ""
        lines.append(f"NodeName={node.name} NodeAddr={node.ip} CPUs={CPUS} State=UNKNOWN{gpus}")
    text = SLURM_CONF.format(
        folder=folder, login=LOGIN, nodes="\n".join(lines), delay=REQUEUED_AFTER_S
    )
    (folder / "slurm.conf").write_text(text)
    for number in range(GPUS):
        (folder / f"gpu{number}").touch()
    # No plugin in use here needs control groups; this one does nothing until asked.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (folder / "gres.conf").write_text(
        f"NodeName={NODES[-1].name} Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n"
    )
