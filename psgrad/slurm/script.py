"""A batch script as far as Slurm and its launchers are concerned: options, and what is started.

This is no shell. Variables with a constant value are put in where they are used, words are taken
apart as a shell does, and what cannot be known before the job runs stays as it is written.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from psgrad.slurm.words import SHORT, option, options

LAUNCHERS: Final = ("srun", "mpirun", "mpiexec")
SEPARATORS: Final = frozenset({";", "&", "&&", "||", "|", ";;", "then", "do", "else", "{", "("})
BEFORE: Final = frozenset({"exec", "time", "nohup", "command", "!", "if", "while", "until"})
ASSIGNMENT: Final = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*)", re.DOTALL)
VARIABLE: Final = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


@dataclass(frozen=True)
class Option:
    """``name`` is the long one, without dashes; ``group`` that of a heterogeneous job, from 0."""

    name: str
    value: str
    line: int
    group: int = 0


@dataclass(frozen=True)
class Command:
    """A program and its arguments; ``background``: an ``&`` stands behind it."""

    words: tuple[str, ...]
    line: int
    background: bool = False

    @property
    def program(self) -> str:
        """The name of the program, without its folder."""
        return self.words[0].rpartition("/")[2]


@dataclass(frozen=True)
class Start:
    """What starts ranks of psgrad, or is to: taken out of a command.

    ``launcher`` are the words before the program, empty where there are none. ``run`` are the
    options of ``psgrad run``, None where it is not used. ``train`` are the arguments of the
    program, ``command`` is where it stands.
    """

    launcher: tuple[str, ...]
    run: tuple[str, ...] | None
    train: tuple[str, ...]
    command: Command

    @property
    def program(self) -> str:
        """The name of the launcher."""
        return self.launcher[0].rpartition("/")[2] if self.launcher else ""


@dataclass(frozen=True)
class Script:
    """What was found in ``text``; ``late`` are options that Slurm does not read any more."""

    text: str
    options: tuple[Option, ...]
    late: tuple[int, ...]
    commands: tuple[Command, ...]
    variables: Mapping[str, str]
    groups: int

    def find(self, name: str, group: int | None = None) -> Option | None:
        """The last option of that name, as Slurm takes it; of one group, or of any."""
        found = [o for o in self.options if o.name == name and group in (None, o.group)]
        return found[-1] if found else None

    def number(self, name: str, group: int = 0) -> int | None:
        """Its value as a number; None where there is none."""
        found = self.find(name, group)
        return int(found.value) if found and found.value.isdecimal() else None

    @property
    def starts(self) -> list[Start]:
        """All that start psgrad."""
        return [start for command in self.commands for start in _starts(command)]

    @property
    def launches(self) -> list[Start]:
        """Those, and launchers that start another program."""
        return [s for c in self.commands for s in _starts(c) or _others(c)]


def parse(text: str) -> Script:
    """The script in ``text``."""
    found: list[Option] = []
    late: list[int] = []
    commands: list[Command] = []
    variables: dict[str, str] = {}
    group = 0
    for number, line in _logical(text):
        if line.startswith("#SBATCH"):
            if commands or variables:
                late.append(number)
                continue
            words = _split(line.removeprefix("#SBATCH"))
            if words and words[0] in ("hetjob", "packjob"):
                group += 1
            found += [Option(name, value, number, group) for name, value in options(words, SHORT)]
        elif line.strip() and not line.lstrip().startswith("#"):
            commands += _commands(line, number, variables)
    return Script(text, tuple(found), tuple(late), tuple(commands), variables, group + 1)


def _logical(text: str) -> Iterator[tuple[int, str]]:
    """Lines with the number of their first one, put together where a backslash continues them."""
    first, kept = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        first = first if kept else number
        kept += line
        if kept.endswith("\\") and not kept.lstrip().startswith("#"):
            kept = kept[:-1] + " "
            continue
        yield first, kept
        kept = ""
    if kept:
        yield first, kept


def _commands(line: str, number: int, variables: dict[str, str]) -> list[Command]:
    """The commands of a line; constants that it sets go into ``variables``."""
    found: list[Command] = []
    words: list[str] = []
    for word in [*_split(line), ";"]:
        if word not in SEPARATORS:
            words.append(word)
            continue
        while words and (words[0] in BEFORE or words[0] == "export" or _assigns(words[0])):
            if assigned := ASSIGNMENT.fullmatch(words[0]):
                variables[assigned[1]] = expand(assigned[2], variables)
            words = words[1:]
        if words:
            pairs = zip(["", *words], words, strict=False)
            expanded = tuple(p for pair in pairs for p in _expanded(*pair, variables))
            found.append(Command(expanded, number, word == "&"))
        words = []
    return found


def _assigns(word: str) -> bool:
    return ASSIGNMENT.fullmatch(word) is not None


def expand(text: str, variables: Mapping[str, str]) -> str:
    """``text`` with the constants among its variables put in."""
    return VARIABLE.sub(lambda m: variables.get(m[1] or m[2], m[0]), text)


def _expanded(before: str, word: str, variables: Mapping[str, str]) -> list[str]:
    """A variable that is a whole word may be several: ``$launcher psgrad train``.

    Quotes are not seen any more here; the value of ``--launcher`` has some for sure.
    """
    text = expand(word, variables)
    several = VARIABLE.fullmatch(word) and text != word and text and before != "--launcher"
    return text.split() if several else [text]


def _split(line: str) -> list[str]:
    """The words of a line; none where its quotes do not close, as in a text of several lines."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    try:
        return list(lexer)
    except ValueError:
        return []


def _starts(command: Command) -> list[Start]:
    words = command.words
    outer: tuple[str, ...] = ()
    if command.program in LAUNCHERS:
        at = _program(words)
        outer, words = words[:at], words[at:]
    inner = _psgrad(words)
    if inner is None:
        return []
    verb, rest = inner
    if verb == "train":
        return [Start(outer, None, rest, command)]
    run, train = _parted(rest)
    launcher = option(run, "--launcher")
    own = tuple(_split(launcher)) if launcher else ()
    return [Start(outer or own, run, train, command)]


def _others(command: Command) -> list[Start]:
    if command.program not in LAUNCHERS:
        return []
    at = _program(command.words)
    return [Start(command.words[:at], None, (), command)] if at < len(command.words) else []


def _program(words: Sequence[str]) -> int:
    """Where the program of a launcher begins: psgrad, or the first word that is no option's."""
    for i, word in enumerate(words[1:], 1):
        if word.rpartition("/")[2] == "psgrad" or word.rpartition("/")[2].startswith("python"):
            return i
    return len(words)


def _psgrad(words: Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
    """``train`` or ``run``, and its arguments; None where the words are no psgrad."""
    if not words:
        return None
    program = words[0].rpartition("/")[2]
    rest = tuple(words[1:])
    if program.startswith("python") and rest[:2] == ("-m", "psgrad"):
        rest = rest[2:]
    elif program != "psgrad":
        return None
    return (rest[0], rest[1:]) if rest[:1] in (("train",), ("run",)) else None


def _parted(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]
