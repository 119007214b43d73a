"""Threads that share a long array: pieces that fit together, and errors that come through."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from psgrad.kernels.crew import PIECE, Crew


def pieces(size: int, n: int) -> list[tuple[int, int, int]]:
    found: list[tuple[int, int, int]] = []
    Crew(size).share(n, lambda *piece: found.append(piece))
    return sorted(found)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [0, 1, PIECE, 2 * PIECE - 1, 2 * PIECE, 5 * PIECE + 7, 9 * PIECE])
def test_pieces_make_up_the_array_and_no_thread_has_two(size, n):
    found = pieces(size, n)
    starts, stops, threads = zip(*found, strict=True)
    assert (starts[0], stops[-1]) == (0, n)
    assert starts[1:] == stops[:-1]
    assert all(start % PIECE == 0 for start in starts)
    assert sorted(threads) == list(range(len(found)))
    assert len(found) <= max(1, min(size, n // PIECE))


def test_a_long_array_keeps_every_thread_busy():
    assert [piece[2] for piece in pieces(3, 3 * PIECE)] == [0, 1, 2]


def test_short_arrays_start_no_thread():
    before = threading.active_count()
    crew, found = Crew(4), []
    crew.share(2 * PIECE - 1, lambda *piece: found.append((*piece, threading.current_thread())))
    assert found == [(0, 2 * PIECE - 1, 0, threading.main_thread())]
    assert threading.active_count() == before


def test_all_pieces_are_done_when_it_returns_and_the_callers_own_is_one_of_them():
    out, where = np.zeros(4 * PIECE, np.float32), {}

    def work(start: int, stop: int, thread: int) -> None:
        out[start:stop] += 1
        where[thread] = threading.current_thread()

    Crew(2).share(out.size, work)
    assert (out == 1).all()
    assert where[0] is threading.main_thread() is not where[1]


@pytest.mark.parametrize("culprit", [0, 1])
def test_an_error_of_any_piece_is_raised_when_all_are_done(culprit):
    done = []

    def work(start: int, stop: int, thread: int) -> None:
        if thread == culprit:
            raise ValueError(f"piece {thread}")
        done.append(thread)

    with pytest.raises(ValueError, match=f"piece {culprit}"):
        Crew(3).share(3 * PIECE, work)
    assert sorted(done) == [i for i in range(3) if i != culprit]
