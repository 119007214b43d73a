"""Who takes over the work of workers that die: every step is done once, by somebody."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.control import Span
from psgrad.data.ledger import IDLE, Ledger, Piece


def steps_of(pieces):
    return [(source, step) for source, steps in pieces for step in steps]


def start(steps):
    return Ledger.of(steps, dict.fromkeys(steps, 0))


def test_a_ledger_at_the_start():
    ledger = start({0: 4, 1: 3})
    assert ledger.work == {0: [Piece(0, range(4))], 1: [Piece(1, range(3)), Piece(IDLE, range(1))]}
    assert ledger.todo(0, 0) == ledger.work[0]


def test_what_is_left_is_dealt_in_turn():
    ledger = start({0: 6, 1: 6, 2: 6})
    ledger.settle({1: (Span(None, 1),)}, (0, 2))
    assert ledger.work == {
        0: [Piece(1, range(1, 6, 2))],
        2: [Piece(1, range(2, 6, 2)), Piece(IDLE, range(1))],
    }
    assert ledger.begun == {0: 6, 1: 6, 2: 6}
    ledger.settle({1: (Span(None, 1),)}, (0, 2))
    assert ledger.work == {0: [], 2: []}, "once is enough"


def test_idle_steps_are_left_to_nobody():
    ledger = start({0: 2, 1: 5})
    ledger.settle({0: (Span(None, 3),)}, (1,))
    assert ledger.work == {1: []}


def test_who_comes_later_goes_on_and_what_it_does_not_get_to_is_dealt():
    """Worker 1 dies after 2 steps; at clock 5 another one comes, with 3 steps until all meet."""
    ledger = start({0: 8, 1: 8})
    spans = (Span(None, 2), Span(5))
    assert ledger.todo(1, 5, spans) == [Piece(1, range(2, 5))]
    ledger.settle({1: spans}, (0, 1))
    assert ledger.work == {
        0: [Piece(1, range(5, 8, 2))],
        1: [Piece(1, range(6, 8, 2)), Piece(IDLE, range(1))],
    }
    assert ledger.begun == {0: 8, 1: 8}


def test_who_comes_with_less_left_than_there_is_time_idles():
    """The one that died was ahead of the slowest one, at whose clock the newcomer begins."""
    ledger = start({0: 4, 1: 4})
    assert ledger.todo(1, 1, (Span(None, 3),)) == [Piece(1, range(3, 4)), Piece(IDLE, range(2))]


def test_who_comes_when_its_work_was_dealt_idles():
    ledger = start({0: 4, 1: 4})
    ledger.settle({1: (Span(None, 1),)}, (0,))
    assert ledger.todo(1, 5, (Span(None, 1),)) == [Piece(IDLE, range(2))]
    ledger.settle({1: (Span(None, 1), Span(5))}, (0, 1))
    assert ledger.work == {0: [], 1: []}


def test_workers_of_a_run_that_goes_on_begin_at_their_clocks():
    ledger = Ledger.of({0: 3, 1: 3}, {0: 10, 1: 12})
    assert ledger.todo(0, 10) == [Piece(0, range(3))]
    ledger.settle({1: (Span(None, 13), Span(14))}, (0, 1))
    assert ledger.work == {0: [Piece(1, range(2, 3))], 1: [Piece(IDLE, range(1))]}
    assert ledger.begun == {0: 13, 1: 15}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 5))
def test_every_step_is_done_once_whoever_dies_and_comes(data, workers):
    """In each phase some die, and for some of them another one comes, at a clock between."""
    counts = {w: data.draw(st.integers(0, 7)) for w in range(workers)}
    ledger, spans, done = start(counts), {}, []
    alive = set(counts)
    clock = 0  # of all when they have met
    while True:
        end = clock + ledger.length
        dying = data.draw(st.sets(st.sampled_from(sorted(alive)), max_size=len(alive) - 1))
        back = set(data.draw(st.sets(st.sampled_from(sorted(set(counts) - alive | dying or {0})))))
        came = set()
        for worker in sorted(alive | back):
            if worker in alive:
                mine = steps_of(ledger.todo(worker, clock))
                assert len(mine) == ledger.length
                n = data.draw(st.integers(0, len(mine))) if worker in dying else len(mine)
                done += mine[:n]
                if worker in dying:
                    *before, last = spans.get(worker, (Span(),))
                    spans[worker] = (*before, last._replace(ended=clock + n))
            if worker in back and worker in (set(counts) - alive | dying):
                entry = data.draw(st.integers(clock, end))
                mine = steps_of(ledger.todo(worker, entry, spans[worker]))
                assert len(mine) == end - entry, "all meet at one clock"
                done += mine
                spans[worker] = (*spans[worker], Span(entry))
                came.add(worker)
        alive = alive - dying | came
        if not dying and not came:
            break
        clock = end
        ledger.settle(spans, tuple(sorted(alive)))
        assert all(ledger.begun[worker] == clock for worker in alive)
    real = [step for step in done if step[0] != IDLE]
    assert sorted(real) == sorted((w, i) for w, n in counts.items() for i in range(n))
