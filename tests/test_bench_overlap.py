"""``psgrad bench overlap``: the share that is hidden, by hand, and a short run."""

from __future__ import annotations

import json

import pytest

from psgrad.bench.overlap import WAYS, OverlapPlan, hidden, table
from psgrad.errors import ConfigError
from psgrad.layout import Layout
from psgrad.models import MLP
from psgrad.roles import Roles


@pytest.mark.parametrize(
    ("seconds", "share"),
    [
        ((3.0, 1.0, 4.0, 3.0), 1.0),
        ((3.0, 1.0, 4.0, 4.0), 0.0),
        ((1.0, 3.0, 4.0, 3.5), 0.5),
        ((2.0, 2.0, 4.0, 5.0), -0.5),
    ],
)
def test_what_is_hidden(seconds, share):
    samples = {way: [each] for way, each in zip(WAYS, seconds, strict=True)}
    assert hidden(samples) == [share]
    *_, last = table(OverlapPlan(), Roles(2, 1), samples).splitlines()
    assert last.split() == ["hidden", f"{share:.2f}", f"{share:.2f}", "-", f"{share:.2f}"]


@pytest.mark.parametrize("name", ["layers", "width", "batch", "rounds"])
def test_plans_that_cannot_be(name):
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        OverlapPlan(**{name: 0})


def test_bytes_are_those_of_the_model():
    plan = OverlapPlan(layers=3, width=8)
    layout = Layout.of(MLP((8, 8)).init(8, 8, 1))
    assert plan.nbytes == 4 * layout.size


def test_a_run(mpi):
    command = ["bench", "overlap", "--layers", "3", "--width", "64", "--batch", "8"]
    status, stdout, stderr = mpi.psgrad([*command, "--rounds", "2", "--np", "3", "--json"])
    assert status == 0, stderr
    *lines, last = stdout.splitlines()
    record = json.loads(last)
    assert (record["what"], record["workers"], record["servers"]) == ("overlap", 2, 1)
    assert (record["layers"], record["width"], record["batch"]) == (3, 64, 8)
    assert {way: len(seconds) for way, seconds in record["seconds"].items()} == dict.fromkeys(
        WAYS, 2
    )
    assert all(value > 0 for seconds in record["seconds"].values() for value in seconds)
    assert record["hidden"] == hidden(record["seconds"])
    plan = OverlapPlan(3, 64, 8, 2)
    assert lines == table(plan, Roles(3, 1), record["seconds"]).splitlines()
