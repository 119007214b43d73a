"""Planted faults: what a text means, what is refused, and what each does to a worker."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from psgrad import faults
from psgrad.errors import ConfigError
from psgrad.faults import Fault, parse
from psgrad.roles import Roles

ROLES = Roles(4, 1)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("slow:rank=3,factor=5", Fault("slow", 3, factor=5.0)),
        ("slow:factor=1.5,rank=1", Fault("slow", 1, factor=1.5)),
        ("slow:rank=1,factor=1", Fault("slow", 1, factor=1.0)),
        ("nan:rank=2,step=7", Fault("nan", 2, step=7, steps=1)),
        ("nan:rank=2,step=7,steps=3", Fault("nan", 2, step=7, steps=3)),
        ("fail:rank=2,step=1", Fault("fail", 2, step=1)),
        ("signflip:rank=2,factor=10", Fault("signflip", 2, factor=10.0)),
        ("stop:rank=2,step=5", Fault("stop", 2, step=5)),
    ],
)
def test_what_a_text_means(text, fault):
    assert parse(text, ROLES) == fault


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "unknown fault ''. Known: fail, nan, signflip, slow"),
        ("slwo:rank=1,factor=2", "unknown fault 'slwo'; did you mean 'slow' or 'stop'?"),
        ("slow", "unknown key of slow ''"),
        ("slow:rank=1", "slow needs factor"),
        ("fail:step=1", "fail needs rank"),
        ("signflip:rank=1", "signflip needs factor"),
        ("signflip:rank=1,factor=0", "factor must be finite and at least 1, got 0"),
        ("slow:rank=1,facto=2", "unknown key of slow 'facto'; did you mean 'factor'?"),
        ("slow:rank=1,factor=2,step=3", "unknown key of slow 'step'"),
        ("slow:rank=one,factor=2", "rank must be a number, got 'one'"),
        ("slow:rank=1,factor=", "factor must be a number, got ''"),
        ("slow:rank=0,factor=2", "rank must be a worker, 1 to 3, got 0"),
        ("slow:rank=4,factor=2", "rank must be a worker, 1 to 3, got 4"),
        ("slow:rank=1.5,factor=2", "rank must be a worker, 1 to 3, got 1.5"),
        ("slow:rank=nan,factor=2", "rank must be a worker, 1 to 3, got nan"),
        ("slow:rank=1,factor=0.5", "factor must be finite and at least 1, got 0.5"),
        ("slow:rank=1,factor=nan", "factor must be finite and at least 1, got nan"),
        ("slow:rank=1,factor=inf", "factor must be finite and at least 1, got inf"),
        ("nan:rank=1,step=0", "step must be a whole number of at least 1, got 0"),
        ("nan:rank=1,step=-2", "step must be a whole number of at least 1, got -2"),
        ("nan:rank=1,step=1.5", "step must be a whole number of at least 1, got 1.5"),
        ("fail:rank=1,step=nan", "step must be a whole number of at least 1, got nan"),
        ("fail:rank=1,step=inf", "step must be a whole number of at least 1, got inf"),
        ("nan:rank=1,step=1,steps=0", "steps must be a whole number of at least 1, got 0"),
    ],
)
def test_what_makes_no_sense(text, problem):
    with pytest.raises(ConfigError) as caught:
        parse(text, ROLES)
    assert str(caught.value).startswith(f"inject {text!r}: {problem}")


class StubWorker(SimpleNamespace):
    """A worker before step ``clock`` + 1."""

    def __init__(self, clock):
        super().__init__(clock=clock, slept=[], grads={"w": np.ones((2, 3)), "b": np.ones(3)})

    def sleep(self, seconds):
        self.slept.append(seconds)


def plant(text, clock, rank=2):
    worker = StubWorker(clock)
    faults.apply([parse(text, ROLES)], worker, rank, compute_s=0.5)
    return worker


def test_a_slow_rank_sleeps_the_rest_of_its_time():
    assert plant("slow:rank=2,factor=5", 0).slept == [2.0]
    assert plant("slow:rank=2,factor=1", 0).slept == [0.0]


@pytest.mark.parametrize(("clock", "planted"), [(1, False), (2, True), (3, True), (4, False)])
def test_a_nan_comes_in_its_steps(clock, planted):
    worker = plant("nan:rank=2,step=3,steps=2", clock)
    assert np.isnan(worker.grads["w"]).sum() == planted
    assert np.isfinite(worker.grads["b"]).all()


def test_a_rank_fails_before_its_step():
    plant("fail:rank=2,step=3", 1)
    with pytest.raises(RuntimeError, match="planted failure at step 3"):
        plant("fail:rank=2,step=3", 2)
    plant("fail:rank=2,step=3", 3)


@pytest.mark.parametrize(
    "text",
    ["slow:rank=1,factor=5", "nan:rank=1,step=1", "fail:rank=1,step=1", "signflip:rank=1,factor=2"],
)
def test_other_ranks_are_left_alone(text):
    worker = plant(text, 0, rank=2)
    assert worker.slept == []
    np.testing.assert_array_equal(worker.grads["w"], 1.0)


def test_a_sign_is_flipped_in_every_step():
    for clock in (0, 7):
        worker = plant("signflip:rank=2,factor=2.5", clock)
        for grad in worker.grads.values():
            np.testing.assert_array_equal(grad, -2.5)
        assert worker.slept == []


def test_several_faults_at_once():
    worker = StubWorker(0)
    planted = [parse(t, ROLES) for t in ("slow:rank=1,factor=2", "nan:rank=1,step=1")]
    faults.apply(planted, worker, 1, compute_s=1.0)
    assert worker.slept == [1.0]
    assert np.isnan(worker.grads["w"][0, 0])
