"""Who takes over the work of workers that die: every step is done once, by somebody."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.data.ledger import IDLE, Ledger, Piece


def steps_of(pieces):
    return [(source, step) for source, steps in pieces if source != IDLE for step in steps]


def length(pieces):
    return sum(len(steps) for _, steps in pieces)


def test_a_ledger_at_the_start():
    ledger = Ledger.of({0: 4, 1: 3})
    assert ledger.work == {0: [Piece(0, range(4))], 1: [Piece(1, range(3)), Piece(IDLE, range(1))]}


def test_what_is_left_is_dealt_in_turn():
    ledger = Ledger.of({0: 6, 1: 6, 2: 6})
    dealt = ledger.settle({1: 1}, (0, 2))
    assert dealt == {
        0: [Piece(1, range(1, 6, 2))],
        2: [Piece(1, range(2, 6, 2)), Piece(IDLE, range(1))],
    }
    assert ledger.settle({1: 1}, (0, 2)) == {0: [], 2: []}, "once is enough"


def test_idle_steps_are_left_to_nobody():
    ledger = Ledger.of({0: 2, 1: 5})
    assert ledger.left(0, 1) == [Piece(0, range(1, 2))]
    assert ledger.left(0, 3) == []


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 5))
def test_every_step_is_done_once_whoever_dies(data, workers):
    counts = {w: data.draw(st.integers(0, 7)) for w in range(workers)}
    ledger = Ledger.of(counts)
    alive, lost, done = set(counts), {}, []
    pieces = {w: list(ledger.work[w]) for w in alive}
    clocks = dict.fromkeys(counts, 0)
    while True:
        dying = data.draw(st.sets(st.sampled_from(sorted(alive)), max_size=len(alive) - 1))
        for worker in sorted(alive):
            mine = pieces[worker]
            n = data.draw(st.integers(0, length(mine))) if worker in dying else length(mine)
            flat = [(s, i) for s, steps in mine for i in steps]
            done += [step for step in flat[:n] if step[0] != IDLE]
            clocks[worker] += n
        alive -= dying
        lost.update({worker: clocks[worker] for worker in dying})
        assert len({clocks[worker] for worker in alive}) == 1, "all meet at one clock"
        if not dying:
            break
        pieces = ledger.settle(lost, tuple(sorted(alive)))
    assert sorted(done) == sorted((w, i) for w, n in counts.items() for i in range(n))
