"""The contract of ``psgrad.transport`` where ranks may die, as programs for every carrier.

Each runs on ``RANKS`` ranks of which the last one, ``VICTIM``, dies. ``die`` is how; a carrier's
tests may put another way there. Rank 0 looks on, and lets rank 1 go at the end: who ends is told
like one that dies.
"""

from __future__ import annotations

import numpy as np
from transport_scenarios import A_MOMENT_S, SIZES, Inbox, content, push

from psgrad.messages import Kind
from psgrad.transport.mpi import INLINE_NBYTES

RANKS = 3
VICTIM = 2
LARGE = 1_500_000
PATIENCE_S = 60.0
die = None


def end(transport):
    """The victim is gone, here and now."""
    if die is None:
        transport.leave(0)
    else:
        die()
    raise AssertionError("it goes on")


def go(transport, peer):
    transport.send(peer, push(99))


def await_go(transport):
    """Waits for ``go`` of rank 0."""
    inbox = Inbox(transport, [0])
    assert inbox.take()[:2] == (0, 99)
    return inbox


def send(transport, number, nbytes, peer=0):
    payload = content(transport.rank, peer, number, nbytes)
    return transport.send(peer, push(number, payload), payload)


def until_lost(inbox, sizes, peer=VICTIM):
    """Takes messages of ``peer``, each whole and in order, and then its LOST; how many came."""
    count = 0
    while (came := inbox.take(PATIENCE_S)) is not None:
        source, number, payload = came
        assert source == peer
        if number is Kind.LOST:
            return count
        assert number == count
        expected = content(peer, inbox.transport.rank, number, sizes[number])
        np.testing.assert_array_equal(payload, expected)
        count += 1
    raise AssertionError("LOST does not come")


def told_once_after_all_that_had_come(transport):
    """And the others go on, undisturbed."""
    transport.tolerate()
    if transport.rank == VICTIM:
        for number, nbytes in enumerate(SIZES):
            send(transport, number, nbytes)
        await_go(transport)
        end(transport)
    if transport.rank == 1:
        inbox = await_go(transport)
        for number in range(20):
            send(transport, number, SIZES[number % len(SIZES)])
            assert inbox.take()[:2] == (0, number)
        assert inbox.take()[:2] == (0, 99)
        return
    inbox = Inbox(transport, [1, VICTIM])
    for number, nbytes in enumerate(SIZES):
        inbox.expect(VICTIM, number, nbytes)
    go(transport, VICTIM)
    assert until_lost(inbox, SIZES) == 0
    go(transport, 1)
    for number in range(20):
        inbox.expect(1, number, SIZES[number % len(SIZES)])
        transport.send(1, push(number))
    assert inbox.take(A_MOMENT_S) is None, "once"
    go(transport, 1)


def nothing_is_delivered_half(transport):
    """Large payloads are under way when their sender dies."""
    transport.tolerate()
    sizes = [INLINE_NBYTES, LARGE, 7, LARGE, LARGE]
    if transport.rank == VICTIM:
        for number, nbytes in enumerate(sizes):
            send(transport, number, nbytes)
        end(transport)
    if transport.rank == 1:
        await_go(transport)
        return
    inbox = Inbox(transport, [1, VICTIM])
    assert until_lost(inbox, sizes) <= len(sizes)
    assert inbox.take(A_MOMENT_S) is None
    go(transport, 1)


def sends_to_it_vanish(transport):
    """Before it is known, and after: whatever their size, nobody waits for them."""
    transport.tolerate()
    if transport.rank == VICTIM:
        await_go(transport)
        end(transport)
    if transport.rank == 1:
        await_go(transport)
        return
    inbox = Inbox(transport, [1, VICTIM])
    go(transport, VICTIM)
    for nbytes in (0, 7, LARGE):
        send(transport, 1, nbytes, VICTIM)
    assert until_lost(inbox, []) == 0
    sent = [send(transport, 1, nbytes, VICTIM) for nbytes in (0, 7, LARGE)]
    transport.flush()
    while not all(message.done() for message in sent):
        transport.sleep(1e-3)
    go(transport, 1)


def who_is_dropped_is_not_heard(transport):
    """Alive or not: neither what is under way nor its end."""
    transport.tolerate()
    if transport.rank == VICTIM:
        await_go(transport)
        send(transport, 0, 7)
        await_go_again(transport)
        return
    if transport.rank == 1:
        for number in range(50):
            send(transport, number, SIZES[number % 5])
        await_go(transport)
        return
    inbox = Inbox(transport, [1, VICTIM])
    inbox.expect(1, 0, SIZES[0])
    go(transport, 1)
    transport.drop(1)
    go(transport, VICTIM)
    inbox.placed[VICTIM].clear()
    inbox.expect(VICTIM, 0, 7)
    assert inbox.take(A_MOMENT_S) is None
    go(transport, VICTIM)
    assert until_lost(inbox, []) == 0
    transport.drop(VICTIM)  # once more changes nothing


def await_go_again(transport):
    """``await_go`` of who hears rank 0 already."""

    def nowhere(peer, header):
        raise AssertionError(f"{header} of rank {peer} has a payload")

    peer, header = transport.receive(nowhere)
    assert (peer, header.clock) == (0, 99)


def who_ends_is_told_like_one_that_dies(transport):
    transport.tolerate()
    if transport.rank:
        await_go(transport)
        send(transport, 0, 7)
        if transport.rank == 1:
            await_go_again(transport)
        return
    inbox = Inbox(transport, [1, VICTIM])
    go(transport, VICTIM)
    assert until_lost(inbox, [7]) <= 1
    go(transport, 1)
    inbox.expect(1, 0, 7)
    go(transport, 1)
    assert until_lost(inbox, [], peer=1) == 0


def one_that_was_gone_before(transport):
    """Who connects to it is told all the same."""
    transport.tolerate()
    if transport.rank == VICTIM:
        send(transport, 0, 7)
        end(transport)
    if transport.rank == 1:
        await_go(transport)
        return
    transport.sleep(10 * A_MOMENT_S)
    inbox = Inbox(transport, [VICTIM])
    assert until_lost(inbox, [7]) <= 1
    go(transport, 1)
    transport.flush()


LOSSES = {
    scenario.__name__: scenario
    for scenario in (
        told_once_after_all_that_had_come,
        nothing_is_delivered_half,
        sends_to_it_vanish,
        who_is_dropped_is_not_heard,
        who_ends_is_told_like_one_that_dies,
        one_that_was_gone_before,
    )
}
