"""Placement: servers, GPUs and threads by tables of ranks; what Slurm says of het jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgrad import kernels, train
from psgrad.config import Source
from psgrad.errors import ConfigError
from psgrad.placement import (
    FIRST,
    SPREAD,
    Seat,
    bind_gpus,
    het_servers,
    local_workers,
    order,
    threads,
)
from psgrad.roles import Roles

PROGRAM = Path(__file__).parent / "ranks" / "placement.py"
HET = {
    "SLURM_HET_SIZE": "2",
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "9",
    "SLURM_NTASKS_HET_GROUP_0": "2",
    "SLURM_NTASKS_HET_GROUP_1": "7",
}


@pytest.mark.parametrize(
    ("hosts", "servers", "expected"),
    [
        ("aaaa", 3, [0, 1, 2, 3]),
        ("aaabbb", 1, [0, 1, 2, 3, 4, 5]),
        ("aaabbb", 2, [0, 3, 1, 2, 4, 5]),
        ("aaabbb", 3, [0, 1, 3, 2, 4, 5]),
        ("ababab", 2, [0, 1, 2, 3, 4, 5]),
        ("aabcc", 3, [0, 2, 3, 1, 4]),
        ("aab", 2, [0, 2, 1]),
    ],
)
def test_servers_are_spread_over_nodes(hosts, servers, expected):
    assert order(hosts, servers, SPREAD) == expected


@given(st.text("abcd", min_size=2, max_size=20), st.integers(1, 19))
def test_an_order_is_one_and_stays_one(hosts, servers):
    servers = min(servers, len(hosts) - 1)
    found = order(hosts, servers, SPREAD)
    assert sorted(found) == list(range(len(hosts)))
    assert found[0] == 0
    there = [hosts[rank] for rank in found]
    assert order(there, servers, SPREAD) == list(range(len(hosts)))
    # No node has two servers more than another one that has a rank left.
    counts = {host: there[:servers].count(host) for host in set(hosts)}
    spare = [counts[host] for host in counts if there[servers:].count(host)]
    assert max(counts.values()) - min(spare) <= 1


def test_the_first_ranks_are_servers_where_that_is_wanted():
    assert order("aaabbb", 2, FIRST) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("changes", "servers"),
    [
        ({}, 2),
        ({"SLURM_PROCID": "8"}, 2),
        ({"SLURM_NTASKS": "7"}, 0),  # a step of one component
        ({"SLURM_NTASKS_HET_GROUP_1": None}, 0),
        ({"SLURM_NTASKS_HET_GROUP_1": None, "SLURM_TASKS_PER_NODE_HET_GROUP_1": "3(x2),1"}, 2),
        ({"SLURM_NTASKS_HET_GROUP_0": None, "SLURM_TASKS_PER_NODE_HET_GROUP_0": "2"}, 2),
        ({"SLURM_NTASKS_HET_GROUP_1": "seven"}, 0),
        ({"SLURM_PROCID": None}, 0),  # the batch script
        ({"SLURM_HET_SIZE": None}, 0),
        ({"SLURM_HET_SIZE": "1"}, 0),
        ({"SLURM_HET_SIZE": "999999999"}, 0),
    ],
)
def test_het_group_0_are_the_servers(changes, servers):
    changed = {**HET, **changes}
    assert het_servers({k: v for k, v in changed.items() if v is not None}) == servers


@pytest.mark.parametrize(
    ("seats", "expected"),
    [
        ([("a", range(8))], [8]),
        ([("a", range(8))] * 3, [2, 2, 2]),  # none is bound, or all are bound to the same
        ([("a", range(8))] * 2 + [("b", range(8))], [4, 4, 8]),
        ([("a", [0, 1]), ("a", [2, 3])], [2, 2]),  # bound to cores of their own
        ([("a", [0, 1, 2]), ("a", [2, 3])], [2, 1]),
        ([("a", [0])] * 4, [1, 1, 1, 1]),
        ([("a", range(6))] * 3, [2, 2, 2]),
    ],
)
def test_ranks_with_the_same_cores_share_them(seats, expected):
    assert threads([Seat(host, frozenset(cores)) for host, cores in seats]) == expected


def gpu_seats(*rows):
    """Of (host, role, GPUs)."""
    return [Seat(host, gpus=tuple(gpus), server=role == "server") for host, role, gpus in rows]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # All see all: by the place among the workers of the node. Servers take none.
        (
            [("a", "server", "xy"), ("a", "worker", "xy"), ("a", "worker", "xy"),
             ("b", "worker", "xy"), ("b", "worker", "xy")],
            [None, 0, 1, 0, 1],
        ),
        # Bound by the launcher: each sees one of its own, whatever its number.
        ([("a", "worker", "x"), ("a", "worker", "y")], [0, 0]),
        # The one that sees both gives way.
        ([("a", "worker", "xy"), ("a", "worker", "x")], [1, 0]),
        # The same id on two nodes is two GPUs; a node without is none.
        ([("a", "worker", "x"), ("b", "worker", "x"), ("c", "worker", "")], [0, 0, None]),
        ([("a", "server", "x"), ("a", "worker", "x")], [None, 0]),
    ],
)  # fmt: skip
def test_each_worker_gets_a_gpu_of_its_own(rows, expected):
    assert bind_gpus(gpu_seats(*rows)) == expected


@pytest.mark.parametrize(
    ("rows", "text", "shared"),
    [
        (
            [("a", "worker", "x"), ("a", "worker", "x")],
            "ranks 0 and 1 on a have GPU x both: 2 workers there see 1 GPU; start one worker",
            [0, 0],
        ),
        (
            [("a", "server", "xy"), *[("a", "worker", "xy")] * 3],
            "ranks 1 and 3 on a have GPU x both: 3 workers there see 2 GPUs; ",
            [None, 0, 1, 0],
        ),
    ],
)
def test_a_gpu_bound_twice_is_an_error_unless_it_is_meant(rows, text, shared):
    with pytest.raises(ConfigError) as caught:
        bind_gpus(gpu_seats(*rows))
    assert str(caught.value).startswith(text)
    assert str(caught.value).endswith("or allow it with --gpu-share")
    assert bind_gpus(gpu_seats(*rows), share=True) == shared


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6))
def test_workers_that_see_all_gpus_fill_them_before_they_share(nodes, gpus, workers):
    rows = [(f"n{n}", "worker", "wxyz"[:gpus]) for n in range(nodes) for _ in range(workers)]
    found = bind_gpus(gpu_seats(*rows), share=True)
    for node in range(nodes):
        mine = found[node * workers : (node + 1) * workers]
        assert len(set(mine)) == min(gpus, workers)


def test_places_among_the_workers_of_a_node():
    rows = [("a", "server", ""), ("a", "worker", ""), ("b", "worker", ""), ("a", "worker", "")]
    assert local_workers(gpu_seats(*rows)) == [None, 0, 0, 1]


def test_real_ranks_take_their_places(mpi):
    status, stdout, stderr = mpi.run(5, [PROGRAM, "aaabb"])
    assert status == 0, stderr
    assert sorted(stdout.splitlines()) == [
        "0 None None",
        "1 [0, 0] None",
        "2 [1, 1] [0, 0]",
        "3 None [1, 0]",
        "4 [2, 0] [2, 1]",
    ]


class Told:
    """A session whose other ranks have said what they see: ``rows`` of [host, GPUs]."""

    def __init__(self, rank, rows):
        self.rank, self.transport, self.host = rank, self, rows[rank][0]
        self._rows = rows

    def exchange(self, blob):
        assert json.loads(blob) == self._rows[self.rank]
        return [json.dumps(row).encode() for row in self._rows]

    def agree(self, attempt):
        return attempt()


@pytest.mark.parametrize(
    ("rank", "seen", "more", "expected"),
    [
        (2, ["x", "y"], {}, 1),
        (0, [], {}, None),  # a server does not even look
        (2, [], {"device": "cpu"}, None),
        (2, [], {"simulate": "workers=2"}, None),
    ],
)
def test_training_takes_the_gpu_of_its_place(monkeypatch, rank, seen, more, expected):
    monkeypatch.setattr(train, "gpus", lambda: ("x", "y"))
    config = train.configure([Source("test", more)])
    rows = [["a", []], ["a", seen or []], ["a", seen]]
    assert train._gpu(Told(rank, rows), config, Roles(3, 1)) == expected


def test_training_refuses_a_gpu_bound_twice(monkeypatch):
    monkeypatch.setattr(train, "gpus", lambda: ("x",))
    rows = [["a", []], ["a", ["x"]], ["a", ["x"]]]
    with pytest.raises(ConfigError, match="ranks 1 and 2 on a have GPU x both"):
        train._gpu(Told(2, rows), train.configure([]), Roles(3, 1))
    shared = train.configure([Source("test", {"gpu_share": True})])
    assert train._gpu(Told(2, rows), shared, Roles(3, 1)) == 0


def test_without_a_gpu_there_is_nothing_to_take(monkeypatch):
    def load_cuda():
        raise ConfigError("none")

    monkeypatch.setattr(kernels, "_load_cuda", load_cuda)
    with pytest.raises(ConfigError):
        kernels.gpus()
    assert train._gpu(Told(1, [["a", []], ["a", []]]), train.configure([]), Roles(2, 1)) is None


def test_the_kernels_work_on_the_gpu_that_was_taken(monkeypatch):
    class Cuda:
        used = None

        def pci_ids(self):
            return ("x", "y")

        def use(self, number):
            self.used = number

    cuda = Cuda()
    monkeypatch.setattr(kernels, "_load_cuda", lambda: cuda)
    assert kernels.gpus() == ("x", "y")
    assert kernels.load("gpu") is cuda
    assert cuda.used is None
    assert kernels.load("auto", 1) is cuda
    assert cuda.used == 1
    assert kernels.load("cpu", 1).device == "cpu"
