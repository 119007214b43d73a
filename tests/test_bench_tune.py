"""``psgrad bench tune``: candidates, the suggestion by hand, and a short run."""

from __future__ import annotations

import json

import pytest

from psgrad.bench import tune
from psgrad.bench.figures import Spread
from psgrad.errors import ConfigError
from psgrad.roles import Roles

K = 1 << 10
M = 1 << 20


def candidate(chunk_bytes, ratio):
    return tune.Candidate(chunk_bytes, (1e-3 * ratio,), ratio)


@pytest.mark.parametrize(
    ("chunk_bytes", "found"),
    [
        (4 * M, [512 * K, 1 * M, 2 * M, 4 * M, 8 * M, 16 * M]),
        (256 * K, [64 * K, 128 * K, 256 * K, 512 * K, 1 * M]),
        (64 * K, [64 * K, 128 * K, 256 * K]),
    ],
)
def test_candidates_around_a_size(chunk_bytes, found):
    assert tune.around(chunk_bytes) == found


@pytest.mark.parametrize(
    ("ratios", "suggested"),
    [
        ({1: 3.0, 2: 2.0, 4: 1.5}, 4),  # the best
        ({1: 3.0, 2: 1.05, 4: 1.0}, 2),  # not clearly better than the default
        ({1: 3.0, 2: 1.06, 4: 1.0}, 4),
        ({1: 3.0, 2: 1.0, 4: 1.2}, 2),
    ],
)
def test_the_default_grid_stays_unless_another_is_clearly_faster(ratios, suggested):
    found = [candidate(size, ratio) for size, ratio in ratios.items()]
    assert tune.suggest(found, default=2).chunk_bytes == suggested


def test_a_plan_has_the_default_grid_among_its_candidates():
    plan = tune.TunePlan.of(64 * M, 5, [2 * M, 8 * M], {"servers": 2, "chunk_bytes": 64})
    assert plan.chunk_bytes == (2 * M, 4 * M, 8 * M)
    assert plan.roles(4) == Roles(4, 2)
    assert plan.with_chunks(2 * M).run == {"servers": 2, "chunk_bytes": 2 * M}
    assert plan.with_chunks(2 * M).sizes == (64 * M,)


def test_a_candidate_that_is_no_chunk_size():
    with pytest.raises(ConfigError, match=r"chunk_bytes must be from 64 to 1073741824, .* got 8"):
        tune.TunePlan.of(64 * M, 5, [8], {})


@pytest.mark.parametrize(
    ("fastest", "advice"),
    [
        (0.5, "try --chunk-bytes 128; with a codec, results depend on the grid"),
        (1.0, "keep the default grid: no candidate is clearly faster"),
    ],
)
def test_the_table_ends_with_the_advice(fastest, advice):
    found = [candidate(64, 1.0), candidate(128, fastest)]
    head, columns, one, other, last = tune.table(found, 4096, Roles(3, 1), 64).splitlines()
    assert head == "steps of 4 KiB, servers 1, workers 2; the slowest worker"
    assert columns.split() == ["--chunk-bytes", "median", "ms", "min", "-", "max", "x", "limit"]
    assert one.split()[:2] == ["64", "1.000"]
    assert one.endswith("1.00  (the default grid)")
    assert other.split()[0] == "128"
    assert last == advice


def test_a_run(mpi):
    command = ["bench", "tune", "--size", "128K", "--chunk-bytes", "32K", "--rounds", "1"]
    status, stdout, stderr = mpi.psgrad([*command, "--json"])
    assert status == 0, stderr
    *table, last = stdout.splitlines()
    record = json.loads(last)
    assert (record["nbytes"], record["default_chunk_bytes"]) == (128 * K, 64 * K)
    assert [row["chunk_bytes"] for row in record["rows"]] == [32 * K, 64 * K]
    found = []
    for row in record["rows"]:
        assert len(row["samples"]) == tune.PASSES
        assert row["ratio"] > 0
        spread = Spread.of(row["samples"])
        assert (row["median_s"], row["least_s"], row["most_s"]) == (
            spread.median, spread.least, spread.most
        )  # fmt: skip
        found.append(tune.Candidate(row["chunk_bytes"], tuple(row["samples"]), row["ratio"]))
    assert record["suggestion"] == tune.suggest(found, 64 * K).chunk_bytes
    assert table == tune.table(found, 128 * K, Roles(3, 1), 64 * K).splitlines()
