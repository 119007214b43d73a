"""The seam for file writers: one piece of work at a time, its result or its error once."""

from __future__ import annotations

import threading

import pytest

from psgrad.checkpoint import InlineWriter, ThreadWriter
from psgrad.errors import ProtocolError

KINDS = [InlineWriter, ThreadWriter]


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_comes_once(kind):
    writer = kind()
    for number in (1, 2):
        assert (writer.busy, writer.poll()) == (False, None)
        writer.submit(lambda number=number: number)
        assert writer.busy
        writer.finish()
        assert writer.busy
        assert (writer.poll(), writer.busy, writer.poll()) == (number, False, None)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_comes_once_and_then_there_is_other_work(kind):
    def fail():
        raise OSError(28, "No space left on device")

    writer = kind()
    writer.submit(fail)
    writer.finish()
    with pytest.raises(OSError, match="No space left on device"):
        writer.poll()
    assert (writer.busy, writer.poll()) == (False, None)
    writer.submit(lambda: "more")
    writer.finish()
    assert writer.poll() == "more"


@pytest.mark.parametrize("kind", KINDS)
def test_one_piece_of_work_at_a_time(kind):
    writer = kind()
    writer.submit(lambda: 1)
    with pytest.raises(ProtocolError, match="before the last result was asked for"):
        writer.submit(lambda: 2)
    writer.finish()
    assert writer.poll() == 1


@pytest.mark.parametrize("kind", KINDS)
def test_there_may_be_nothing_to_wait_for(kind):
    writer = kind()
    writer.finish()
    assert writer.poll() is None


def test_a_thread_works_beside_who_asked():
    writer = ThreadWriter()
    gate = threading.Event()
    writer.submit(lambda: (gate.wait(60), threading.current_thread()))
    try:
        assert writer.busy
        assert writer.poll() is None
    finally:
        gate.set()
    writer.finish()
    opened, thread = writer.poll()
    assert opened
    assert thread is not threading.current_thread()
    assert thread.daemon


def test_inline_work_is_done_where_it_was_asked_for():
    writer = InlineWriter()
    writer.submit(threading.current_thread)
    assert writer.poll() is threading.current_thread()
