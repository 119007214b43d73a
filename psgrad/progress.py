"""What a person sees while a run goes on: one line that redraws itself, or plain lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TextIO

REDRAW_S: Final = 0.1
PLAIN_S: Final = 5.0


@dataclass(frozen=True)
class Snapshot:
    """One moment of a run as worker 0 sees it; sums are since the start, over all workers."""

    epoch: int
    epochs: int
    step: int
    samples: float
    nbytes: int
    loss: float
    accuracy: float
    staleness: int


class Progress:
    """Prints at most one line every 0.1 s in style ``line``, every 5 s in ``plain``; none: ``off``.

    The style is told, not found out: under Open MPI a rank's output looks like a terminal also
    where it goes to a file.
    """

    def __init__(self, stream: TextIO, style: str, now: Callable[[], float]) -> None:
        self._stream = stream
        self._style = style
        self._every = REDRAW_S if self._style == "line" else PLAIN_S
        self._now = now
        self._start = self._last = now()
        self._previous: Snapshot | None = None
        self._width = 0

    def show(self, snapshot: Snapshot, *, last: bool = False) -> None:
        """Prints ``snapshot`` if it is time to, or if it is the ``last``."""
        now = self._now()
        if self._style == "off" or (now - self._last < self._every and not last):
            return
        # The last line is an average over the run, the others over the time since the line before.
        since = None if last else self._previous
        seconds = max(1e-9, now - (self._start if since is None else self._last))
        text = render(snapshot, since, seconds)
        if self._style == "line":
            # Open MPI passes whole lines only; `psgrad run` leaves this newline out, so that the
            # next line goes over this one.
            self._stream.write("\r" + text.ljust(self._width) + ("\n" if last else "\r\n"))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()
        self._last, self._previous = now, snapshot


def render(snapshot: Snapshot, since: Snapshot | None, seconds: float) -> str:
    """One line; rates are those of the ``seconds`` between ``since`` (None: the start) and now."""
    samples = snapshot.samples - (0 if since is None else since.samples)
    nbytes = snapshot.nbytes - (0 if since is None else since.nbytes)
    return (
        f"epoch {min(snapshot.epoch + 1, snapshot.epochs)}/{snapshot.epochs}"
        f"  step {snapshot.step}  {samples / seconds:,.0f} samples/s"
        f"  loss {snapshot.loss:.4f}  accuracy {snapshot.accuracy:.3f}"
        f"  staleness {snapshot.staleness}  {nbytes / seconds / 1e6:.1f} MB/s"
    )
