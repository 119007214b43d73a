"""Feedback: what a codec does not send is not lost, whatever the codec."""

from __future__ import annotations

import numpy as np
import pytest

from psgrad.codecs import Compression, Key, Raw, Workspace, parse, spec
from psgrad.codecs.base import write_into
from psgrad.codecs.feedback import DGC_MOMENTUM, choose, make
from psgrad.codecs.raw import encode_raw
from psgrad.errors import ConfigError
from psgrad.layout import Chunk
from psgrad.optimizers import SGD
from psgrad.update import Updater

N = 40
CHUNKS = (Chunk(0, 0, 0, 24), Chunk(1, 0, 24, 40))


class Largest:
    """A codec of the test: sends the single largest element, as raw float32."""

    name = "largest"

    def nbytes_max(self, n):
        return Raw().nbytes_max(n)

    def encode(self, x, residual, out, key, work):
        v = x if residual is None else x + residual
        sent = np.zeros_like(v)
        where = np.argmax(np.abs(v))
        sent[where] = v[where]
        if residual is not None:
            np.subtract(v, sent, out=residual)
        return encode_raw(0, sent, None, out)

    def open(self, payload, n):
        return Raw().open(payload, n)


def send(feedback, codec, grads, rate=0.1):
    """What the server decodes of one step."""
    feedback.begin(rate)
    out = np.zeros(codec.nbytes_max(N), np.uint8)
    total = np.zeros(N, np.float32)
    for chunk in CHUNKS:
        here = slice(chunk.start, chunk.stop)
        key = Key(0, 0, 1, chunk.start)
        nbytes = feedback.encode(codec, chunk, grads[here], out, key, Workspace())
        write_into(codec.open(out[:nbytes], chunk.size), total[here])
    return total


def gradients(steps):
    return np.random.default_rng(5).standard_normal((steps, N)).astype(np.float32)


def test_error_feedback_conserves_the_gradient():
    """The sum of what was sent and the residual are the sum of the gradients."""
    feedback, grads = make("ef", N), gradients(1000)
    sent = sum(send(feedback, Largest(), g).astype(np.float64) for g in grads)
    kept = feedback.state_dict()["residual"]
    total = grads.astype(np.float64).sum(axis=0)
    assert np.linalg.norm(sent + kept - total) <= 1e-6 * np.abs(grads).sum()
    assert np.array_equal(np.concatenate([feedback.residual(chunk) for chunk in CHUNKS]), kept)


def test_without_feedback_the_rest_is_lost():
    feedback, grads = make("none", N), gradients(2)
    first, second = (send(feedback, Largest(), g) for g in grads)
    for got, grad in ((first, grads[0]), (second, grads[1])):
        for chunk in CHUNKS:
            part = grad[chunk.start : chunk.stop]
            assert got[chunk.start + np.argmax(np.abs(part))] == part[np.argmax(np.abs(part))]
    assert feedback.residual(CHUNKS[0]) is None
    assert feedback.state_dict() == {}


def test_a_residual_keeps_its_worth_when_the_rate_changes():
    feedback, (first, second) = make("ef", N), gradients(2)
    send(feedback, Largest(), first, rate=0.4)
    kept = feedback.state_dict()["residual"].copy()
    sent = send(feedback, Largest(), second, rate=0.1)
    v = sent + feedback.state_dict()["residual"]
    assert np.allclose(v, second + 4 * kept, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rates", [(0.1, 0.0), (0.0, 0.1), (float("nan"), 0.1)])
def test_without_two_rates_nothing_is_scaled(rates):
    feedback, (first, second) = make("ef", N), gradients(2)
    send(feedback, Largest(), first, rate=rates[0])
    kept = feedback.state_dict()["residual"].copy()
    sent = send(feedback, Largest(), second, rate=rates[1])
    assert np.allclose(sent + feedback.state_dict()["residual"], second + kept, atol=1e-6)


def test_dgc_by_its_formula():
    """u <- m u + g, v <- v + u; both are 0 afterwards where something was sent."""
    feedback, grads = make("dgc", N), gradients(20)
    u, v = np.zeros(N), np.zeros(N)
    for g in grads:
        u = DGC_MOMENTUM * u + g
        v = v + u
        expected = np.zeros(N)
        for chunk in CHUNKS:
            where = chunk.start + np.argmax(np.abs(v[chunk.start : chunk.stop]))
            expected[where] = v[where]
            u[where] = v[where] = 0.0
        assert np.allclose(send(feedback, Largest(), g), expected, rtol=1e-5)
        state = feedback.state_dict()
        assert np.allclose(state["velocity"], u, rtol=1e-5, atol=1e-6)
        assert np.allclose(state["residual"], v, rtol=1e-5, atol=1e-6)


def test_the_server_of_ef21_holds_the_mean_of_the_workers_estimates():
    workers, updater = [make("ef21", N) for _ in range(4)], Updater.of(SGD())
    estimate = np.zeros(N, np.float32)
    for _ in range(200):
        sent = [send(w, Largest(), g) for w, g in zip(workers, gradients(4), strict=True)]
        for chunk in CHUNKS:
            here = slice(chunk.start, chunk.stop)
            parts = [one[here] for one in sent]
            updater.track(estimate[here], parts, 4)
        mean = sum(w.state_dict()["estimate"].astype(np.float64) for w in workers) / 4
        assert np.allclose(estimate, mean, rtol=1e-5, atol=1e-6)
    # The gradients are the same in every step, so the estimates reach them.
    assert np.allclose(estimate, gradients(4).mean(axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["none", "ef", "ef21", "dgc"])
def test_a_state_can_be_saved_and_loaded(name):
    grads = gradients(6)
    one = make(name, N)
    for g in grads[:3]:
        send(one, Largest(), g)
    saved = {key: value.copy() for key, value in one.state_dict().items()}
    other = make(name, N)
    other.begin(0.1)
    other.load_state_dict(saved)
    for g in grads[3:]:
        assert np.array_equal(send(one, Largest(), g), send(other, Largest(), g))


def test_a_state_of_something_else_is_refused():
    with pytest.raises(
        ConfigError, match=r"codec state has \['velocity'\], expected \['rate', 'res"
    ):
        make("ef", N).load_state_dict({"velocity": np.zeros(N, np.float32)})
    with pytest.raises(ConfigError, match=r"residual has shape \(3,\), expected \(40,\)"):
        make("ef", N).load_state_dict({"residual": np.zeros(3, np.float32), "rate": np.ones(1)})


def test_what_auto_means():
    assert choose("auto", Raw()) == "none"
    assert choose("auto", Largest()) == "ef"
    assert [choose("auto", parse(name)) for name in ("sign", "randk", "qsgd", "ternary")] == [
        "ef", "ef", "none", "none",
    ]  # fmt: skip
    assert choose("none", Largest()) == "none"
    with pytest.raises(ConfigError, match="feedback 'dgc' needs a codec that loses something"):
        choose("dgc", Raw())


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nne", "unknown codec 'nne'; did you mean 'none'"),
        ("", "unknown codec ''"),
        ("none:3", "codec 'none:3': '3' is not an option"),
        ("none:x=3", "codec 'none:x=3': unknown option of none 'x'"),
        ("none+int8", "codec 'none+int8': unknown option of none 'values'"),
    ],
)
def test_specs_that_cannot_be(text, error):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value).startswith(error)


def test_none_is_bare_float32():
    assert spec(parse("none")) == "none"
    assert Compression.of("none", "none", "auto", "auto") == Compression(zstd="auto")
