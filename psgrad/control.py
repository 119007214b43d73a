"""What control messages say: their JSON as typed values, or an error that names the field.

Ranks of a job trust each other to be psgrad, not to be right: a payload of another shape ends the
run with one line instead of a traceback, or of numbers that mean nothing.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from psgrad.errors import LayoutError, WireError
from psgrad.layout import Layout
from psgrad.messages import Kind, decode_json

TEXT: Final = (str, type(None))
"""The types of a text that may be left out."""


class Part(NamedTuple):
    """What a worker brings to a rendezvous."""

    values: dict[str, float]
    weight: float


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


def written(payload: Any) -> dict[str, Any]:
    """A WRITTEN: what a server says of its part of a checkpoint. Raises ``WireError``."""
    nothing = type(None)
    return fields(
        payload,
        Kind.WRITTEN,
        number=(int,),
        error=TEXT,
        file=(dict, nothing),
        chunks=(dict,),
        workers=(list,),
    )


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
