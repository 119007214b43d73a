"""What ``Codec.unbiased`` says is true, of each codec with each of its options."""

from __future__ import annotations

import numpy as np
import pytest

from psgrad import codecs
from psgrad.codecs import Key, Workspace, parse
from psgrad.codecs.base import write_into

SPECS = {
    "none": True,
    "fp16": False,
    "bf16": False,
    "int8": False,
    "int8:rounding=stochastic": True,
    "int8:block=16,rounding=stochastic": True,
    "int4": False,
    "int4:block=16": False,
    "int4:rounding=stochastic": True,
    "int4:block=32768,rounding=stochastic": True,
    "qsgd": True,
    "qsgd:levels=1,block=16": True,
    "qsgd:levels=127,block=512": True,
    "ternary": True,
    "ternary:block=32": True,
    "sign": False,
    "sign:block=32": False,
    "topk:0.01": False,
    "topk:0.9": False,
    "topk:0.3,select=threshold": False,
    "topk:1": True,
    "topk:1,warmup=1000": True,
    "topk:1,select=threshold": True,
    "topk:1+bf16": False,
    "topk:1+int8": False,
    "topk:0.9,scope=tensor": False,
    "topk:0.9,scope=global": False,
    "randk:0.01": True,
    "randk:0.7": True,
    "randk:1": True,
    "adaptive": False,
}
N, TRIALS = 4000, 400


def gaussian(scale=1.0):
    return (np.random.default_rng(1).standard_normal(N) * scale).astype(np.float32)


INPUTS = {
    "gaussian": gaussian(),
    "constant": np.full(N, -3.7, np.float32),
    "sparse": gaussian() * (np.arange(N) % 37 == 1),
    "small": gaussian(1e-7),
}


def excess(codec, x, trials):
    """By how much the mean over ``trials`` steps misses x, in what chance and rounding allow.

    Along 20 directions, of which the largest is taken: 5 sigma of the mean, and 1e-6 for float32.
    """
    directions = np.random.default_rng(0).standard_normal((20, N))
    directions[0], directions[1] = x / abs(x).max(), np.sign(x)
    work, out, payload = Workspace(), np.zeros(N, np.float32), np.zeros(codec.nbytes_max(N), "u1")
    along = np.zeros((trials, 20))
    for step in range(trials):
        nbytes = codec.encode(x, None, payload, Key(5, 0, step, 0), work)
        write_into(codec.open(payload[:nbytes], N), out)
        along[step] = directions @ (out - x.astype(np.float64))
    sigma = along.std(axis=0, ddof=1) / np.sqrt(trials)
    rounding = 1e-6 * abs(directions) @ abs(x.astype(np.float64))
    return (abs(along.mean(axis=0)) / (5 * sigma + rounding)).max()


def test_the_table_has_every_codec_and_what_it_says_of_itself():
    assert {parse(text).name for text in SPECS} == set(codecs.CODECS)
    assert {text: parse(text).unbiased for text in SPECS} == SPECS


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("text", [text for text in SPECS if parse(text).unbiased])
def test_an_unbiased_codec_is_right_on_average(text, kind):
    assert excess(parse(text), INPUTS[kind], TRIALS) <= 1


@pytest.mark.parametrize("text", [text for text in SPECS if not parse(text).unbiased])
def test_a_biased_codec_is_not(text):
    """So the test above would see it if it were called unbiased."""
    assert excess(parse(text), INPUTS["gaussian"], 5) > 1


@pytest.mark.parametrize("text", SPECS)
def test_nobody_can_set_it(text):
    with pytest.raises(AttributeError):
        parse(text).unbiased = True
