"""What happened in a simulated run, event by event, as text and for Perfetto or Chrome."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from psgrad.messages import Header

PROGRAM, OUT, IN = range(3)  # the rows of a rank
ROWS: Final = ("program", "NIC out", "NIC in")


class Event(NamedTuple):
    """One thing that happened to a rank.

    ========  =============================================  =================================
    what      means                                          ``start_s`` to ``end_s``
    ========  =============================================  =================================
    send      it sends ``message`` to ``peer``               while it leaves the NIC
    enter     a message from ``peer`` comes to its NIC       while it enters
    arrive    the message is whole, and waits to be taken
    take      ``receive`` returns it
    lost      it is lost here, or ``rank`` hears no more
    kill      a fault ends the rank
    end       its program has returned
    else      the call that it has waited in: ``sleep``,     while it waited
              ``receive``, ``flush``, ``exchange``, ...
    ========  =============================================  =================================
    """

    time_s: float
    rank: int
    what: str
    peer: int = -1
    header: Header | None = None
    message: int = -1  # counts all messages of the run; a duplicate has its original's
    start_s: float = 0.0
    end_s: float = 0.0

    def text(self) -> str:
        """One line, the same in every run with the same seed: the run's id is left out."""
        where = f"{self.time_s!r} {self.rank} {self.what}"
        if self.header is None:
            return f"{where} {self.start_s!r} {self.end_s!r}"
        h = self.header
        return (
            f"{where} {self.peer} #{self.message} {h.kind.name} {h.verdict.name} w{h.worker} "
            f"c{h.chunk} t{h.clock} s{h.slowest} v{h.version} {h.nbytes} "
            f"{self.start_s!r} {self.end_s!r}"
        )


Sink: TypeAlias = Callable[[Event], object]
_INSTANT: Final = frozenset({"take", "lost", "kill", "end"})


def write_chrome_trace(path: Path, trace: Iterable[Event], names: Sequence[str] = ()) -> None:
    """Writes ``trace`` as Chrome's JSON, which https://ui.perfetto.dev opens.

    Each rank is a process with three rows: what its program waits in, and what passes its NIC out
    and in. An arrow goes from a message's slice at the sender to that at the receiver. ``names``
    are the ranks' names; a rank without one is called by its number.
    """
    events = list(trace)
    ranks = sorted({event.rank for event in events})
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ns", "traceEvents": [\n')
        records = [*_rows(ranks, names), *(r for event in events for r in _records(event))]
        file.write(",\n".join(json.dumps(record) for record in records))
        file.write("\n]}\n")


def _rows(ranks: Iterable[int], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for rank in ranks:
        name = f"rank {rank}" + (f" ({names[rank]})" if rank < len(names) else "")
        yield {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": rank, "args": {"sort_index": rank}}
        for row, row_name in enumerate(ROWS):
            args = {"name": row_name}
            yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": row, "args": args}


def _records(event: Event) -> Iterator[dict[str, Any]]:
    if event.what == "arrive":
        return  # its slice of the NIC ends there
    row = {"send": OUT, "enter": IN}.get(event.what, PROGRAM)
    name = event.what
    place: dict[str, Any] = {"pid": event.rank, "tid": row}
    if event.header is not None:
        h = event.header
        name = f"{h.kind.name} {h.chunk}" if row != PROGRAM else f"{event.what} {h.kind.name}"
        place["args"] = {
            "peer": event.peer, "worker": h.worker, "chunk": h.chunk, "clock": h.clock,
            "version": h.version, "nbytes": h.nbytes, "message": event.message,
        }  # fmt: skip
    if event.what in _INSTANT:
        yield {"ph": "i", "s": "t", "name": name, "ts": _us(event.time_s), **place}
        return
    start, end = _us(event.start_s), _us(event.end_s)
    yield {"ph": "X", "name": name, "ts": start, "dur": end - start, **place}
    if row != PROGRAM:
        arrow = {"name": "message", "cat": "message", "id": event.message, "ts": start}
        ends = {"ph": "s"} if row == OUT else {"ph": "f", "bp": "e"}
        yield {**ends, **arrow, "pid": event.rank, "tid": row}


def _us(seconds: float) -> float:
    return seconds * 1e6
