"""Everything psgrad raises on purpose.

::

    PsgradError                     exit status 1
    ├── ConfigError (ValueError)    a key, a value or a combination of them    2
    ├── DataError (ValueError)      a data set that cannot be used             2
    ├── LayoutError (ValueError)    names, shapes or dtypes of parameters      2
    ├── NonFiniteError              gradients stay NaN or infinite             1
    ├── CheckpointError             a checkpoint that cannot be used           1
    ├── RankLostError               a rank died without which it cannot go on  1
    ├── FencedError                 this worker counts as dead, and was not    1
    ├── Preempted                   stopped from outside: start it again       75
    │   └── NotSavedError           the same, and there is no checkpoint       1
    ├── StalledError                nothing has moved for ``stall_abort``      1
    ├── WireError                   bytes that are not a psgrad message        1
    ├── ProtocolError               a message the state machine cannot accept  1
    └── LaunchError                 mpiexec is missing or did not start        2

Each text is one line that names the value, the limit and the cure.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar, Final

# Begins the line on stderr that says why a rank ends; the launcher prints the first one last.
CAUSE: Final = "psgrad: error: "


LONG_TABLE: Final = 12  # names


class PsgradError(Exception):
    """The root of the tree. ``exit_status`` is what a program ends with when it is not caught."""

    exit_status: ClassVar[int] = 1
    # None: raised on this rank alone. Otherwise all ranks (or all workers) raise it alike, and the
    # one where this is True reports it.
    spokesman: bool | None = None


class ConfigError(PsgradError, ValueError):
    """A configuration that cannot be run: unknown key, value out of range, ranks that differ."""

    exit_status = 2


class DataError(PsgradError, ValueError):
    """A data set that is missing, malformed, or holds values that cannot be trained on."""

    exit_status = 2


class LayoutError(PsgradError, ValueError):
    """Parameter arrays whose names, shapes or dtypes cannot be used or differ between ranks."""

    exit_status = 2


class NonFiniteError(PsgradError, ArithmeticError):
    """Gradients were NaN or infinite for too many steps in a row."""


class CheckpointError(PsgradError):
    """A checkpoint, or a file of one, that is missing, damaged, or of another run than this."""


class RankLostError(PsgradError):
    """A rank has died without which the run cannot go on."""


class FencedError(PsgradError):
    """This worker was silent for too long: it is out of the run, which goes on without it."""


class Preempted(PsgradError):  # noqa: N818 - nothing is wrong
    """The run was stopped from outside, behind a checkpoint: started again, it goes on there."""

    exit_status = 75  # os.EX_TEMPFAIL


class NotSavedError(Preempted):
    """The run was stopped from outside, and there is no checkpoint that it could go on from."""

    exit_status = 1


class StalledError(PsgradError):
    """Nothing has moved for longer than a run may stand still."""


class WireError(PsgradError):
    """Bytes that do not decode: wrong magic, version, checksum, length or field."""


class ProtocolError(PsgradError):
    """A message that decodes but breaks the protocol; a defect, never the user's fault."""


class LaunchError(PsgradError):
    """The MPI launcher is missing or cannot start the job."""

    exit_status = 2


def shown(value: object, longest: int = 60) -> str:
    """``value`` in an error's text: one line of at most ``longest`` characters.

    >>> shown("a long name", 11)
    "'a long ..."
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= longest else text[: longest - 3] + "..."


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """The text for a name that is not in a table: names the nearest ones, then all of them.

    A long table is left out where a name is near.

    >>> unknown_name("optimizer", "adm", ["adam", "sgd"])
    "unknown optimizer 'adm'; did you mean 'adam'? Known: adam, sgd"
    """
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else "."
    if close and len(names) > LONG_TABLE:
        return f"unknown {kind} {name!r}{hint}"
    more = f", ... ({len(names)} in all)" if len(names) > 2 * LONG_TABLE else ""
    known_names = ", ".join(names[:LONG_TABLE] if more else names)
    return f"unknown {kind} {name!r}{hint} Known: {known_names}{more}"
