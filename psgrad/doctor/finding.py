"""What a check has found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

State = Literal["ok", "warn", "FAIL"]
STATES: Final[tuple[State, ...]] = ("ok", "warn", "FAIL")  # from good to bad


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's: of which check, how it is, what was seen and what mends it."""

    check: str
    state: State
    seen: str
    cure: str = ""


def worst(findings: Sequence[Finding]) -> State:
    """The worst of their states; ok for none."""
    return max((finding.state for finding in findings), key=STATES.index, default="ok")


def numbers(values: Sequence[int]) -> str:
    """Numbers for a person: 0-2, 5."""
    parts: list[list[int]] = []
    for value in sorted(set(values)):
        if parts and parts[-1][-1] == value - 1:
            parts[-1][1:] = [value]
        else:
            parts.append([value])
    return ", ".join("-".join(map(str, part)) for part in parts)


def ranks(which: Sequence[int]) -> str:
    """Ranks for a person: rank 3, or ranks 0-2, 5."""
    return f"rank{'s' if len(set(which)) > 1 else ''} {numbers(which)}"


def counted(n: int, what: str) -> str:
    """So many of something: 1 rank, 2 ranks."""
    return f"{n} {what}" + "s" * (n != 1)


def in_bytes(nbytes: float) -> str:
    """A size for a person: 64 MiB, 1.9 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.3g} {unit}" if nbytes < 999.5 else f"{nbytes:.0f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} TiB" if nbytes < 999.5 else f"{nbytes:.0f} TiB"
