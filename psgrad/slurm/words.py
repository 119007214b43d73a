"""Options in lists of words, long and short, as Slurm and MPI launchers take them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

SHORT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "A": "account",
        "C": "constraint",
        "G": "gpus",
        "J": "job-name",
        "N": "nodes",
        "a": "array",
        "c": "cpus-per-task",
        "d": "dependency",
        "e": "error",
        "k": "no-kill",
        "n": "ntasks",
        "o": "output",
        "p": "partition",
        "q": "qos",
        "t": "time",
        "w": "nodelist",
        "x": "exclude",
    }
)
FLAGS: Final = frozenset({"requeue", "no-requeue", "exclusive", "no-kill", "overcommit"})
"""Options that take no value in a word of its own."""


def options(words: Sequence[str], short: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(long name without dashes, value) of each option; the value is empty where there is none."""
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
        elif word.startswith("-") and word[1:2] in short:
            name, equals, value = short[word[1]], word[2:], word[2:].removeprefix("=")
        else:
            continue
        if not equals and name not in FLAGS and i < len(words) and not words[i].startswith("-"):
            value = words[i]
            i += 1
        yield name, value


def option(words: Sequence[str], *names: str) -> str | None:
    """The value of the last of these options in ``words``, ``--n V``, ``--n=V`` or ``-nV``."""
    found = None
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in names:
            found = value if equals else "".join(words[i + 1 : i + 2])
        elif not word.startswith("--") and word[:2] in names and len(word) > 2:
            found = word[2:]
    return found


def seconds(text: str) -> int | None:
    """A time limit of Slurm's in seconds: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; None: it is none."""
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if not all(p.isdecimal() for p in (*parts, *([days] if dash else []))) or len(parts) > 3:
        return None
    numbers = [int(part) for part in parts]
    if dash:
        hours, minutes, secs = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, secs = numbers
    else:
        hours, minutes, secs = 0, *(*numbers, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + secs
