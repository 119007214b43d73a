"""The doctor at work: every rank gathers facts, rank 0 judges and reports."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from psgrad import launch as launching
from psgrad.bench.memory import layout_of, server_items, worker_items
from psgrad.crash import say, warn
from psgrad.doctor import cuda, job, nodes, report
from psgrad.doctor.facts import Facts, look, with_mpi
from psgrad.doctor.finding import Finding
from psgrad.doctor.job import Mpiexec
from psgrad.doctor.launched import mismatch
from psgrad.doctor.links import Measured, pairs
from psgrad.doctor.nodes import Wanted
from psgrad.doctor.pingpong import measure
from psgrad.errors import LaunchError
from psgrad.optimizers import Adam
from psgrad.options import Options
from psgrad.placement import SPREAD, local_workers, order
from psgrad.roles import Roles
from psgrad.transport.mpi import MpiTransport, load_mpi

SEEN_S: Final = 2.0  # for a file to be seen on other nodes
POLL_S: Final = 0.05


@dataclass(frozen=True)
class Plan:
    """What is asked for: the ``folder`` of checkpoints, ``servers`` of the run, ``nbytes`` of its
    parameters (0: unknown), ``seconds`` for the links; ``strict``: a warning counts as a failure.
    """

    folder: Path = Path()
    servers: int = 1
    placement: str = SPREAD
    gpu_share: bool = False
    nbytes: int = 0
    seconds: float = 20.0
    strict: bool = False
    json: bool = False


def examine(plan: Plan, environ: Mapping[str, str], show: Callable[[str], None]) -> int:
    """Looks at all ranks; every rank of the job calls it. Rank 0 tells ``show`` what was found.

    Returns the exit status, on all ranks alike: 0, or 1 if something is wrong. Of ranks that ought
    to be one job and are not, the one that its launcher calls 0 speaks, and it alone ends with 1.
    """
    facts = look(environ, plan.folder)
    facts, mpi = _with_library(facts)
    if mpi is None or facts.problem:
        return _alone(plan, facts, environ, show)
    _warn_before_start(facts)
    load_mpi()
    transport = MpiTransport()
    facts = _of_rank(facts, transport, mpi)
    if transport.size == 1:
        transport.close()
        return _alone(plan, facts, environ, show)
    status = _together(plan, facts, transport, environ, show)
    transport.close()
    return status


def _with_library(facts: Facts) -> tuple[Facts, Any]:
    """What can be seen of the MPI library before it starts; None: there is none."""
    with warnings.catch_warnings():
        # Of mpi4py, about a launcher of another MPI: there is a finding for that.
        warnings.simplefilter("ignore")
        try:
            mpi = load_mpi(start=False)
        except LaunchError as error:
            return dataclasses.replace(facts, problem=str(error)), None
        facts = with_mpi(facts, mpi)
    if not mpi.Is_initialized():
        facts = dataclasses.replace(facts, problem=mismatch(facts.launched, facts.mpi))
    return facts, mpi


def _warn_before_start(facts: Facts) -> None:
    """Says, once on a node, what may end the ranks inside of MPI's start: MPICH dies of SIGBUS."""
    if facts.launched.local_rank == 0:
        found = nodes.shared_memory([facts] * facts.launched.local_size)
        if found.state == "FAIL":
            warn(f"{found.check}: {found.seen}, and may end where it starts; {found.cure}")


def _of_rank(facts: Facts, transport: MpiTransport, mpi: Any) -> Facts:
    names = ("single", "funneled", "serialized", "multiple")
    levels = {getattr(mpi, f"THREAD_{name.upper()}"): name for name in names}
    return dataclasses.replace(
        facts,
        rank=transport.rank,
        size=transport.size,
        thread_level=levels.get(mpi.Query_thread(), "unknown"),
    )


def _alone(
    plan: Plan, facts: Facts, environ: Mapping[str, str], show: Callable[[str], None]
) -> int:
    """One process, which may be one of many that do not know of each other."""
    wanted = Wanted((False,), plan.gpu_share, plan.nbytes, len(Adam().slots))
    tried = [cuda.attempt(environ) if facts.gpus else ""]
    found = _findings([facts], wanted, Measured(), tried, _mpiexec(environ))
    if facts.launched.rank:
        return 0  # a launcher that sees a failure ends the one that speaks
    _tell(plan, [facts], wanted, Measured(), found, show)
    return _status(plan, found)


def _together(
    plan: Plan,
    facts: Facts,
    transport: MpiTransport,
    environ: Mapping[str, str],
    show: Callable[[str], None],
) -> int:
    facts = _look_for_file(facts, transport)
    everyone = [Facts.from_json(blob) for blob in transport.exchange(facts.to_json())]
    hosts = [f.host for f in everyone]
    wanted = _wanted(plan, hosts)
    first = local_workers(nodes.seats(everyone, wanted))[facts.rank] == 0
    mine = cuda.attempt(environ) if first and facts.gpus else ""
    tried = [blob.decode() for blob in transport.exchange(mine.encode())]
    comm = load_mpi().COMM_WORLD.Dup()
    measured = measure(comm, pairs(hosts), hosts, plan.seconds)
    status = b""
    if facts.rank == 0:
        found = _findings(everyone, wanted, measured, tried, Mpiexec())
        _tell(plan, everyone, wanted, measured, found, show)
        status = str(_status(plan, found)).encode()
        if measured.silent:  # the others wait for it
            transport.abort(1)
    comm.Free()
    return int(transport.exchange(status)[0])


def _look_for_file(facts: Facts, transport: MpiTransport) -> Facts:
    """Whether this rank sees in its folder a file that rank 0 writes there. Collective."""
    name = transport.exchange(f".psgrad-doctor-{uuid.uuid4().hex}".encode())[0].decode()
    file = Path(facts.folder, name)
    if facts.rank == 0:
        with suppress(OSError):
            file.touch()
    written = transport.exchange(b"1" if facts.rank == 0 and file.exists() else b"")[0]
    seen = not written or file.exists()
    end_s = time.monotonic() + SEEN_S
    while not seen and time.monotonic() < end_s:
        time.sleep(POLL_S)
        seen = file.exists()
    transport.exchange(b"")
    if facts.rank == 0:
        with suppress(OSError):
            file.unlink()
    return dataclasses.replace(facts, folder_shared=seen)


def _wanted(plan: Plan, hosts: Sequence[str]) -> Wanted:
    """``plan`` for the ranks on ``hosts``, of which one at least is a worker."""
    roles = Roles(len(hosts), min(plan.servers, len(hosts) - 1))
    first = set(order(hosts, roles.servers, plan.placement)[: roles.servers])
    servers = tuple(rank in first for rank in range(roles.size))
    need: tuple[int, ...] = ()
    if plan.nbytes:
        layout, options = layout_of(plan.nbytes), Options(servers=roles.servers, optimizer=Adam())
        serves = sum(item.nbytes for item in server_items(layout, options, roles))
        works = sum(item.nbytes for item in worker_items(layout, options, roles))
        need = tuple(serves if server else works for server in servers)
    return Wanted(servers, plan.gpu_share, plan.nbytes, len(Adam().slots), need)


def _findings(
    facts: Sequence[Facts],
    wanted: Wanted,
    measured: Measured,
    tried: Sequence[str],
    mpiexec: Mpiexec,
) -> list[Finding]:
    """All checks, in the order in which somebody would look: first what makes others fail."""
    found = [job.launch(facts)] if facts[0].mpi else []
    found.append(job.library(facts))
    if facts[0].mpi and not facts[0].problem:
        found += [job.launcher(facts, mpiexec), job.threads(facts), job.tolerance(facts)]
    found += [
        job.versions(facts),
        nodes.cores(facts, wanted),
        nodes.gpus(facts, wanted),
        nodes.cuda_aware(facts, tried),
        nodes.memlock(facts),
        nodes.shared_memory(facts),
        nodes.memory(facts, wanted),
        nodes.folder(facts, wanted),
    ]
    if len(facts) > 1:
        found += [job.clocks(facts, measured.clocks), job.links(facts, measured)]
    return found


def _mpiexec(environ: Mapping[str, str]) -> Mpiexec:
    path = shutil.which("mpiexec", path=environ.get("PATH"))
    if path is None:
        return Mpiexec()
    try:
        return Mpiexec(path, launching.identify(Path(path), environ))
    except LaunchError:
        return Mpiexec(path, "unknown")


def _tell(
    plan: Plan,
    facts: Sequence[Facts],
    wanted: Wanted,
    measured: Measured,
    found: Sequence[Finding],
    show: Callable[[str], None],
) -> None:
    show(report.text(facts, wanted, measured, found))
    if plan.json:
        show(json.dumps(report.record(facts, wanted, measured, found)))
    if bad := _counted(plan, found):
        say(f"the doctor finds faults in {', '.join(finding.check for finding in bad)}")


def _status(plan: Plan, found: Sequence[Finding]) -> int:
    return int(bool(_counted(plan, found)))


def _counted(plan: Plan, found: Sequence[Finding]) -> list[Finding]:
    """Those that make the doctor end with 1."""
    return [f for f in found if f.state == "FAIL" or (plan.strict and f.state == "warn")]
