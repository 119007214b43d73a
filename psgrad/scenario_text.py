"""Scenarios in words: all fields in a line, the command that runs one, a change of a field."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from psgrad.errors import ConfigError, unknown_name
from psgrad.scenario import Scenario


def describe(scenario: Scenario) -> str:
    """All fields in one line."""
    values = (f"{f.name}={_text(f.name, getattr(scenario, f.name))}" for f in fields(Scenario))
    return " ".join(values)


def command(scenario: Scenario) -> str:
    """The command that runs the scenario again."""
    origin = Scenario.of(scenario.seed)
    changes = [
        f" --set {field.name}={_text(field.name, getattr(scenario, field.name))}"
        for field in fields(Scenario)
        if getattr(scenario, field.name) != getattr(origin, field.name)
    ]
    return f"psgrad simulate --seed {scenario.seed}" + "".join(changes)


def change(scenario: Scenario, setting: str) -> Scenario:
    """The scenario with one field as ``setting`` says: ``workers=2``, ``sizes=3/40``.

    Raises ``ConfigError`` for an unknown field or a value that it cannot have.
    """
    name, _, text = setting.partition("=")
    known = {field.name: getattr(scenario, field.name) for field in fields(Scenario)}
    if name not in known or name == "seed":
        raise ConfigError(
            unknown_name("field of a scenario", name, [n for n in known if n != "seed"])
        )
    try:
        value: Any = _value(name, text, known[name])
    except ValueError:
        raise ConfigError(
            f"{name} cannot be {text!r}; now it is {_text(name, known[name])}"
        ) from None
    return replace(scenario, **{name: value})


def _text(name: str, value: Any) -> str:
    if value is None:
        return "async" if name == "bound" else "none"
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _value(name: str, text: str, now: Any) -> Any:
    if name in ("bound", "clip_norm"):
        kind, without = (int, "async") if name == "bound" else (float, "none")
        return None if text == without else kind(text)
    if isinstance(now, bool):
        return _flag(text)
    if isinstance(now, tuple):
        return tuple(int(part) for part in text.split("/")) if text or name != "deaths" else ()
    return type(now)(text)


def _flag(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(text)
    return text == "True"
