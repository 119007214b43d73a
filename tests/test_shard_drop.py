"""Workers that are gone, at a shard: nobody waits for them, nothing more of them is applied, and
all memory comes back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.chunk_state import Rules
from psgrad.errors import ProtocolError
from psgrad.invariants import CheckedShard
from psgrad.layout import Layout
from psgrad.messages import Header, Kind, Verdict
from psgrad.optimizers import SGD
from psgrad.schedules import Constant

LAYOUT = Layout.of({"w": np.zeros(24, np.float32)})
CHUNKS = LAYOUT.chunks(64)  # of 16 and 8 elements


class Table:
    """A shard with two chunks, all at 0; an update with a gradient g takes g off."""

    def __init__(self, workers=2, bound=1):
        rules = Rules(SGD(1.0), Constant(), bound)
        self.shard = CheckedShard(LAYOUT, CHUNKS, range(workers), rules)
        self.lent = {}
        for chunk in CHUNKS:
            self.say(Kind.INIT, 0, chunk=chunk.index, grad=0.0)

    def say(self, kind, worker, clock=0, chunk=0, grad=None, weight=1.0):
        """What (kind, worker, clock, chunk) is answered."""
        payload = None
        if grad is not None:
            payload = np.full(CHUNKS[chunk].size, grad, np.float32)
            self.lent[id(payload)] = payload
        weight = weight if payload is not None and kind is not Kind.INIT else 0.0
        header = Header(kind, worker=worker, chunk=chunk, clock=clock, weight=weight)
        return self._told(self.shard.handle(header, payload))

    def push(self, worker, clock, grad, kind=Kind.STEP):
        """Both chunks."""
        return [
            answer
            for chunk in CHUNKS
            for answer in self.say(kind, worker, clock, chunk.index, grad)
        ]

    def drop(self, worker):
        return self._told(self.shard.drop(worker))

    @property
    def values(self):
        return [float(state.params[0]) for state in self.shard.chunks.values()]

    def _told(self, replies):
        for reply in replies:
            if reply.released is not None:
                del self.lent[id(reply.released)]
        headers = [reply.header for reply in replies]
        return [(h.kind, h.verdict, h.worker, h.clock, h.chunk) for h in headers]


def test_nobody_waits_for_it():
    table = Table()
    table.push(0, 1, 1.0)
    assert table.push(0, 2, 1.0) == [], "2 is two ahead of worker 1"
    assert table.drop(1) == [(Kind.PARAMS, Verdict.APPLIED, 0, 2, chunk) for chunk in (0, 1)]
    assert table.values == [-2.0, -2.0]
    assert table.lent == {}
    assert table.shard.blocked() == []


def test_what_is_parked_is_never_applied():
    table = Table()
    for clock in (1, 2, 3, 4):
        table.push(0, clock, 1.0, Kind.PUSH)
    assert table.values == [-2.0, -2.0], "3 may come in when the pull at 2 is due"
    late = [(Kind.ACK, Verdict.LATE, 0, clock, chunk) for chunk in (0, 1) for clock in (3, 4)]
    assert table.drop(0) == late
    assert table.values == [-2.0, -2.0]
    assert table.lent == {}


def test_a_step_that_was_applied_and_not_answered_gives_its_memory_back():
    table = Table()
    table.push(0, 1, 1.0)
    table.push(0, 2, 1.0)
    assert len(table.lent) == 2
    assert table.drop(0) == [(Kind.ACK, Verdict.APPLIED, 0, 2, chunk) for chunk in (0, 1)]
    assert table.lent == {}
    assert table.values == [-2.0, -2.0], "it counts"


def test_an_empty_step_that_waits_is_no_different():
    table = Table()
    table.push(0, 1, 1.0)
    table.push(0, 2, None)
    assert table.drop(0) == [(Kind.ACK, Verdict.SKIPPED, 0, 2, chunk) for chunk in (0, 1)]


def test_its_pulls_are_forgotten():
    table = Table()
    table.push(0, 1, 1.0)
    table.push(0, 2, 1.0, Kind.PUSH)
    assert table.say(Kind.PULL, 0, 2) == []
    assert table.drop(0) == []
    assert table.shard.blocked() == []


def test_between_its_chunks():
    """One chunk has its step, the other one does not: both go on without it."""
    table = Table()
    table.say(Kind.STEP, 1, 1, chunk=0, grad=4.0)
    assert table.drop(1) == []
    assert table.values == [-4.0, 0.0]
    for clock in (1, 2, 3):
        assert len(table.push(0, clock, 1.0)) == 2
    assert table.values == [-7.0, -3.0]


def test_one_that_is_leaving():
    table = Table()
    for clock in (1, 2, 3):
        table.push(0, clock, 1.0, Kind.PUSH)
    table.say(Kind.LEAVE, 0, 3)
    assert [verdict for _, verdict, *_ in table.drop(0)] == [Verdict.LATE] * 2
    assert table.values == [-2.0, -2.0]


def test_one_that_has_left_or_was_dropped_already():
    table = Table(workers=3)
    table.push(0, 1, 1.0)
    table.say(Kind.LEAVE, 0, 1)
    assert table.drop(0) == []
    table.drop(1)
    assert table.drop(1) == []
    assert len(table.push(2, 1, 1.0)) == 2


def test_the_last_one():
    table = Table(workers=1)
    table.push(0, 1, 1.0)
    assert table.drop(0) == []
    assert table.shard.blocked() == []


def test_before_there_are_values():
    shard = CheckedShard(LAYOUT, CHUNKS, range(2), Rules(SGD(1.0), Constant(), 1))
    assert shard.handle(Header(Kind.PULL, worker=1)) == []
    assert shard.drop(1) == []
    assert shard.blocked() == []


def test_it_pushes_no_more():
    table = Table()
    table.drop(1)
    with pytest.raises(ProtocolError, match="worker 1 pushes chunk 0 but is not a live member"):
        table.push(1, 1, 1.0)


def test_an_open_cut_is_complete_without_it():
    table = Table(workers=3)
    for worker in range(3):
        table.push(worker, 1, 1.0)
    table.shard.mark(0, 7, 1)
    assert table.push(0, 2, 1.0) == []
    table.shard.mark(2, 7, 1)
    assert table.shard.cut() is None
    assert table.drop(1) == []
    assert table.shard.cut() == (7, {0: 1, 2: 1})
    assert len(table._told(table.shard.resume())) == 2
    assert table.values == [-4.0, -4.0]


def test_markers_of_the_dead_are_in_no_cut():
    table = Table(workers=3)
    table.shard.mark(1, 7, 0)
    table.shard.mark(1, 8, 0)
    table.drop(1)
    assert table.shard.cut() is None
    for number in (7, 8):
        table.shard.mark(0, number, 0)
        table.shard.mark(2, number, 0)
        assert table.shard.cut() == (number, {0: 0, 2: 0})
        table.shard.resume()


def test_what_its_last_whole_step_was():
    table = Table()
    table.push(0, 1, 1.0)
    table.say(Kind.STEP, 0, 2, chunk=1, grad=1.0)
    assert (table.shard.clock_of(0), table.shard.clock_of(1)) == (1, 0)
    table.drop(0)
    assert table.shard.clock_of(0) == 0


def test_the_dead_do_not_count_in_later_averages():
    """One step of W workers is one W-th of an epoch's position; of those that live."""
    table = Table()
    table.push(0, 1, 1.0)
    table.drop(1)
    table.push(0, 2, 1.0)
    assert [state.position for state in table.shard.chunks.values()] == [1.5, 1.5]


@settings(deadline=None, max_examples=120)
@given(
    bound=st.sampled_from([1, 2, None]),
    moves=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from("ppsssd")), min_size=5, max_size=60
    ),
)
def test_whoever_dies_whenever(bound, moves):
    """The referee in ``CheckedShard`` checks each answer; here, the sum and the memory."""
    table, clocks, dead = Table(4, bound), dict.fromkeys(range(4), 0), set()
    for worker, move in moves:
        if worker in dead:
            continue
        if move == "d":
            table.drop(worker)
            dead.add(worker)
            continue
        clocks[worker] += 1
        kind = Kind.STEP if move == "s" else Kind.PUSH
        table.push(worker, clocks[worker], float(1 << (4 * worker)), kind)
    for worker in set(range(4)) - dead:
        table.drop(worker)
    assert table.lent == {}
    assert table.shard.blocked() == []
    applied = [int(-value) for value in table.values]
    assert applied[0] == applied[1], "both chunks had the same messages"
