"""Schedules: tables of values, the shape between them, and what they refuse."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.errors import ConfigError
from psgrad.schedules import SCHEDULES, Constant, Cosine, StepDecay, Warmup

positions = st.floats(0, 1e9)
counts = st.integers(1, 10_000)


@st.composite
def step_decays(draw):
    every = draw(counts)
    return StepDecay(every, draw(st.floats(0, 1)), draw(st.integers(0, every)))


@st.composite
def cosines(draw):
    total = draw(counts)
    return Cosine(total, draw(st.floats(0, 1)), draw(st.integers(0, total - 1)))


schedules = st.one_of(st.just(Constant()), counts.map(Warmup), step_decays(), cosines())


def test_the_table_of_names():
    assert dict(SCHEDULES) == {
        "constant": Constant,
        "warmup": Warmup,
        "step": StepDecay,
        "cosine": Cosine,
    }


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Constant(), {0: 1, 0.5: 1, 1e9: 1}),
        (Warmup(1), {0: 1, 7: 1}),
        (Warmup(4), {0: 0.25, 0.5: 0.375, 1: 0.5, 2: 0.75, 2.9: 0.975, 3: 1, 3.5: 1, 1e9: 1}),
        (StepDecay(10), {0: 1, 9.99: 1, 10: 0.1, 19.5: 0.1, 20: 0.01, 1e9: 0}),
        (StepDecay(10, gamma=0.5), {10: 0.5, 25: 0.25, 30: 0.125}),
        (StepDecay(10, gamma=1.0), {0: 1, 1e9: 1}),
        (StepDecay(10, gamma=0.0), {0: 1, 10: 0}),
        (StepDecay(10, 0.5, 5), {0: 0.2, 3: 0.8, 4: 1, 9: 1, 10: 0.5}),
        (StepDecay(5, 0.5, 5), {3: 0.8, 4: 1, 4.5: 1, 5: 0.5}),
        (Cosine(8), {0: 1, 2: 0.5 + math.sqrt(0.125), 4: 0.5, 8: 0, 8.1: 0, 1e9: 0}),
        (Cosine(8, floor=0.2), {0: 1, 4: 0.6, 8: 0.2, 100: 0.2}),
        (Cosine(12, warmup=4), {0: 0.25, 3: 1, 3.5: 1, 4: 1, 8: 0.5, 12: 0, 13: 0}),
        (Cosine(1), {0: 1, 0.5: 0.5, 1: 0}),
    ],
    ids=repr,
)
def test_values(schedule, values):
    got = {position: schedule.factor(position) for position in values}
    assert got == pytest.approx(values, rel=1e-12, abs=1e-15)
    assert {type(factor) for factor in got.values()} == {float}


@settings(deadline=None)
@given(schedules, positions)
def test_a_factor_is_in_the_unit_interval(schedule, position):
    assert 0.0 <= schedule.factor(position) <= 1.0


@settings(deadline=None)
@given(schedules)
def test_the_first_update_moves(schedule):
    assert schedule.factor(0.0) > 0.0


@settings(deadline=None)
@given(schedules, positions, positions)
def test_factors_rise_during_warm_up_and_fall_after_it(schedule, a, b):
    ramp = schedule.steps if isinstance(schedule, Warmup) else getattr(schedule, "warmup", 0)
    end = max(ramp - 1, 0)  # the position of the first full update
    assert schedule.factor(end) == pytest.approx(1.0)
    low, high = sorted((a, b))
    slack = 1e-12  # the cosine is monotonic only up to rounding
    assert schedule.factor(min(low, end)) <= schedule.factor(min(high, end)) + slack
    assert schedule.factor(end + low) >= schedule.factor(end + high) - slack


@settings(deadline=None)
@given(st.one_of(counts.map(Warmup), cosines()), positions, st.floats(0, 1))
def test_warm_up_and_cosine_are_continuous_everywhere(schedule, position, gap):
    # At every position, so at the joins too: no slope is steeper than pi/2 over the shorter ramp.
    if isinstance(schedule, Warmup):
        joins, steepest = [schedule.steps - 1], 1 / schedule.steps
    else:
        joins = [max(schedule.warmup - 1, 0), schedule.warmup, schedule.total]
        fall = math.pi / 2 / (schedule.total - schedule.warmup)
        steepest = max(fall, 1 / schedule.warmup if schedule.warmup > 0 else 0)
    for at in (position, *joins):
        rise = abs(schedule.factor(at + gap) - schedule.factor(at))
        assert rise <= steepest * gap * (1 + 1e-6) + 1e-9


@settings(deadline=None)
@given(step_decays(), st.integers(0, 1000), st.floats(0, 1, exclude_max=True))
def test_step_decay_is_flat_between_its_steps(schedule, k, within):
    plain = dataclasses.replace(schedule, warmup=0)
    inside = min((k + within) * schedule.every, math.nextafter((k + 1) * schedule.every, 0))
    assert plain.factor(max(inside, k * schedule.every)) == plain.factor(k * schedule.every)
    fallen = plain.factor(k * schedule.every) * schedule.gamma
    assert plain.factor((k + 1) * schedule.every) == pytest.approx(fallen, rel=1e-12, abs=1e-300)


COUNT = "must be a whole number of updates, at least"
FRACTION = "must be a number in [0, 1], got"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Warmup(0), f"Warmup: steps {COUNT} 1, got 0"),
        (lambda: Warmup(-3), f"Warmup: steps {COUNT} 1, got -3"),
        (lambda: Warmup(2.5), f"Warmup: steps {COUNT} 1, got 2.5"),
        (lambda: Warmup(True), f"Warmup: steps {COUNT} 1, got True"),
        (lambda: Warmup("9"), f"Warmup: steps {COUNT} 1, got '9'"),
        (lambda: StepDecay(0), f"StepDecay: every {COUNT} 1, got 0"),
        (lambda: StepDecay(9, warmup=-1), f"StepDecay: warmup {COUNT} 0, got -1"),
        (lambda: StepDecay(9, gamma=1.1), f"StepDecay: gamma {FRACTION} 1.1; "),
        (lambda: StepDecay(9, gamma=float("nan")), f"StepDecay: gamma {FRACTION} nan; "),
        (lambda: StepDecay(9, gamma="0.1"), f"StepDecay: gamma {FRACTION} '0.1'; "),
        (lambda: StepDecay(9, warmup=10), "StepDecay: warmup must be at most every (9), got 10; "),
        (lambda: Cosine(0), f"Cosine: total {COUNT} 1, got 0"),
        (lambda: Cosine(9, floor=-0.1), f"Cosine: floor {FRACTION} -0.1; "),
        (lambda: Cosine(9, floor=False), f"Cosine: floor {FRACTION} False; "),
        (lambda: Cosine(9, warmup=0.5), f"Cosine: warmup {COUNT} 0, got 0.5"),
        (lambda: Cosine(9, warmup=9), "Cosine: warmup must be below total (9), got 9; "),
    ],
)
def test_a_bad_option_is_named_with_its_limit(make, text):
    with pytest.raises(ConfigError) as raised:
        make()
    message = str(raised.value)
    assert message.startswith(text)
    assert "\n" not in message


def test_options_become_plain_numbers_so_that_records_compare():
    schedule = Cosine(np.int64(9), np.float32(0.5), np.int32(1))
    assert repr(schedule) == repr(Cosine(9, 0.5, 1))
