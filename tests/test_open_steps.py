"""Chunks that wait for the end of their step."""

from __future__ import annotations

import numpy as np
import pytest

from psgrad.errors import ProtocolError
from psgrad.messages import Flag, Header, Kind
from psgrad.open_steps import OpenSteps

GRAD = np.ones(4, np.float32)


def chunk(index, clock=1, worker=0, flags=0):
    return Header(
        Kind.STEP, chunk=index, clock=clock, worker=worker, weight=1.0, flags=flags | Flag.OPEN
    )


def end(count, clock=1, worker=0, weight=3.0):
    return Header(Kind.SETTLE, clock=clock, worker=worker, weight=weight, rate=0.5, sequence=count)


def test_chunks_come_out_in_order_with_the_weight_and_rate_of_the_end():
    steps = OpenSteps()
    for index in (3, 0, 7):
        steps.add(chunk(index, flags=Flag.SHARED), GRAD * index)
    steps.add(chunk(0, worker=1), None)
    assert steps.workers == [0, 1]
    settled = steps.settle(end(3))
    assert [header.chunk for header, _ in settled] == [0, 3, 7]
    assert {(h.weight, h.rate, h.flags, h.kind) for h, _ in settled} == {
        (3.0, 0.5, Flag.SHARED, Kind.STEP)
    }
    assert [grad[0] for _, grad in settled] == [0.0, 3.0, 7.0]
    assert steps.workers == [1]


def test_a_step_without_chunks_here_is_not_told_here():
    with pytest.raises(ProtocolError, match="worker 0 ends step 1 of 0 chunks, 0 are here"):
        OpenSteps().settle(end(0))


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (chunk(2), "worker 0 pushes chunk 2 of clock 1 into its open step of clock 1, which has 1"),
        (chunk(3, clock=2), "worker 0 pushes chunk 3 of clock 2 into its open step of clock 1"),
    ],
)
def test_chunks_that_cannot_be_of_the_step(header, text):
    steps = OpenSteps()
    steps.add(chunk(2), GRAD)
    with pytest.raises(ProtocolError, match=text):
        steps.add(header, GRAD)


@pytest.mark.parametrize("last", [end(2), end(0), end(1, clock=2)])
def test_an_end_that_does_not_fit(last):
    steps = OpenSteps()
    steps.add(chunk(2), GRAD)
    with pytest.raises(ProtocolError, match=f"ends step {last.clock} of {last.sequence} chunks, 1"):
        steps.settle(last)


def test_what_has_come_of_one_that_is_gone():
    steps = OpenSteps()
    steps.add(chunk(2), GRAD)
    steps.add(chunk(5), None)
    steps.add(chunk(0, worker=1), GRAD)
    assert [(header.chunk, grad is GRAD) for header, grad in steps.drop(0)] == [
        (2, True),
        (5, False),
    ]
    assert steps.drop(0) == []
    assert steps.workers == [1]
