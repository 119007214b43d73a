"""Roles: who is what, for every size of job, and what is refused."""

from __future__ import annotations

import pytest

from psgrad.errors import ConfigError
from psgrad.roles import Roles

JOBS = [(size, servers) for size in range(2, 9) for servers in range(1, size)]


@pytest.mark.parametrize(("size", "servers"), JOBS)
def test_every_rank_has_one_role(size, servers):
    roles = Roles(size, servers)
    assert [*roles.server_ranks, *roles.worker_ranks] == list(range(size))
    assert roles.workers == len(roles.worker_ranks) == size - servers
    assert [roles.is_server(rank) for rank in range(size)] == [r < servers for r in range(size)]
    assert [roles.name(rank) for rank in range(size)] == (
        ["coordinator"] + ["server"] * (servers - 1) + ["worker"] * (size - servers)
    )


@pytest.mark.parametrize(("size", "servers"), JOBS)
def test_worker_indices_count_from_zero_and_back(size, servers):
    roles = Roles(size, servers)
    assert [roles.worker_of(rank) for rank in roles.worker_ranks] == list(range(roles.workers))
    assert [roles.rank_of(w) for w in range(roles.workers)] == list(roles.worker_ranks)


def test_one_rank_is_told_how_to_start_more():
    with pytest.raises(ConfigError, match=r"at least 2 ranks .* has 1; .*psgrad run --np 4"):
        Roles(1, 1)


@pytest.mark.parametrize("servers", [0, -1, 4, 5])
def test_servers_must_leave_a_worker(servers):
    with pytest.raises(ConfigError) as caught:
        Roles(4, servers)
    assert str(caught.value) == (
        f"servers must be from 1 to 3 with 4 ranks, got {servers}; "
        "use --servers 1 or start more ranks"
    )


def test_the_servers_of_a_machine():
    roles = Roles(6, 3, ("a", "b", "a", "b", "c", "a"))
    assert [roles.servers_beside(rank) for rank in range(6)] == [
        [0, 2],
        [1],
        [0, 2],
        [1],
        [],
        [0, 2],
    ]
