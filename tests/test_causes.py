"""Why a rank ended is told apart from the rest of the output, however the stream is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgrad.causes import Causes
from psgrad.errors import CAUSE

MARK = CAUSE.encode()
PIECES = [b" ", b"ps", b"psgrad: error", b"epoch 1", b"psgrad: note", MARK + b"one", MARK + b"two"]


@given(
    st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from([b"\n", b"\r"]))),
    st.lists(st.integers(1, 9)),
)
def test_causes_are_held_back_however_the_stream_is_cut(pieces, cuts):
    stream, causes, shown = b"".join(p + end for p, end in pieces), Causes(), b""
    for size in cuts:
        shown += causes.feed(stream[:size])
        stream = stream[size:]
    shown += causes.feed(stream) + causes.close()
    found = [p for p, _ in pieces if p.startswith(MARK)]
    assert causes.first == (found[0] if found else b"")
    assert shown == b"".join(p + end for p, end in pieces if not p.startswith(MARK))


@pytest.mark.parametrize(
    ("data", "at_once", "at_end"),
    [
        (b"\r 10%", b"\r 10%", b""),  # a progress line waits for no newline
        (b"Proceed? ", b"Proceed? ", b""),
        (b"psgrad: ", b"", b"psgrad: "),  # may still become a cause
        (MARK + b"why", b"", b""),
        (b"one\x00\ntwo\n\x00", b"one\ntwo\n", b""),
    ],
)
def test_a_piece_that_is_not_over(data, at_once, at_end):
    causes = Causes()
    assert causes.feed(data) == at_once
    assert causes.close() == at_end
    assert causes.first == (data if data.startswith(MARK) else b"")


@pytest.mark.parametrize(
    ("stream", "shown"),
    [
        (b"\r1 \r\n\r22\r\n\r333\nend\n", b"\r1 \r\r22\r\r333\nend\n"),
        (b"\r1\r\nnext\n", b"\r1\rnext\n"),
        # Nothing else loses a newline.
        (b"dos\r\nlines\r\n", b"dos\r\nlines\r\n"),
        (b"\r1\r2\r3\r\n", b"\r1\r2\r3\r\n"),
        (b"a\r1\r\n", b"a\r1\r\n"),
        (b"\r1\n\n", b"\r1\n\n"),
        (b"\n\n", b"\n\n"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 99])
def test_a_progress_line_goes_over_the_one_before(stream, shown, size):
    causes = Causes()
    parts = [causes.feed(stream[at : at + size]) for at in range(0, len(stream), size)]
    assert b"".join(parts) == shown


def test_a_cause_after_a_progress_line_of_another_rank():
    causes = Causes()
    assert causes.feed(b"\r 10%") + causes.feed(MARK + b"why\nnext\n") == b"\r 10%next\n"
    assert causes.first == MARK + b"why"


RULE = b"-" * 74 + b"\n"
ABORTED = RULE + b"MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_WORLD\n" + RULE
STATUS = RULE + b"prterun detected that one or more processes exited with non-zero status,\n" + RULE
KILLED = RULE + b"prterun noticed that process rank 1 exited on signal 9 (Killed).\n" + RULE


@pytest.mark.parametrize(
    ("stream", "shown"),
    [
        (MARK + b"why\n" + ABORTED + STATUS, b""),
        (MARK + b"why\n" + ABORTED + b"after\n", b"after\n"),
        (MARK + b"why\n" + KILLED, KILLED),
        (ABORTED + STATUS, ABORTED + STATUS),  # nobody has said why
        (MARK + b"why\n" + RULE + b"a table of the user's\n", RULE + b"a table of the user's\n"),
        (MARK + b"why\n" + RULE + 99 * (50 * b"x" + b"\n"), RULE + 99 * (50 * b"x" + b"\n")),
    ],
    ids=["both", "more behind", "a signal", "without a cause", "no end", "long"],
)
@pytest.mark.parametrize("size", [1, 7, 9999])
def test_what_open_mpi_says_of_an_end_that_has_a_cause_is_left_out(stream, shown, size):
    causes = Causes()
    parts = [causes.feed(stream[at : at + size]) for at in range(0, len(stream), size)]
    assert b"".join(parts) + causes.close() == shown
