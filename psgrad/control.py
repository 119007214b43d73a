"""What control messages say: their JSON as typed values, or an error that names the field.

Ranks of a job trust each other to be psgrad, not to be right: a payload of another shape ends the
run with one line instead of a traceback, or of numbers that mean nothing.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from psgrad.errors import LayoutError, NotSavedError, Preempted, WireError, shown
from psgrad.layout import Layout
from psgrad.messages import Kind, decode_json

TEXT: Final = (str, type(None))
"""The types of a text that may be left out."""


COUNTED: Final = ("updates", "pushes", "staleness_max", "bytes_pushed", "bytes_pulled")
"""What every server counts, at least."""
NESTED: Final = 200
"""How deep a worker's state may be nested: deeper in a manifest, it can still be read."""


class Part(NamedTuple):
    """What a worker brings to a rendezvous."""

    values: dict[str, float]
    weight: float


class Span(NamedTuple):
    """The clocks between which somebody was a worker; None: since the start, or still."""

    began: int | None = None
    ended: int | None = None


class Change(NamedTuple):
    """What was told at a rendezvous at which it was not what it was before: who was running, and
    the ``spans`` of each worker that was ever lost, the oldest first."""

    running: tuple[int, ...]
    spans: dict[int, tuple[Span, ...]]


class Past(NamedTuple):
    """What a worker that comes in later has missed: how many rendezvous, and what they told."""

    meetings: int = 0
    changes: tuple[Change, ...] = ()
    mine: tuple[Span, ...] = ()
    """Of those that were this worker before."""


class Stopped(NamedTuple):
    """Why a run was stopped, and what is safe: checkpoint ``number``, or the ``newest`` one (0:
    there is none), because of ``problem``."""

    reason: str
    number: int
    newest: int
    problem: str | None

    @property
    def error(self) -> Preempted:
        """What every rank ends with."""
        said = f"stopped by {self.reason}"
        if self.problem is None:
            return Preempted(f"{said}: checkpoint {self.number} is safe; go on with resume auto")
        lost = f"checkpoint {self.number} was not written: {self.problem}"
        if self.newest:
            return Preempted(
                f"{said}, but {lost}; go on from checkpoint {self.newest} with resume auto"
            )
        return NotSavedError(f"{said}, and nothing is saved: {lost}")


class Result(NamedTuple):
    """What a rendezvous came to: a mean or, where there is none, the ``error`` of all alike."""

    mean: dict[str, float]
    error: str | None
    first: int = 0  # of an error, the worker that reports it
    running: tuple[int, ...] = ()
    lost: dict[int, int] = {}  # noqa: RUF012 - of a tuple, which nobody changes
    spans: dict[int, tuple[Span, ...]] = {}  # noqa: RUF012
    changed: bool = False


def fields(payload: Any, kind: Kind, **types: tuple[type, ...]) -> dict[str, Any]:
    """The record in the payload of ``kind``, each field of ``types`` with a value of its types.

    A bool is no int, and an int is a float. Raises ``WireError`` for all else, but for fields that
    ``types`` does not name: those are left out.
    """
    record = _json(payload)
    if not isinstance(record, dict):
        raise WireError(f"payload of {kind.name} must be an object, got {_shown(record)}")
    return {name: _field(record, kind, name, allowed) for name, allowed in types.items()}


def registration(payload: Any, worker: int) -> Layout | str:
    """A REGISTER: the worker's layout, or why it has none, in words. Raises ``WireError``."""
    record = _json(payload)
    if isinstance(record, dict) and "problem" in record:
        return str(_field(record, Kind.REGISTER, "problem", (str,)))
    layout = fields(payload, Kind.REGISTER, layout=(dict,))["layout"]
    try:
        return Layout.from_record(layout)
    except LayoutError as error:
        raise WireError(f"payload of REGISTER of worker {worker}: {error}") from error


def part(payload: Any) -> Part:
    """A MEET: values may be anything that is a float. Raises ``WireError``."""
    found = fields(payload, Kind.MEET, values=(dict,), weight=(float,))
    weight: float = found["weight"]
    if not (math.isfinite(weight) and weight >= 0):
        raise WireError(f"field 'weight' of MEET must be finite and at least 0, got {weight}")
    values = found["values"]
    return Part({name: _field(values, Kind.MEET, name, (float,)) for name in values}, weight)


def result(payload: Any) -> Result:
    """A MET; of ``spans`` it says nothing as long as nobody was lost. Raises ``WireError``."""
    record = _json(payload)
    if isinstance(record, dict) and "error" in record:
        said = fields(payload, Kind.MET, error=(str,), first=(int,))
        return Result({}, said["error"], said["first"])
    if isinstance(record, dict):
        record = {"spans": {}, "changed": False, **record}
    said = fields(payload, Kind.MET, mean=(dict,), running=(list,), lost=(dict,))
    mean, lost, change = said["mean"], said["lost"], _change(record, Kind.MET)
    if not all(worker.isdecimal() for worker in lost):
        raise WireError(f"field 'lost' of MET must have worker indices, got {_shown(lost)}")
    return Result(
        {name: _field(mean, Kind.MET, name, (float,)) for name in mean},
        None,
        running=change.running,
        lost={int(worker): _field(lost, Kind.MET, worker, (int,)) for worker in lost},
        spans=change.spans,
        changed=_field(record, Kind.MET, "changed", (bool,)),
    )


def past(payload: Any) -> Past:
    """A REGISTERED of a worker that comes in later. Raises ``WireError``."""
    said = fields(payload, Kind.REGISTERED, past=(dict,))["past"]
    meetings = _field(said, Kind.REGISTERED, "meetings", (int,))
    changes = _field(said, Kind.REGISTERED, "changes", (list,))
    mine = _field(said, Kind.REGISTERED, "mine", (list,))
    if not all(map(_is_span, mine)):
        raise WireError(f"field 'mine' of REGISTERED must be pairs of clocks, got {_shown(mine)}")
    told = tuple(_change(change, Kind.REGISTERED) for change in changes)
    return Past(meetings, told, tuple(Span(*span) for span in mine))


def past_record(past: Past) -> dict[str, Any]:
    """What ``past`` reads."""
    changes = [{"running": c.running, "spans": c.spans} for c in past.changes]
    return {"meetings": past.meetings, "changes": changes, "mine": past.mine}


def admitted(payload: Any) -> int:
    """An ADMIT: the rank of the worker that comes in. Raises ``WireError``."""
    rank: int = fields(payload, Kind.ADMIT, rank=(int,))["rank"]
    return rank


def _change(record: Any, kind: Kind) -> Change:
    if not isinstance(record, dict):
        raise WireError(f"field 'changes' of {kind.name} must have objects, got {_shown(record)}")
    running = _field(record, kind, "running", (list,))
    spans = _field(record, kind, "spans", (dict,))
    if not running or not all(type(worker) is int and worker >= 0 for worker in running):
        raise WireError(
            f"field 'running' of {kind.name} must have worker indices, got {_shown(running)}"
        )
    for worker, found in spans.items():
        if not worker.isdecimal() or not isinstance(found, list) or not all(map(_is_span, found)):
            raise WireError(
                f"field 'spans' of {kind.name} must have pairs of clocks by worker, got "
                f"{_shown(found)} of {worker!r}"
            )
    return Change(tuple(running), {int(w): tuple(Span(*s) for s in spans[w]) for w in spans})


def _is_span(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(v is None or (type(v) is int and v >= 0) for v in value)
    )


def counters(payload: Any) -> dict[str, float]:
    """A STATS_ARE: numbers by name. Raises ``WireError``."""
    record = _json(payload)
    if not isinstance(record, dict):
        raise WireError(f"payload of STATS_ARE must be an object, got {_shown(record)}")
    for name in COUNTED:
        _field(record, Kind.STATS_ARE, name, (int,))
    return {name: _field(record, Kind.STATS_ARE, name, (int, float)) for name in record}


def written(payload: Any) -> dict[str, Any]:
    """A WRITTEN: what a server says of its part of a checkpoint. Raises ``WireError``."""
    nothing = type(None)
    said = fields(
        payload,
        Kind.WRITTEN,
        number=(int,),
        error=TEXT,
        file=(dict, nothing),
        chunks=(dict,),
        workers=(list,),
    )
    if (said["error"] is None) is (said["file"] is None):
        raise WireError("payload of WRITTEN must have an error or a file, and not both")
    if said["file"] is not None:
        file = {"name": (str,), "nbytes": (int,), "checksum": (str,)}
        said["file"] = {n: _field(said["file"], Kind.WRITTEN, n, t) for n, t in file.items()}
    _check_kept(said["chunks"], Kind.WRITTEN)
    return said


def marker(payload: Any) -> tuple[list[str], dict[str, Any]]:
    """A MARK: the names of a worker's rows, and the rest of its state. Raises ``WireError``."""
    said = fields(payload, Kind.MARK, rows=(list,), state=(dict,))
    rows: list[str] = said["rows"]
    if not all(isinstance(name, str) for name in rows) or len(set(rows)) < len(rows):
        raise WireError(f"field 'rows' of MARK must be names, each once, got {shown(rows)}")
    return rows, _check_kept(said["state"], Kind.MARK)


def last_state(payload: Any) -> dict[str, Any]:
    """A LEAVE, where there are checkpoints: the worker's last state. Raises ``WireError``."""
    return _check_kept(fields(payload, Kind.LEAVE, state=(dict,))["state"], Kind.LEAVE)


def stop(payload: Any) -> str:
    """A STOP: what asks for it. Raises ``WireError``."""
    reason: str = fields(payload, Kind.STOP, reason=(str,))["reason"]
    return reason


def stopped(payload: Any) -> Stopped:
    """A STOPPED. Raises ``WireError``."""
    types = {"reason": (str,), "number": (int,), "newest": (int,), "problem": TEXT}
    return Stopped(**fields(payload, Kind.STOPPED, **types))


def workers(payload: Any, kind: Kind) -> tuple[int, ...]:
    """A COMPLETE or COMMIT: whose pushes the round has. Raises ``WireError``."""
    found = fields(payload, kind, workers=(list,))["workers"]
    if not all(type(worker) is int for worker in found):
        raise WireError(f"field 'workers' of {kind.name} must have integers, got {_shown(found)}")
    return tuple(found)


def scale(payload: Any) -> float:
    """A SETTLE: what the gradients of the step are multiplied by. Raises ``WireError``."""
    found: float = fields(payload, Kind.SETTLE, scale=(float,))["scale"]
    if not 0 <= found <= 1:
        raise WireError(f"field 'scale' of SETTLE must be from 0 to 1, got {found}")
    return found


def _check_kept(state: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """``state`` if a manifest can have it: NaN and infinity are no JSON."""
    level: list[Any] = [state]
    for _ in range(NESTED):
        inside = [value for value in level if isinstance(value, (dict, list))]
        level = [v for each in inside for v in (each.values() if type(each) is dict else each)]
        bad = next((v for v in level if isinstance(v, float) and not math.isfinite(v)), None)
        if bad is not None:
            raise WireError(f"payload of {kind.name} has {bad}, which no checkpoint can hold")
        if not level:
            return state
    raise WireError(f"payload of {kind.name} is nested deeper than {NESTED} levels")


def _json(payload: Any) -> Any:
    return decode_json(b"" if payload is None else payload)


def _field(record: dict[str, Any], kind: Kind, name: str, allowed: tuple[type, ...]) -> Any:
    if name not in record:
        raise WireError(f"payload of {kind.name} has no field {name!r}")
    value = record[name]
    if type(value) is int and float in allowed and int not in allowed:
        try:
            return float(value)
        except OverflowError:
            pass
    elif type(value) in allowed:
        return value
    known = " or ".join("null" if t is type(None) else t.__name__ for t in allowed)
    raise WireError(f"field {name!r} of {kind.name} must be {known}, got {_shown(value)}")


def _shown(value: Any) -> str:
    text = type(value).__name__ if isinstance(value, (dict, list)) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
