"""``psgrad bench latency``: percentiles by hand, and a short run on two ranks."""

from __future__ import annotations

import json

import pytest

from psgrad.bench import latency
from psgrad.errors import ConfigError
from psgrad.roles import Roles


def test_percentiles():
    found = latency.Latency.of("step", [1e-6 * i for i in range(101)])
    assert (found.what, found.count) == ("step", 101)
    assert (found.p10, found.p50, found.p90) == pytest.approx((10.0, 50.0, 90.0))


def test_the_table_compares_with_the_last_row():
    rows = [
        latency.Latency("psgrad step", 60, 80, 100, 9),
        latency.Latency("bare MPI", 9, 16, 20, 9),
    ]
    head, columns, *lines = latency.table(rows, 4096).splitlines()
    assert head == "4 KiB there and back, 1 server, 1 worker, 9 of each; us"
    assert columns.split() == ["10%", "median", "90%", "x", "bare"]
    assert [line.split() for line in lines] == [
        ["psgrad", "step", "60.0", "80.0", "100.0", "5.00"],
        ["bare", "MPI", "9.0", "16.0", "20.0", "1.00"],
    ]


def test_what_warms_up_is_not_timed():
    calls = []
    seconds = latency.timed(lambda: calls.append(1), 7)
    assert len(seconds) == 7
    assert len(calls) == 7 + latency.WARM_UP


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"nbytes": 6}, "a size must be a multiple of 4 bytes .*, got 6"),
        ({"steps": 9}, "at least 10 steps, got 9"),
    ],
)
def test_plans_that_cannot_be(values, error):
    with pytest.raises(ConfigError, match=error):
        latency.LatencyPlan(**values)


def test_it_is_for_a_server_and_a_worker():
    plan = latency.LatencyPlan()
    assert plan.roles(2) == Roles(2, 1)
    for ranks in (1, 3):
        with pytest.raises(ConfigError, match=f"2 ranks, a server and a worker, .* has {ranks}"):
            plan.roles(ranks)


def test_a_run(mpi):
    command = ["bench", "latency", "--steps", "20", "--size", "8K", "--codec", "int8", "--json"]
    status, stdout, stderr = mpi.psgrad(command)
    assert status == 0, stderr
    *table, last = stdout.splitlines()
    record = json.loads(last)
    assert (record["what"], record["nbytes"], record["run"]["codec"]) == ("latency", 8192, "int8")
    assert [(row["what"], row["count"]) for row in record["rows"]] == [
        ("psgrad step", 20),
        ("bare MPI", 20),
    ]
    for row in record["rows"]:
        assert 0 < row["p10_us"] <= row["p50_us"] <= row["p90_us"]
    rows = [
        latency.Latency(r["what"], r["p10_us"], r["p50_us"], r["p90_us"], r["count"])
        for r in record["rows"]
    ]
    assert table == latency.table(rows, 8192).splitlines()
