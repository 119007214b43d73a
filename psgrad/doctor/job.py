"""Checks of the job as a whole: launcher, MPI, versions, clocks, links. Pure functions of facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psgrad.doctor.facts import Facts
from psgrad.doctor.finding import Finding, State, counted, ranks
from psgrad.doctor.launched import vendor, version
from psgrad.doctor.links import Link, Measured, culprits, slow

CLOCK_S: Final = 1.0  # further apart, logs and dates of files are hard to read
SHOWN: Final = 3  # slow links, by name
ULFM_SINCE: Final = 5  # version of Open MPI


@dataclass(frozen=True)
class Mpiexec:
    """The mpiexec that PATH leads to; empty where there is none."""

    path: str = ""
    vendor: str = ""


def launch(facts: Sequence[Facts]) -> Finding:
    """Whether the ranks that were started are one job."""
    me = facts[0]
    told = me.launched
    if me.problem:
        many = f", so each of {told.size} ranks is a job of its own" if told.size > 1 else ""
        return Finding("launch", "FAIL", f"{me.problem}{many}", _start_right(me))
    if me.size == 1 and told.size > 1:
        seen = f"{told.name} has started {told.size} ranks, and each is rank 0 of 1"
        return Finding("launch", "FAIL", seen, _start_right(me))
    if told.launcher and me.size != told.size:
        seen = f"{told.name} tells of {told.size} ranks, MPI has {me.size}"
        return Finding("launch", "FAIL", seen, "start the whole job by one mpirun, or one srun")
    if me.size == 1 and told.allocation > 1:
        seen = f"one process, in a Slurm job of {told.allocation} tasks"
        return Finding("launch", "warn", seen, "srun psgrad doctor looks at the whole job")
    if me.size == 1:
        return Finding("launch", "ok", "one process, alone; --np 4, mpirun or srun: more ranks")
    by = f" by {told.name}" if told.launcher else ""
    return Finding("launch", "ok", f"{me.size} ranks{by}")


def _start_right(me: Facts) -> str:
    beside = Path(me.library).parent.parent / "bin" / "mpiexec"
    own = str(beside) if me.library else "the mpiexec of that library"
    if me.launched.launcher == "srun":
        return (
            "srun --mpi=pmi2 for MPICH and Intel MPI, --mpi=pmix for Open MPI (srun --mpi=list "
            "shows what this Slurm has), or mpirun within the allocation"
        )
    return (
        f"start them with {own} or with psgrad run, or have mpi4py load the launcher's library "
        "(MPI4PY_LIBMPI=/path/to/libmpi.so)"
    )


def library(facts: Sequence[Facts]) -> Finding:
    """Whose MPI it is, and whether all ranks have the same."""
    me = facts[0]
    if not me.mpi:
        seen, _, cure = me.problem.partition("; ")
        return Finding("MPI", "FAIL", seen, cure)
    parts = _by_value({f.rank: f"{f.mpi}, {f.standard}" for f in facts})
    if len(parts) > 1:
        seen = "; ".join(f"{said} on {ranks(which)}" for said, which in parts.items())
        return Finding("MPI", "FAIL", seen, "give all nodes the same environment, or container")
    return Finding("MPI", "ok", f"{me.mpi}, {me.standard}, {me.library or 'file unknown'}")


def launcher(facts: Sequence[Facts], mpiexec: Mpiexec) -> Finding:
    """Whether launcher and library are of one MPI; alone, whether those of PATH are."""
    me = facts[0]
    its, told = vendor(me.mpi), me.launched
    if told.launcher == "openmpi" and told.version and its == "openmpi":
        own = version(me.mpi)
        if own == told.version:
            return Finding("launcher", "ok", f"{told.name}, version {own}, as the library's")
        far = own.partition(".")[0] != told.version.partition(".")[0]
        seen = f"mpiexec is of Open MPI {told.version}, the library of {own}"
        return Finding("launcher", "FAIL" if far else "warn", seen, _start_right(me))
    if told.launcher:
        return Finding("launcher", "ok", told.name)
    if not mpiexec.path:
        return Finding("launcher", "ok", "no mpiexec on PATH; psgrad run finds its own")
    if its and mpiexec.vendor != "unknown" and mpiexec.vendor != its:
        seen = f"{mpiexec.path} on PATH is of {mpiexec.vendor}, this Python loads {me.mpi}"
        return Finding("launcher", "warn", seen, _start_right(me))
    return Finding("launcher", "ok", f"{mpiexec.path}, {mpiexec.vendor}")


def threads(facts: Sequence[Facts]) -> Finding:
    """What MPI allows of threads; psgrad calls it from one, its user's libraries may have more."""
    levels = _by_value({f.rank: f.thread_level for f in facts})
    poor = [level for level in levels if level not in ("serialized", "multiple")]
    if not poor:
        return Finding("threads", "ok", f"MPI grants {', '.join(levels)}")
    where = ranks(levels[poor[0]])
    seen = f"MPI grants {poor[0] or 'nothing'} on {where}, psgrad asks for serialized"
    return Finding(
        "threads", "warn", seen, "an MPI with thread support, where libraries use threads"
    )


def tolerance(facts: Sequence[Facts]) -> Finding:
    """Whether a run could go on when a worker dies."""
    me = facts[0]
    major = int(version(me.mpi).partition(".")[0] or 0)
    if vendor(me.mpi) != "openmpi" or major < ULFM_SINCE:
        return Finding("ULFM", "ok", f"not with {me.mpi}; psgrad run --restarts does without")
    if me.launched.launcher == "srun":
        return Finding("ULFM", "ok", "not where srun starts the ranks; mpirun --with-ft ulfm does")
    if me.launched.tolerant:
        return Finding("ULFM", "ok", "on: training with --fault-tolerant outlives its workers")
    return Finding("ULFM", "ok", "available: mpirun --with-ft ulfm, or psgrad run --elastic")


def versions(facts: Sequence[Facts]) -> Finding:
    """Whether all ranks run the same programs."""
    names = dict.fromkeys(name for f in facts for name in f.versions)
    state: State = "ok"
    seen = []
    for name in names:
        parts = _by_value({f.rank: f.versions.get(name, "none") for f in facts})
        if len(parts) == 1:
            continue
        state = "FAIL" if name == "psgrad" or state == "FAIL" else "warn"
        seen.append(f"{name} {', '.join(f'{v} on {ranks(which)}' for v, which in parts.items())}")
    if seen:
        cure = "give all nodes the same environment; python -m pip list shows what each has"
        return Finding("versions", state, "; ".join(seen), cure)
    mine = ", ".join(f"{name} {value}" for name, value in facts[0].versions.items())
    return Finding("versions", "ok", mine + (" on all ranks" if len(facts) > 1 else ""))


def clocks(facts: Sequence[Facts], ahead_s: Sequence[float]) -> Finding:
    """How far the nodes' clocks are apart; ``ahead_s`` are seconds, by rank."""
    if len({f.host for f in facts}) < 2 or len(ahead_s) < 2:
        return Finding("clocks", "ok", "one node")
    worst = max(range(len(ahead_s)), key=lambda rank: abs(ahead_s[rank]))
    apart = abs(ahead_s[worst])
    if apart <= CLOCK_S:
        return Finding("clocks", "ok", f"at most {1e3 * apart:.3g} ms apart")
    way = "ahead of" if ahead_s[worst] > 0 else "behind"
    seen = f"{facts[worst].host} (rank {worst}) is {apart:.3g} s {way} {facts[0].host} (rank 0)"
    return Finding("clocks", "warn", seen, "have its administrator look at NTP there")


def links(facts: Sequence[Facts], measured: Measured) -> Finding:
    """Which pairs of ranks are slow, and which node they have in common."""
    hosts = [f.host for f in facts]
    if measured.silent:
        who = " and ".join(f"rank {r} ({hosts[r]})" for r in measured.silent)
        cure = "look at the network of these nodes: interfaces, firewall, MPI's choice of both"
        return Finding("links", "FAIL", f"no answer from {who}", cure)
    if not measured.links:
        return Finding("links", "ok", "none measured")
    bad = slow(measured.links, hosts)
    if not bad:
        return Finding("links", "ok", _usual(measured, hosts))
    shown = [_link(one.link, hosts, one.what, one.times) for one in bad[:SHOWN]]
    more = f", and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    named = culprits(bad, measured.links, hosts)
    seen = f"{len(bad)} of {len(measured.links)} slow: {'; '.join(shown)}{more}"
    if named:
        seen = f"{', '.join(named)}: every link is slow. {seen}"
    ends = dict.fromkeys((hosts[bad[0].link.a], hosts[bad[0].link.b]))
    if named:
        cure = f"run without {named[0]} (srun --exclude={named[0]}), have its network looked at"
    elif len(ends) > 1:
        cure = f"look at the network between {' and '.join(ends)}, and who else uses it"
    else:
        cure = "look for other programs on these cores (top), and at the binding of the ranks"
    return Finding("links", "warn", seen, cure)


def _link(link: Link, hosts: Sequence[str], what: str, times: float) -> str:
    a, b = (f"rank {rank} ({hosts[rank]})" for rank in (link.a, link.b))
    value = rate(link.bandwidth) if what == "bandwidth" else f"{link.latency_us:.3g} us"
    return f"{a} to {b} {value}, {times:.3g} times worse than most"


def _usual(measured: Measured, hosts: Sequence[str]) -> str:
    said = []
    for near, where in ((True, "on a node"), (False, "between nodes")):
        kind = [link for link in measured.links if (hosts[link.a] == hosts[link.b]) is near]
        if kind:
            low, late = min(k.bandwidth for k in kind), max(k.latency_us for k in kind)
            said.append(f"{where} at least {rate(low)}, at most {late:.3g} us")
    left = measured.planned - len(measured.links)
    rest = f"; {left} more not measured in the time (--seconds)" if left else ""
    return f"{counted(len(measured.links), 'pair')}: {'; '.join(said)}{rest}"


def rate(bandwidth: float) -> str:
    """Bytes a second for a person: 850 MB/s, 11.2 GB/s."""
    if bandwidth >= 1e9:
        return f"{bandwidth / 1e9:.3g} GB/s"
    return f"{bandwidth / 1e6:.3g} MB/s"


def _by_value(values: Mapping[int, str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for rank, value in values.items():
        found.setdefault(value, []).append(rank)
    return found
