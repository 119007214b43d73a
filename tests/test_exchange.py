"""A step in parts: what leaves when, what is waited for, and calls in an order that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from simulation import Simulation

import psgrad
from psgrad import SegmentOptions
from psgrad.errors import ConfigError, LayoutError, NonFiniteError, ProtocolError
from psgrad.guard import NON_FINITE_LIMIT
from psgrad.messages import Flag, Kind
from psgrad.session import Session
from psgrad.transport.clockwork import RankError
from psgrad.transport.network import Network

SIZES = {"first": 64, "middle": 8, "last": 64}  # chunks of 32: two, one that they share, two
N = sum(SIZES.values())
SLOW = Network(latency_s=1e-3, bandwidth=1e4)


class OverError(Exception):
    """The run cannot go on from here, and need not."""


def zeros():
    return {name: np.zeros(n, np.float32) for name, n in SIZES.items()}


def play(body, workers=1, servers=1, network=SLOW, **options):
    """What ``body(worker)`` returns on each worker, and the trace."""
    sim = Simulation(servers + workers, network, trace=True)

    def program(transport):
        with Session(transport=transport, report=lambda _: None) as ranks:
            options.setdefault("chunk_bytes", 128)
            return ranks.run(body, servers=servers, **options)

    return sim.run(program)[servers:], sim.trace


def fill(worker, value=1.0):
    for name in worker.grads:
        worker.grads[name][:] = value


def in_parts(worker, order=("last", "middle", "first"), weight=1.0):
    for name in order:
        worker.ready(name)
    worker.step_async(weight=weight)
    worker.wait()


def test_a_chunk_leaves_when_all_parameters_in_it_are_final():
    def body(worker):
        worker.register(zeros())
        fill(worker)
        left = []
        for name in ("last", "first", "middle"):
            worker.ready(name)
            left.append((name, worker.now()))
            worker.sleep(1.0)
        worker.step_async()
        left.append(("end", worker.now()))
        worker.wait()
        return left

    [left], trace = play(body)
    sent = [
        (event.time_s, event.header.chunk)
        for event in trace
        if event.what == "send" and event.header.kind is Kind.STEP
    ]
    # Elements 64 to 72 are the middle's: chunk 2 is complete when it is.
    expected = {"last": {3, 4}, "first": {0, 1}, "middle": {2}, "end": set()}
    for (name, at), (_, until) in zip(left, [*left[1:], ("", np.inf)], strict=True):
        found = {chunk for time, chunk in sent if at <= time + 1e-2 and time + 1e-2 < until}
        assert found == expected[name], name


def test_nothing_is_applied_before_the_step_ends_and_all_of_it_afterwards():
    def body(worker):
        params = worker.register(zeros())
        fill(worker)
        worker.ready(["last", "middle", "first"])
        worker.sleep(5.0)
        (before,) = worker.server_stats()
        worker.step_async()
        worker.wait()
        (after,) = worker.server_stats()
        return before["updates"], after["updates"], np.concatenate(list(params.values()))

    [(before, after, params)], _ = play(body)
    assert (before, after) == (0, 5)
    np.testing.assert_array_equal(params, np.full(N, -0.1, np.float32))


def test_waiting_for_the_first_layer_does_not_wait_for_the_last():
    def body(worker):
        params = worker.register(zeros())
        fill(worker)
        in_parts(worker)
        fill(worker)
        worker.step_async()
        start = worker.now()
        worker.wait("first")
        first, seen = worker.now() - start, params["first"].copy()
        worker.wait()
        return first, worker.now() - start, seen

    [(first, everything, seen)], _ = play(body)
    assert first < 0.8 * everything
    np.testing.assert_array_equal(seen, np.full(64, -0.2, np.float32))


def test_parameters_come_in_the_order_of_the_next_forward_pass():
    def body(worker):
        worker.register(zeros())
        in_parts(worker)

    _, trace = play(body)
    answers = [
        event.header.chunk
        for event in trace
        if event.what == "send" and event.header.kind is Kind.PARAMS and event.header.clock == 1
    ]
    assert answers == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("window", [1, 8])
@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_norm": 0.5},
        {"clip_norm": 0.5, "segments": [SegmentOptions("middle", buffer=True)]},
        {"segments": [SegmentOptions("last", members=(0, 2), learning_rate_scale=0.5)]},
        {"codec": "topk:0.1"},
        {"codec": "int8", "pull_codec": "topk:0.2", "clip_norm": 0.5},
    ],
)
def test_a_step_in_parts_is_the_same_step(options, servers, window):
    def body(worker, parted):
        params = worker.register(zeros())
        rng = np.random.default_rng(worker.rank)
        for step in range(4):
            for name in worker.grads:
                worker.grads[name] = rng.standard_normal(SIZES[name], dtype=np.float32)
            if step == 2 and worker.rank == 1:
                worker.grads["middle"][3] = np.nan
            if parted and step != 1:
                in_parts(worker, ("middle", "last", "first"), weight=worker.rank + 1.0)
            else:
                worker.step(weight=worker.rank + 1.0)
        worker.pull()
        return np.concatenate(list(params.values())).tobytes(), worker.skipped, worker.clock

    options = {**options, "window": window}
    whole, _ = play(lambda worker: body(worker, False), 3, servers, **options)
    parts, trace = play(lambda worker: body(worker, True), 3, servers, **options)
    assert parts == whole
    assert [skipped for _, skipped, _ in whole] == [0, 1, 0]
    open_chunks = [e for e in trace if e.header is not None and e.header.flags & Flag.OPEN]
    assert bool(open_chunks) is ("codec" not in options)


def test_step_ends_a_step_that_was_begun_in_parts():
    def body(worker):
        params = worker.register(zeros())
        fill(worker)
        worker.ready(("last",))
        worker.step()
        return params["first"][0], worker.clock

    [(value, clock)], _ = play(body)
    assert (value, clock) == (np.float32(-0.1), 1)


def test_other_calls_wait_for_the_step_that_is_under_way():
    def body(worker):
        params = worker.register(zeros())
        fill(worker)
        worker.step_async()
        worker.pull("first")
        pulled = params["last"][0]
        worker.step_async({name: np.ones(n, np.float32) for name, n in SIZES.items()})
        worker.leave()
        return pulled, params["last"][0]

    [values], _ = play(body)
    assert values == (np.float32(-0.1), np.float32(-0.2))


@pytest.mark.parametrize("window", [1, 8])
def test_who_waits_for_others_first_sends_what_they_wait_for(window):
    def body(worker):
        params = worker.register(zeros())
        fill(worker)
        if worker.rank == 0:
            worker.step_async()
        else:
            worker.step()
        worker.barrier()
        return params["last"][0]

    values, _ = play(body, workers=2, window=window)
    assert values == [np.float32(-0.1)] * 2


def twice(worker):
    worker.ready("last")
    worker.ready("last")


def unknown(worker):
    worker.ready("lost")


def unknown_wait(worker):
    worker.wait("lost")


def early(worker):
    worker.step_async()
    worker.ready("last")


def early_step(worker):
    worker.step_async()
    worker.step_async()


def early_whole_step(worker):
    worker.step_async()
    worker.step()


def copied(worker):
    worker.ready("last")
    worker.step(zeros())


def pushed(worker):
    worker.ready("last")
    worker.push()


def pushed_early(worker):
    worker.step_async()
    worker.push()


def pulled(worker):
    worker.ready("last")
    worker.pull(dense=True)


def gone(worker):
    worker.leave()
    worker.ready("last")


def left(worker):
    worker.ready("last")
    worker.leave()


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        (twice, ProtocolError, r"ready\(\) was called twice in a step for 'last'"),
        (unknown, LayoutError, "unknown parameter 'lost'"),
        (unknown_wait, LayoutError, "unknown parameter 'lost'"),
        (early, ProtocolError, r"ready\(\) before the last step was answered: call wait\(\)"),
        (early_step, ProtocolError, r"step_async\(\) before the last step was answered"),
        (early_whole_step, ProtocolError, r"step\(\) before the last step was answered"),
        (copied, ProtocolError, r"step\(grads\) after ready\(\)"),
        (pushed, ProtocolError, r"push\(\) in the middle of a step"),
        (pushed_early, ProtocolError, r"push\(\) before the last step was answered"),
        (pulled, ProtocolError, r"pull\(\) in the middle of a step"),
        (gone, ProtocolError, "worker 0 has left and cannot push"),
        (left, ProtocolError, r"worker 0 leaves in the middle of a step: ready\(\) was called"),
    ],
)
def test_calls_in_an_order_that_cannot_be(body, error, text):
    def main(worker):
        worker.register(zeros())
        with pytest.raises(error, match=text):
            body(worker)
        raise OverError

    with pytest.raises(RankError, match="OverError"):
        play(main)


def test_a_name_that_is_wrong_takes_none_of_the_others():
    def body(worker):
        params = worker.register(zeros())
        fill(worker)
        with pytest.raises(LayoutError, match="unknown parameter 'lost'"):
            worker.ready(["last", "lost"])
        in_parts(worker)
        return params["last"][0]

    assert play(body)[0] == [np.float32(-0.1)]


def test_an_error_of_the_guard_leaves_no_open_step():
    """Who catches it and mends the gradient goes on; what was not finite is never applied."""

    def body(worker):
        params = worker.register(zeros())
        worker.grads["last"][3] = np.nan
        for _ in range(NON_FINITE_LIMIT - 1):
            in_parts(worker)
        with pytest.raises(NonFiniteError, match="'last' was NaN"):
            in_parts(worker)
        worker.wait()
        fill(worker)
        worker.step()
        return worker.clock, worker.skipped, params["last"].copy()

    [(clock, skipped, params)], _ = play(body)
    assert (clock, skipped) == (NON_FINITE_LIMIT + 1, NON_FINITE_LIMIT)
    np.testing.assert_array_equal(params, np.full(64, -0.1, np.float32))


def test_before_registration():
    def body(worker):
        for call in (worker.wait, worker.step_async, lambda: worker.ready("last")):
            with pytest.raises(LayoutError, match=r"call worker.register\(arrays\) first"):
                call()
        worker.register(zeros())

    play(body)


def test_a_rate_that_is_set_before_the_registration_is_that_of_the_first_push():
    def body(worker):
        worker.set_lr(0.5)
        with pytest.raises(ConfigError, match="must be finite and at least 0, got -1"):
            worker.set_lr(-1.0)
        worker.register(zeros())
        fill(worker)
        rates = []
        for _ in range(2):  # it stays until the next one
            worker.step()
            rates.append(worker.learning_rate)
        return rates, float(worker.params["first"][0])

    [(rates, value)], _ = play(body, staleness=0, optimizer=psgrad.SGD(0.125))
    assert (rates, value) == ([0.5, 0.5], -1.0)
