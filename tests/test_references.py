"""References: both sides of a link hold the same bits, whatever is pulled, when, and by whom."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.codecs import DIFFERENCES, Workspace, parse
from psgrad.codecs.base import add_into
from psgrad.layout import Chunk, Layout, SegmentOptions, assign
from psgrad.references import Difference, References, references_nbytes

N = 300
CHUNK = Chunk(index=4, segment=0, start=100, stop=100 + N)
SPECS = {"topk": "topk:0.05", "randk": "randk:0.1", "sign": "sign"}


class Puller:
    """A worker's memory of the chunk, and the version that it thinks it holds."""

    def __init__(self, index, codec):
        self.index, self.codec = index, codec
        self.memory, self.held = np.zeros(N, np.float32), None
        self.payload_nbytes = None

    def pull(self, references, params, version, dense=False):
        if dense:
            held = references.dense(self.index, params, version)
            self.memory, self.held = params.copy(), version if held else None
            return
        answer = references.answer(self.index, self.held, params, version, Workspace())
        if isinstance(answer, Difference):
            self.payload_nbytes = answer.payload.size
            if answer.payload.size:
                add_into(self.codec.open(answer.payload.copy(), N), self.memory)
            self.held = answer.version
        else:
            self.payload_nbytes = answer.nbytes
            self.memory, self.held = answer.copy(), version


def walk(seed=0):
    """Parameters that move: (version, float32[N])."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(N).astype(np.float32)
    for version in range(10_000):
        yield version, x
        x = x - np.float32(0.1) * rng.standard_normal(N).astype(np.float32)


def known(references):
    return {worker: held.values for worker, held in references._held.items()}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_differences_drain(name):
    """Parameters that stand still are reached: what was not sent stays in the difference."""
    codec = parse(SPECS[name])
    puller, references = Puller(0, codec), References(CHUNK, codec, shared=True, seed=1)
    moving = walk()
    puller.pull(references, next(moving)[1], 0, dense=True)
    for _ in range(5):
        version, x = next(moving)
        puller.pull(references, x, version)
    far = np.linalg.norm(puller.memory - x)
    for _ in range(100):
        version += 1
        puller.pull(references, x, version)
        assert puller.payload_nbytes < x.nbytes / 2
    assert np.linalg.norm(puller.memory - x) <= 0.05 * far


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_both_sides_agree_bit_for_bit(data):
    """Pulls in any order, dense ones and repeated ones, workers that skip versions or leave."""
    codec = parse(SPECS[data.draw(st.sampled_from(DIFFERENCES))])
    shared = data.draw(st.booleans())
    references = References(CHUNK, codec, shared, seed=3)
    pullers = [Puller(w, codec) for w in range(3)]
    moving = walk(data.draw(st.integers(0, 5)))
    version, x = next(moving)
    for _ in range(data.draw(st.integers(1, 25))):
        what = data.draw(st.sampled_from(["move", "pull", "pull", "pull", "dense", "drop"]))
        puller = pullers[data.draw(st.integers(0, 2))]
        if what == "move":
            version, x = next(moving)
        elif what == "drop":
            references.drop(puller.index)
        else:
            puller.pull(references, x, version, dense=what == "dense")
            if what == "dense":
                assert np.array_equal(puller.memory, x)
            if puller.held is not None:
                mine = known(references)[0 if shared else puller.index]
                assert mine.tobytes() == puller.memory.tobytes()


def test_one_payload_serves_all_workers_in_sync():
    codec = parse("topk:0.05")
    references = References(CHUNK, codec, shared=True, seed=1)
    pullers = [Puller(w, codec) for w in range(3)]
    moving = walk()
    version, x = next(moving)
    for puller in pullers:
        puller.pull(references, x, version, dense=True)
        assert puller.held == version, "at the start all hold the parameters themselves"
    version, x = next(moving)
    for puller in pullers:
        puller.pull(references, x, version)
        assert puller.payload_nbytes < x.nbytes / 5
        assert puller.memory.tobytes() == pullers[0].memory.tobytes()
    assert len(known(references)) == 1


def test_who_missed_a_version_is_sent_the_reference_itself():
    codec = parse("topk:0.05")
    references = References(CHUNK, codec, shared=True, seed=1)
    one, other = Puller(0, codec), Puller(1, codec)
    moving = walk()
    for puller in (one, other):
        puller.pull(references, (start := next(moving))[1], start[0])
    for _ in range(2):
        version, x = next(moving)
        one.pull(references, x, version)
    other.pull(references, x, version)
    assert other.payload_nbytes == x.nbytes
    assert other.memory.tobytes() == one.memory.tobytes()
    assert not np.array_equal(one.memory, x)


def test_the_same_version_again_is_nothing():
    codec = parse("sign")
    references = References(CHUNK, codec, shared=False, seed=1)
    puller = Puller(2, codec)
    moving = walk()
    puller.pull(references, *reversed(next(moving)))
    version, x = next(moving)
    puller.pull(references, x, version)
    before = puller.memory.copy()
    puller.pull(references, x, version)
    assert puller.payload_nbytes == 0
    assert np.array_equal(puller.memory, before)


def test_a_dense_pull_in_sync_leaves_the_shared_reference_alone():
    codec = parse("topk:0.05")
    references = References(CHUNK, codec, shared=True, seed=1)
    puller = Puller(0, codec)
    moving = walk()
    for _ in range(2):
        version, x = next(moving)
        puller.pull(references, x, version)
    reference = puller.memory.copy()
    puller.pull(references, x, version, dense=True)
    assert puller.held is None
    puller.pull(references, x, version)
    assert np.array_equal(puller.memory, reference)


def test_a_shared_reference_goes_on_where_it_was():
    codec = parse("topk:0.05")
    saved, twin = (References(CHUNK, codec, shared=True, seed=1) for _ in range(2))
    puller = Puller(1, codec)
    moving = walk()
    for _ in range(4):
        version, x = next(moving)
        puller.pull(saved, x, version)
    held = saved.for_all()
    twin.resume(held.values.copy(), held.version)
    version, x = next(moving)
    puller.pull(twin, x, version)
    assert puller.payload_nbytes < x.nbytes / 5, "not dense: the version was known"
    assert known(twin)[0].tobytes() == puller.memory.tobytes()


def test_references_of_single_workers_begin_anew():
    references = References(CHUNK, parse("topk:0.05"), shared=False, seed=1)
    references.answer(1, None, np.zeros(CHUNK.size, np.float32), 3, Workspace())
    assert references.for_all() is None
    references.resume(np.zeros(CHUNK.size, np.float32), 3)
    assert list(known(references)) == [1]


def test_memory_is_that_of_the_fullest_server():
    layout = Layout.of(
        {"a": np.zeros(5000, np.float32), "b": np.zeros(3000, np.float32)},
        [SegmentOptions("b", members=(0, 7))],
    )
    chunks = layout.chunks(4096)
    nbytes = dict.fromkeys((1, 2), 0)
    for servers in nbytes:
        owner = assign(chunks, servers)
        nbytes[servers] = references_nbytes(layout, chunks, owner, range(4), shared=False)
        shared = references_nbytes(layout, chunks, owner, range(4), shared=True)
        assert shared == max(
            sum(c.nbytes for c in chunks if owner[c.index] == s) for s in range(servers)
        )
    assert nbytes[1] == 4 * (4 * 5000 + 1 * 3000), "b: worker 7 is not there"
    assert nbytes[1] / 2 <= nbytes[2] < nbytes[1]
