"""A rank that waits for a place, and main that is run again."""

from __future__ import annotations

import pytest
from scripted_transport import Scripted

from psgrad.control import Stopped
from psgrad.errors import FencedError, Preempted, ProtocolError
from psgrad.messages import Header, Kind, Verdict
from psgrad.numbering import Numbering
from psgrad.roles import Roles
from psgrad.seats import Seat
from psgrad.standby import Standby, work

ROLES = Roles(4, 2, spares=1)


class Dealt:
    """A standby that is given these places, one after the other, and then none."""

    def __init__(self, *places):
        self.places = list(places)
        self.asked = 0

    def connect(self):
        pass

    def wait(self):
        self.asked += 1
        return self.places.pop(0) if self.places else None


class StubWorker:
    """A worker that was registered, or not."""

    def __init__(self, seat, is_registered=True):
        self.seat, self.is_registered = seat, is_registered
        self.stopped = None
        self.finished = False

    def finish(self):
        self.finished = True


def standby():
    transport = Scripted(rank=3)
    waiting = Standby(transport, ROLES, 7, Numbering())
    waiting.connect()
    return transport, waiting


def test_it_asks_the_coordinator_and_gets_a_place():
    transport, waiting = standby()
    transport.arrives(0, Header(Kind.PLACE, worker=1, incarnation=4, number=1))
    assert waiting.wait() == Seat(1, 4)
    what, peer, asked = transport.events[0]
    assert (what, peer, asked.kind, asked.number, asked.run) == ("send", 0, Kind.JOIN, 1, 7)


def test_what_is_for_the_worker_that_it_was_is_not_looked_at():
    transport, waiting = standby()
    transport.arrives(1, Header(Kind.PARAMS, nbytes=8, number=1), bytes(8))
    transport.arrives(0, Header(Kind.CUT, number=1))
    transport.arrives(0, Header(Kind.CUT, number=1))
    transport.arrives(1, Header(Kind.LOST))
    transport.arrives(0, Header(Kind.PLACE, worker=1, incarnation=4, number=2))
    assert waiting.wait() == Seat(1, 4)


def test_there_is_no_place():
    transport, waiting = standby()
    transport.arrives(0, Header(Kind.PLACE, Verdict.REFUSED, number=1))
    assert waiting.wait() is None
    transport.arrives(0, Header(Kind.LOST))
    assert waiting.wait() is None


def test_no_memory_for_what_no_server_sends():
    transport, waiting = standby()
    transport.script.append((1, Header(Kind.PARAMS, nbytes=1 << 31, number=1), b""))
    with pytest.raises(ProtocolError, match="announces 2147483648 bytes of PARAMS, the limit is"):
        waiting.wait()


def test_main_is_run_as_the_worker():
    begun = []

    def begin(seat):
        begun.append(StubWorker(seat))
        return begun[-1]

    dealt = Dealt()
    assert work(lambda worker: worker.seat.worker, begin, dealt, Seat(3), False) == (3, None)
    assert (dealt.asked, begun[0].finished) == (0, True)


def test_a_spare_that_nobody_needs():
    assert work(lambda _: 1, StubWorker, Dealt(), None, False) == (None, None)


def test_a_spare_takes_a_place():
    assert work(lambda w: w.seat, StubWorker, Dealt(Seat(2, 5)), None, False) == (Seat(2, 5), None)


def shut_out(times):
    """A main that is shut out so often."""
    left = [times]

    def main(worker):
        if left[0]:
            left[0] -= 1
            raise FencedError(f"worker {worker.seat.worker} is shut out")
        return worker.seat

    return main


def test_who_was_shut_out_comes_back_as_often_as_there_is_a_place():
    dealt = Dealt(Seat(0, 1), Seat(3, 2))
    assert work(shut_out(2), StubWorker, dealt, Seat(0), True) == (Seat(3, 2), None)
    assert dealt.asked == 2


@pytest.mark.parametrize(("rejoin", "asked"), [(True, 1), (False, 0)])
def test_who_was_shut_out_and_does_not_come_back(rejoin, asked):
    dealt = Dealt()
    with pytest.raises(FencedError, match="worker 0 is shut out"):
        work(shut_out(1), StubWorker, dealt, Seat(0), rejoin)
    assert dealt.asked == asked


def test_a_spare_that_came_too_late_says_nothing():
    dealt = Dealt(Seat(2, 5))
    late = work(shut_out(1), lambda seat: StubWorker(seat, False), dealt, None, False)
    assert (late, dealt.asked) == ((None, None), 2)


def test_sys_exit_and_a_run_that_was_stopped():
    def leave(worker):
        raise SystemExit(0)

    def stop(worker):
        worker.stopped = Stopped("USR1", 3, 3, None)
        raise Preempted("stopped")

    assert work(leave, StubWorker, Dealt(), Seat(0), False) == (None, None)
    value, stopped = work(stop, StubWorker, Dealt(), Seat(0), False)
    assert (value, stopped.number) == (None, 3)
    with pytest.raises(SystemExit):
        work(lambda _: exec_exit(), StubWorker, Dealt(), Seat(0), False)
    with pytest.raises(Preempted):
        work(lambda _: preempted(), StubWorker, Dealt(), Seat(0), False)


def exec_exit():
    raise SystemExit(3)


def preempted():
    raise Preempted("by somebody else")
