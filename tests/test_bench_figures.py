"""The arithmetic and the table of ``psgrad bench step``, with figures worked out by hand."""

from __future__ import annotations

import pytest

from psgrad.bench.figures import (
    ALLREDUCE,
    COPIED,
    GUARD,
    IN_PLACE,
    MEMCPY,
    TUNED,
    Row,
    Spread,
    guard_line,
    head,
    in_bytes,
    limit_s,
    lines,
    milliseconds,
    rows,
)

NBYTES = 64 << 20
# Medians 25, 40, 100, 50 and 10 ms.
SAMPLES = {
    IN_PLACE: [0.030, 0.024, 0.025],
    COPIED: [0.040, 0.040, 0.050],
    ALLREDUCE: [0.100, 0.090, 0.200],
    TUNED: [0.050, 0.050, 0.060],
    MEMCPY: [0.010, 0.011, 0.009],
}


def test_a_spread():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert Spread.of([1.0, 2.0]) == Spread(1.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("workers", "together", "ms"),
    # (W + 2) n bytes where a copy moves 2 n in 10 ms; alone, each push moves 3 n.
    [(1, True, 15.0), (2, True, 20.0), (3, True, 25.0), (1, False, 15.0), (2, False, 30.0)],
)
def test_the_limit(workers, together, ms):
    assert limit_s(0.010, workers, together) == pytest.approx(1e-3 * ms)


def test_rows():
    in_place, copied, allreduce, tuned, memcpy = rows(NBYTES, SAMPLES, workers=2, together=True)
    assert [row.way for row in (in_place, copied, allreduce, tuned, memcpy)] == list(SAMPLES)
    assert in_place.spread == Spread(0.025, 0.024, 0.030)
    assert in_place.limit_s == copied.limit_s == allreduce.limit_s == pytest.approx(0.020)
    assert in_place.of_limit == pytest.approx(0.8)
    assert copied.of_limit == pytest.approx(0.5)
    assert in_place.to_allreduce == pytest.approx(4.0)
    assert copied.to_allreduce == pytest.approx(2.5)
    assert allreduce.to_allreduce == 1.0
    assert (in_place.to_tuned, tuned.to_tuned) == pytest.approx((2.0, 1.0))
    assert in_place.rate == pytest.approx(67108864 / 0.025 / 1e9)
    assert memcpy.limit_s is memcpy.of_limit is memcpy.to_allreduce is memcpy.to_tuned is None


def test_what_was_not_measured_is_not_compared_with():
    (only,) = rows(NBYTES, {IN_PLACE: [0.025]}, workers=2, together=True)
    assert only.limit_s is only.of_limit is only.to_allreduce is only.to_tuned is None


def test_a_record_has_the_samples_and_what_follows_from_them():
    record = rows(NBYTES, SAMPLES, workers=2, together=True)[0].record()
    assert record == {
        "nbytes": NBYTES,
        "way": "in place",
        "samples": (0.030, 0.024, 0.025),
        "limit_s": pytest.approx(0.020),
        "allreduce_s": 0.100,
        "tuned_s": 0.050,
        "median_s": 0.025,
        "least_s": 0.024,
        "most_s": 0.030,
        "gb_per_s": pytest.approx(2.684354),
        "of_limit": pytest.approx(0.8),
        "to_allreduce": pytest.approx(4.0),
        "to_tuned": pytest.approx(2.0),
    }


def test_a_table():
    table = f"{head()}\n{lines(rows(NBYTES, SAMPLES, workers=2, together=True))}".splitlines()
    assert [line.split() for line in table] == [
        ["size", "median", "ms", "min", "-", "max", "GB/s", "limit", "ms", "of", "limit", "x",
         "Allreduce", "x", "tuned"],
        ["64", "MiB", "in", "place", "25.00", "24.00", "-", "30.00", "2.68", "20.00", "0.80",
         "4.00", "2.00"],
        ["copied", "40.00", "40.00", "-", "50.00", "1.68", "20.00", "0.50", "2.50", "1.25"],
        ["Allreduce", "100.0", "90.00", "-", "200.0", "0.67", "20.00", "0.20", "1.00",
         "0.50"],
        ["tuned", "50.00", "50.00", "-", "60.00", "1.34", "20.00", "0.40", "2.00", "1.00"],
        ["memcpy", "10.00", "9.000", "-", "11.00", "6.71"],
    ]  # fmt: skip
    ends = [len(line) for line in table[:5]]
    assert len(set(ends)) == 1, "columns end where their heads do"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1e-7, "0.0001"), (1.234e-5, "0.0123"), (1.5e-3, "1.500"), (0.0123456, "12.35"),
     (0.1234, "123.4"), (1.2345, "1234"), (12.345, "12345")],
)  # fmt: skip
def test_milliseconds(seconds, text):
    assert milliseconds(seconds) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(4, "4 B"), (1000, "1000 B"), (4096, "4 KiB"), (6 << 20, "6 MiB"), (1 << 30, "1 GiB"),
     ((1 << 20) + 4, "1048580 B")],
)  # fmt: skip
def test_bytes(nbytes, text):
    assert in_bytes(nbytes) == text


def test_a_row_of_one_sample():
    row = Row(4096, IN_PLACE, (2e-5,), None, None, None)
    assert row.spread == Spread(2e-5, 2e-5, 2e-5)
    assert row.rate == pytest.approx(0.2048)


def test_what_the_guard_costs():
    table = rows(NBYTES, SAMPLES | {GUARD: [0.005, 0.004, 0.006]}, workers=2, together=True)
    guard = table[-1]
    assert guard.limit_s is guard.to_allreduce is None
    # 5 ms of 25, and 2% of 250.
    said = "guard: 20% of a step in place; below 2% of a training step from 250.0 ms on"
    assert guard_line(table).strip() == said
    assert lines(table).splitlines()[-1] == guard_line(table)
    assert guard_line(table[1:]) == guard_line(table[:-1]) == ""
