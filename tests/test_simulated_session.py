"""Whole sessions in the simulator: real workers and servers, real gradients, no MPI."""

from __future__ import annotations

import numpy as np
import pytest
from simulation import WILD

from psgrad.errors import ConfigError
from psgrad.optimizers import Momentum
from psgrad.pace import Exponential, Slow
from psgrad.session import Session
from psgrad.transport.clockwork import RankError
from psgrad.transport.faults import Kill
from psgrad.transport.network import Network
from psgrad.transport.simulated import Simulation

WORKERS, SERVERS, STEPS = 4, 2, 12
FEATURES = 96  # three chunks of 128 bytes, and one for the bias
OPTIMIZER = Momentum(0.02, momentum=0.5)
TRUTH = np.linspace(-1, 1, FEATURES, dtype=np.float32)
PACE = Slow(Exponential(1e-3, seed=5), 4.0, worker=2)


def batch(worker, step):
    """16 samples of a linear problem, different for each step of each worker."""
    rng = np.random.default_rng([worker, step])
    x = rng.normal(size=(16, FEATURES)).astype(np.float32)
    return x, x @ TRUTH + 3


def gradient(params, worker, step):
    """Of half the mean squared error."""
    x, y = batch(worker, step)
    wrong = (x @ params["w"] + params["b"] - y) / np.float32(len(y))
    return {"w": wrong @ x, "b": wrong.sum(keepdims=True)}


def start():
    return {"w": np.zeros(FEATURES, np.float32), "b": np.zeros(1, np.float32)}


def main(worker):
    """Trains; what the parameters are when all have left, and the largest staleness."""
    params = worker.register(start())
    for step in range(1, STEPS + 1):
        worker.sleep(PACE.seconds(worker.rank, step))
        worker.step(gradient(params, worker.rank, step), weight=worker.rank + 1)
    worker.leave()
    worker.barrier()
    worker.pull()
    stats = worker.server_stats()
    return np.concatenate([params["w"], params["b"]]), max(s["staleness_max"] for s in stats)


def session(transport, body=main, **options):
    with Session(transport=transport) as ranks:
        return ranks.run(
            body, servers=SERVERS, optimizer=OPTIMIZER, chunk_bytes=128, window=2, **options
        )


def simulate(seed, **options):
    """Final parameters, the largest staleness, and the text of the trace."""
    network = Network(latency_s=1e-4, bandwidth=1e8, jitter=3.0)
    sim = Simulation(SERVERS + WORKERS, network, WILD, seed, trace=True)
    results = sim.run(lambda transport: session(transport, **options))
    assert results[:SERVERS] == [None] * SERVERS
    finals = [params for params, _ in results[SERVERS:]]
    for final in finals[1:]:
        np.testing.assert_array_equal(final, finals[0])
    return finals[0], results[SERVERS][1], "\n".join(event.text() for event in sim.trace)


def twin():
    """The same synchronous training in one plain loop."""
    params = start()
    flat = np.zeros(FEATURES + 1, np.float32)
    slots, scratch = OPTIMIZER.init(flat.size), np.zeros((2, flat.size), np.float32)
    total = float(sum(range(1, WORKERS + 1)))
    for step in range(1, STEPS + 1):
        mean = np.zeros_like(flat)
        for worker in range(WORKERS):
            grad = gradient(params, worker, step)
            mean += np.concatenate([grad["w"], grad["b"]]) * np.float32((worker + 1) / total)
        OPTIMIZER.apply(flat, mean, slots, step, OPTIMIZER.learning_rate, 0.0, scratch)
        params["w"][:], params["b"][:] = flat[:FEATURES], flat[FEATURES:]
    return flat


@pytest.mark.parametrize("seed", range(3))
def test_sync_is_its_twin_bit_for_bit(seed):
    final, staleness, _ = simulate(seed, staleness=0)
    np.testing.assert_array_equal(final, twin())
    assert staleness == 0


@pytest.mark.parametrize(("bound", "reached"), [(1, [1]), (3, [3]), (None, range(4, STEPS))])
def test_workers_drift_apart_as_far_as_they_may(bound, reached):
    final, staleness, _ = simulate(1, staleness=bound)
    assert staleness in reached
    before, after = (np.square(flat - [*TRUTH, 3]).sum() for flat in (0 * final, final))
    assert after < before / 4


@pytest.mark.parametrize("bound", [0, 2, None])
@pytest.mark.parametrize("codec", ["none", "topk:0.1"])
def test_a_seed_is_a_run(bound, codec):
    """Byte for byte: every message, its time, and the parameters in the end."""
    options = {"staleness": bound, "codec": codec, "pull_codec": "fp16"}
    final, _, trace = simulate(7, **options)
    again, _, same = simulate(7, **options)
    other, _, different = simulate(8, **options)
    np.testing.assert_array_equal(again, final)
    assert same == trace != different
    if bound != 0:
        assert not np.array_equal(other, final), "the order of updates matters"


def test_what_a_run_costs_is_what_its_slowest_worker_computes():
    """Without a network to speak of, synchronous steps take the maximum over the workers."""
    network = Network(latency_s=0.0, bandwidth=np.inf)
    sim = Simulation(SERVERS + WORKERS, network)
    sim.run(lambda transport: session(transport, staleness=0))
    expected = sum(
        max(PACE.seconds(worker, step) for worker in range(WORKERS)) for step in range(1, STEPS + 1)
    )
    assert sim.now_s == pytest.approx(expected)


@pytest.fixture
def quiet(monkeypatch):
    """What sessions say of the ranks that end them, without the wait for a launcher."""
    said = []
    monkeypatch.setitem(Session.__init__.__kwdefaults__, "report", said.append)
    monkeypatch.setattr("psgrad.session.traceback.print_exception", lambda error: None)
    return said


def test_an_exception_in_main_ends_the_run(quiet):
    def body(worker):
        worker.register(start())
        if worker.rank == 1:
            raise ValueError("no such luck")
        worker.barrier()

    with pytest.raises(RankError, match=r"^rank 3: ValueError: no such luck$") as caught:
        Simulation(6).run(lambda transport: session(transport, body))
    assert isinstance(caught.value.__cause__, ValueError)
    assert quiet == ["rank 3 (worker, node3): ValueError: no such luck"]


def test_ranks_that_were_told_different_things(quiet):
    def program(transport):
        return session(transport, staleness=transport.rank // 3)

    with pytest.raises(RankError, match="staleness differs between ranks: 0 on ranks 0, 1, 2") as e:
        Simulation(6).run(program)
    assert isinstance(e.value.__cause__, ConfigError)
    assert e.value.exit_status == 2


def test_a_killed_worker_unwinds_without_a_word(quiet):
    """The session of a rank that is gone must not report, nor take the others along."""

    def body(worker):
        params = worker.register(start())
        for step in range(1, 4):
            worker.sleep(0.1)
            worker.step(gradient(params, worker.rank, step))

    sim = Simulation(3, Network(), [Kill(2, at_s=0.15)], stall_after_s=60.0)
    with pytest.raises(Exception, match="nothing can happen any more") as caught:
        sim.run(lambda t: Session(transport=t).run(body, servers=1, staleness=0))
    assert "rank 0 in receive" in str(caught.value)
    assert "killed: rank 2" in str(caught.value)
    assert quiet == []


def test_all_ranks_are_in_one_process():
    """No threads: what one rank leaves in this process another one finds."""
    seen = []

    def body(worker):
        seen.append(worker.rank)
        worker.barrier()
        return len(seen)

    results = Simulation(6).run(lambda transport: session(transport, body))
    assert results == [None, None, 4, 4, 4, 4]
