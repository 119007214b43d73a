"""When the coordinator asks and reports, and what it says of simulated runs that stand still."""

from __future__ import annotations

import numpy as np
import pytest

import psgrad
from psgrad.errors import StalledError
from psgrad.inspector import ANSWER_S, Inspector
from psgrad.messages import Header, Kind
from psgrad.roles import Roles
from psgrad.session import Session
from psgrad.stall import Told, View
from psgrad.transport.clockwork import RankError
from psgrad.transport.faults import Kill
from psgrad.transport.simulated import Simulation


class Outbox:
    def __init__(self):
        self.posted = []

    def post(self, rank, header):
        self.posted.append((rank, header.kind))


@pytest.fixture
def outbox():
    return Outbox()


def inspector(outbox, stall_s=60.0, abort_s=0.0):
    return Inspector(Roles(4, 2), 7, outbox, stall_s, abort_s, [None] * 4, 100.0)


def conclude(inspector, now_s, view=None):
    return inspector.conclude(now_s, [0, 1], view or View(), set(), set())


def test_ranks_are_asked_so_that_the_report_comes_in_time(outbox):
    one = inspector(outbox)
    assert not one.is_due(160.0 - ANSWER_S - 0.1, [0, 1])
    assert outbox.posted == []
    assert not one.is_due(160.0 - ANSWER_S, [0, 1])
    assert outbox.posted == [(1, Kind.ASK), (2, Kind.ASK), (3, Kind.ASK)]
    assert not one.is_due(159.9, [0, 1])
    assert one.is_due(160.0, [0, 1])
    conclude(one, 160.0)
    assert not one.is_due(170.0, [0, 1]), "once"
    assert len(outbox.posted) == 3


def test_a_short_limit_leaves_half_of_the_time_for_answers(outbox):
    one = inspector(outbox, stall_s=1.0)
    assert not one.is_due(100.5, [0])
    assert outbox.posted == [(1, Kind.ASK), (2, Kind.ASK)], "worker 1 is done"
    assert one.is_due(101.0, [0])
    assert one.watch_s == 0.25


@pytest.mark.parametrize("kind", [Kind.STEP, Kind.MEET, Kind.WRITTEN, Kind.REGISTER, Kind.LEAVE])
def test_messages_are_movement(outbox, kind):
    one = inspector(outbox)
    one.is_due(159.0, [0, 1])
    one.heard(2, Header(kind, clock=4), 159.5)
    assert not one.is_due(161.0, [0, 1])
    assert one.is_due(219.5, [0, 1])
    assert len(outbox.posted) == 6, "asked anew"


@pytest.mark.parametrize("kind", [Kind.ALIVE, Kind.DOING, Kind.STOP])
def test_what_ranks_say_while_they_wait_is_none(outbox, kind):
    one = inspector(outbox)
    one.heard(2, Header(kind), 159.5)
    assert one.is_due(160.0, [0, 1])


def test_it_is_reported_again_when_it_has_moved_in_between(outbox):
    one = inspector(outbox)
    assert one.is_due(160.0, [0, 1])
    conclude(one, 160.0)
    one.heard(3, Header(Kind.STEP), 200.0)
    assert not one.is_due(259.0, [0, 1])
    assert one.is_due(260.0, [0, 1])


def test_who_has_answered_is_not_silent(outbox):
    one = inspector(outbox)
    one.heard(2, Header(Kind.STEP, clock=5), 100.0)
    one.is_due(158.0, [0, 1])
    one.answered(3, Told("waits"))
    one.answered(1, Told("takes messages", (), View()))
    assert one.is_due(160.0, [0, 1])
    some, whole = conclude(one, 160.0)
    assert some[0] == (
        "nothing has moved for 60 s: worker 0 (rank 2, host unknown): silent for 60.0 s, it pushes "
        "no more, its last message was STEP of clock 5"
    )
    assert "  worker 1 (rank 3, host unknown): waits" in whole


def test_the_run_ends_when_it_has_stood_still_for_too_long(outbox):
    one = inspector(outbox, abort_s=90.0)
    assert not one.is_over(190.0), "nobody has looked at it"
    one.is_due(158.0, [0, 1])
    assert one.is_due(160.0, [0, 1])
    conclude(one, 160.0)
    assert not one.is_over(189.9)
    assert one.is_over(190.0)
    with pytest.raises(StalledError, match="nothing has moved for 90 s: server 1 "):
        conclude(one, 190.0)


# Simulated runs


class Run:
    """``warnings`` is what a person sees; ``main(worker, step)`` is called before each step."""

    def __init__(self, before, *, servers=1, workers=3, bound=0, steps=6, faults=(), **options):
        self.warnings, self.logs, self.times = [], [], []

        def main(worker):
            params = worker.register({"w": np.zeros(5000, np.float32)})
            for step in range(1, steps + 1):
                worker.sleep(0.01)
                before(worker, step)
                worker.step({"w": params["w"] * 0 + 1})

        def program(transport):
            def warn(text):
                self.warnings.append(text)
                self.times.append(transport.now())

            with Session(transport=transport, inspects=True, warn=warn, report=warn) as session:
                session.run(
                    main, servers=servers, staleness=bound, optimizer=psgrad.SGD(0.1),
                    chunk_bytes=4096, stall=10.0, sink=self, **options,
                )  # fmt: skip

        Simulation(servers + workers, faults=faults, stall_after_s=1e4).run(program)

    def log(self, text):
        self.logs.append(text)


def freeze(worker, step):
    if (worker.rank, step) == (1, 4):
        worker.sleep(25.0)


@pytest.mark.parametrize("servers", [1, 2])
def test_a_worker_that_freezes_is_named_in_time(servers):
    run = Run(freeze, servers=servers)
    (said,) = run.warnings
    first, *rest = said.splitlines()
    rank = servers + 1
    assert first.startswith(
        f"nothing has moved for 10 s: workers 0, 2 wait for worker 1 (rank {rank}, node{rank}): "
    )
    assert first.endswith("it was computing step 4")
    assert 10.0 <= run.times[0] <= 12.0
    assert any(
        "coordinator: step 4, chunk" in line and "worker 1 at clock 3" in line for line in rest
    )
    assert any("waits for answers about chunks: " in line and "at clock 4" in line for line in rest)
    assert any("stack of ranks" in line for line in rest)
    assert any("test_inspector.py" in line for line in rest), "the line of the script"
    assert [line for line in run.logs if line.startswith("nothing has moved for 10 s")]


@pytest.mark.parametrize("bound", [0, 2, None])
def test_a_run_that_gets_on_is_not_reported(bound):
    run = Run(lambda worker, step: worker.sleep(2.0 * worker.rank), bound=bound)
    assert run.warnings == []


def test_a_worker_that_does_not_register():
    def main(worker):
        if worker.rank == 2:
            worker.sleep(15.0)
        worker.register({"w": np.zeros(5, np.float32)})

    said = []

    def program(transport):
        with Session(transport=transport, inspects=True, warn=said.append) as session:
            session.run(main, stall=10.0)

    Simulation(4, stall_after_s=1e4).run(program)
    assert said[0].splitlines()[0] == (
        "nothing has moved for 10 s: workers 0-1 wait for worker 2 (rank 3, node3): does not "
        "answer, it has not registered its parameters"
    )
    assert "waits until all workers have registered their parameters" in said[0]


def test_workers_at_a_rendezvous():
    def before(worker, step):
        if step == 3:
            if worker.rank == 0:
                worker.sleep(15.0)
            worker.barrier()

    (said,) = Run(before).warnings
    assert "workers 1-2 wait for worker 0 (rank 1, node1)" in said
    assert "waits for other workers at mean() or barrier()" in said


def test_it_ends_where_that_is_wanted():
    with pytest.raises(RankError, match=r"nothing has moved for 20 s: .* for worker 1 \(rank 2"):
        Run(freeze, stall_abort=20.0)


def test_a_worker_that_wakes_in_time_ends_nothing():
    assert len(Run(freeze, stall_abort=30.0).warnings) == 1


def test_a_rank_that_is_gone_without_a_word():
    """Over MPI without fault tolerance a killed rank may just be silent."""
    with pytest.raises(RankError, match="nothing has moved for 20 s"):
        Run(lambda *_: None, steps=200, faults=[Kill(2, at_s=0.5)], stall_abort=20.0)
