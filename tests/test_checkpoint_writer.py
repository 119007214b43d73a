"""The seam for file writers: one piece of work at a time, its result or its error once."""

from __future__ import annotations

import threading

import pytest

from psgrad.checkpoint import InlineWriter, ThreadWriter
from psgrad.checkpoint.writer import ToldWriter
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


# Writers that are told


def test_work_is_done_when_it_is_told():
    writer = ToldWriter(InlineWriter())
    writer.submit(lambda: 3)
    assert (writer.busy, writer.poll()) == (True, None)
    assert (writer.outcome(), writer.outcome()) == (3, None)
    assert (writer.busy, writer.poll()) == (True, None)
    writer.tell(4)  # what is told counts
    assert (writer.poll(), writer.poll(), writer.busy) == (4, None, False)


def test_what_is_done_elsewhere_is_not_done_here():
    done = []
    writer = ToldWriter()
    writer.submit(lambda: done.append(1))
    with pytest.raises(ProtocolError):
        writer.submit(lambda: 2)
    writer.finish()
    assert (writer.outcome(), done) == (None, [])
    writer.tell("there")
    assert (writer.poll(), writer.busy) == ("there", False)


@pytest.mark.parametrize(("told", "runs"), [(None, 1), ("there", 0)])
def test_what_was_not_ended_elsewhere_is_done_here(told, runs):
    done = []
    writer = ToldWriter()
    writer.submit(lambda: done.append(1) or "here")
    if told:
        writer.tell(told)
    writer.begin(InlineWriter())
    assert len(done) == runs
    if runs:
        writer.tell(writer.outcome())
    assert writer.poll() == (told or "here")
    writer.submit(lambda: "next")
    assert writer.outcome() == "next"


def test_begin_without_work():
    writer = ToldWriter()
    writer.begin(InlineWriter())
    assert (writer.busy, writer.outcome()) == (False, None)
