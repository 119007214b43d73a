"""The doctor's findings for a person, and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from psgrad.doctor.facts import Facts
from psgrad.doctor.finding import STATES, Finding, numbers, worst
from psgrad.doctor.job import rate
from psgrad.doctor.links import Link, Measured, slow
from psgrad.doctor.nodes import Wanted, seats
from psgrad.errors import ConfigError
from psgrad.placement import bind_gpus

MATRIX: Final = 8  # ranks, up to which all pairs are drawn
WORST: Final = 5  # links, of more ranks
TABLE: Final = 32  # ranks, up to which each has its line


def text(
    facts: Sequence[Facts], wanted: Wanted, measured: Measured, findings: Sequence[Finding]
) -> str:
    """All of it: who is where, the links, the findings, and one line that sums them up."""
    parts = [who(facts, wanted)]
    if measured.links:
        parts.append(matrix(measured.links, facts))
    parts.append(lines(findings))
    counts = ", ".join(
        f"{sum(f.state == state for f in findings)} {state}" for state in reversed(STATES)
    )
    return "\n\n".join([*parts, f"psgrad doctor: {counts}"])


def lines(findings: Sequence[Finding]) -> str:
    """One line for each, and one for each cure."""
    found = []
    for finding in findings:
        found.append(f"{finding.state:5}{finding.check:12}{finding.seen}")
        if finding.cure:
            found.append(f"{'':5}{'':12}-> {finding.cure}")
    return "\n".join(found)


def who(facts: Sequence[Facts], wanted: Wanted) -> str:
    """Rank, role, host, cores and GPU; the ranks of one kind in one line where there are many."""
    rows: dict[tuple[str, ...], list[int]] = {}
    about = zip(facts, roles_of(facts, wanted), gpus_of(facts, wanted), strict=True)
    for f, role, gpu in about:
        # Of many ranks, those that are alike share a line.
        alone = str(f.rank) if len(facts) <= TABLE else ""
        rows.setdefault((role, f.host, numbers(f.cores), gpu, alone), []).append(f.rank)
    shown = [(numbers(which), *row[:4]) for row, which in rows.items()]
    table = [("rank", "role", "host", "cores", "GPU"), *shown]
    widths = [max(len(row[i]) for row in table) for i in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )


def roles_of(facts: Sequence[Facts], wanted: Wanted) -> list[str]:
    """Each rank's role; - for a process alone, which has none."""
    if len(facts) == 1:
        return ["-"]
    return ["server" if seat.server else "worker" for seat in seats(facts, wanted)]


def gpus_of(facts: Sequence[Facts], wanted: Wanted) -> list[str]:
    """The PCI id of each rank's GPU; all that it sees, where they cannot be dealt out."""
    try:
        bound = bind_gpus(seats(facts, wanted), wanted.gpu_share)
    except ConfigError:
        return [", ".join(f.gpus) or "-" for f in facts]
    return ["-" if n is None else f.gpus[n] for f, n in zip(facts, bound, strict=True)]


def matrix(links: Sequence[Link], facts: Sequence[Facts]) -> str:
    """Bandwidth and latency of each pair, slow ones marked; of many ranks only the slowest."""
    hosts = [f.host for f in facts]
    bad = {one.link for one in slow(links, hosts)}

    def cell(link: Link) -> str:
        return f"{rate(link.bandwidth)} {link.latency_us:.3g} us" + " !" * (link in bad)

    if len(facts) > MATRIX:
        slowest = sorted(links, key=lambda link: (link not in bad, link.bandwidth))[:WORST]
        named = [f"{k.a} ({hosts[k.a]}) to {k.b} ({hosts[k.b]}): {cell(k)}" for k in slowest]
        return "\n".join([f"the slowest of {len(links)} links (! slow)", *named])
    cells = {(link.a, link.b): cell(link) for link in links}
    width = max(map(len, cells.values()))
    head = "link".ljust(6) + "  ".join(f"to {b}".ljust(width) for b in range(1, len(facts)))
    rows = [
        str(a).ljust(6)
        + "  ".join(cells.get((a, b), "").ljust(width) for b in range(1, len(facts))).rstrip()
        for a in range(len(facts) - 1)
    ]
    return "\n".join([f"{head.rstrip()}   (! slow)", *rows])


def record(
    facts: Sequence[Facts], wanted: Wanted, measured: Measured, findings: Sequence[Finding]
) -> dict[str, Any]:
    """All of it for programs."""
    hosts = [f.host for f in facts]
    bad = {one.link for one in slow(measured.links, hosts)}
    about = zip(facts, roles_of(facts, wanted), gpus_of(facts, wanted), strict=True)
    return {
        "what": "doctor",
        "state": worst(findings),
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "ranks": [{**dataclasses.asdict(f), "role": role, "gpu": gpu} for f, role, gpu in about],
        "links": [{**dataclasses.asdict(link), "slow": link in bad} for link in measured.links],
        "clocks_s": list(measured.clocks),
    }
