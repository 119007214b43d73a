"""The layout over random mixes of tensors: chunks, shards, views, text, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.errors import ConfigError, LayoutError
from psgrad.layout import (
    ALIGNMENT,
    ITEMSIZE,
    Chunk,
    Layout,
    SegmentOptions,
    assign,
    balance,
    default_chunk_bytes,
    difference,
)

KIB, MIB = 1 << 10, 1 << 20


def zeros(**shapes):
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


POOL = (
    SegmentOptions("t0", learning_rate_scale=0.5),
    SegmentOptions("t[12]", weight_decay=0.0),
    SegmentOptions("t3", buffer=True),
    SegmentOptions("t4", members=(2, 0)),
)
sizes = st.one_of(st.integers(0, 40), st.integers(0, 3000), st.integers(0, 200_000))


@st.composite
def layouts(draw, least=1):
    """Tensors of all sizes, some under options, of at least ``least`` elements together."""
    total = draw(st.lists(sizes, min_size=1, max_size=8).filter(lambda n: sum(n) >= least))
    matching = [
        o for o in POOL if any(o.match[1:].strip("[]").find(str(i)) >= 0 for i in range(len(total)))
    ]
    options = [o for o in matching if draw(st.booleans())]
    arrays = {f"t{i}": np.broadcast_to(np.float32(0), (n,)) for i, n in enumerate(total)}
    return Layout.of(arrays, options)


grids = st.one_of(st.just(0), st.integers(64, 300), st.integers(64, 1 << 20))


# Tensors and segments


def test_tensors_lie_side_by_side_in_the_order_given():
    layout = Layout.of(zeros(w=(3, 4), b=(4,), scalar=(), none=(0, 7)))
    assert [(t.name, t.shape, t.start, t.stop) for t in layout.tensors] == [
        ("w", (3, 4), 0, 12),
        ("b", (4,), 12, 16),
        ("scalar", (), 16, 17),
        ("none", (0, 7), 17, 17),
    ]
    assert layout.size == 17
    assert len(layout.segments) == 1


def test_tensors_with_the_same_options_share_a_segment_and_the_first_match_wins():
    arrays = zeros(a_w=(2,), b_w=(3,), a_b=(4,), b_b=(5,))
    options = [SegmentOptions("*_b", weight_decay=0.0), SegmentOptions("a_*", buffer=True)]
    layout = Layout.of(arrays, options)
    assert [t.name for t in layout.tensors] == ["a_w", "b_w", "a_b", "b_b"]
    assert [(s.start, s.stop, s.options.match) for s in layout.segments] == [
        (0, 2, "a_*"),
        (2, 5, "*"),
        (5, 14, "*_b"),
    ]
    assert [t.segment for t in layout.tensors] == [0, 1, 2, 2]


@settings(deadline=None)
@given(layouts())
def test_segments_and_tensors_tile_the_flat_vector(layout):
    for parts in (layout.tensors, layout.segments):
        assert parts[0].start == 0
        assert parts[-1].stop == layout.size
        assert all(a.stop == b.start for a, b in pairwise(parts))
    for tensor in layout.tensors:
        segment = layout.segments[tensor.segment]
        assert segment.start <= tensor.start <= tensor.stop <= segment.stop
        assert tensor.stop - tensor.start == math.prod(tensor.shape)


@settings(deadline=None)
@given(layouts(), st.data())
def test_the_tensor_at_an_element_is_the_one_that_holds_it(layout, data):
    element = data.draw(st.integers(0, layout.size - 1))
    tensor = layout.tensor_at(element)
    assert tensor.start <= element < tensor.stop


def test_views_alias_the_flat_vector():
    layout = Layout.of(zeros(w=(3, 4), b=(4,), scalar=()))
    flat = np.arange(17, dtype=np.float32)
    views = layout.views(flat)
    assert list(views) == ["w", "b", "scalar"]
    assert {name: view.shape for name, view in views.items()} == {
        "w": (3, 4),
        "b": (4,),
        "scalar": (),
    }
    views["w"][2, 3] = -1
    views["scalar"][()] = -2
    flat[12] = -3
    assert (flat[11], flat[16], views["b"][0]) == (-1, -2, -3)
    assert all(np.shares_memory(view, flat) for view in views.values())


@pytest.mark.parametrize("shape", [(16,), (18,), (17, 1), ()])
def test_views_need_the_whole_flat_vector(shape):
    layout = Layout.of(zeros(w=(17,)))
    with pytest.raises(LayoutError, match=r"must have shape \(17,\), got"):
        layout.views(np.zeros(shape, np.float32))


# Chunks


@settings(deadline=None)
@given(layouts(), grids)
def test_chunks_tile_each_segment(layout, chunk_bytes):
    chunks = layout.chunks(chunk_bytes)
    limit = chunk_bytes or default_chunk_bytes(layout.size * ITEMSIZE)
    assert [c.index for c in chunks] == list(range(len(chunks)))
    assert all(0 < c.nbytes <= limit for c in chunks)
    assert [c.segment for c in chunks] == sorted(c.segment for c in chunks)
    for segment in layout.segments:
        mine = [c for c in chunks if c.segment == segment.index]
        edges = [segment.start, *(c.stop for c in mine)]
        assert [c.start for c in mine] == edges[:-1]
        assert edges[-1] == segment.stop


@settings(deadline=None)
@given(layouts(), grids)
def test_pieces_of_a_segment_are_as_few_and_as_equal_as_cache_lines_allow(layout, chunk_bytes):
    limit = (chunk_bytes or default_chunk_bytes(layout.size * ITEMSIZE)) // ITEMSIZE
    limit = limit // ALIGNMENT * ALIGNMENT
    for segment in layout.segments:
        pieces = [c.size for c in layout.chunks(chunk_bytes) if c.segment == segment.index]
        size = segment.stop - segment.start
        assert len(pieces) <= -(-size // limit)
        if pieces:
            share = -(-size // -(-size // limit))
            assert all(share <= piece < share + ALIGNMENT for piece in pieces[:-1])
            assert all(piece % ALIGNMENT == 0 for piece in pieces[:-1])


@pytest.mark.parametrize(
    ("total", "chunk"),
    [
        (4, 64 * KIB),
        (1 * MIB, 64 * KIB),
        (1 * MIB + 4, 128 * KIB),
        (63 * MIB, 4032 * KIB),
        (64 * MIB, 4 * MIB),
        (1 << 40, 4 * MIB),
    ],
)
def test_the_default_grid(total, chunk):
    assert default_chunk_bytes(total) == chunk


def test_the_grid_knows_nothing_of_servers():
    # The signature is the proof: chunks() sees the layout and chunk_bytes, assign() comes after.
    layout = Layout.of(zeros(w=(1000,), b=(30,)))
    before = layout.chunks(256)
    for servers in (1, 2, 7):
        assign(before, servers)
        assert layout.chunks(256) == before


@pytest.mark.parametrize("chunk_bytes", [1, 63, -1, -64])
def test_chunks_have_a_least_size(chunk_bytes):
    with pytest.raises(ConfigError, match=rf"at least 64 \(or 0 .*got {chunk_bytes}$"):
        Layout.of(zeros(w=(10,))).chunks(chunk_bytes)


# Shards


@settings(deadline=None, max_examples=200)
@given(layouts(), grids, st.integers(1, 9))
def test_shards_are_balanced(layout, chunk_bytes, servers):
    chunks = layout.chunks(chunk_bytes)
    owner = assign(chunks, servers)
    assert len(owner) == len(chunks)
    loads = [sum(c.nbytes for c in chunks if owner[c.index] == s) for s in range(servers)]
    assert sum(loads) == layout.size * ITEMSIZE
    mean = sum(loads) / servers
    largest = max(c.nbytes for c in chunks)
    assert max(loads) <= 1.05 * mean or max(loads) - mean <= largest
    assert balance(chunks, owner, servers) == pytest.approx(max(loads) / mean)
    assert assign(chunks, servers) == owner


def test_the_default_grid_balances_one_big_tensor():
    chunks = Layout.of({"w": np.broadcast_to(np.float32(0), (50_000_000,))}).chunks()
    for servers in (1, 2, 3, 4):
        assert balance(chunks, assign(chunks, servers), servers) <= 1.05


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 5), st.randoms())
def test_the_owner_does_not_depend_on_the_order_in_which_chunks_are_listed(sizes, servers, rng):
    chunks = [Chunk(i, 0, 0, size) for i, size in enumerate(sizes)]
    shuffled = rng.sample(chunks, len(chunks))
    assert assign(shuffled, servers) == assign(chunks, servers)


def test_more_servers_than_chunks():
    chunks = Layout.of(zeros(w=(3,))).chunks()
    assert assign(chunks, 4) == (0,)
    assert balance(chunks, (0,), 4) == 4.0


# Text, digest, difference


@settings(deadline=None)
@given(layouts())
def test_the_text_is_the_layout(layout):
    again = Layout.from_json(layout.to_json())
    assert again == layout
    assert again.to_json() == layout.to_json()
    assert again.digest == layout.digest
    assert 0 <= layout.digest < 1 << 64


ARRAYS = {"w": (3, 4), "b": (4,)}
OTHERS = [
    Layout.of(zeros(w=(3, 4))),
    Layout.of(zeros(w=(4, 3), b=(4,))),
    Layout.of(zeros(b=(4,), w=(3, 4))),
    Layout.of(zeros(w=(3, 4), c=(4,))),
    Layout.of(zeros(w=(3, 4), b=(4,), c=(1,))),
    *(
        Layout.of(zeros(**ARRAYS), [option])
        for option in (
            SegmentOptions("w", learning_rate_scale=2.0),
            SegmentOptions("w", weight_decay=0.0),
            SegmentOptions("w", buffer=True),
            SegmentOptions("w", members=(0,)),
            SegmentOptions("w", members=(0, 1)),
            SegmentOptions("*", learning_rate_scale=2.0),
        )
    ),
]


def test_whatever_differs_changes_the_digest():
    digests = {layout.digest for layout in [Layout.of(zeros(**ARRAYS)), *OTHERS]}
    assert len(digests) == 1 + len(OTHERS)


@pytest.mark.parametrize("other", OTHERS)
def test_equal_means_no_difference_and_only_that(other):
    reference = Layout.of(zeros(**ARRAYS))
    assert difference(reference, reference) is None
    assert difference(reference, Layout.of(zeros(**ARRAYS))) is None
    assert difference(reference, other)
    assert difference(other, reference)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"w": (3, 4)}, "has 1 parameters, expected 2"),
        ({"w": (3, 5), "b": (5,)}, "has parameter 'w' with shape (3, 5), expected (3, 4)"),
        ({"b": (4,), "w": (3, 4)}, "has parameter 'b' where 'w' is expected"),
        ({"w": (3, 4), "bias": (4,)}, "has parameter 'bias' where 'b' is expected"),
        ({"w": (3, 4), "b": (4,), "c": (1,)}, "has 3 parameters, expected 2"),
    ],
)
def test_the_first_difference_in_words(other, text):
    assert difference(Layout.of(zeros(**ARRAYS)), Layout.of(zeros(**other))) == text


def test_a_difference_of_options_in_words():
    scaled = Layout.of(zeros(**ARRAYS), [SegmentOptions("*", learning_rate_scale=2.0)])
    text = difference(Layout.of(zeros(**ARRAYS)), scaled)
    assert text.startswith("has segment options SegmentOptions(match='*', learning_rate_scale=2.0")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "[]",
        "{}",
        '{"tensors": [], "segments": [{}]}',
        '{"tensors": [{}], "segments": []}',
        '{"tensors": [5], "segments": []}',
        '{"tensors": 5, "segments": []}',
    ],
)
def test_a_text_that_is_no_layout(text):
    with pytest.raises(LayoutError, match="not a layout"):
        Layout.from_json(text)


@pytest.mark.parametrize("key", ["index", "start", "stop", "options"])
def test_a_text_without_one_field(key):
    record = json.loads(Layout.of(zeros(w=(3,))).to_json())
    del record["segments"][0][key]
    with pytest.raises(LayoutError, match="not a layout"):
        Layout.from_json(json.dumps(record))


# What is refused


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"w": np.zeros(3)}, r"'w' has dtype float64, psgrad trains float32; pass w\.astype"),
        ({"w": np.zeros(3, np.float16)}, "'w' has dtype float16"),
        ({"w": np.zeros(3, ">f4")}, "'w' has dtype >f4"),
        ({"w": [1.0, 2.0]}, "'w' must be a NumPy array, got list; pass numpy.asarray"),
        ({"w": 3.0}, "'w' must be a NumPy array, got float"),
        ({7: np.zeros(3, np.float32)}, "names must be str, got 7"),
        ({}, "at least one parameter element, got none"),
        ({"w": np.zeros((0, 3), np.float32)}, "at least one parameter element, got none"),
    ],
)
def test_arrays_that_cannot_be_trained(arrays, text):
    with pytest.raises(LayoutError, match=text):
        Layout.of(arrays)


def test_a_pattern_that_matches_nothing_is_named_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"match 'weigth'; did you mean 'weight'\? Known: b, w"):
        Layout.of(zeros(weight=(1,), b=(1,)), [SegmentOptions("weigth")])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"learning_rate_scale": -1.0}, "learning_rate_scale of segment 'w' .* got -1.0"),
        ({"learning_rate_scale": math.nan}, "must be finite and at least 0, got nan"),
        ({"learning_rate_scale": math.inf}, "must be finite and at least 0, got inf"),
        ({"weight_decay": -0.5}, "weight_decay of segment 'w' .* got -0.5"),
        ({"weight_decay": math.nan}, "weight_decay .* got nan"),
        ({"weight_decay": math.inf}, "weight_decay .* got inf"),
        ({"members": ()}, r"members of segment 'w' .* got \[\]; leave it out for all"),
        ({"members": (1, -1)}, r"worker indices from 0 up, got \[1, -1\]"),
    ],
)
def test_options_out_of_range(options, text):
    with pytest.raises(ConfigError, match=text):
        SegmentOptions("w", **options)


def test_members_are_a_set():
    assert SegmentOptions("w", members=(2, 0, 2)).members == (0, 2)
    assert SegmentOptions("w", members=[1, 0]) == SegmentOptions("w", members=(0, 1))


def test_equal_options_make_equal_texts_whatever_their_number_types():
    plain = SegmentOptions("w", learning_rate_scale=2.0, weight_decay=1.0, members=(0, 1))
    numpy = SegmentOptions(
        "w",
        learning_rate_scale=np.float32(2),
        weight_decay=np.int64(1),
        buffer=np.bool_(False),
        members=tuple(np.arange(2)),
    )
    assert numpy == plain
    arrays = zeros(w=(3,))
    assert Layout.of(arrays, [numpy]).to_json() == Layout.of(arrays, [plain]).to_json()


def test_a_layout_is_a_frozen_value():
    layout = Layout.of(zeros(w=(3,)))
    assert hash(layout) == hash(Layout.of(zeros(w=(3,))))
    with pytest.raises(dataclasses.FrozenInstanceError):
        layout.tensors = ()
