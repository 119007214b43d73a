"""Local updates: the arithmetic against a naive twin, what is skipped, and that they converge."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file
from simulation import WILD
from test_replay import replay
from test_simulate import SMALL, psgrad, simulated
from test_train import _command_line, train
from twin import Twin

from psgrad.data import Batches
from psgrad.errors import ConfigError, NonFiniteError
from psgrad.kernels import cpu
from psgrad.layout import SegmentOptions
from psgrad.local import LocalSteps
from psgrad.optimizers import SGD, Adam, Momentum, Nesterov
from psgrad.outer import OuterSGD
from psgrad.schedules import Constant, Warmup
from psgrad.session import Session
from psgrad.train import configure
from psgrad.transport.clockwork import RankError
from psgrad.transport.network import Network
from psgrad.transport.simulated import Simulation

WORKERS, SERVERS, FEATURES = 3, 2, 96
TRUTH = np.linspace(-1, 1, FEATURES + 1, dtype=np.float32)
UNEVEN = (7, 4, 0)  # steps of each worker
ROUGH = ["--pace", "exponential:mean=0.01"]
DIGITS = ["--epochs", "20", "--set", "model.hidden=[64]", "--learning-rate", "0.005", "--seed", "3"]


# The twin: plain loops over whole vectors


def local_sgd(start, work, steps, optimizer, outer, schedule=None):
    """The centre of synchronous local SGD; ``work[worker]`` is [(gradient(flat), samples), ...].

    A gradient of None is one that is not finite.
    """
    schedule = schedule or Constant()
    centre, outer_slots = start.copy(), outer.init(start.size)
    slots = [optimizer.init(start.size) for _ in work]
    scratch = np.zeros((2, start.size), np.float32)
    done, applied, rounds = [0] * len(work), [0] * len(work), 0
    while any(done[w] < len(todo) for w, todo in enumerate(work)):
        pushed = []
        for w, todo in enumerate(work):
            copy, samples = centre.copy(), 0.0
            for gradient, weight in todo[done[w] : done[w] + steps]:
                rate = optimizer.learning_rate * schedule.factor(done[w])
                done[w] += 1
                grad = gradient(copy)
                if grad is None:
                    continue
                applied[w] += 1
                decay = optimizer.weight_decay
                optimizer.apply(copy, grad, slots[w], applied[w], rate, decay, scratch)
                samples += weight
            if samples:
                pushed.append((centre - copy, samples))
        if not pushed:
            continue
        total = sum(samples for _, samples in pushed)
        mean = pushed[0][0] * np.float32(pushed[0][1] / total)
        for difference, samples in pushed[1:]:
            mean += difference * np.float32(samples / total)
        rounds += 1
        outer.apply(centre, mean, outer_slots, rounds, outer.learning_rate, 0.0, scratch)
    return centre


def gradient(flat, worker, step):
    """Of half the mean squared error on 16 samples of a linear problem."""
    rng = np.random.default_rng([worker, step])
    x = np.append(rng.normal(size=(16, FEATURES)), np.ones((16, 1)), axis=1).astype(np.float32)
    return (x @ (flat - TRUTH) / np.float32(16)) @ x


def arrays():
    return {"w": np.zeros(FEATURES, np.float32), "b": np.zeros(1, np.float32)}


def flat(named):
    return np.concatenate([named["w"], named["b"]])


def go(worker, local, count, broken=()):
    """``count`` steps of ``local``; those in ``broken`` have a NaN."""
    for step in range(1, count + 1):
        grad = gradient(flat(local.params), worker.rank, step)
        local.grads["w"], local.grads["b"] = grad[:FEATURES], grad[FEATURES:]
        if step in broken:
            local.grads["w"][3] = np.nan
        worker.sleep(0.01 * (worker.rank + 1))
        local.step(weight=worker.rank + step % 2 + 1)
        assert np.isfinite(flat(local.params)).all()
    local.exchange()


def finals(worker):
    worker.leave()
    worker.barrier()
    worker.pull(dense=True)
    return flat(worker.params).copy()


def session(body, workers=WORKERS, **options):
    """What ``body(worker)`` returns on each worker."""

    def program(transport):
        with Session(transport=transport, report=lambda text: None) as ranks:
            return ranks.run(
                body, **{"servers": SERVERS, "chunk_bytes": 128, "window": 2, **options}
            )

    sim = Simulation(SERVERS + workers, Network(1e-4, 1e8, jitter=3.0), WILD, seed=5)
    return sim.run(program)[SERVERS:]


def refused(body, **options):
    with pytest.raises(RankError) as caught:
        session(body, **options)
    return caught.value.__cause__


# Averaging


@pytest.mark.parametrize("steps", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("optimizer", "outer"),
    [
        (SGD(0.05), SGD(1.0)),
        (Momentum(0.02, weight_decay=0.01), Nesterov(0.7)),
        (Adam(0.05), Momentum(0.5, momentum=0.3)),
    ],
)
def test_averaging_is_its_twin_bit_for_bit(steps, optimizer, outer):
    """Uneven workers, a short last group, one worker without data, uneven weights, a NaN."""

    def body(worker):
        worker.register(arrays())
        local = LocalSteps(worker, optimizer, steps, schedule=Warmup(5))
        broken = {2} if worker.rank == 1 else ()
        go(worker, local, UNEVEN[worker.rank], broken)
        assert worker.clock == -(-UNEVEN[worker.rank] // steps)
        assert (local.skipped, worker.skipped) == (len(broken), 0)
        assert local.count == UNEVEN[worker.rank]
        return finals(worker)

    def todo(worker):
        for step in range(1, UNEVEN[worker] + 1):
            broken = (worker, step) == (1, 2)
            yield (
                (lambda x: None) if broken else lambda x, s=step: gradient(x, worker, s),
                worker + step % 2 + 1,
            )

    work = [list(todo(worker)) for worker in range(WORKERS)]
    expected = local_sgd(flat(arrays()), work, steps, optimizer, outer, Warmup(5))
    for final in session(body, staleness=0, optimizer=outer):
        np.testing.assert_array_equal(final, expected)


@pytest.mark.parametrize("staleness", [0, 2, None])
@pytest.mark.parametrize("pull_codec", ["none", "topk:0.1"])
def test_the_copy_is_the_workers_own(staleness, pull_codec):
    """In every mode it starts anew from what is pulled, also where that is read-only."""

    def body(worker):
        params = worker.register(arrays())
        local = LocalSteps(worker, SGD(0.05), 3)
        assert local.grads is worker.grads
        assert not np.shares_memory(local.params["w"], params["w"])
        for _ in range(4):
            go(worker, local, 2)
            np.testing.assert_array_equal(flat(local.params), flat(params))
        before = flat(params).copy()
        local.step()
        assert np.any(flat(local.params) != before)
        np.testing.assert_array_equal(flat(params), before)
        assert worker.clock == 4
        return local.learning_rate

    options = {"staleness": staleness, "pull_codec": pull_codec}
    assert session(body, optimizer=SGD(1.0), **options) == [0.05] * WORKERS


def test_an_exchange_of_nothing_is_none_and_one_of_skipped_steps_is_empty():
    def body(worker):
        params = worker.register(arrays())
        local = LocalSteps(worker, SGD(0.05), 2)
        local.exchange()
        assert worker.clock == 0
        go(worker, local, 2, broken={1, 2})
        assert (worker.clock, local.skipped, worker.skipped) == (1, 2, 0)
        assert not flat(params).any()
        local.grads["w"] = np.ones(FEATURES, np.float32)
        local.step(weight=0)
        local.step(weight=0)
        assert (worker.clock, local.count) == (2, 4)
        assert not flat(params).any()
        return worker.server_stats()

    for stats in session(body, staleness=0, optimizer=SGD(1.0))[0]:
        assert stats["updates"] == 0
        assert stats["skipped"] == stats["pushes"] > 0


@pytest.mark.parametrize(("optimizer", "size"), [(Momentum(1e3), 1e38), (Adam(3e38), 1.0)])
@pytest.mark.parametrize("elastic", [0.0, 0.25])
def test_a_copy_that_is_not_finite_is_given_up(elastic, optimizer, size):
    """Its difference is not applied; the worker begins anew, its slots as well."""

    def body(worker):
        params = worker.register(arrays())
        local = LocalSteps(worker, optimizer, 2, elastic=elastic)
        for _ in range(2):
            local.grads["w"], local.grads["b"] = np.full(FEATURES, size), np.zeros(1)
            local.step()
        assert (worker.skipped, local.skipped, worker.clock) == (1, 1, 1)
        assert not flat(params).any()
        assert not flat(local.params).any()
        local.grads["w"] = np.ones(FEATURES)
        local.step()
        return flat(local.params)

    first, n = np.zeros(FEATURES + 1, np.float32), FEATURES + 1
    grad = np.append(np.ones(FEATURES), 0).astype(np.float32)
    scratch = np.zeros((1, n), np.float32)
    optimizer.apply(first, grad, optimizer.init(n), 1, optimizer.learning_rate, 0.0, scratch)
    (seen,) = session(body, workers=1, staleness=None, optimizer=SGD(1.0))
    np.testing.assert_array_equal(seen, first)


def test_gradients_that_stay_not_finite_end_the_job():
    def body(worker):
        worker.register(arrays())
        go(worker, LocalSteps(worker, SGD(0.1), 3), 10, broken=range(11))

    error = refused(body, staleness=0, optimizer=SGD(1.0))
    assert isinstance(error, NonFiniteError)
    assert "the gradient of 'w' was NaN or infinite for 10 steps in a row" in str(error)


def test_segments():
    """Scale and decay act in local steps; buffers are averaged; members train alone."""

    def body(worker):
        start = {**arrays(), "stats": np.zeros(4, np.float32), "mine": np.zeros(40, np.float32)}
        params = worker.register({name: value + 1 for name, value in start.items()})
        scaled = [SegmentOptions("b", learning_rate_scale=0.5, weight_decay=1.0)]
        local = LocalSteps(worker, SGD(0.25), 2, segments=scaled)
        for weight in (worker.rank + 1, worker.rank + 1, 0, 0):
            for grad in local.grads.values():
                grad[...] = 1.0
            local.grads["stats"] = np.full(4, worker.rank + 2.0)
            if weight == 0:
                worker.barrier()  # the other's push of what it trains alone has come
            local.step(weight=weight)
        for name, value in params.items():
            np.testing.assert_array_equal(local.params[name], value)
        return {name: value.copy() for name, value in params.items()}

    segments = [SegmentOptions("stats", buffer=True), SegmentOptions("mine", members=(1,))]
    for seen in session(body, workers=2, staleness=0, optimizer=SGD(1.0), segments=segments):
        np.testing.assert_array_equal(seen["w"], np.full(FEATURES, 0.5))
        np.testing.assert_array_equal(seen["mine"], np.full(40, 0.5))
        # 1 - 0.125 (1 + 1) = 0.75; 0.75 - 0.125 (1 + 0.75)
        np.testing.assert_array_equal(seen["b"], [0.53125])
        np.testing.assert_allclose(seen["stats"], np.full(4, (2 * 1 + 3 * 2) / 3), rtol=1e-6)


def test_segments_of_elastic_averaging():
    """What others train is pulled; a buffer is pushed as it is and stays the worker's own."""

    def body(worker):
        start = {**arrays(), "stats": np.zeros(4, np.float32), "mine": np.zeros(40, np.float32)}
        params = worker.register(start)
        local = LocalSteps(worker, SGD(0.25), 1, elastic=0.5)
        for weight in (1, 0):
            for grad in local.grads.values():
                grad[...] = 1.0
            worker.barrier()
            local.step(weight=weight)
        worker.barrier()
        worker.pull()
        own = 0.5 * -0.25 if worker.rank else params["mine"][0]
        np.testing.assert_array_equal(local.params["mine"], np.full(40, own, np.float32))
        np.testing.assert_array_equal(local.params["stats"], np.ones(4))
        return {name: value.copy() for name, value in params.items()}

    segments = [SegmentOptions("stats", buffer=True), SegmentOptions("mine", members=(1,))]
    for seen in session(body, workers=2, staleness=None, optimizer=SGD(1.0), segments=segments):
        np.testing.assert_array_equal(seen["mine"], np.full(40, -0.125))
        np.testing.assert_array_equal(seen["stats"], np.full(4, 0.75))  # half the way, twice


def test_clipping_is_of_each_local_gradient():
    def body(worker):
        params = worker.register(arrays())
        local = LocalSteps(worker, SGD(1.0), 4, clip_norm=0.5)
        for _ in range(4):
            local.grads["w"], local.grads["b"] = np.eye(1, FEATURES)[0] * 100, np.zeros(1)
            local.step()
        np.testing.assert_allclose(params["w"][0], -2.0, rtol=1e-6)

    session(body, staleness=0, optimizer=SGD(1.0))


# Elastic averaging


def test_elastic_averaging_of_one_worker_is_its_twin_bit_for_bit():
    alpha, steps, optimizer = np.float32(0.3), 3, Adam(0.05)

    def body(worker):
        worker.register(arrays())
        local = LocalSteps(worker, optimizer, steps, elastic=float(alpha))
        go(worker, local, 11)
        return finals(worker), flat(local.params)

    copy, centre = flat(arrays()), flat(arrays())
    slots, scratch = optimizer.init(copy.size), np.zeros((1, copy.size), np.float32)
    for step in range(1, 12):
        optimizer.apply(copy, gradient(copy, 0, step), slots, step, 0.05, 0.0, scratch)
        if step % steps == 0 or step == 11:
            spring = (centre - copy) * np.float32(0.3)
            copy += spring
            centre -= spring
    final, own = session(body, workers=1, staleness=None, optimizer=SGD(1.0))[0]
    np.testing.assert_array_equal(final, centre)
    np.testing.assert_array_equal(own, copy)
    assert np.any(own != final)


@pytest.mark.parametrize("codec", ["none", "topk:0.2"])
@pytest.mark.parametrize("staleness", [2, None])
def test_the_centre_moves_by_what_the_copies_give_up(staleness, codec):
    """Nothing is lost: also of what a codec keeps back, once the workers have left."""

    def body(worker):
        worker.register(arrays())
        local = LocalSteps(worker, SGD(0.05), 2, elastic=0.2)
        given, exchange = np.zeros(FEATURES + 1), local.exchange

        def counted():
            nonlocal given
            before = flat(local.params).copy()
            exchange()
            given += before - flat(local.params)

        local.exchange = counted
        go(worker, local, 7 + worker.rank, broken={3, 4})
        return finals(worker), given, flat(local.params)

    results = session(body, staleness=staleness, optimizer=SGD(1.0), codec=codec)
    centre = results[0][0]
    np.testing.assert_allclose(centre, sum(given for _, given, _ in results), atol=1e-5)
    error = np.square(centre - TRUTH).sum() / np.square(TRUTH).sum()
    assert error < 0.9
    copies = [own for _, _, own in results]
    assert all(np.any(copies[i] != copies[j]) for i in range(3) for j in range(i))


# The trainer


class LocalTwin(Twin):
    """``psgrad train --local-steps H --mode sync`` as one loop."""

    def train_locally(self):
        config = self.config
        work = [
            [
                (lambda x, indices=indices: self._gradient_at(x, indices), len(indices))
                for _, indices in Batches(
                    share, config.batch_size, config.seed, worker, config.epochs
                )
            ]
            for worker, share in enumerate(self.shares)
        ]
        start = np.concatenate([value.ravel() for value in self.params.values()])
        outer = config.outer.value
        schedule = config.schedule.value
        final = local_sgd(start, work, config.local_steps, self.optimizer, outer, schedule)
        self._set(final)
        return [len(todo) for todo in work]

    def _set(self, flat):
        at = 0
        for value in self.params.values():
            value[...] = flat[at : at + value.size].reshape(value.shape)
            at += value.size

    def _gradient_at(self, flat, indices):
        self._set(flat)
        return self.gradient(indices)


LOCAL = [
    "--mode", "sync", "--local-steps", 4, "--batch-size", 37, "--epochs", 3,
    "--schedule", "warmup",
]  # fmt: skip
MORE = ["--set", "schedule.steps=9", "--set", "outer=nesterov", "--set", "model.hidden=[16]"]


def local_twin(options):
    source = _command_line(options)
    more = {"schedule.steps": 9, "outer.name": "nesterov", "model.hidden": [16]}
    source.values.update(more)
    twin = LocalTwin(configure([source]), WORKERS)
    return twin, twin.train_locally()


def test_training_is_its_twin_bit_for_bit(capsys, tmp_path):
    """1438 samples on 3 workers, in groups of 4 batches of 37: short groups, uneven workers."""
    twin, counts = local_twin(LOCAL)
    summary, seen = simulated(capsys, tmp_path / "run", "workers=3,jitter=2", *LOCAL, *MORE)
    assert summary["params_sha256"] == twin.sha256
    assert summary["steps"] == sum(-(-count // 4) for count in counts)
    assert (summary["local_steps"], summary["elastic"]) == (4, 0.0)
    assert "3 workers, sync, 4 local steps" in seen
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["step"] for record in steps] == list(range(1, counts[0] + 1))
    rates = [min(1.0, (step + 1) / 9) * 1e-3 for step in range(1, counts[0] + 1)]
    assert [record["learning_rate"] for record in steps] == pytest.approx(rates)


def test_real_ranks_train_like_the_twin(mpi, tmp_path, capsys):
    twin, _ = local_twin(LOCAL)
    options = [*LOCAL, *MORE, "--servers", 2, "--record"]
    summary, _ = train(mpi, tmp_path / "run", *options, ranks=5)
    assert summary["params_sha256"] == twin.sha256


def test_real_elastic_ranks_are_repeated_from_their_record(mpi, tmp_path, capsys):
    options = ["--mode", "async", "--local-steps", 3, "--elastic", 0.3, "--record", *SMALL]
    summary, seen = train(mpi, tmp_path / "run", *options, "--codec", "topk:0.2")
    assert "async, 3 local steps, elastic 0.3" in seen
    status, outcome, _ = replay(capsys, tmp_path / "run")
    assert status == 0
    assert outcome["repeated"] == summary["params_sha256"]


@pytest.mark.parametrize("steps", [2, 8])
@pytest.mark.parametrize(
    "more",
    [
        ["--mode", "sync"],
        ["--mode", "ssp", "--set", "outer.learning_rate=0.3"],
        ["--mode", "async", "--set", "outer.learning_rate=0.3"],
        ["--mode", "async", "--elastic", "0.3"],
        ["--mode", "ssp", "--elastic", "0.3", "--optimizer", "sgd", "--learning-rate", "0.5"],
        ["--mode", "sync", "--codec", "topk:0.05"],
        ["--mode", "async", "--codec", "topk:0.05", "--set", "outer.learning_rate=0.3"],
        ["--mode", "async", "--codec", "topk:0.05", "--elastic", "0.3"],
        ["--mode", "sync", "--codec", "int8", "--pull-codec", "topk:0.1"],
    ],
    ids=" ".join,
)
def test_digits_are_learned(capsys, tmp_path, steps, more):
    summary, _ = simulated(
        capsys, tmp_path / "run", "workers=3", *DIGITS, *ROUGH, "--local-steps", steps, *more
    )
    assert summary["test_accuracy"] >= 0.96
    assert summary["skipped_steps"] == 0


def test_bytes_fall_with_the_number_of_local_steps(capsys, tmp_path):
    runs = {
        steps: simulated(
            capsys, tmp_path / str(steps), "workers=3", "--mode", "sync", "--epochs", 4,
            "--local-steps", steps,
        )[0]
        for steps in (1, 2, 4, 60, 1000)
    }  # fmt: skip
    counts = {steps: run["steps"] for steps, run in runs.items()}
    assert counts == {1: 180, 2: 90, 4: 45, 60: 3, 1000: 3}
    each = (runs[1]["bytes_pushed"] - runs[60]["bytes_pushed"]) / (180 - 3)
    for steps, run in runs.items():
        assert runs[60]["bytes_pushed"] - run["bytes_pushed"] == (3 - counts[steps]) * each
        pulled = runs[60]["bytes_pulled"] - run["bytes_pulled"]
        assert pulled == pytest.approx((3 - counts[steps]) * each, rel=0.01)


def test_micro_batches_of_a_local_step_are_one(capsys, tmp_path):
    """15 batches an epoch in steps of 2: 8 local steps; 4 epochs of them in groups of 5."""
    summary, _ = simulated(
        capsys, tmp_path / "run", "workers=3", "--mode", "sync", "--epochs", 4, "--accumulate", 2,
        "--local-steps", 5,
    )  # fmt: skip
    assert summary["steps"] == 3 * -(-4 * 8 // 5)


def test_a_planted_nan_spoils_the_steps_of_one_push(capsys, tmp_path):
    summary, seen = simulated(
        capsys, tmp_path / "run", "workers=3", "--local-steps", 4, "--inject", "nan:rank=2,step=3",
    )  # fmt: skip
    assert summary["skipped_steps"] == 4
    assert "skipped        4 steps were not finite" in seen


def test_progress_before_the_first_exchange(capsys, tmp_path):
    _, seen = simulated(
        capsys, tmp_path / "run", "workers=3", "--local-steps", 1000, "--progress", "plain"
    )
    assert "epoch 2/2  step 30  " in seen


def sha256(capsys, folder, *options):
    summary, _ = simulated(capsys, folder, "workers=3", *options)
    return summary["params_sha256"]


@pytest.mark.parametrize("more", [["--mode", "sync"], ["--mode", "async", "--elastic", "0.3"]])
def test_scale_and_decay_of_segments_act_once(capsys, tmp_path, more):
    """In local steps, and not in the servers' as well; a power of two scales without rounding."""
    options = [*more, "--local-steps", 4, "--optimizer", "sgd"]
    segments = '[{match="*", learning_rate_scale=0.5, weight_decay=0.01}]'
    scaled = sha256(capsys, tmp_path / "a", *options, "--set", f"segments={segments}")
    plain = [*options, "--learning-rate", 0.05, "--set", "optimizer.weight_decay=0.01"]
    assert sha256(capsys, tmp_path / "b", *plain) == scaled
    assert sha256(capsys, tmp_path / "c", *options) != scaled


def test_clipping_bounds_local_gradients_and_not_what_is_pushed(capsys, tmp_path):
    options = ["--mode", "sync", "--optimizer", "sgd", "--learning-rate", 1, "--epochs", 1]
    moved = {}
    for name, more in {"start": ["--learning-rate", 0], "end": ["--clip-norm", 1e-3]}.items():
        folder = tmp_path / name
        simulated(capsys, folder, "workers=3", *options, "--local-steps", 1000, *more)
        parameters = load_file(folder / "model.safetensors")
        moved[name] = np.concatenate([value.ravel() for value in parameters.values()])
    distance = np.linalg.norm(moved["end"] - moved["start"])
    assert 5e-3 < distance < 15.01e-3, "15 steps of 1e-3"


@pytest.mark.parametrize("more", [[], ["--local-steps", "3"]])
def test_a_device_with_memory_of_its_own(capsys, tmp_path, monkeypatch, more):
    options = ["--mode", "sync", "--epochs", "1", "--accumulate", "2", *more]
    expected = sha256(capsys, tmp_path / "cpu", *options)
    names = [name for name in dir(cpu) if not name.startswith("_")]
    elsewhere = SimpleNamespace(**{name: getattr(cpu, name) for name in names})
    elsewhere.device = "elsewhere"
    elsewhere.asarray = lambda array: np.array(array)
    monkeypatch.setattr("psgrad.train.load_kernels", lambda device, gpu: elsewhere)
    assert sha256(capsys, tmp_path / "elsewhere", *options) == expected


# What is refused


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--local-steps", "0"], "local_steps must be a whole number of at least 1, got 0; 1 push"),
        (["--local-steps", "2.5"], "local_steps must be an integer, got 2.5"),
        (["--elastic", "1"], "elastic must be at least 0 and below 1, got 1.0; 0 is off, 0.9 / ("),
        (["--elastic", "-0.1"], "elastic must be at least 0 and below 1, got -0.1"),
        (["--elastic", "nan"], "elastic must be at least 0 and below 1, got nan"),
        (["--elastic", "0.3", "--mode", "sync"], "elastic needs mode ssp or async, got sync"),
        (["--elastic", "0.3", "--staleness", "0"], "elastic needs mode ssp or async, got sync"),
        (
            ["--elastic", "0.3", "--set", "outer=momentum"],
            "elastic needs servers that add what is pushed, outer sgd with learning rate 1 and "
            "weight decay 0, got OuterMomentum(learning_rate=1.0, weight_decay=0.0, momentum=0.6); "
            "leave outer out",
        ),
        (["--elastic", "0.3", "--set", "outer.learning_rate=0.5"], "elastic needs servers that ad"),
        (["--elastic", "0.3", "--set", "outer.weight_decay=0.1"], "elastic needs servers that add"),
        (
            ["--elastic", "0.3", "--codec", "topk:0.1", "--feedback", "dgc"],
            "elastic needs pushes without momentum, got feedback dgc; use ef",
        ),
        (
            ["--set", "outer=nesterov"],
            "outer is for local updates, got outer nesterov with local_steps 1; set local_steps to "
            "2 or more, or leave outer out",
        ),
        (["--set", "outer.learning_rate=0.5"], "outer is for local updates, got outer sgd with lo"),
        (["--set", "outer=adam"], "unknown outer 'adam'. Known: momentum, nesterov, sgd"),
        (["--set", "outer.momentum=0.5"], "outer.momentum: unknown option of outer 'sgd' 'moment"),
        (
            ["--overlap", "on", "--local-steps", "2"],
            "overlap hides the push of each step, local up",
        ),
        (
            ["--overlap", "on", "--record"],
            "overlap sends what the moment has room for, which a rep",
        ),
        (["--overlap", "on", "--elastic", "0.3"], "overlap hides the push of each step, local upd"),
        (["--set", "outer.learning_rate=-1"], "OuterSGD: learning_rate must be at least 0 and fi"),
    ],
)
def test_keys_that_cannot_be(capsys, tmp_path, options, text):
    status, out, err = psgrad(
        capsys, "train", "--simulate", "workers=3", "--run-dir", tmp_path / "run", *options
    )
    assert (status, out) == (2, "")
    assert err.startswith("psgrad: error: " + text)
    assert err.count("\n") == 1


@pytest.mark.parametrize("options", [["--elastic", "0.3"], ["--local-steps", "2"]])
def test_what_is_said_of_the_servers_by_default(options):
    config = configure([_command_line(options)])
    assert config.local
    assert config.outer.value == OuterSGD(1.0)
    assert not configure([]).local


@pytest.mark.parametrize(
    ("options", "arguments", "text"),
    [
        ({}, {"steps": 0}, "local_steps must be a whole number of at least 1, got 0"),
        ({}, {"steps": True}, "local_steps must be a whole number of at least 1, got True"),
        ({}, {"elastic": 1.0}, "elastic must be at least 0 and below 1, got 1.0"),
        ({"staleness": 0}, {"elastic": 0.5}, "elastic needs mode ssp or async, got sync"),
        ({"optimizer": SGD(0.1)}, {"elastic": 0.5}, "elastic needs servers that add what is pushe"),
        ({"optimizer": Momentum(1.0)}, {"elastic": 0.5}, "elastic needs servers that add what is"),
        (
            {"schedule": Warmup(3)},
            {"elastic": 0.5},
            "elastic needs servers without a schedule, got Warmup(steps=3); give it to LocalSteps",
        ),
        (
            {"clip_norm": 1.0},
            {"elastic": 0.5},
            "elastic needs pushes that are not clipped, got clip_norm 1.0 in run; give it to Local",
        ),
        (
            {"segments": [SegmentOptions("b", learning_rate_scale=0.5)]},
            {"elastic": 0.5},
            "elastic needs servers without scale and decay of segments, got 'b'; give it to Local",
        ),
        (
            {"codec": "topk:0.1", "feedback": "dgc"},
            {"elastic": 0.5},
            "elastic needs pushes without momentum, got feedback dgc; use ef",
        ),
    ],
)
def test_local_steps_that_cannot_be(options, arguments, text):
    def body(worker):
        worker.register(arrays())
        LocalSteps(worker, SGD(0.1), **{"steps": 2, **arguments})

    error = refused(body, **{"staleness": None, "optimizer": SGD(1.0), **options})
    assert isinstance(error, ConfigError)
    assert str(error).startswith(text)


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_a_weight_that_cannot_be(weight):
    def body(worker):
        worker.register(arrays())
        LocalSteps(worker, SGD(0.1), 2).step(weight=weight)

    error = refused(body, staleness=0)
    assert str(error) == f"weight must be finite and at least 0, got {weight}"


# Checkpoints


@pytest.mark.parametrize("elastic", [0.0, 0.3])
def test_what_a_checkpoint_gets_does_not_change_with_the_next_steps(elastic):
    """It may be written when those have been done: the marker is sent at the next exchange."""

    def body(worker):
        worker.register(arrays())
        local = LocalSteps(worker, Momentum(0.1), 2, elastic=elastic)
        go(worker, local, 2)
        state = local.state_dict()
        before = {name: np.copy(slot) for name, slot in state["slots"].items()}
        copy = np.copy(state["copy"]) if elastic else None
        go(worker, local, 1)
        after = local.state_dict()["slots"]
        for name, slot in state["slots"].items():
            assert slot.tobytes() == before[name].tobytes() != after[name].tobytes()
        assert ("copy" in state) == bool(elastic)
        if elastic:
            assert state["copy"].tobytes() == copy.tobytes()

    session(body, staleness=1 if elastic else 0, optimizer=SGD(1.0))


@pytest.mark.parametrize("elastic", [0.0, 0.3])
def test_local_steps_go_on(elastic):
    """With what they had, and the same steps, they come to the same."""

    def body(worker):
        worker.register(arrays())
        first, second = (LocalSteps(worker, Adam(0.1), 3, elastic=elastic) for _ in range(2))
        go(worker, first, 3)
        second.load_state_dict(first.state_dict())
        assert second.count == first.count == 3
        assert second.learning_rate == first.learning_rate
        mine, theirs = first.state_dict(), second.state_dict()
        if not elastic:  # there the copy is what the servers have
            np.copyto(second._copy, first._copy)
        assert repr(mine) == repr(theirs)
        for step in (1, 2):
            for local in (first, second):
                worker.grads["w"][...] = step
                local.step()
        assert flat(first.params).tobytes() == flat(second.params).tobytes()
        first.exchange()

    session(body, workers=1, staleness=1 if elastic else 0, optimizer=SGD(1.0))


@pytest.mark.parametrize("spoiled", [np.nan, np.inf, None])
def test_slots_that_are_not_there_or_not_finite_begin_anew(spoiled):
    def body(worker):
        worker.register(arrays())
        local = LocalSteps(worker, Momentum(0.1), 2)
        go(worker, local, 2)
        state = local.state_dict()
        name, slot = next(iter(state["slots"].items()))
        if spoiled is None:  # of a worker that had left
            state["slots"][name] = None
        else:
            slot[0] = spoiled
        again = LocalSteps(worker, Momentum(0.1), 2)
        again.load_state_dict(state)
        assert again.count == 2
        assert not any(slot.any() for slot in again.state_dict()["slots"].values())
        assert again.state_dict()["applied"] == 0

    session(body, workers=1, optimizer=SGD(1.0))
