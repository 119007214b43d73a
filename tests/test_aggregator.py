"""The arithmetic of robust aggregates against a naive twin in float64, and what they promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad import aggregator
from psgrad.aggregate import Krum, Median, TrimmedMean
from psgrad.aggregator import Aggregator, network
from psgrad.codecs import CODECS, Key, Workspace, parse
from psgrad.codecs.base import BLOCK, write_into
from psgrad.errors import ConfigError
from psgrad.kernels.crew import PIECE, Crew

SETTINGS = settings(deadline=None, max_examples=60, derandomize=True)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def combine(rule, rows, crew=None):
    """Of rows[W, n], as a new array."""
    return np.array(Aggregator(rule, crew).combine(list(rows), len(rows[0])))


def twin(rule, rows):
    """The same in float64, column by column."""
    rows = np.asarray(rows, np.float64)
    if isinstance(rule, Median):
        return np.median(rows, axis=0)
    if isinstance(rule, TrimmedMean):
        return np.sort(rows, axis=0)[rule.f : len(rows) - rule.f].mean(axis=0)
    apart = np.array([[np.square(a - b).sum() for b in rows] for a in rows])
    scores = np.sort(apart, axis=1)[:, 1 : len(rows) - rule.f - 1].sum(axis=1)
    return rows[np.argmin(scores)]


RULES = [
    (rule, count)
    for count in (3, 4, 5, 7, 8, 12)
    for rule in (Median(), TrimmedMean(1), TrimmedMean(3), Krum(1), Krum(2))
    if count >= rule.least
]


@pytest.mark.parametrize("n", [1, 7, 8192, BLOCK, BLOCK + 5])
@pytest.mark.parametrize(("rule", "count"), RULES, ids=str)
def test_as_the_twin(rule, count, n):
    rows = normal((count, n), count, n)
    np.testing.assert_allclose(combine(rule, rows), twin(rule, rows), rtol=2e-6, atol=1e-7)


def test_the_median_of_an_odd_number_is_one_of_them_to_the_bit():
    rows = normal(1, 5, 1000)
    np.testing.assert_array_equal(combine(Median(), rows), np.sort(rows, axis=0)[2])


def test_krum_is_one_of_them_to_the_bit():
    rows = list(normal(1, 7, 100))
    assert any(Aggregator(Krum(2)).combine(rows, 100) is row for row in rows)


@pytest.mark.parametrize("count", range(1, 9))
def test_the_network_brings_each_rank_to_its_row(count):
    """All rows of 0 and 1: what sorts these sorts everything (Knuth 5.3.4, theorem Z)."""
    columns = np.array(list(itertools.product((0.0, 1.0), repeat=count)), np.float32).T
    expected = np.sort(columns, axis=0)
    for first in range(count):
        for last in range(first, count):
            ranks = range(first, last + 1)
            rows = columns.copy()
            for low, high, keeps_low, keeps_high in network(count, ranks):
                assert low < high
                assert keeps_low or keeps_high
                a, b = rows[low].copy(), rows[high].copy()
                rows[low] = np.minimum(a, b) if keeps_low else np.nan
                rows[high] = np.maximum(a, b) if keeps_high else np.nan
            np.testing.assert_array_equal(rows[list(ranks)], expected[list(ranks)])


def test_the_network_leaves_out_what_other_ranks_are_for():
    whole = {count: len(network(count, range(count))) for count in (1, 2, 3, 4, 5, 8)}
    assert whole == {1: 0, 2: 1, 3: 3, 4: 5, 5: 9, 8: 19}
    assert len(network(8, range(1))) == 7, "the smallest of eight"


@pytest.mark.parametrize(("rule", "count"), RULES, ids=str)
def test_the_order_of_the_workers_does_not_matter(rule, count):
    rows = normal(count, count, 300)
    rows[0, ::7], rows[1, ::5] = np.inf, np.nan
    expected = combine(rule, rows)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(count)
        np.testing.assert_array_equal(combine(rule, rows[order]), expected)


@SETTINGS
@given(st.data(), st.sampled_from([3, 4, 5, 6, 9]), st.integers(0, 2**32 - 1))
def test_what_arbitrary_rows_cannot_do(data, count, seed):
    """Rank k of all is between the honest ranks k - f and k: so no rule leaves their range."""
    f = data.draw(st.integers(0, (count - 1) // 2))
    honest = normal(seed, count - f, 20)
    wild = st.floats(width=32) | st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -3e38])
    wrong = [data.draw(st.lists(wild, min_size=20, max_size=20)) for _ in range(f)]
    rows = np.concatenate([honest, np.array(wrong, np.float32).reshape(f, 20)])
    rows = rows[np.random.default_rng(seed).permutation(count)]
    x = np.sort(honest, axis=0)
    for rule in [Median(), *([TrimmedMean(f)] if f else [])]:
        ranks = rule.ranks(count)
        found = combine(rule, rows)
        slack = 2e-6 * np.abs(x).max()
        least = x[[k - f for k in ranks]].mean(axis=0)
        most = x[list(ranks)].mean(axis=0)
        assert (least - slack <= found).all()
        assert (found <= most + slack).all()


@SETTINGS
@given(st.integers(1, 3), st.sampled_from([1e3, 1e30, np.inf, -np.inf, np.nan]), st.data())
def test_krum_takes_an_honest_row(f, wrong, data):
    count = 2 * f + 3 + data.draw(st.integers(0, 2))
    rows = normal(f, count, 50)
    where = data.draw(st.permutations(range(count)))[:f]
    rows[where] = np.float32(wrong)
    found = Aggregator(Krum(f)).combine(list(rows), 50)
    honest = set(range(count)) - set(where)
    assert any(np.array_equal(found, rows[w]) for w in honest)


@pytest.mark.parametrize("size", [2.0**-100, 2.0**100])
def test_krum_sees_distances_that_are_too_small_or_large_for_float32(size):
    rows = normal(3, 5, 64)
    rows[0] *= 50
    expected = combine(Krum(1), rows) * np.float32(size)
    assert not np.array_equal(expected, rows[0] * np.float32(size))
    np.testing.assert_array_equal(combine(Krum(1), rows * np.float32(size)), expected)


def test_beyond_the_bound_they_break():
    """One more than they are for, so that the tests above are no accident."""
    rows = np.zeros((5, 3), np.float32)
    rows[:3] = 1e6
    np.testing.assert_array_equal(combine(Median(), rows), 1e6)
    np.testing.assert_array_equal(combine(Krum(1), rows), 1e6)
    rows = np.zeros((5, 3), np.float32)
    rows[:2] = 3e6
    np.testing.assert_allclose(combine(TrimmedMean(1), rows), 1e6)


# What does not show


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(2), Krum(1)], ids=str)
def test_blocks_do_not_show(rule, monkeypatch):
    rows = normal(1, 5, 3 * 64 + 5)
    whole = combine(rule, rows)
    for block in (1, 64, 100):
        monkeypatch.setattr(aggregator, "BLOCK", block)
        np.testing.assert_array_equal(combine(rule, rows), whole)


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(2), Krum(1)], ids=str)
def test_threads_do_not_show(rule):
    rows = normal(1, 5, 3 * PIECE + 7)
    results = [combine(rule, rows, crew).tobytes() for crew in (None, Crew(2), Crew(3))]
    assert results[0] == results[1] == results[2]
    crews = (None, Crew(3))
    one, three = (Aggregator(rule, crew).distances(list(rows), rows.shape[1]) for crew in crews)
    np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(1), Krum(1)], ids=str)
def test_payloads_are_read_only(rule):
    rows = normal(1, 5, BLOCK + 7)
    rows[0, 5] = np.nan
    rows.setflags(write=False)
    combine(rule, rows)


def test_one_after_the_other():
    """Other sizes, other numbers of gradients: scratch and networks are those of each call."""
    robust = Aggregator(Median())
    for count, n in ((3, 10), (5, BLOCK + 3), (4, 7), (3, 10)):
        rows = normal((count, n), count, n)
        found = robust.combine(list(rows), n)
        np.testing.assert_allclose(found, np.median(rows, axis=0), rtol=1e-6)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rule", [Median(), TrimmedMean(1), Krum(1)], ids=str)
def test_payloads_of_codecs_are_as_what_they_stand_for(rule, codec):
    n, chosen = 2 * BLOCK + 11, parse(codec)
    if codec == "adaptive":
        chosen = parse("int8")
    opened, values = [], []
    for worker in range(5):
        out = np.zeros(chosen.nbytes_max(n), np.uint8)
        grad, key = normal(worker, n), Key(0, worker, 1, 0)
        nbytes = chosen.encode(grad, None, out, key, Workspace())
        opened.append(chosen.open(out[:nbytes], n))
        values.append(np.zeros(n, np.float32))
        write_into(opened[-1], values[-1])
    mixed = [values[0], *opened[1:]]  # what a worker flushes when it leaves is bare
    for payloads in (opened, mixed):
        found = Aggregator(rule, Crew(2)).combine(payloads, n)
        if not isinstance(found, np.ndarray):
            chunk = np.zeros(n, np.float32)
            write_into(found, chunk)
            found = chunk
        np.testing.assert_array_equal(found, combine(rule, values))


def test_too_few():
    robust = Aggregator(TrimmedMean(2))
    with pytest.raises(ConfigError) as caught:
        robust.combine(list(normal(1, 4, 9)), 9, clock=17)
    assert str(caught.value) == (
        "aggregate trimmed-mean:2 needs 5 gradients in every round, round 17 has 4: a worker has "
        "left, or its step was empty; give all workers the same number of steps, start more, or "
        "use trimmed-mean:1"
    )
