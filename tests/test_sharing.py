"""Who shares what with whom; what a worker holds when that ends."""

from __future__ import annotations

import numpy as np
import pytest

from psgrad.layout import Chunk, Layout
from psgrad.options import Options
from psgrad.roles import Roles
from psgrad.sharing import Offer, ServerSharing, Wishes, leader
from psgrad.transport.shared import IN_ORDER, Segment, SharingError

LAYOUT = Layout.of({"w": np.zeros((30, 50), np.float32)})
N = LAYOUT.size
HERE = Roles(4, 2, ("a",) * 4)


@pytest.mark.parametrize(
    ("options", "grads", "params"),
    [
        ({}, True, True),
        ({"shared_memory": "off"}, False, False),
        ({"staleness": 3}, True, IN_ORDER),
        ({"staleness": None}, True, IN_ORDER),
        ({"codec": "int8"}, False, True),
        ({"pull_codec": "int8"}, True, False),
    ],
)
def test_what_may_be_shared(options, grads, params):
    assert Wishes.of(Options(**options)) == Wishes(grads, params)


@pytest.mark.parametrize(
    ("hosts", "leaders"),
    [
        ("aaaa", {0: 0, 1: 0, 2: 0, 3: 0}),
        ("abab", {0: 0, 1: 1, 2: 0, 3: 1}),
        ("aabb", {0: None, 1: None, 2: None, 3: None}),  # servers here, workers there
        ("baab", {0: 0, 1: 1, 2: 1, 3: 0}),
        ("", {0: None, 3: None}),
    ],
)
def test_one_server_of_a_node_makes_the_segment(hosts, leaders):
    roles = Roles(4, 2, tuple(hosts))
    assert {rank: leader(roles, rank) for rank in leaders} == leaders


def agree(options, roles=HERE, worker=3, servers=(0, 1), trains_all=True):
    """The handshake of one worker with the servers: its memory, and what each server has."""
    sides = {rank: ServerSharing(options, roles, rank) for rank in servers}
    assert [side.open(LAYOUT) for side in sides.values()] == [""] * len(sides)
    handle = next((side.handle for side in sides.values() if side.handle), None)
    offer = Offer(LAYOUT, options, roles, worker, handle)
    assert offer.problem == ""
    for server in offer.servers:
        sides[server].accept(worker - 2, LAYOUT, **offer.record())
    return offer.settle(offer.servers, trains_all), sides


def test_in_sync_all_is_one_memory():
    memory, sides = agree(Options(servers=2))
    assert memory.in_place
    assert not memory.params.flags.writeable
    memory.grads[:] = 3.0
    sides[0].place.params[:100] = 1.0
    sides[1].place.params[100:] = 2.0
    assert memory.params[[99, 100]].tolist() == [1.0, 2.0]
    for side in sides.values():
        assert side.grads_of(1)[7] == 3.0
        assert not side.grads_of(1).flags.writeable
        assert side.readers == {1}


def test_detached_parameters_stay_until_they_are_received():
    memory, sides = agree(Options(servers=2))
    view = memory.params[10:20].reshape(2, 5)
    sides[0].place.params[:] = 1.0
    memory.detach()
    sides[0].place.params[:] = 2.0
    assert view.tolist() == [[1.0] * 5] * 2
    assert memory.received(Chunk(0, 0, 0, 15))
    assert view.tolist() == [[2.0] * 5, [1.0] * 5]
    memory.detach()
    assert view.tolist() == [[2.0] * 5, [1.0] * 5]


def test_who_is_not_in_every_round_copies():
    memory, sides = agree(Options(servers=2), trains_all=False)
    assert not memory.in_place
    sides[0].place.params[:] = 5.0
    assert not memory.params.any()
    assert memory.received(Chunk(0, 0, 0, N))
    assert (memory.params == 5.0).all()


def test_servers_elsewhere_get_messages():
    """The worker shares with server 1 of its node; parameters of both come to its own memory."""
    memory, sides = agree(Options(servers=2), Roles(4, 2, ("b", "a", "a", "a")))
    assert memory.takes == {1}
    assert not memory.in_place
    assert sides[0].grads_of(1) is None
    assert sides[1].readers == {1}


@pytest.mark.skipif(not IN_ORDER, reason="this processor does not keep stores in order")
@pytest.mark.parametrize("staleness", [2, None])
def test_other_modes_copy_parameters_out(staleness):
    memory, sides = agree(Options(servers=2, staleness=staleness))
    assert memory.takes == {0, 1}
    assert memory.params.flags.writeable
    assert not memory.in_place
    assert all(side.readers == {1} for side in sides.values())
    assert sides[0].place.stamps.size == len(LAYOUT.chunks(0))
    sides[0].place.params[:] = 4.0
    assert not memory.params.any()
    assert memory.received(LAYOUT.chunks(0)[0])
    assert (memory.params == 4.0).all()


class Readings:
    """Stamps as a copy finds them, one after the other."""

    def __init__(self, readings: list[int]) -> None:
        self.readings = iter(readings)

    def __getitem__(self, index: int) -> int:
        return next(self.readings)


@pytest.mark.parametrize(
    ("readings", "whole"),
    [
        ([0, 0], True),
        ([1, 2, 2], True),  # begun in the middle of an update
        ([0, 1, 2, 2], True),  # an update began meanwhile
        ([0, 2, 3, 4, 4], True),
        ([0, 2, 2, 4, 4, 6], False),
        ([1, 1, 3, 3, 5, 5], False),
    ],
)
def test_a_copy_that_met_an_update_is_made_again_up_to_three_times(monkeypatch, readings, whole):
    monkeypatch.setattr("psgrad.sharing.LOOKS", 2)
    memory, _ = agree(Options(servers=2, staleness=None))
    memory.stamps = Readings(readings)
    assert memory.received(LAYOUT.chunks(0)[0]) is whole
    assert list(memory.stamps.readings) == []


def test_without_hosts_nothing_is_shared():
    assert Offer(LAYOUT, Options(), Roles(4, 2), 3, None).servers == []


def test_a_handle_that_leads_nowhere_is_a_problem_with_words():
    offer = Offer(LAYOUT, Options(), HERE, 3, "/proc/1/fd/999999#1")
    assert "cannot map /proc/1/fd/999999: " in offer.problem
    memory = offer.settle([], True)
    assert memory.params.flags.writeable
    assert not memory.takes


def test_a_server_refuses_what_it_cannot_map():
    side = ServerSharing(Options(servers=2), HERE, 1)
    with pytest.raises(SharingError, match="cannot map"):
        side.accept(0, LAYOUT, grads="/proc/1/fd/999999#1", params=None)
    short = Segment.create(16)
    with pytest.raises(SharingError, match="it has 16"):
        side.accept(0, LAYOUT, grads=None, params=short.handle)
    assert side.readers == set()


def test_too_little_memory_is_said(monkeypatch):
    monkeypatch.setattr("psgrad.transport.shared.available_nbytes", lambda: 5999)
    side = ServerSharing(Options(servers=2), HERE, 0)
    assert side.open(LAYOUT) == "cannot make 6000 bytes of shared memory: 5999 are available"
    offer = Offer(LAYOUT, Options(), HERE, 3, None)
    assert offer.problem == "cannot make 6000 bytes of shared memory: 5999 are available"
    assert offer.servers == []
