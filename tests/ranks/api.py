"""What each rank of tests/test_session.py runs: any failed assertion ends the job."""

import contextlib
import functools
import sys

import numpy as np

import psgrad
from psgrad.errors import ConfigError, LayoutError, ProtocolError


def arrays(value=1.0):
    return {"w": np.full((30, 40), value, np.float32), "b": np.full(7, value, np.float32)}


def decay(params):
    """The gradient of |p|^2 / 2."""
    return {name: value.copy() for name, value in params.items()}


def final(worker):
    """The parameters when everybody has stopped."""
    worker.leave()
    worker.barrier()
    worker.pull()
    return {name: value.copy() for name, value in worker.params.items()}


def views(worker):
    """register() returns views that stay the same; worker 0's values win; step() sends in place."""
    params = worker.register(arrays(worker.rank + 1.0))
    view = params["w"]
    assert np.all(view == 1.0), "worker 0's values"
    assert worker.params is params
    for name in worker.grads:
        worker.grads[name][...] = worker.params[name]
    worker.step()
    assert params["w"] is view
    assert np.allclose(view, 0.9)
    worker.step(decay(params), weight=3)
    assert np.allclose(view, 0.81)
    assert worker.clock == 2
    assert worker.learning_rate == 0.1
    assert list(params(["b"])) == ["b"]
    assert params(["b"])["b"] is params["b"]
    return "main's value"


def push_and_pull(worker):
    params = worker.register(arrays())
    worker.push(decay(params))
    assert np.all(params["w"] == 1.0), "a push brings nothing back"
    worker.pull(["w"])
    assert np.allclose(params["w"], 0.9)
    worker.pull()
    assert np.allclose(params["b"], 0.9)


def weights(worker):
    """The mean is weighted by samples; weight 0 counts for nothing."""
    params = worker.register(arrays(0.0))
    grads = {name: np.full_like(value, worker.rank) for name, value in params.items()}
    worker.step(grads, weight=worker.rank)  # (0*0 + 1*1 + 2*2) / 3
    assert np.allclose(params["w"], -0.1 * 5 / 3)
    worker.step(grads, weight=0)
    assert np.allclose(params["w"], -0.1 * 5 / 3), "an empty round changes nothing"


def uneven(worker):
    """Workers with 0, 5 and 10 steps: nobody deadlocks; each leaves when it runs out."""
    params = worker.register(arrays())
    for _ in range(5 * worker.rank):
        worker.step(decay(params))
    result = final(worker)
    # Rounds 1-5 have two workers, 6-10 one; all gradients of a round are equal.
    assert np.allclose(result["w"], 0.9**10)


def no_parameters(worker):
    """A worker whose main returns at once is not waited for."""
    if worker.rank == 1:
        return
    params = worker.register(arrays())
    worker.step(decay(params))
    worker.barrier()


def late_start(worker):
    """Worker 0 is done before it registers: the next one's values win."""
    if worker.rank == 0:
        return
    params = worker.register(arrays(worker.rank + 1.0))
    assert np.all(params["w"] == 2.0)
    worker.step(decay(params))


def caught(worker):
    """A refused registration may be tried again."""
    mine = arrays()
    if worker.rank == 2:
        mine["b"] = mine["b"][:3]
    try:
        worker.register(mine)
    except LayoutError:
        params = worker.register(arrays())
        worker.step(decay(params))
        return
    raise AssertionError("another shape on one worker was accepted")


def nothing_lost(worker, mean):
    """With plain SGD and error feedback, what all workers pushed arrives, in whatever pieces."""
    params = worker.register(arrays(0.0))
    sums = {name: np.zeros(value.shape, np.float64) for name, value in params.items()}
    for index in range(worker.size):
        rng = np.random.default_rng(index)
        for _ in range(20):
            grads = {
                name: rng.standard_normal(value.shape, dtype=np.float32)
                for name, value in params.items()
            }
            for name, grad in grads.items():
                sums[name] += grad
            if index == worker.rank:
                worker.step(grads)
    worker.leave()
    worker.barrier()
    worker.pull(dense=True)
    for name, value in params.items():
        # An asynchronous push is a whole step; a synchronous round is the mean of three.
        expected = -0.1 * sums[name] / (worker.size if mean else 1)
        assert np.allclose(value, expected, rtol=1e-4, atol=1e-4), name


def ef21(worker):
    """With constant gradients the estimate reaches the mean of the workers'; steps are exact."""
    params = worker.register(arrays(0.0))
    grads = {name: np.full_like(value, worker.rank + 1.0) for name, value in params.items()}
    for _ in range(60):
        worker.step(grads, weight=worker.rank + 1)
    before = params["w"].copy()
    worker.step(grads)
    assert np.allclose(params["w"] - before, -0.1 * 2.0, rtol=1e-4), "the plain mean of 1, 2, 3"


def ef21_uneven(worker):
    params = worker.register(arrays(0.0))
    for _ in range(5 - (worker.rank == 2)):
        worker.step(decay(params))


def outvoted(worker):
    """A worker that pushes anything is one of the trimmed: the others move the parameters."""
    params = worker.register(arrays(0.0))
    for value in (1e30, -7.0, 2.0):
        grads = {name: np.full_like(v, worker.rank) for name, v in params.items()}
        if worker.rank == 3:
            grads = {name: np.full_like(v, value) for name, v in params.items()}
        before = params["w"].copy()
        worker.step(grads, weight=64 if worker.rank == 3 else 1)
        moved = {1e30: 1.5, -7.0: 0.5, 2.0: 1.5}[value]  # of 0, 1, 2: without the largest, smallest
        assert np.allclose(params["w"] - before, -0.1 * moved)


def outvoted_uneven(worker):
    ef21_uneven(worker)


def pulled_in_8_bits(worker):
    """Parameters come within half a step of int8; a dense pull brings what the servers have."""
    rng = np.random.default_rng(1)
    first = {"w": rng.standard_normal((30, 40), dtype=np.float32), "b": np.ones(7, np.float32)}
    params = worker.register(first)
    assert np.array_equal(params["w"], first["w"]), "the first pull is dense"
    zeros = {name: np.zeros_like(value) for name, value in params.items()}
    worker.step(zeros)
    step = np.abs(first["w"]).max() / 127
    assert not np.array_equal(params["w"], first["w"])
    assert np.abs(params["w"] - first["w"]).max() <= 0.5001 * step
    worker.pull(dense=True)
    assert np.array_equal(params["w"], first["w"])


def pulled_differences(worker):
    """Replies are differences, on both sides of a dense pull; all workers hold the same bits."""
    rng = np.random.default_rng(1)
    params = worker.register({"w": rng.standard_normal((60, 70), dtype=np.float32)})
    with contextlib.suppress(ValueError):
        params["w"][:] = 0.0
        raise AssertionError("a difference cannot be added to what the caller has changed")
    for step in range(6):
        before = worker.wire_nbytes
        worker.step({"w": rng.standard_normal((60, 70))})
        pulled = worker.wire_nbytes - before - params["w"].nbytes
        assert pulled < (1.6 if step == 4 else 0.2) * params["w"].nbytes, step
        bits = worker.comm.allgather(params["w"].tobytes())
        assert len(set(bits)) == 1
        if step == 3:
            # What is asked for is what the servers have; the next reply brings the reference back.
            worker.pull(dense=True)
            assert worker.comm.allgather(params["w"].tobytes()) != bits
    for _ in range(60):
        worker.step({"w": np.zeros((60, 70))})
    held = params["w"].copy()
    worker.pull(dense=True)
    assert np.allclose(held, params["w"], rtol=0, atol=1e-6), "nothing is held back for ever"


def shared(worker):
    """Parameters are read where the servers have them, and never change under the worker."""
    params = worker.register(arrays(1.0))
    seen = params["w"]
    assert not seen.flags.writeable
    ones = {name: np.ones_like(value) for name, value in params.items()}
    for _ in range(3):
        worker.step(ones)
    assert np.allclose(seen, 0.7), "the very same array"
    if worker.rank == 0:
        worker.push(ones)
        worker.comm.Barrier()  # the others have closed the round
        assert np.allclose(seen, 0.7), "a push brings nothing back"
        worker.pull()
        assert np.allclose(seen, 0.6)
    else:
        worker.step(ones)
        worker.comm.Barrier()
        assert np.allclose(seen, 0.6)
    worker.step(ones)
    assert np.allclose(seen, 0.5), "both kinds of worker go on"
    if worker.rank == 1:
        worker.leave()
    else:
        worker.step(ones)
        assert np.allclose(seen, 0.4)
    worker.comm.Barrier()
    if worker.rank == 1:
        assert np.allclose(seen, 0.5), "who has left keeps what it had"
        worker.pull()
        assert np.allclose(seen, 0.4)
    worker.comm.Barrier()
    # A step that counts for nothing is a header; one that is not finite leaves no trace.
    if worker.rank != 1:
        worker.step({name: np.full_like(value, np.nan) for name, value in params.items()})
        assert np.allclose(seen, 0.4)


def never_torn(worker):
    """Everyone updates and copies all the time; nobody ever sees a part of an update."""
    n = 1 << 18  # one chunk, long enough to be met by an update
    params = worker.register({"w": np.zeros(n, np.float32)})
    worker.grads["w"] = np.full(n, -1.0, np.float32)
    seen = 0.0
    for _ in range(60):
        worker.step()
        assert params["w"].min() == params["w"].max() >= seen, "torn, or older than before"
        seen = params["w"][0]
    result = final(worker)
    assert np.allclose(result["w"], 0.1 * 60 * worker.size, rtol=1e-4)
    assert worker.server_stats()[0]["bytes_pulled"] > 4 * n * 60 * worker.size


def in_parts(worker):
    """A step that leaves layer by layer is the step that leaves at once, bit for bit."""
    params = worker.register(arrays(1.0))
    rng = np.random.default_rng(worker.rank)
    for step in range(20):
        grads = {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in params.items()}
        if step % 2:
            worker.step(grads)
            continue
        for name in reversed(list(params)):
            worker.grads[name] = grads[name]
            worker.ready(name)
        worker.step_async()
        for name in params:
            worker.wait(name)
    result = final(worker)
    expected = arrays(1.0)
    rngs = [np.random.default_rng(rank) for rank in range(worker.size)]
    for _ in range(20):
        for value in expected.values():
            each = [r.standard_normal(value.shape).astype(np.float32) for r in rngs]
            shares = [grad * np.float32(1 / worker.size) for grad in each]
            value -= np.float32(0.1) * sum(shares[1:], shares[0])
    for name, value in expected.items():
        assert value.tobytes() == result[name].tobytes(), name


def leaving_while_others_wait(worker):
    """What feedback has kept is pushed on leaving, and nobody waits for that."""
    params = worker.register(arrays(1.0))
    for _ in range(3):
        worker.step({name: np.ones_like(value) * worker.rank for name, value in params.items()})
    if worker.rank == 1:
        return
    assert worker.mean({"a": 1.0}) == {"a": 1.0}
    worker.leave()
    worker.pull()
    worker.barrier()
    worker.pull()
    # (0 + 1 + 2) / 3 in each of 3 rounds, and all of what was kept in a fourth: SGD at 0.1.
    assert np.allclose(params["w"], 1.0 - 0.1 * 3 * 1.0, atol=0.16)


def rendezvous(worker):
    mean = worker.mean({"a": worker.rank, "b": 1.0}, weight=worker.rank + 1)
    assert mean == {"a": (0 * 1 + 1 * 2 + 2 * 3) / 6, "b": 1.0}
    worker.barrier()
    assert worker.mean({"a": float(worker.rank)}, weight=worker.rank == 1) == {"a": 1.0}
    assert np.isnan(worker.mean({"a": 1.0}, weight=0.0)["a"]), "a mean over nothing"
    assert worker.size == 3
    assert worker.comm.size == 3
    assert worker.comm.rank == worker.rank
    assert worker.comm.allreduce(worker.rank) == 3
    if worker.rank == 2:
        return
    worker.barrier()  # worker 2 is done: nobody waits for it


def set_lr(worker):
    """It rides in one worker's next push and counts for all, at that clock, on every chunk."""
    params = worker.register(arrays(0.0))
    grads = {name: np.ones_like(value) for name, value in params.items()}
    worker.step(grads)
    if worker.rank == 1:
        worker.set_lr(0.5)
    worker.step(grads)
    assert worker.learning_rate == 0.5
    for value in params.values():
        assert np.allclose(value, -0.1 - 0.5)
    for bad in (-1.0, float("nan"), float("inf")):
        try:
            worker.set_lr(bad)
        except ConfigError:
            continue
        raise AssertionError(f"set_lr accepts {bad}")


def segments(worker):
    """Scale, buffers and members, each on its own tensors."""
    shapes = ("plain", "slow", "bn.mean", "first.w")
    params = worker.register({name: np.zeros(5, np.float32) for name in shapes})
    grads = {name: np.full(5, worker.rank + 1.0, np.float32) for name in shapes}
    worker.step(grads)
    worker.barrier()
    worker.pull()
    assert np.allclose(params["plain"], -0.2)
    assert np.allclose(params["slow"], -0.02)
    assert np.allclose(params["bn.mean"], 2.0), "the mean of what the workers have"
    assert np.allclose(params["first.w"], -0.15), "workers 0 and 1 only"


def not_finite(worker):
    """A step with a NaN is not applied, not even a part of it; the others' is."""
    params = worker.register(arrays(0.0))
    grads = {name: np.ones_like(value) for name, value in params.items()}
    if worker.rank == 1:
        grads["b"][3] = np.nan
        grads["w"][...] = 1e9
    worker.step(grads)
    assert np.allclose(params["w"], -0.1)
    assert np.allclose(params["b"], -0.1)
    assert worker.skipped == (1 if worker.rank == 1 else 0)
    grads = {name: np.ones_like(value) for name, value in params.items()}
    worker.step(grads)
    assert np.allclose(params["w"], -0.2)
    total = sum(stats["skipped"] for stats in worker.server_stats())
    assert total > 0


def clipped(worker):
    params = worker.register(arrays(0.0))
    grads = {"w": np.zeros((30, 40), np.float32), "b": np.zeros(7, np.float32)}
    grads["b"][0] = 3.0
    grads["w"][0, 0] = 4.0  # the norm is 5, the limit 1
    worker.step(grads)
    assert np.isclose(params["b"][0], -0.1 * 3 / 5)
    assert np.isclose(params["w"][0, 0], -0.1 * 4 / 5)


def bounded(worker):
    """Nobody is ever more than the bound ahead, also when it pushes without pulling."""
    params = worker.register(arrays())
    if worker.rank == 0:
        worker.sleep(0.2)
    for step in range(30):
        if step % 3:
            worker.push(decay(params))
        else:
            worker.step(decay(params))
            assert worker.staleness <= 2
    result = final(worker)
    assert 0 < result["w"][0, 0] < 1
    assert all(stats["staleness_max"] <= 2 for stats in worker.server_stats())


def misuse(worker):
    """Each mistake is an error that says what to do, and the run goes on."""

    def fails(kind, call):
        try:
            call()
        except kind:
            return
        raise AssertionError("no error")

    fails(LayoutError, lambda: worker.step())
    params = worker.register(arrays())
    fails(LayoutError, lambda: worker.register(arrays()))
    fails(LayoutError, lambda: worker.step({"w": params["w"]}))
    fails(LayoutError, lambda: worker.step({**decay(params), "x": params["w"]}))
    fails(LayoutError, lambda: worker.step({**decay(params), "b": np.zeros(8)}))
    fails(LayoutError, lambda: worker.pull(["x"]))
    fails(LayoutError, lambda: params.pop("w"))
    for weight in (-1.0, float("nan"), float("inf")):
        fails(ConfigError, lambda weight=weight: worker.step(decay(params), weight=weight))
        fails(ConfigError, lambda weight=weight: worker.mean({"a": 1.0}, weight=weight))
    worker.step(decay(params))
    worker.leave()
    fails(ProtocolError, lambda: worker.step(decay(params)))


# Each of these ends the job; tests/test_session.py knows how.


def raises(worker):
    worker.register(arrays())
    if worker.rank == 1:
        raise ValueError("no such luck")
    worker.step(decay(worker.params))


def exits(worker):
    worker.register(arrays())
    if worker.rank == 1:
        sys.exit(5)
    worker.step(decay(worker.params))


def wrong_dtype(worker):
    mine = arrays()
    if worker.rank == 1:
        mine["b"] = mine["b"].astype(np.float64)
    worker.register(mine)


def wrong_shape(worker):
    mine = arrays()
    if worker.rank == 2:
        mine["b"] = np.zeros(8, np.float32)
    worker.register(mine)


def wrong_name(worker):
    mine = arrays()
    if worker.rank == 2:
        mine = {"v": mine["w"], "b": mine["b"]}
    worker.register(mine)


def two_rates(worker):
    params = worker.register(arrays())
    worker.set_lr(0.1 * (worker.rank + 1))
    worker.step(decay(params))


def two_means(worker):
    worker.mean({"a": 1.0} if worker.rank else {"b": 1.0})


def two_means_without_0(worker):
    if worker.rank:
        worker.mean({"a": 1.0} if worker.rank == 1 else {"b": 1.0})


def wrong_segments(worker):
    worker.register(arrays())


def uneven_epochs(worker):
    """One more step on worker 1 than on worker 0, then a mean of both: a circle."""
    if worker.rank == 2:
        return  # with a third worker, chance would say which of two the error names
    params = worker.register(arrays())
    for _ in range(4 if worker.rank == 1 else 3):
        worker.step(decay(params))
    worker.mean({"loss": 1.0})


def never_finite(worker):
    params = worker.register(arrays())
    while True:
        grads = decay(params)
        if worker.rank == 1:
            grads["b"][0] = np.inf
        worker.step(grads)


OPTIONS = {
    "push_and_pull": {"servers": 2},
    "set_lr": {"servers": 2, "chunk_bytes": 1024},
    "wrong_segments": {"segments": [psgrad.SegmentOptions("z*")]},
    "uneven": {"chunk_bytes": 1024, "window": 1},
    # A small rate: with stale gradients, a large one overshoots.
    "bounded": {
        "optimizer": psgrad.SGD(0.01),
        "staleness": 2,
        "servers": 2,
        "chunk_bytes": 1024,
        "window": 2,
    },
    "clipped": {"clip_norm": 1.0},
    "ef21": {"codec": "topk:0.05", "feedback": "ef21", "servers": 2, "chunk_bytes": 2048},
    "outvoted": {"aggregate": "trimmed-mean:1", "servers": 2, "chunk_bytes": 1024},
    "outvoted_uneven": {"aggregate": "median"},
    "ef21_uneven": {"codec": "sign", "feedback": "ef21"},
    "pulled_in_8_bits": {"pull_codec": "int8", "servers": 2, "chunk_bytes": 1024},
    "pulled_differences": {"pull_codec": "topk:0.05", "servers": 2, "chunk_bytes": 4096},
    "shared": {"shared_memory": "on", "servers": 2, "chunk_bytes": 64},
    "never_torn": {"staleness": None, "shared_memory": "on", "chunk_bytes": 1 << 20},
    "in_parts": {"servers": 2, "chunk_bytes": 1024},
    "in_parts_by_message": {"servers": 2, "chunk_bytes": 8192, "shared_memory": "off"},
    "leaving_while_others_wait": {"codec": "topk:0.1", "chunk_bytes": 1024},
    "segments": {
        "segments": [
            psgrad.SegmentOptions("slow", learning_rate_scale=0.1),
            psgrad.SegmentOptions("*.mean", buffer=True),
            psgrad.SegmentOptions("first.*", members=(0, 1)),
        ]
    },
}

in_parts_by_message = in_parts  # chunks of 8192 bytes do not ride in a header's message


def play(case, ranks):
    """One run of all ranks; ``case`` is ``nothing_lost/CODEC/MODE`` or a name."""
    case, *more = case.split("/")
    if case == "early":
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 1:
            raise ValueError("before run()")
    options = {"optimizer": psgrad.SGD(0.1), **OPTIONS.get(case, {})}
    if case == "different":
        from mpi4py import MPI

        options["staleness"] = MPI.COMM_WORLD.rank // 2
    if case == "servers":
        options["servers"] = ranks
    main = globals().get(case, views)
    if case == "nothing_lost":
        codec, mode = more
        options |= {"codec": codec, "staleness": {"sync": 0, "async": None}[mode]}
        options["chunk_bytes"] = 2048
        main = functools.partial(nothing_lost, mean=mode == "sync")
    if case == "communicator":
        # Two runs after each other, on a communicator of the caller's that stays the caller's.
        from mpi4py import MPI

        half = MPI.COMM_WORLD.Split(MPI.COMM_WORLD.rank % 2)
        for _ in range(2):
            value = psgrad.run(views, comm=half, **options)
            assert value == (None if half.rank == 0 else "main's value")
        assert half.allreduce(1) == half.size
        assert not MPI.Is_finalized()
    else:
        value = psgrad.run(main, **options)
        if main is views:
            from mpi4py import MPI

            assert value == (None if MPI.COMM_WORLD.rank == 0 else "main's value")


if __name__ == "__main__":
    for name in sys.argv[2:]:
        play(name, int(sys.argv[1]))
        print(name)
