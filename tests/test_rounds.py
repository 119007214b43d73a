"""A server's part in commits: whom it tells, what it does not believe, and how long rounds wait."""

from __future__ import annotations

import pytest

from psgrad.commits import Round
from psgrad.errors import ProtocolError
from psgrad.messages import Kind
from psgrad.rounds import Rounds


class Posted(list):
    """An outbox."""

    def post(self, peer, header, payload=None):
        self.append((peer, header.kind, header.clock, header.sequence, header.incarnation))


def coordinator(servers=3, owners=(0, 1)):
    posted = Posted()
    rounds = Rounds(0, servers, 7, posted)
    rounds.open(owners, 0)
    return rounds, posted


ROUND = Round(1, (0, 1))


def test_a_commit_goes_to_all_servers_also_to_those_without_chunks():
    rounds, posted = coordinator()
    assert rounds.report(ROUND, 0.0) is None
    assert rounds.take(1, ROUND, 0) == ROUND
    assert posted == [(1, Kind.COMMIT, 1, 0, 0), (2, Kind.COMMIT, 1, 0, 0)]


def test_who_did_not_know_of_an_admission_is_not_believed():
    rounds, posted = coordinator()
    rounds.admit(1)
    rounds.report(ROUND, 0.0)
    assert rounds.take(1, ROUND, 0) is None
    assert posted == []
    assert rounds.take(1, ROUND, 1) == ROUND


def test_what_another_server_says():
    posted = Posted()
    rounds = Rounds(2, 3, 7, posted)
    rounds.admit(4)
    assert rounds.report(ROUND, 0.0) is None
    assert posted == [(0, Kind.COMPLETE, 1, 2, 4)]
    with pytest.raises(ProtocolError, match="only the coordinator commits"):
        rounds.take(1, ROUND, 4)


def test_how_long_rounds_wait():
    rounds, _ = coordinator()
    assert rounds.wait_s == 0.0
    rounds.closed(1.0)
    for said_s, again_s, closed_s in ((1.0, 1.5, 3.0), (4.0, 4.0, 5.0), (6.0, 6.0, 6.5)):
        rounds.report(ROUND, said_s)
        rounds.report(ROUND, again_s)
        rounds.closed(closed_s)
    assert rounds.wait_s == 1.0
