"""Robust aggregates: specs, what is refused, ranks, and the choice of Krum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import psgrad
from psgrad.aggregate import (
    AGGREGATES,
    Krum,
    Median,
    TrimmedMean,
    check,
    check_workers,
    parse,
)
from psgrad.config import from_settings
from psgrad.errors import ConfigError
from psgrad.options import Options
from psgrad.train import configure


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("mean", None),
        ("median", Median()),
        (" median ", Median()),
        ("trimmed-mean:2", TrimmedMean(2)),
        ("trimmed-mean:f=2", TrimmedMean(2)),
        ("krum:1", Krum(1)),
        ("krum: 12", Krum(12)),
    ],
)
def test_what_a_spec_means(text, rule):
    assert parse(text) == rule
    if rule is not None:
        assert parse(rule.spec) == rule
        assert type(rule) is AGGREGATES[rule.name]


F = "f, how many workers may be wrong, must be a whole number of at least 1, got"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "unknown aggregate ''. Known: krum, mean, median, trimmed-mean"),
        ("meadian", "unknown aggregate 'meadian'; did you mean 'median'"),
        ("trimmed:1", "unknown aggregate 'trimmed'"),
        ("mean:1", "aggregate 'mean:1': mean takes no option; write mean"),
        ("median:", "aggregate 'median:': median takes no option; write median"),
        ("krum", f"aggregate 'krum': {F} ''; write krum:1, or use mean"),
        ("krum:0", f"aggregate 'krum:0': {F} '0'"),
        ("krum:-1", f"aggregate 'krum:-1': {F} '-1'"),
        ("krum:" + 5000 * "9", "aggregate 'krum:999"),
        ("krum:1.5", f"aggregate 'krum:1.5': {F} '1.5'"),
        ("krum:²", f"aggregate 'krum:²': {F} '²'"),
        ("trimmed-mean:m=1", f"aggregate 'trimmed-mean:m=1': {F} 'm=1'; write trimmed-mean:1"),
    ],
)
def test_what_is_no_spec(text, problem):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value).startswith(problem)


NEEDS_SYNC = "aggregate median needs rounds, sync mode (staleness 0), got staleness {}; use mode"
NO_EF21 = "aggregate krum:1 needs gradients, feedback ef21 pushes differences to an estimate"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"aggregate": "median", "staleness": 3}, NEEDS_SYNC.format(3)),
        ({"aggregate": "median", "staleness": None}, NEEDS_SYNC.format(None)),
        ({"aggregate": "krum:1", "codec": "sign", "feedback": "ef21"}, NO_EF21),
        ({"aggregate": "krum:0"}, f"aggregate 'krum:0': {F} '0'"),
        ({"aggregate": 2}, "aggregate must be a string, got 2"),
    ],
)
def test_options_refuse(options, problem):
    with pytest.raises(ConfigError) as caught:
        Options(**options)
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["aggregate=median"], NEEDS_SYNC.format(3)),
        (["aggregate=median", "mode=async"], NEEDS_SYNC.format(None)),
        (["aggregate=krum:1", "mode=sync", "codec=sign", "feedback=ef21"], NO_EF21),
        (["aggregate=average"], "unknown aggregate 'average'"),
    ],
)
def test_the_trainer_refuses_before_any_rank_runs(settings, problem):
    with pytest.raises(ConfigError) as caught:
        configure([from_settings(settings)])
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize("staleness", [0, 3, None])
def test_the_mean_goes_with_everything(staleness):
    assert check("mean", staleness, "ef21") is None


@pytest.mark.parametrize(
    ("text", "least", "one_less"),
    [
        ("median", 3, "needs at least 3 workers, got 2; start more, or use aggregate mean"),
        ("trimmed-mean:1", 3, "(2f + 1), got 2; start more, or use aggregate mean"),
        ("trimmed-mean:2", 5, "(2f + 1), got 4; start more, or use trimmed-mean:1"),
        ("trimmed-mean:4", 9, "(2f + 1), got 8; start more, or use trimmed-mean:3"),
        ("krum:1", 5, "(2f + 3), got 4; start more, or use aggregate mean"),
        ("krum:3", 9, "at least 9 workers (2f + 3), got 8; start more, or use krum:2"),
    ],
)
def test_bounds(text, least, one_less):
    rule = parse(text)
    check_workers(rule, least)
    with pytest.raises(ConfigError) as caught:
        check_workers(rule, least - 1)
    assert str(caught.value).startswith(f"aggregate {text} needs at least {least} workers")
    assert str(caught.value).endswith(one_less)
    options = Options(aggregate=text, servers=2)
    assert options.roles(least + 2).workers == least
    with pytest.raises(ConfigError, match=f"needs at least {least} workers"):
        options.roles(least + 1)


def test_a_rule_that_is_advised_is_one_that_suffices():
    for kind in (TrimmedMean, Krum):
        for count in range(1, 20):
            advised = kind(1).most(count)
            if advised is None:
                assert kind(1).least > count
            else:
                f = parse(advised).f
                assert kind(f).least <= count < kind(f + 1).least


def test_the_members_of_a_segment_must_suffice_too():
    segments = [psgrad.SegmentOptions("b", members=(0, 3))]
    options = Options(aggregate="median", segments=segments)
    with pytest.raises(ConfigError) as caught:
        options.roles(6)
    assert str(caught.value) == (
        "aggregate median needs at least 3 workers, got 2 as members of segment 'b'; start more, "
        "or use aggregate mean"
    )


@pytest.mark.parametrize(
    ("rule", "count", "ranks"),
    [
        (Median(), 3, [1]),
        (Median(), 4, [1, 2]),
        (Median(), 7, [3]),
        (TrimmedMean(1), 3, [1]),
        (TrimmedMean(1), 5, [1, 2, 3]),
        (TrimmedMean(2), 6, [2, 3]),
    ],
)
def test_ranks(rule, count, ranks):
    assert list(rule.ranks(count)) == ranks


# Krum


def distances_of(points):
    """[W, W], float64, the naive way."""
    points = np.asarray(points, np.float64)
    return np.array([[np.square(a - b).sum() for b in points] for a in points])


def naive_krum(points, f):
    """As the paper writes it."""
    scores = []
    for i, a in enumerate(points):
        others = sorted(
            float(np.square(np.asarray(a, np.float64) - b).sum())
            for j, b in enumerate(points)
            if j != i
        )
        scores.append(sum(others[: len(points) - f - 2]))
    return scores.index(min(scores))


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.integers(1, 3), st.integers(0, 4), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_krum_is_that_of_the_paper(f, more, dimension, seed):
    points = np.random.default_rng(seed).standard_normal((2 * f + 3 + more, dimension))
    assert Krum(f).choose(distances_of(points)) == naive_krum(points, f)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.integers(1, 4), st.integers(0, 4), st.booleans(), st.integers(0, 2**32 - 1), st.data())
def test_krum_takes_no_row_that_is_far_away(f, more, together, seed, data):
    """Not even where all of these are at one place, which is what hurts most."""
    count = 2 * f + 3 + more
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((count, 4))
    spread = np.sqrt(distances_of(points).max())
    where = data.draw(st.permutations(range(count)))[:f]
    away = rng.standard_normal((1 if together else f, 4))
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    points[where] += 3 * count * spread * away
    if together:
        points[where] = points[where[0]]
    assert Krum(f).choose(distances_of(points)) not in where


@pytest.mark.parametrize("wrong", [np.inf, np.nan])
def test_krum_takes_no_row_at_an_infinite_distance(wrong):
    distances = distances_of(np.arange(5.0)[:, None])
    distances[0, :] = distances[:, 0] = wrong
    assert Krum(1).choose(distances) != 0


def test_of_equal_rows_krum_takes_the_first():
    assert Krum(1).choose(np.zeros((5, 5))) == 0
    before = distances_of([[0.0], [5.0], [1.0], [9.0], [1.0]])
    distances = before.copy()
    assert Krum(1).choose(distances) == 2
    np.testing.assert_array_equal(distances, before)
