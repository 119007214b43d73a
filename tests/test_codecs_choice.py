"""What is settled before a chunk is encoded: thresholds over steps, scopes, the fastest codec."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from psgrad.codecs import CODECS, Key, Workspace, choice, parse
from psgrad.codecs.adaptive import FastestChoice
from psgrad.codecs.base import write_into
from psgrad.codecs.choice import Always
from psgrad.codecs.thresholds import KEPT
from psgrad.codecs.wire import code_of, stored
from psgrad.errors import ConfigError, WireError
from psgrad.layout import Layout

SHAPES = {"embedding": (300, 200), "weight": (100, 90), "bias": (10,), "scale": (7,)}
LAYOUT = Layout.of({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})
CHUNKS = LAYOUT.chunks(64 << 10)


class Clock:
    """Goes on by what encoding is said to take."""

    def __init__(self, seconds=()):
        self.seconds, self.time = iter(seconds), 0.0

    def __call__(self):
        self.time += next(self.seconds, 0.0)
        return self.time


def gradient(step, heavy=False):
    rng = np.random.default_rng(step)
    x = rng.standard_normal(LAYOUT.size).astype(np.float32)
    return x**5 if heavy else x


def encode(chosen, step, grads, link_rate=0.0, seconds=0.0):
    """One step without feedback: the payload of each chunk."""
    chosen.begin(step, lambda chunk, where: grads[chunk.start : chunk.stop][where].copy())
    payloads = {}
    for chunk in CHUNKS:
        codec = chosen.codec(chunk, link_rate)
        out = np.zeros(codec.nbytes_max(chunk.size), np.uint8)
        key = Key(1, 0, step, chunk.start)
        nbytes = codec.encode(grads[chunk.start : chunk.stop], None, out, key, Workspace())
        chosen.note(chunk, out[:nbytes], seconds * chunk.size)
        payloads[chunk.index] = out[:nbytes]
    return payloads


def decode(codec, payloads):
    flat = np.zeros(LAYOUT.size, np.float32)
    for chunk in CHUNKS:
        opened = codec.open(payloads[chunk.index], chunk.size)
        write_into(opened, flat[chunk.start : chunk.stop])
    return flat


@pytest.mark.parametrize("name", [name for name in CODECS if name != "adaptive"])
def test_most_codecs_need_nothing(name):
    chosen = choice(parse(name), LAYOUT, CHUNKS, Clock())
    assert isinstance(chosen, Always)
    assert {chosen.codec(chunk, 1e9) for chunk in CHUNKS} == {parse(name)}
    assert chosen.state_dict() == {}


# Thresholds


def test_a_threshold_is_kept_and_follows_the_gradient():
    """Its level falls by half over 60 steps: k' stays within a factor of 2, mostly much closer."""
    codec = parse("topk:0.01,select=threshold")
    chosen = choice(codec, LAYOUT, CHUNKS, Clock())
    ratios = []
    for step in range(1, 3 * KEPT):
        grads = gradient(step) * np.float32(0.99**step)
        sent = sum(stored(p) for p in encode(chosen, step, grads).values())
        ratios.append(sent / (0.01 * LAYOUT.size))
    assert 0.9 <= np.median(ratios) <= 1.1
    assert min(ratios) >= 0.5
    assert max(ratios) <= 2.0


def test_a_threshold_that_is_kept_is_not_sampled():
    codec = parse("topk:0.01,select=threshold")
    chosen = choice(codec, LAYOUT, CHUNKS, Clock())
    encode(chosen, 1, gradient(1))

    def nobody(chunk, where):
        raise AssertionError("there is a threshold")

    chosen.begin(2, nobody)


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_a_jump_is_seen_after_one_step(factor):
    chosen = choice(parse("topk:0.01,select=threshold"), LAYOUT, CHUNKS, Clock())
    wanted = 0.01 * LAYOUT.size
    encode(chosen, 1, gradient(1))
    jumped = sum(stored(p) for p in encode(chosen, 2, gradient(2) * np.float32(factor)).values())
    assert jumped <= 2.01 * wanted, "a chunk is cut to the best 2k"
    after = sum(stored(p) for p in encode(chosen, 3, gradient(3) * np.float32(factor)).values())
    assert 0.8 * wanted <= after <= 1.25 * wanted


def test_a_saved_threshold_goes_on():
    codec = parse("topk:0.02,select=threshold,warmup=5")
    one, other = (choice(codec, LAYOUT, CHUNKS, Clock()) for _ in range(2))
    for step in range(1, 8):
        encode(one, step, gradient(step))
    other.load_state_dict({key: value.copy() for key, value in one.state_dict().items()})
    for step in range(8, 12):
        a, b = (encode(chosen, step, gradient(step)) for chosen in (one, other))
        assert all(np.array_equal(a[i], b[i]) for i in a)


def test_a_state_of_another_choice_is_refused():
    chosen = choice(parse("topk:0.01,select=threshold"), LAYOUT, CHUNKS, Clock())
    with pytest.raises(ConfigError, match=r"codec state has \[\], expected \['left', 'low'"):
        chosen.load_state_dict({})
    state = {key: value[:1] for key, value in chosen.state_dict().items()}
    with pytest.raises(ConfigError, match=r"low has shape \(1,\), expected \(\d+,\)"):
        chosen.load_state_dict(state)


# Scopes


@pytest.mark.parametrize("select", ["exact", "threshold"])
def test_a_global_ratio_goes_where_the_gradient_is_large(select):
    codec = parse(f"topk:0.01,scope=global,select={select}")
    grads = gradient(1)
    grads[: CHUNKS[0].stop] *= 10
    payloads = encode(choice(codec, LAYOUT, CHUNKS, Clock()), 1, grads)
    sent = {index: stored(payload) for index, payload in payloads.items()}
    assert 0.97 <= sum(sent.values()) / (0.01 * LAYOUT.size) <= 1.03
    assert sent[0] >= 0.95 * sum(sent.values())
    got = decode(codec, payloads)
    where = np.flatnonzero(got)
    assert np.array_equal(got[where], grads[where])
    assert np.abs(grads[where]).min() >= np.delete(np.abs(grads), where).max()


def test_with_a_global_ratio_a_chunk_is_never_larger_than_raw():
    codec = parse("topk:1.0,scope=global")
    payloads = encode(choice(codec, LAYOUT, CHUNKS, Clock()), 1, gradient(1))
    for chunk in CHUNKS:
        assert payloads[chunk.index].size <= codec.nbytes_max(chunk.size) <= 24 + chunk.nbytes


@pytest.mark.parametrize(
    ("scope", "select"), [("global", "exact"), ("global", "threshold"), ("tensor", "exact")]
)
def test_by_itself_a_scope_is_the_chunk(scope, select):
    codec = parse(f"topk:1.0,scope={scope},select={select}")
    x = gradient(1)[:5000]
    out = np.zeros(codec.nbytes_max(x.size), np.uint8)
    nbytes = codec.encode(x, None, out, Key(1, 0, 1, 0), Workspace())
    assert stored(out[:nbytes]) > 0.8 * x.size
    codec.open(out[:nbytes], x.size)


def test_a_ratio_of_each_tensor():
    """Small tensors are heard, whatever the scale of their neighbours; at least one element."""
    codec = parse("topk:0.05,scope=tensor")
    grads = gradient(3)
    views = LAYOUT.views(grads)
    views["embedding"][:] *= 1000
    got = LAYOUT.views(decode(codec, encode(choice(codec, LAYOUT, CHUNKS, Clock()), 1, grads)))
    for name, view in views.items():
        sent = np.flatnonzero(got[name])
        assert abs(sent.size - max(1, 0.05 * view.size)) <= 1 + len(CHUNKS), name
        assert np.array_equal(got[name].flat[sent], view.flat[sent])
    best = np.argmax(np.abs(views["bias"]))
    assert np.flatnonzero(got["bias"]).tolist() == [best]


def test_selections_that_do_not_go_together():
    with pytest.raises(ConfigError, match="scope=tensor takes select=exact"):
        parse("topk:0.1,scope=tensor,select=threshold")
    with pytest.raises(ConfigError, match="unknown scope of top-k 'tensors'; did you mean 'tensor"):
        parse("topk:0.1,scope=tensors")


# The fastest


def used(payloads):
    names = {kind.code: name for name, kind in CODECS.items()}
    return {names[code_of(payload)] for payload in payloads.values()}


@pytest.mark.parametrize(
    ("spec", "heavy", "link_rate", "chosen"),
    [
        ("adaptive", False, 0.0, "none"),  # as long as nothing is known
        ("adaptive", False, 1e12, "none"),  # above the break-even
        ("adaptive", False, 1e6, "int4"),  # topk:0.01 would say too little of flat gradients
        ("adaptive", True, 1e6, "topk"),
        ("adaptive:error=0.99", False, 1e6, "topk"),
        ("adaptive:error=0.0001", False, 1e6, "int8"),
        ("adaptive:error=1e-8", True, 1e6, "none"),
    ],
)
def test_it_picks_by_link_and_gradient(spec, heavy, link_rate, chosen):
    codec = parse(spec)
    fastest = choice(codec, LAYOUT, CHUNKS, Clock(itertools.repeat(1e-4)))
    grads = gradient(1, heavy)
    for step in (1, 2):
        payloads = encode(fastest, step, grads, link_rate, seconds=1e-9)
    assert used(payloads) == {chosen}
    decode(codec, payloads)


def test_a_measured_second_counts():
    """A codec that turns out slow is left for another one."""
    fastest = choice(parse("adaptive"), LAYOUT, CHUNKS, Clock(itertools.repeat(1e-5)))
    (first,) = used(encode(fastest, 1, gradient(1), link_rate=1e9, seconds=1e-9))
    encode(fastest, 2, gradient(2), link_rate=1e9, seconds=1.0)
    assert first not in used(encode(fastest, 3, gradient(3), link_rate=1e9, seconds=1e-9))


def test_very_large_gradients_are_weighed():
    grads = gradient(1) * np.float32(1e37)
    payloads = encode(choice(parse("adaptive"), LAYOUT, CHUNKS, Clock()), 1, grads, link_rate=1e6)
    assert used(payloads) == {"int4"}


def test_what_is_learned_is_saved():
    one, other = (choice(parse("adaptive"), LAYOUT, CHUNKS, Clock()) for _ in range(2))
    encode(one, 1, gradient(1), link_rate=1e6)
    other.load_state_dict(one.state_dict())
    assert isinstance(other, FastestChoice)
    assert [one.codec(c, 1e6) for c in CHUNKS] == [other.codec(c, 1e6) for c in CHUNKS]


def test_a_payload_of_a_codec_that_is_no_candidate_is_refused():
    x = gradient(1)[:1000]
    for name in ("sign", "qsgd"):
        codec = parse(name)
        out = np.zeros(codec.nbytes_max(x.size), np.uint8)
        nbytes = codec.encode(x, None, out, Key(1, 0, 1, 0), Workspace())
        with pytest.raises(WireError, match=r"codec \d is not among those of adaptive"):
            parse("adaptive").open(out[:nbytes], x.size)
    with pytest.raises(WireError, match="a payload has at least 24 bytes, got 3"):
        parse("adaptive").open(out[:3], x.size)


@pytest.mark.parametrize("error", [-0.1, 1.0, 50])
def test_a_limit_out_of_range(error):
    with pytest.raises(ConfigError, match=r"the error of adaptive must be in \[0, 1\)"):
        parse(f"adaptive:{error}")
