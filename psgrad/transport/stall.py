"""Who waits for whom, in words: for a simulated run that gets nowhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from psgrad.transport.carrier import Carrier, End

LINES: Final = 32  # of ranks, and of links


def explain(carrier: Carrier) -> list[str]:
    """A line for each rank that waits, those that are gone, and a line for each link in use."""
    waiting = [_waiting(carrier, end) for end in carrier.ends if end.rank.runs]
    killed = [end.rank.index for end in carrier.ends if end.rank.killed]
    ended = [end.rank.index for end in carrier.ends if not (end.rank.runs or end.rank.killed)]
    links = [
        f"link {end.rank.index} -> {peer}: {end.lines[peer].sent} sent, the last: {last.text()}"
        for end in carrier.ends
        for peer, last in end.last.items()
    ]
    gone = [f"killed: {_ranks(killed)}"] if killed else []
    gone += [f"ended: {_ranks(ended)}"] if ended else []
    return [*_some(waiting), *gone, *_some(links)]


def _waiting(carrier: Carrier, end: End) -> str:
    rank = end.rank
    text = f"rank {rank.index} in {rank.waits_in} since {rank.since_s:.9g} s, for "
    if rank.waits_in == "receive":
        return text + (_ranks(end.hears) if end.hears else "nobody: it has not connected")
    if rank.waits_in == "sleep":
        return f"{text}{rank.deadline_s - rank.since_s:.9g} s"
    if end.gathered - 1 in carrier.gatherings and rank.waits_in not in ("flush", "close"):
        come = carrier.gatherings[end.gathered - 1].blobs
        return text + _ranks(r for r in range(len(carrier.ends)) if r not in come)
    return f"{text}{end.leaving} payloads to leave"


def _some(lines: Sequence[str]) -> list[str]:
    more = len(lines) - LINES
    return [*lines[:LINES], *([f"... and {more} more of this kind"] if more > 0 else [])]


def _ranks(ranks: Iterable[int]) -> str:
    """``ranks 0-3, 7``."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    texts = [str(low) if low == high else f"{low}-{high}" for low, high in spans]
    return f"rank{'s' if len(texts) > 1 or '-' in texts[0] else ''} {', '.join(texts)}"
