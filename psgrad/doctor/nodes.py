"""Checks of the nodes: cores, GPUs, memory, folders. Pure functions of facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from psgrad.doctor.facts import UNLIMITED, Facts
from psgrad.doctor.finding import Finding, counted, in_bytes, numbers, ranks
from psgrad.doctor.launched import vendor
from psgrad.errors import ConfigError
from psgrad.placement import Seat, bind_gpus, threads

# What an MPI takes of /dev/shm for each rank: the files that it makes there.
SHM_NBYTES: Final = {"openmpi": 16 << 20, "mpich": 4 << 20, "intel": 4 << 20}
SHM_UNKNOWN: Final = 16 << 20
LEFT_NBYTES: Final = 64 << 20  # of files left behind, from where they are worth a word
FOLDER_NBYTES: Final = 1 << 30  # free, where nobody says how large the model is
CHECKPOINTS: Final = 3  # two that stay, and the one that is written


@dataclass(frozen=True)
class Wanted:
    """What the run will be like. ``nbytes`` of parameters, 0: nobody knows; ``state`` is how many
    times as much the optimizer keeps beside them, ``need`` what the ranks of each node will take of
    memory, by rank."""

    servers: tuple[bool, ...] = ()  # by rank
    gpu_share: bool = False
    nbytes: int = 0
    state: int = 0
    need: tuple[int, ...] = ()


def seats(facts: Sequence[Facts], wanted: Wanted) -> list[Seat]:
    """The ranks as the placement sees them."""
    servers = wanted.servers or (False,) * len(facts)
    return [
        Seat(f.host, frozenset(f.cores), f.gpus, server)
        for f, server in zip(facts, servers, strict=True)
    ]


def cores(facts: Sequence[Facts], wanted: Wanted) -> Finding:
    """Whether each rank has cores of its own, and those that Slurm was asked for."""
    short = [f for f in facts if f.launched.cpus_per_task > len(f.cores)]
    if short and short[0].launched.launcher == "srun":
        one = short[0]
        asked = f"the job has --cpus-per-task={one.launched.cpus_per_task}"
        which = ranks([f.rank for f in short])
        seen = f"{which}: {counted(len(one.cores), 'core')} where {asked}"
        cure = "srun -c $SLURM_CPUS_PER_TASK: since Slurm 22.05 srun does not take it from the job"
        return Finding("cores", "warn", seen, cure)
    for host, here in by_host(facts).items():
        there = {core for f in here for core in f.cores}
        if len(here) <= len(there) or len(here) == 1:
            continue
        which = "core" if len(there) == 1 else "cores"
        seen = f"{len(here)} ranks share {which} {numbers(sorted(there))} of {host}"
        if here[0].machine_cores >= len(here):
            cure = f"it has {here[0].machine_cores}: mpirun --bind-to none, srun -c CORES"
        else:
            cure = "start as many ranks there as it has cores, at most"
        return Finding("cores", "warn", seen, cure)
    counts = threads(seats(facts, wanted))
    low, high = min(counts), max(counts)
    each = f"{low}" if low == high else f"{low} to {high}"
    return Finding("cores", "ok", f"threads of a rank: {each}")


def gpus(facts: Sequence[Facts], wanted: Wanted) -> Finding:
    """Whether each worker can have a GPU that no other one has."""
    with_gpu = [f for f in facts if f.gpus]
    idle = [f for f in facts if not f.gpus and f.gpu_cards]
    if not with_gpu and idle:
        problem, _, cure = idle[0].gpu_problem.partition(": ")
        seen = f"{idle[0].host} has {idle[0].gpu_cards}, and no rank can use one: {problem}"
        return Finding("GPUs", "warn", seen, cure)
    if not with_gpu:
        return Finding("GPUs", "ok", "no GPU here: models are computed on CPUs")
    try:
        bound = bind_gpus(seats(facts, wanted), wanted.gpu_share)
    except ConfigError as error:
        seen, _, cure = str(error).partition("; ")
        return Finding("GPUs", "FAIL", seen, cure)
    has = [gpu is not None for gpu in bound]
    without = [r for r, s in enumerate(seats(facts, wanted)) if not (s.server or has[r])]
    there = len({(f.host, gpu) for f in with_gpu for gpu in f.gpus})
    seen = f"{counted(sum(has), 'worker')} on {counted(there, 'GPU')}"
    if without:
        seen += f"; {ranks(without)} compute on CPUs"
    return Finding("GPUs", "ok", seen)


def cuda_aware(facts: Sequence[Facts], tried: Sequence[str]) -> Finding:
    """Whether MPI takes a GPU's memory: ``tried`` is what came of it by rank, "" where not."""
    told = [f"{f.host}: {said}" for f, said in zip(facts, tried, strict=True) if said]
    if not told:
        return Finding("CUDA-aware", "ok", "no GPU here to try it with")
    return Finding("CUDA-aware", "ok", f"{'; '.join(told)} (psgrad does not need it)")


def memlock(facts: Sequence[Facts]) -> Finding:
    """Whether network cards may pin as much memory as they like."""
    short = [f for f in facts if f.memlock != UNLIMITED and f.infiniband]
    if short:
        least = min(short, key=lambda f: f.memlock)
        seen = f"{in_bytes(least.memlock)} on {least.host}, which has InfiniBand"
        return Finding("memlock", "warn", seen, "ulimit -l unlimited, in limits.conf or slurmd's")
    if all(f.memlock == UNLIMITED for f in facts):
        return Finding("memlock", "ok", "unlimited")
    least = min((f for f in facts if f.memlock != UNLIMITED), key=lambda f: f.memlock)
    return Finding("memlock", "ok", f"{in_bytes(least.memlock)}, and no InfiniBand")


def shared_memory(facts: Sequence[Facts]) -> Finding:
    """Whether /dev/shm is large enough for MPI. What psgrad shares does not lie there."""
    lines = []
    for host, here in by_host(facts).items():
        need = len(here) * SHM_NBYTES.get(vendor(here[0].mpi), SHM_UNKNOWN)
        free = min(f.shm_free for f in here)
        if free == UNLIMITED:
            seen = f"there is no /dev/shm on {host}"
            return Finding("/dev/shm", "warn", seen, "mount a tmpfs there; in a container, too")
        seen = f"{in_bytes(free)} free of {in_bytes(here[0].shm_total)} on {host}"
        if free < 2 * need:
            cure = "make it larger: docker --shm-size=1g, mount -o remount,size=1g /dev/shm"
            text = f"{seen}, MPI takes up to {in_bytes(need)} for {counted(len(here), 'rank')}"
            return Finding("/dev/shm", "FAIL" if free < need else "warn", text, cure)
        left = max(f.shm_left for f in here)
        if left >= LEFT_NBYTES:
            text = f"{seen}; {in_bytes(left)} belong to MPI jobs that are over"
            cure = "rm /dev/shm/sm_segment.* /dev/shm/mpich_shm_* while no job of yours runs there"
            return Finding("/dev/shm", "warn", text, cure)
        lines.append(seen)
    return Finding("/dev/shm", "ok", lines[0] + (f", {len(lines)} nodes" * (len(lines) > 1)))


def memory(facts: Sequence[Facts], wanted: Wanted) -> Finding:
    """Whether the ranks of each node find the memory that the model takes."""
    least = min(facts, key=lambda f: f.memory)
    if not wanted.need:
        seen = f"{in_bytes(least.memory)} on {least.host}" if least.memory >= 0 else "unknown"
        return Finding("memory", "ok", f"{seen}; --size 64M would say whether that is enough")
    for host, here in by_host(facts).items():
        need = sum(wanted.need[f.rank] for f in here)
        there = min(f.memory for f in here)
        if 0 <= there < need:
            takes = f"for {counted(len(here), 'rank')} it takes {in_bytes(need)}"
            seen = f"{in_bytes(there)} on {host}, {takes}"
            return Finding("memory", "FAIL", seen, "fewer ranks a node, more servers, or --mem")
    return Finding("memory", "ok", f"{in_bytes(least.memory)} on {least.host} is enough")


def folder(facts: Sequence[Facts], wanted: Wanted) -> Finding:
    """Whether checkpoints can be written, are seen by all, and have room."""
    broken = [f for f in facts if f.folder_problem]
    if broken:
        one = broken[0]
        where = f"{ranks([f.rank for f in broken])} on {_hosts(broken)}"
        seen = f"{where} cannot write in {one.folder}: {one.folder_problem}"
        return Finding("checkpoints", "FAIL", seen, "--checkpoint-dir of a folder that they can")
    blind = [f for f in facts if not f.folder_shared]
    if blind:
        seen = f"{_hosts(blind)} does not see what {facts[0].host} writes in {facts[0].folder}"
        cure = "--checkpoint-dir of a folder that all nodes share"
        return Finding("checkpoints", "FAIL", seen, cure)
    need = wanted.nbytes * (1 + wanted.state) * CHECKPOINTS or FOLDER_NBYTES
    least = min(facts, key=lambda f: f.folder_free)
    seen = f"{in_bytes(least.folder_free)} free in {least.folder}"
    if least.folder_free < need:
        for_what = "three checkpoints take" if wanted.nbytes else "they may take more than"
        text = f"{seen}, {for_what} {in_bytes(need)}"
        return Finding("checkpoints", "warn", text, "make room, or choose another folder")
    return Finding("checkpoints", "ok", f"{seen}, written and synced by all ranks")


def by_host(facts: Sequence[Facts]) -> dict[str, list[Facts]]:
    """The ranks of each node, the nodes in the order of their first ranks."""
    found: dict[str, list[Facts]] = {}
    for one in facts:
        found.setdefault(one.host, []).append(one)
    return found


def _hosts(facts: Sequence[Facts]) -> str:
    return ", ".join(dict.fromkeys(f.host for f in facts))
