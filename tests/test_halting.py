"""Runs that are asked to stop, in the simulator: what they end with, and how they go on."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import psgrad
from psgrad.checkpoint import Checkpoint, InlineWriter, found
from psgrad.errors import CheckpointError, ConfigError, NotSavedError, Preempted
from psgrad.session import Session
from psgrad.transport.clockwork import RankError
from psgrad.transport.network import Network
from psgrad.transport.simulated import Simulation

STEPS = 12
COMPUTE_S = 1e-3
JITTERY = Network(latency_s=2e-5, bandwidth=1e9, jitter=3.0)


class Place:
    """What a script keeps: how many steps it has done."""

    def __init__(self):
        self.step = 0

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]


class Outside:
    """What a rank is told at some moment, as by a signal."""

    def __init__(self, transport, at_s):
        self._transport, self._at_s = transport, at_s

    @property
    def reason(self):
        return "SIGUSR1" if self._transport.now() >= self._at_s else ""


class Slow(InlineWriter):
    """A writer that is done when it was asked a few times."""

    def __init__(self, polls=40):
        super().__init__()
        self._polls, self._left = polls, 0

    def submit(self, work):
        super().submit(work)
        self._left = self._polls

    def poll(self):
        self._left -= 1
        return super().poll() if self._left <= 0 else None

    def finish(self):
        self._left = 0


class Run:
    """A run of some ranks; ``ends`` is what became of each: its value, or what it raised."""

    def __init__(
        self, folder, main, *, workers=3, servers=1, bound=0, every="5", seed=0, signals=None,
        writer=InlineWriter, resume="", **options,
    ):  # fmt: skip
        self.folder, self.ends, self.warnings, self.logs = folder, {}, [], []
        simulation = Simulation(workers + servers, JITTERY, seed=seed)

        def program(transport):
            session = Session(
                transport=transport, report=self.warnings.append, warn=self.warnings.append,
                writer=writer,
            )  # fmt: skip
            if signals and transport.rank in signals:
                outside = Outside(transport, signals[transport.rank])
                session._outside = lambda *_: _Entered(outside)
            try:
                with session:
                    self.ends[transport.rank] = session.run(
                        lambda worker: main(worker),
                        servers=servers, staleness=bound, optimizer=psgrad.Momentum(0.1),
                        chunk_bytes=4096, checkpoint_dir=str(folder), checkpoint_every=every,
                        checkpoint_keep=99, resume=resume, sink=self, **options,
                    )  # fmt: skip
            except Preempted as error:
                self.ends[transport.rank] = error

        simulation.run(program)

    def log(self, text):
        self.logs.append(text)

    def record(self, kind, **fields):
        raise AssertionError("nobody records")

    @property
    def numbers(self):
        return sorted(Checkpoint.open(path).manifest.step for path in found(self.folder))

    @property
    def clocks(self):
        """Those in the newest checkpoint."""
        state = Checkpoint.open(found(self.folder)[0]).manifest.state
        return {int(worker): clock for worker, clock in state["clocks"].items()}

    def check_stopped(self, kind=Preempted):
        """Every rank has ended alike, and rank 0 says it."""
        assert all(type(end) is kind for end in self.ends.values()), self.ends
        assert [rank for rank, end in self.ends.items() if end.spokesman] == [0]
        assert len({str(end) for end in self.ends.values()}) == 1
        return str(self.ends[0])


class _Entered:
    def __init__(self, value):
        self._value = value

    def __enter__(self):
        return self._value

    def __exit__(self, *_):
        pass


def gradient(worker, step, params):
    rng = np.random.default_rng([worker.rank, step])
    return {n: p - rng.standard_normal(p.shape).astype(np.float32) for n, p in params.items()}


def script(stop_at=(), how="step", steps=STEPS, before=lambda worker: None):
    """A main; ``stop_at`` are (worker, step) before which it asks for a stop."""

    def main(worker):
        before(worker)
        params = worker.register({"a": np.zeros(3000, np.float32), "b": np.zeros(7, np.float32)})
        place = Place()
        worker.keep("place", place)
        mine = steps if isinstance(steps, int) else steps[worker.rank]
        for step in range(place.step + 1, mine + 1):
            worker.sleep(COMPUTE_S * (1 + worker.rank % 2))
            if (worker.rank, step) in stop_at:
                worker.ask_to_stop("a test")
            grads = gradient(worker, step, params)
            place.step = step
            if how == "step":
                worker.step(grads)
            elif how == "push":
                worker.push(grads)
                if step % 3 == 0:
                    worker.pull()
            else:
                for name, grad in grads.items():
                    worker.grads[name] = grad
                worker.ready("b")
                worker.sleep(1e-4)
                worker.ready("a")
                worker.step_async()
                worker.wait()
        worker.leave()
        worker.barrier()
        worker.pull()
        return np.concatenate([params[name] for name in ("a", "b")]).tobytes()

    return main


def resumed(run, **options):
    return Run(run.folder, script(how=options.pop("how", "step")), resume="auto", **options)


KINDS = {
    "sync": {},
    "sync, two servers": {"servers": 2},
    "sync, by the clock": {"every": "0.004s"},
    "sync, rarely": {"every": "1000"},
    "sync, each step": {"every": "1"},
    "sync, codec": {"codec": "topk:0.1", "pull_codec": "topk:0.2"},
    "sync, in parts": {"how": "parts"},
    "ssp": {"bound": 1},
    "ssp, two servers": {"bound": 2, "servers": 2, "codec": "topk:0.1"},
    "async": {"bound": None},
    "async, by the clock": {"bound": None, "every": "0.004s"},
    "async, in parts": {"bound": None, "how": "parts"},
    "async, pushes": {"bound": None, "how": "push"},
    "ssp, pushes": {"bound": 1, "how": "push"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_all_stop_behind_a_checkpoint_and_go_on_there(tmp_path, kind, seed):
    options = dict(KINDS[kind])
    how = options.pop("how", "step")
    at = {(seed, 4 + seed)}
    run = Run(tmp_path, script(at, how), seed=seed, **options)
    said = run.check_stopped()
    number = run.numbers[-1]
    assert said == (
        f"stopped by a test at worker {seed}: checkpoint {number} is safe; go on with resume auto"
    )
    assert run.warnings == []
    assert run.clocks.keys() == {0, 1, 2}
    assert run.clocks[seed] < STEPS
    clocks = set(run.clocks.values())
    on = resumed(run, seed=seed + 50, how=how, **options)
    ends = {on.ends[rank] for rank in range(options.get("servers", 1), len(on.ends))}
    assert len(ends) == 1, "it has come to its end"
    if options.get("bound", 0) == 0:
        assert clocks == {number}
        whole = Run(tmp_path / "whole", script((), how), seed=seed + 99, **options)
        assert ends == {whole.ends[max(whole.ends)]}, "bit for bit"


def test_in_sync_mode_it_is_the_next_step_of_all(tmp_path):
    run = Run(tmp_path, script({(0, 4)}), every="1000")
    run.check_stopped()
    assert run.numbers == [4]


@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("bound", [0, None])
def test_a_signal_at_any_rank_is_heard(tmp_path, rank, bound):
    run = Run(tmp_path, script(), servers=2, bound=bound, signals={rank: 4.5e-3})
    said = run.check_stopped()
    assert said.startswith(f"stopped by SIGUSR1 at rank {rank}: checkpoint ")
    assert 0 < max(run.clocks.values()) < STEPS
    assert [line for line in run.logs if line.startswith("asked to stop by SIGUSR1")]


def test_signals_at_all_ranks_are_one(tmp_path):
    run = Run(tmp_path, script(), servers=2, signals=dict.fromkeys(range(5), 3e-3))
    run.check_stopped()
    assert len(run.numbers) == 1


def test_a_signal_at_a_rank_that_waits_for_another(tmp_path):
    """It does not have to come to its next step to be heard."""

    def late(worker):
        if worker.rank == 0:
            worker.sleep(3.0)

    run = Run(tmp_path, script(before=late), every="1000", signals={2: 0.1})
    said = run.check_stopped()
    assert said.startswith("stopped by SIGUSR1 at rank 2: checkpoint 1 is safe")


# Odd moments


@pytest.mark.parametrize("bound", [0, 1, None])
def test_before_the_registration(tmp_path, bound):
    run = Run(tmp_path, script(before=lambda w: w.ask_to_stop("a test")), bound=bound)
    run.check_stopped()
    assert run.numbers == [1]
    if bound == 0:
        assert set(run.clocks.values()) == {1}
        whole = Run(tmp_path / "whole", script())
        assert resumed(run).ends == whole.ends
    else:
        on = resumed(run, bound=bound)
        assert not any(isinstance(end, Preempted) for end in on.ends.values())


def test_before_the_first_step(tmp_path):
    run = Run(tmp_path, script({(1, 1)}))
    run.check_stopped()
    assert run.numbers == [2], "the others have pushed their first one already"


@pytest.mark.parametrize("bound", [0, None])
def test_twice(tmp_path, bound):
    run = Run(tmp_path, script({(0, 4), (0, 5), (1, 4), (2, 5)}), bound=bound, every="1000")
    run.check_stopped()
    assert len(run.numbers) == 1


@pytest.mark.parametrize("options", [{}, {"every": "0.002s"}, {"bound": None, "every": "2"}])
def test_while_a_checkpoint_is_written(tmp_path, options):
    run = Run(tmp_path, script({(0, 7)}), writer=lambda: Slow(), **{"every": "6", **options})
    run.check_stopped()
    assert len(run.numbers) >= 2, "that one is finished first"
    assert run.warnings == []


def test_some_workers_are_done(tmp_path):
    steps = [3, STEPS, STEPS]
    run = Run(tmp_path, script({(1, 8)}, steps=steps), every="1000")
    run.check_stopped()
    assert run.clocks.keys() == {1, 2}
    whole = Run(tmp_path / "whole", script(steps=steps), every="1000")
    on = Run(tmp_path, script(steps=steps), every="1000", resume="auto")
    assert on.ends == whole.ends


def test_all_workers_are_done(tmp_path):
    def main(worker):
        value = script()(worker)
        worker.ask_to_stop("a test")
        return value

    run = Run(tmp_path, main)
    assert not any(isinstance(end, Preempted) for end in run.ends.values())
    assert run.numbers == [5, 10]


def test_in_the_last_step_of_all(tmp_path):
    """There is no step behind it to cut at: the run ends as ever."""
    run = Run(tmp_path, script({(1, STEPS)}))
    assert not any(isinstance(end, Preempted) for end in run.ends.values())


def test_a_checkpoint_that_cannot_be_written(tmp_path):
    folder = tmp_path / "there"

    def before(worker):
        if worker.rank == 0:
            shutil.rmtree(folder)
            folder.write_text("no folder")

    run = Run(folder, script({(0, 3)}, before=before), every="1000", servers=2)
    said = run.check_stopped(NotSavedError)
    assert said.startswith(
        "stopped by a test at worker 0, and nothing is saved: checkpoint 3 was not written: "
    )
    assert {end.exit_status for end in run.ends.values()} == {1}


def test_a_checkpoint_that_cannot_be_written_behind_one_that_was(tmp_path):
    folder = tmp_path / "there"

    def main(worker):
        if worker.rank == 0:
            real = worker.ask_to_stop

            def ask(reason):
                folder.rename(tmp_path / "elsewhere")
                folder.write_text("no folder")
                real(reason)

            worker.ask_to_stop = ask
        return script({(0, 8)})(worker)

    run = Run(folder, main, every="5")
    said = run.check_stopped()
    assert "but checkpoint 8 was not written: " in said
    assert said.endswith("go on from checkpoint 5 with resume auto")
    assert run.warnings == [], "the end says it"


def test_without_checkpoints_nobody_can_ask(tmp_path):
    def main(worker):
        with pytest.raises(ConfigError, match="this one makes none; give checkpoint_every"):
            worker.ask_to_stop("a test")
        return script()(worker)

    run = Run(tmp_path, main, every="")
    assert not any(isinstance(end, Preempted) for end in run.ends.values())


def test_a_script_that_swallows_it_ends_with_it_all_the_same(tmp_path):
    tried = []

    def main(worker):
        try:
            script({(0, 3)})(worker)
        except Preempted:
            assert worker.stopping
            for again in (worker.step, worker.barrier, worker.leave):
                with pytest.raises(Preempted):
                    again()
                tried.append(worker.rank)
        return "went on"

    Run(tmp_path, main).check_stopped()
    assert sorted(tried) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_rendezvous_ends_with_it(tmp_path):
    """Who waits at one for workers that stop does not get their mean."""
    main = script({(1, 8)}, steps=[3, STEPS, STEPS])
    run = Run(tmp_path, main, every="1000")
    assert isinstance(run.ends[1], Preempted), "it had left, and waited at the barrier"


def test_a_worker_that_pushes_alone_stops_where_all_are_sure_to_mark(tmp_path):
    """In sync mode by steps, without pulls nobody knows how far the others are."""
    run = Run(tmp_path, script({(0, 4)}, how="push"), every="5")
    run.check_stopped()
    assert run.numbers == [5]


@pytest.mark.parametrize(("every", "number"), [("5", 5), ("9s", 4)])
def test_workers_that_are_found_at_different_clocks_are_told_again_where_to_stop(
    tmp_path, every, number
):
    """They have pushed alone before anybody knew, and one of them has no more steps."""
    run = Run(tmp_path, script({(0, 1)}, "push", [9, 2]), every=every, workers=2)
    run.check_stopped()
    (said,) = run.warnings
    assert said.startswith("checkpoint 1 was not written: workers were not in step: ")
    assert run.clocks == {0: number}


def test_groups_stop_at_the_next_multiple(tmp_path):
    segments = [psgrad.SegmentOptions("a", members=(0, 1))]
    run = Run(tmp_path, script({(0, 2)}), every="5", segments=segments)
    run.check_stopped()
    assert run.numbers == [5]


@pytest.mark.parametrize("bound", [0, 1])
@pytest.mark.parametrize("replicas", [0, 1])
def test_where_ranks_may_die(tmp_path, bound, replicas):
    options = {"fault_tolerant": True, "servers": 2, "replicas": replicas}
    run = Run(tmp_path, script({(0, 4)}), bound=bound, **options)
    run.check_stopped()


def test_an_error_is_still_an_error(tmp_path):
    def main(worker):
        if worker.rank == 1:
            raise CheckpointError("of the script's own")
        return script()(worker)

    with pytest.raises(RankError, match="of the script's own"):
        Run(tmp_path, main)
