"""The loss scale: texts, its way down and up, its state; and that gradients do not know of it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from psgrad.compute import Compute
from psgrad.data import DatasetOptions, load
from psgrad.errors import CheckpointError, ConfigError
from psgrad.kernels import PRECISIONS, cpu
from psgrad.loss_scale import EVERY, FIRST, MOST, LossScale, parse
from psgrad.models import MLP, Hooks

GOOD = [np.ones((2, 3), np.float32), np.zeros(4, np.float32)]
NAN = [GOOD[0], np.array([0, np.nan], np.float32)]
INFINITE = [np.array([[1], [-np.inf]], np.float32)]
HUGE = [np.full((300, 2), 3e38, np.float32)]  # finite, though the sum of squares is not


def test_halves_on_overflow_and_doubles_after_good_ones():
    scale = LossScale(8.0, every=3)
    seen = []
    for grads in (GOOD, GOOD, NAN, GOOD, GOOD, HUGE, GOOD, INFINITE, GOOD, GOOD, GOOD):
        scale.observe(grads)
        seen.append(scale.value)
    assert seen == [8, 8, 4, 4, 4, 8, 8, 4, 4, 4, 8]


def test_it_stays_between_its_ends():
    low, high = LossScale(2.0, every=1), LossScale(MOST / 2, every=1)
    for _ in range(3):
        low.observe(NAN)
        high.observe(GOOD)
    assert (low.value, high.value) == (1.0, MOST)


def test_a_fixed_one_stays():
    scale = LossScale(1024.0, every=None)
    for grads in (GOOD, NAN, INFINITE):
        scale.observe(grads)
    assert scale.value == 1024


def test_it_goes_on_from_its_state():
    history = [GOOD, NAN, GOOD, GOOD, GOOD, NAN, GOOD, GOOD, GOOD, GOOD]
    whole = LossScale(16.0, every=3)
    for cut, grads in enumerate(history, start=1):
        whole.observe(grads)
        again, straight = LossScale(2.0, every=3), LossScale(16.0, every=3)
        for earlier in history[:cut]:
            straight.observe(earlier)
        again.load_state_dict(straight.state_dict())
        for later in history[cut:]:
            again.observe(later)
            straight.observe(later)
        assert again.state_dict() == straight.state_dict()


def test_a_state_of_another_rule():
    scale, fixed = LossScale(2.0, every=3), LossScale(4.0, every=None)
    for one in (scale, fixed):
        one.load_state_dict({"value": 32.0, "good": 100})
    assert scale.state_dict() == {"value": 32.0, "good": 2}
    assert fixed.value == 4, "that of the configuration"


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({}, "a loss scale has no 'value'"),
        ({"value": 3.0, "good": 0}, "value of a loss scale must be a power of two, got 3"),
        ({"value": 0.5, "good": 0}, "must be finite and at least 1, got 0.5"),
        ({"value": float("inf"), "good": 0}, "must be finite and at least 1, got inf"),
        ({"value": 2.0**65, "good": 0}, "must be a power of two"),
        ({"value": 2.0, "good": -1}, "good of a loss scale must be a whole number"),
        ({"value": "2", "good": 0}, "value of a loss scale"),
    ],
)
def test_states_that_are_none(state, text):
    scale = LossScale()
    with pytest.raises(CheckpointError, match=text):
        scale.load_state_dict(state)
    assert scale.state_dict() == {"value": FIRST, "good": 0}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_texts_mean(precision):
    auto = parse("auto", precision)
    assert (auto is not None) == (precision == "float16")
    assert parse("none", precision) is None
    for text, first, every in [
        ("dynamic", FIRST, EVERY),
        ("dynamic:first=1024", 1024, EVERY),
        ("dynamic:every=20, first=4", 4, 20),
    ]:
        scale = parse(text, precision)
        assert scale.value == first
        for _ in range(every - 1):
            scale.observe([])
        assert scale.value == first
        scale.observe([])
        assert scale.value == 2 * first
    fixed = parse("fixed:scale=32", precision)
    fixed.observe(NAN)
    assert fixed.value == 32


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "loss_scale '': unknown loss scale ''"),
        ("dynamc", "unknown loss scale 'dynamc'; did you mean 'dynamic'"),
        ("dynamic:fist=2", "unknown key of dynamic 'fist'; did you mean 'first'"),
        ("none:first=2", "loss_scale 'none:first=2': it takes no keys"),
        ("auto:", "loss_scale 'auto:': it takes no keys"),
        ("dynamic:first=big", "first must be a number, got 'big'"),
        ("dynamic:first=1000", "first must be a power of two from 1 to 1.84467e.19, got 1000"),
        ("dynamic:first=0.5", "first must be a power of two from 1"),
        ("fixed:scale=-2", "scale must be a power of two"),
        ("fixed:scale=nan", "scale must be a power of two"),
        ("dynamic:every=0", "every must be a whole number of at least 1, got 0"),
        ("dynamic:every=2.5", "every must be a whole number of at least 1, got 2.5"),
        ("dynamic:every=inf", "every must be a whole number of at least 1, got inf"),
    ],
)
def test_texts_that_make_no_sense(text, said):
    with pytest.raises(ConfigError, match=said):
        parse(text, "float16")


# ---- gradients of a scaled loss


class Copy:
    def __init__(self, params):
        self.params = params
        self.grads = {name: np.full_like(p, np.nan) for name, p in params.items()}


MODEL = MLP((12,))
DIGITS = load(DatasetOptions())
BATCHES = [np.arange(16), np.arange(16, 40)]


def gradient(precision, scale, hooks=None, kernels=cpu):
    copy = Copy(MODEL.init(DIGITS.features, DIGITS.classes, seed=1))
    compute = Compute(MODEL, copy, kernels, precision, scale)
    result = compute.gradient(DIGITS, BATCHES, hooks and hooks(copy))
    return result, copy.grads


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "tf32"])
def test_a_scale_changes_no_bit_where_nothing_vanishes(precision):
    plain, grads = gradient(precision, None)
    scaled, others = gradient(precision, LossScale(2.0**10))
    assert scaled == plain
    for name, grad in grads.items():
        np.testing.assert_array_equal(others[name], grad)


def test_fewer_bits_come_closer_to_float32_the_more_there_are():
    (loss, _, samples), exact = gradient("float32", None)
    assert samples == 40
    errors = {}
    for precision in ("tf32", "bfloat16", "float16"):
        (its_loss, _, _), grads = gradient(precision, LossScale(2.0**10))
        assert its_loss == pytest.approx(loss, rel=0.01)
        differences = [np.linalg.norm(grads[n] - g) / np.linalg.norm(g) for n, g in exact.items()]
        errors[precision] = max(differences)
    assert 1e-5 < errors["tf32"] < 2e-3
    assert errors["float16"] < 2e-3
    assert 5 * errors["tf32"] < errors["bfloat16"] < 0.1


def test_what_vanishes_in_float16_is_there_with_a_scale():
    small = LossScale(2.0**-20, every=None)  # as a loss with small gradients is
    _, lost = gradient("float16", small)
    _, kept = gradient("float16", None)
    first = "layer0.weight"
    assert np.count_nonzero(lost[first]) < np.count_nonzero(kept[first]) / 2


def test_too_large_a_scale_is_an_overflow_and_the_next_ones_are_smaller():
    scale = LossScale(2.0**40, every=100)
    for _ in range(40):
        _, grads = gradient("float16", scale)
        before = scale.value
        scale.observe(grads.values())
        if scale.value == before:
            break
    assert 2.0**10 < scale.value < 2.0**30
    assert all(np.isfinite(grad).all() for grad in grads.values())


def test_hooks_see_gradients_that_are_final():
    _, final = gradient("float16", LossScale())
    told = []

    def hooks(copy):
        def done(names):
            for name in names:
                np.testing.assert_array_equal(copy.grads[name], final[name])
            told.extend(names)

        return Hooks(done=done)

    gradient("float16", LossScale(), hooks)
    assert told == ["layer1.weight", "layer1.bias", "layer0.weight", "layer0.bias"]


def test_what_comes_back_from_a_device_is_divided_there():
    apart = SimpleNamespace(**{**vars(cpu), "device": "gpu", "asarray": np.array})
    here, grads = gradient("float16", LossScale())
    there, others = gradient("float16", LossScale(), kernels=apart)
    assert there == here
    for name, grad in grads.items():
        np.testing.assert_array_equal(others[name], grad)


def test_an_evaluation_is_in_float32():
    copy = Copy(MODEL.init(DIGITS.features, DIGITS.classes, seed=1))
    results = [
        Compute(MODEL, copy, cpu, precision, scale).evaluate(copy.params, DIGITS, np.arange(50))
        for precision, scale in (("float32", None), ("float16", LossScale()))
    ]
    assert results[0] == results[1]
