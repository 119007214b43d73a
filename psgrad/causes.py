"""The lines of a job that say why it ended, held back from the rest of its output."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from psgrad.errors import CAUSE

RULE: Final = re.compile(rb"-{60,}\n")  # around what Open MPI has to say of a rank's end
SAID_BETTER: Final = (
    b"exited with non-zero status",
    b"MPI_ABORT was invoked",
    b"exited due to pro",
)
LONGEST: Final = 4096  # bytes of that


@dataclass
class Causes:
    """What to show of a stream, and what of it says why a rank ended (``errors.CAUSE``).

    A piece ends with a newline or a carriage return. One that may still become a cause is held,
    everything else passes at once. Open MPI 5 itself passes whole lines only, so a rank draws a
    progress line as ``\\r text \\r\\n``, and the newline is left out here: the next goes over it.
    Behind a cause, what it says of the end of that rank is left out as well.
    """

    first: bytes = b""
    _held: bytes = b""
    _returns: int = 0  # since the last newline; 9 if that line did not begin with one
    _ruled: bytes = b""  # from a rule on, what may be left out

    def feed(self, data: bytes) -> bytes:
        """What of the stream to show now; ``data`` is the next of it."""
        # Open MPI ends its message about an abort with a zero byte, which makes a log binary.
        text, shown = self._held + data.replace(b"\0", b""), bytearray()
        mark = CAUSE.encode()
        while text:
            end = re.search(rb"[\r\n]", text)
            if text.startswith(mark):
                if end is None:
                    break
                self.first = self.first or text[: end.start()]
            elif mark.startswith(text) or (end is None and self.first and not text.strip(b"-")):
                break
            else:
                shown += self._pass(text if end is None else text[: end.end()])
            text = b"" if end is None else text[end.end() :]
        self._held = text
        return bytes(shown)

    def _pass(self, piece: bytes) -> bytes:
        if self._ruled or (self.first and RULE.fullmatch(piece)):
            return self._between_rules(piece)
        if piece == b"\n" and self._returns == 2:
            piece = b""
        if piece.endswith(b"\n") or not piece:
            self._returns = 0
        elif piece.endswith(b"\r") and (piece == b"\r" or self._returns):
            self._returns += 1
        elif not self._returns:
            self._returns = 9
        return piece

    def _between_rules(self, piece: bytes) -> bytes:
        """What to show behind a rule: nothing until the next one, if the cause says it better."""
        begun, self._ruled = self._ruled, self._ruled + piece
        if not (begun and RULE.fullmatch(piece)) and len(self._ruled) < LONGEST:
            return b""
        text, self._ruled = self._ruled, b""
        return b"" if any(words in text for words in SAID_BETTER) else text

    def close(self) -> bytes:
        """The stream is over: what was held and is no cause after all."""
        held, self._held = self._held, b""
        ruled, self._ruled = self._ruled, b""
        if held.startswith(CAUSE.encode()):
            self.first = self.first or held
            return ruled
        return ruled + held
