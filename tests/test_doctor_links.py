"""Links: which pairs are measured, which of them are slow, and whose fault that is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgrad.doctor.links import MOST_PAIRS, Link, better, culprits, pairs, slow


def network(hosts, rates, usual=1e9):
    """All links between ``hosts``; ``rates``: by pair of hosts, where it is not usual."""
    return [
        Link(a, b, 10.0, rates.get((hosts[a], hosts[b]), rates.get((hosts[b], hosts[a]), usual)))
        for a in range(len(hosts))
        for b in range(a + 1, len(hosts))
    ]


def test_a_few_ranks_are_all_measured():
    assert pairs("ab") == [(0, 1)]
    assert len(pairs("aaaabbbb")) == 28


@given(st.lists(st.integers(0, 300), min_size=9, max_size=600))
def test_of_many_ranks_each_node_is_measured(hosts):
    names = [str(host) for host in hosts]
    found = pairs(names)
    nodes = set(names)
    assert len(found) == len(set(found)) <= max(MOST_PAIRS, len(nodes)) + 1
    assert all(a < b for a, b in found)
    met = {names[rank] for pair in found for rank in pair}
    assert met == nodes
    if len(nodes) > 2:
        ends = [names[r] for a, b in found if names[a] != names[b] for r in (a, b)]
        assert min(ends.count(node) for node in nodes) >= 2  # enough to tell whose fault it is


def test_many_nodes_come_before_what_is_inside_of_them():
    hosts = [f"n{i // 4}" for i in range(64)]
    found = pairs(hosts)
    inside = [hosts[a] == hosts[b] for a, b in found]
    assert sorted(inside) == inside
    assert sum(inside) == 16


@pytest.mark.parametrize(
    ("hosts", "bad", "node"),
    [("abc", "c", ["c"]), ("abcd", "a", ["a"]), ("abcdef", "d", ["d"]), ("aabbcc", "b", ["b"])],
)
def test_a_node_with_slow_links_is_named(hosts, bad, node):
    links = network(hosts, {(bad, other): 1e8 for other in hosts if other != bad})
    found = slow(links, hosts)
    assert {one.link for one in found} == {
        k for k in links if bad in (hosts[k.a], hosts[k.b]) and hosts[k.a] != hosts[k.b]
    }
    assert {one.what for one in found} == {"bandwidth"}
    assert found[0].times == pytest.approx(10.0)
    assert culprits(found, links, hosts) == node


def test_one_slow_pair_is_nobodys_fault():
    links = network("abcd", {("b", "c"): 2e8})
    found = slow(links, "abcd")
    assert [(one.link.a, one.link.b) for one in found] == [(1, 2)]
    assert culprits(found, links, "abcd") == []


def test_a_node_is_faster_within_than_to_others():
    hosts = "aabb"
    links = [Link(a, b, 10.0, 1e10 if hosts[a] == hosts[b] else 1e9) for a, b in pairs(hosts)]
    assert slow(links, hosts) == []


def test_differences_on_one_node_may_be_larger():
    links = network("aaa", {})
    links[0] = Link(0, 1, 10.0, 3e8)
    assert slow(links, "aaa") == []
    links[0] = Link(0, 1, 10.0, 2e8)
    assert [one.times for one in slow(links, "aaa")] == [pytest.approx(5.0)]


def test_late_links_are_slow_too():
    links = network("abcd", {})
    links[2] = Link(0, 3, 90.0, 1e9)
    (found,) = slow(links, "abcd")
    assert (found.link, found.what, found.times) == (links[2], "latency", 9.0)


def test_what_is_late_by_little_is_not():
    links = [Link(0, b, 1.0 if b < 3 else 9.0, 1e9) for b in range(1, 4)]
    assert slow(links, "abcd") == []


def test_of_two_measurements_the_better_figures_count():
    assert better(Link(0, 1, 5.0, 1e9), Link(0, 1, 7.0, 2e9)) == Link(0, 1, 5.0, 2e9)


def test_a_link_alone_is_compared_with_nothing():
    assert slow([Link(0, 1, 1e6, 1.0)], "ab") == []
    assert slow([], "ab") == []
