"""A rank that is no worker waits for the place of one that is lost: a spare, or one shut out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from psgrad.control import Stopped
from psgrad.errors import FencedError, Preempted
from psgrad.links import outdated
from psgrad.messages import Header, Kind, Verdict
from psgrad.numbering import Numbering
from psgrad.roles import Roles
from psgrad.seats import Seat
from psgrad.transport import Transport
from psgrad.worker import Worker

T = TypeVar("T")


class Standby:
    """The links of a rank while it is no worker; ``numbering`` is that of its messages."""

    def __init__(self, transport: Transport, roles: Roles, run: int, numbering: Numbering) -> None:
        self._transport = transport
        self._roles = roles
        self._run = run
        self._numbering = numbering

    def connect(self) -> None:
        """Starts to hear the servers."""
        self._transport.connect(list(self._roles.server_ranks))

    def wait(self) -> Seat | None:
        """Asks for a place and waits for one; None where there will be none any more.

        What comes for a worker that this rank was before is not looked at.
        """
        number = self._numbering.next(0)
        self._transport.send(0, Header(Kind.JOIN, run=self._run, number=number))
        while True:
            message = self._transport.receive(outdated)
            assert message is not None, "without a timeout one comes"
            server, header = message
            if header.kind is Kind.LOST:
                if server == 0:
                    return None
                continue
            if not self._numbering.take(server, header.number) or header.kind is not Kind.PLACE:
                continue
            if header.verdict is Verdict.REFUSED:
                return None
            return Seat(header.worker, header.incarnation)


def work(
    main: Callable[[Worker], T],
    begin: Callable[[Seat], Worker],
    standby: Standby,
    seat: Seat | None,
    rejoin: bool,
) -> tuple[T | None, Stopped | None]:
    """Runs ``main`` as the worker ``seat``; without one, when there is one that is lost.

    With ``rejoin`` it is run again where this rank was shut out, as often as there is a place.
    Returns what it returned, None of ``sys.exit()`` and of a rank that never was a worker; and why
    the run was stopped, if it was. Raises ``FencedError`` of one that was a worker, and has not
    come back.
    """
    standby.connect()
    shut_out: FencedError | None = None
    while True:
        if seat is None:
            seat = standby.wait()
        if seat is None:
            if shut_out is not None:
                raise shut_out
            return None, None
        worker = begin(seat)
        try:
            value = _played(main, worker)
            worker.finish()
            return value, worker.stopped
        except FencedError as error:
            was_in = worker.is_registered or not seat.incarnation
            if was_in and not rejoin:
                raise
            if was_in:
                shut_out = error.with_traceback(None)  # which would keep the arrays
            seat = None


def _played(main: Callable[[Worker], T], worker: Worker) -> T | None:
    """What ``main`` returns; None where this worker's part has ended before."""
    try:
        return main(worker)
    except SystemExit as request:
        if request.code:
            raise
        return None  # sys.exit(): this worker is done, the others go on
    except Preempted:
        if worker.stopped is None:
            raise
        return None
