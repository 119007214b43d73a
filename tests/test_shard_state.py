"""Chunks in a checkpoint: what goes on from one is what was there, bit for bit."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_copies import CHUNKS, LAYOUT, Memory, flat, push, saved, shard_of, values

from psgrad.codecs import Compression
from psgrad.codecs.base import Key, Workspace
from psgrad.errors import CheckpointError
from psgrad.messages import Header, Kind
from psgrad.optimizers import FTRL, SGD, Adam, AdamW, Momentum
from psgrad.schedules import Constant, StepDecay, Warmup

OPTIMIZERS = st.sampled_from([SGD(0.1, weight_decay=0.01), Momentum(0.1), Adam(0.1), AdamW(),
                              FTRL(l1=0.01)])  # fmt: skip
SCHEDULES = st.sampled_from([Constant(), Warmup(3), StepDecay(2, 0.5)])
TOPK = Compression.of("none", "topk:0.2", "auto", "off").differences


def state(shard):
    """All that a chunk goes on with, by chunk."""
    return {
        index: (
            chunk.params.tobytes(),
            {name: slot.tobytes() for name, slot in chunk.slots.items()},
            None if chunk.estimate is None else chunk.estimate.tobytes(),
            chunk.version, chunk.position, chunk.rate, chunk.ready, dict(chunk.clocks),
        )
        for index, chunk in shard.chunks.items()
    }  # fmt: skip


def restored(shard, clocks, **given_):
    records, source = saved(shard)
    other = shard_of(
        shard.rules.bound, len(clocks), shard.rules.optimizer, shard.rules.schedule, ready=False,
        ef21=shard.rules.ef21, differences=shard.rules.differences,
    )  # fmt: skip
    other.load(clocks, records, source, **given_)
    return other


PUSHES = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([0.0, 1.0, 2.5]), st.sampled_from([-1.0, 0.02])),
    max_size=8,
)


@settings(deadline=None)
@given(OPTIMIZERS, SCHEDULES, PUSHES, PUSHES)
def test_a_restored_shard_is_the_shard_and_stays_it(optimizer, schedule, before, behind):
    shard = shard_of(None, 3, optimizer, schedule)
    clocks = {0: 0, 1: 0, 2: 0}

    def go(shards, pushes):
        for worker, weight, rate in pushes:
            clocks[worker] += 1
            answers = [push(each, worker, clocks[worker], weight, rate) for each in shards]
            assert [r.header for r in answers[0]] == [r.header for r in answers[-1]]

    go([shard], before)
    other = restored(shard, clocks)
    assert state(other) == state(shard)
    go([shard, other], behind)
    assert state(other) == state(shard)


@settings(deadline=None, max_examples=30)
@given(OPTIMIZERS, st.integers(0, 3), st.booleans())
def test_in_sync_mode_with_estimates_and_references(optimizer, rounds, ef21):
    shard = shard_of(0, 2, optimizer, ef21=ef21, differences=TOPK)
    for clock in range(1, rounds + 1):
        for worker in (0, 1):
            push(shard, worker, clock)
        for chunk in shard.chunks.values():
            work = Workspace()
            chunk.references.answer(0, None, chunk.params, chunk.version, work)
    other = restored(shard, {0: rounds, 1: rounds})
    assert state(other) == state(shard)
    for index, chunk in shard.chunks.items():
        mine, theirs = chunk.references.for_all(), other.chunks[index].references.for_all()
        assert (mine is None) == (theirs is None) == (rounds == 0)
        if mine is not None:
            assert theirs.values.tobytes() == mine.values.tobytes()
            assert theirs.version == mine.version
            # Whoever pulls now is given the reference, not the parameters.
            got = other.chunks[index].references.answer(
                1, None, chunk.params, chunk.version, Workspace()
            )
            assert got.tobytes() == mine.values.tobytes()


def test_references_of_single_workers_begin_anew():
    shard = shard_of(None, 2, differences=TOPK)
    for chunk in shard.chunks.values():
        chunk.references.answer(0, None, chunk.params, chunk.version, Workspace())
    records, source = saved(shard)
    assert all(record["reference"] is None for record in records.values())
    assert not any("reference" in name for name in source.tensors)


def test_the_rate_may_be_another_one():
    shard = shard_of()
    assert restored(shard, {0: 0, 1: 0}, rate=0.5).chunks[0].rate == 0.5
    push(shard, 0, 1, rate=0.02)
    assert restored(shard, {0: 1, 1: 0}).chunks[0].rate == 0.02


# Pushes that wait


def test_a_push_that_waits_for_the_bound_is_saved_and_applied():
    shard = shard_of(bound=1, optimizer=Momentum(0.1))
    for clock in (1, 2, 3):
        push(shard, 0, clock)  # the third one waits: worker 1 is at 0
    other = restored(shard, {0: 3, 1: 0})
    assert [len(chunk.parked) for chunk in other.chunks.values()] == [0] * len(CHUNKS)
    push(shard, 1, 1)
    push(other, 1, 1)
    # Both have had all four, in another order: the sum of velocities differs, that of SGD does not.
    assert {c.version for c in other.chunks.values()} == {4}
    plain, again = shard_of(bound=1), None
    for clock in (1, 2, 3):
        push(plain, 0, clock)
    again = restored(plain, {0: 3, 1: 0})
    total = values(1, 0, 1) + values(1, 0, 2) + values(1, 0, 3)
    np.testing.assert_allclose(flat(again), values(0) - 0.1 * total, rtol=1e-5, atol=1e-6)
    push(plain, 1, 1), push(again, 1, 1)
    np.testing.assert_allclose(flat(again), flat(plain), rtol=1e-5, atol=1e-6)


def test_pushes_that_wait_are_applied_by_clock_and_by_worker():
    shard = shard_of(bound=1, workers=3)
    for worker in (1, 0):
        for clock in (1, 2, 3, 4):
            push(shard, worker, clock)
    records, _ = saved(shard)
    waiting = [(worker, clock) for worker, clock, *_ in records["0"]["parked"]]
    assert waiting == [(0, 3), (1, 3), (0, 4), (1, 4)]


def test_what_is_behind_a_marker_is_not_saved():
    shard = shard_of()
    push(shard, 0, 1)
    shard.mark(0, 1, clock=1)
    before = flat(shard).copy()
    assert push(shard, 0, 2) == [], "it waits"
    shard.mark(1, 1, clock=0)
    assert shard.cut().clocks == {0: 1, 1: 0}
    records, source = saved(shard)
    assert all(record["parked"] == [] for record in records.values())
    assert not any("parked" in name for name in source.tensors)
    kept = np.concatenate([source.tensor(f"chunk/{c.index}/params") for c in CHUNKS])
    assert kept.tobytes() == before.tobytes()
    assert len(shard.resume()) == len(CHUNKS), "it is answered when the cut is made"
    np.testing.assert_allclose(flat(shard), before - 0.1 * values(1, 0, 2), rtol=1e-5, atol=1e-6)


def test_both_wait_and_only_one_is_saved():
    shard = shard_of(bound=1)
    for clock in (1, 2, 3):
        push(shard, 0, clock)
    shard.mark(0, 1, clock=3)
    push(shard, 0, 4)
    records, _ = saved(shard)
    assert [entry[:2] for entry in records["0"]["parked"]] == [[0, 3]]


def test_an_empty_push_that_waits_moves_the_clock_alone():
    shard = shard_of(bound=1, schedule=StepDecay(2, 0.5))
    for clock in (1, 2):
        push(shard, 0, clock)
    push(shard, 0, 3, weight=0.0)
    position = shard.chunks[0].position
    other = restored(shard, {0: 3, 1: 0})
    assert (other.chunks[0].position, other.chunks[0].version) == (position, 2)
    assert other.chunks[0].clocks == {0: 3, 1: 0}


def test_the_rate_of_a_push_that_waits_is_set():
    shard = shard_of(bound=1)
    for clock, rate in ((1, -1.0), (2, -1.0), (3, 0.03)):
        push(shard, 0, clock, rate=rate)
    assert shard.chunks[0].rate == 0.1
    assert restored(shard, {0: 3, 1: 0}).chunks[0].rate == 0.03


def test_an_encoded_push_that_waits_is_saved_as_what_it_says():
    codec = Compression.of("topk:0.5", "none", "none", "off").push
    shard = shard_of(bound=1)
    for clock in (1, 2):
        push(shard, 0, clock)
    expected = np.zeros(LAYOUT.size, np.float32)
    for chunk in CHUNKS:
        memory = np.zeros(codec.nbytes_max(chunk.size), np.uint8)
        grad = values(5)[chunk.start : chunk.stop].copy()
        n = codec.encode(grad, None, memory, Key(0, 0, 3, chunk.start), Workspace())
        opened = codec.open(memory[:n], chunk.size)
        header = Header(Kind.PUSH, worker=0, chunk=chunk.index, clock=3, weight=1.0)
        shard.handle(header, opened)
        top = np.argsort(-np.abs(grad))[: max(1, round(chunk.size * 0.5))]
        expected[chunk.start + top] = grad[top]
    _, source = saved(shard)
    kept = np.concatenate([source.tensor(f"chunk/{c.index}/parked/0/3") for c in CHUNKS])
    nonzero = np.flatnonzero(kept)
    assert nonzero.size >= LAYOUT.size // 3
    np.testing.assert_array_equal(kept[nonzero], values(5)[nonzero])


# What cannot be gone on from


def spoiled(change):
    shard = shard_of(optimizer=Momentum(0.1), bound=1)
    for clock in (1, 2, 3):
        push(shard, 0, clock)
    records, source = saved(shard)
    change(records, source.tensors)
    other = shard_of(1, optimizer=Momentum(0.1), ready=False)
    other.load({0: 3, 1: 0}, records, source)


def test_unspoiled_it_can():
    spoiled(lambda records, tensors: None)


def without(*names):
    def change(records, tensors):
        for name in names:
            del tensors[name]

    return change


def record(**changes):
    return lambda records, tensors: records["0"].update(changes)


def tensor(name, value):
    return lambda records, tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda records, tensors: records.pop("1"), "the checkpoint has no chunk 1"),
        (lambda records, tensors: records["0"].pop("version"), "chunk/0 has no 'version'"),
        (record(version="many"), "version of chunk/0 must be a whole number"),
        (record(position=None), "position of chunk/0 must be a number, got None"),
        (record(rate=[]), "rate of chunk/0 must be a number, got []"),
        (record(slots=5), "chunk/0 was saved with optimizer state 5"),
        (record(parked=None), "parked of chunk/0 must be a list, got None"),
        (record(parked=[[0, 3]]), "a parked push of chunk/0 must have worker, clock, weight"),
        (record(parked=[5]), "a parked push of chunk/0 must have worker, clock, weight"),
        (record(parked=[[0, "3", 1.0, -1.0, True]]), "clock of a parked push of chunk/0 must be"),
        (record(parked=[[0, 3, None, -1.0, False]]), "weight of a parked push of chunk/0 must"),
        (record(slots=[]), "chunk/0 was saved with optimizer state [], this run's optimizer has "
         "['velocity']; resume with the optimizer of the saved run"),
        (record(slots=["m", "v"]), "was saved with optimizer state ['m', 'v']"),
        (without("chunk/0/params"), "no tensor 'chunk/0/params'"),
        (without("chunk/1/slot/velocity"), "no tensor 'chunk/1/slot/velocity'"),
        (without("chunk/0/parked/0/3"), "no tensor 'chunk/0/parked/0/3'"),
        (tensor("chunk/0/params", np.zeros(3, np.float32)), "chunk/0/params is float32[3], "
         "expected float32[16]: resume with the parameters and the chunk_bytes of the saved run"),
        (tensor("chunk/0/params", np.zeros(16)), "chunk/0/params is float64[16]"),
        (tensor("chunk/0/parked/0/3", np.zeros((16, 1), np.float32)), "is float32[16, 1]"),
    ],
)  # fmt: skip
def test_what_is_no_state_of_this_chunk_is_refused(change, text):
    with pytest.raises(CheckpointError, match=re.escape(text)):
        spoiled(change)


@pytest.mark.parametrize("optimizer", [SGD(0.1), Adam(0.1)])
def test_another_optimizer_is_refused(optimizer):
    records, source = saved(shard_of(optimizer=Momentum(0.1)))
    with pytest.raises(CheckpointError, match="resume with the optimizer of the saved run"):
        shard_of(optimizer=optimizer, ready=False).load({0: 0, 1: 0}, records, source)


def test_another_rate_of_the_same_optimizer_is_none():
    records, source = saved(shard_of(optimizer=Adam(0.1)))
    shard_of(optimizer=replace(Adam(0.1), learning_rate=3.0), ready=False).load(
        {0: 0, 1: 0}, records, Memory(source.tensors)
    )
