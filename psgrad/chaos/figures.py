"""What a campaign has come to, as a table: counts, and times in seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from psgrad.chaos.judge import Outcome
from psgrad.chaos.trial import KILLED, STOPPED, WOKEN, Trial


def table(done: Sequence[tuple[Trial, Outcome, Sequence[str]]]) -> str:
    """``done``: the trials, what came of each, and what is wrong with that."""
    struck = [(t, s) for t, outcome, _ in done for s in outcome.struck]
    ends = sum(len(outcome.ends) for _, outcome, _ in done)
    hangs = sum(outcome.hung for _, outcome, _ in done)
    rows = {
        "runs": str(len(done)),
        "blows": f"{len(struck)}, {ends} attempts ended by them",
        "over before a blow": str(sum(not outcome.struck for _, outcome, _ in done)),
        "hangs": str(hangs),
        "wrong": str(sum(bool(faults) and not outcome.hung for _, outcome, faults in done)),
    }
    counts = Counter(f"{t.kind}: {s.strike.victim} {s.strike.blow}" for t, s in struck)
    rows |= {name: str(count) for name, count in sorted(counts.items())}
    killed = [(t, s) for t, s in struck if s.strike.loses and s.strike.blow == KILLED]
    servers = [s for _, s in struck if s.strike.survived and s.strike.victim != "worker"]
    failed = [s for s in servers if s.strike.blow == KILLED]
    silent = [s for _, s in struck if s.strike.loses and s.strike.blow in (STOPPED, WOKEN)]
    rows |= {
        "killed, told": _times([s.told_s for _, s in killed]),
        "server killed, told": _times([s.told_s for s in failed]),
        "silent, shut out": _times([s.told_s for s in silent]),
        "pause, async": _times([s.pause_s for t, s in killed if t.mode == "async"]),
        "pause, ssp": _times([s.pause_s for t, s in killed if t.mode == "ssp"]),
        "pause, sync": _times([s.pause_s for t, s in killed if t.mode == "sync"]),
        "pause, failover": _times([s.pause_s for s in failed]),
        "step after shut out": _times([s.resumed_s for s in silent]),
        "started again": _times([s.resumed_s for _, s in struck if not s.strike.survived]),
    }
    width = max(len(name) for name in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def _times(seconds: Sequence[float | None]) -> str:
    times = sorted(second for second in seconds if second is not None)
    if not times:
        return "none"
    middle, late = (times[int(share * (len(times) - 1) + 0.5)] for share in (0.5, 0.99))
    return f"median {middle:.3f} s, p99 {late:.3f} s, max {times[-1]:.3f} s, {len(times)} times"
