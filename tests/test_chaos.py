"""Campaigns of kills: what is drawn, that what is wrong is judged wrong, and a short real one."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from psgrad import cli
from psgrad.chaos import campaign, figures, tails
from psgrad.chaos.judge import Outcome, Reference, judge, reference
from psgrad.chaos.tails import Tail
from psgrad.chaos.trial import (
    ANYWHERE,
    CODECS,
    KINDS,
    MODES,
    MOMENTS,
    RESTARTS,
    STOPPED,
    WORKERS,
    Strike,
    Trial,
    draw,
)
from psgrad.chaos.watch import Struck

DRAWN = [draw(5, index) for index in range(900)]

# What is drawn


def test_a_trial_depends_on_seed_index_and_kind_alone():
    assert [draw(5, index) for index in (7, 3)] == [DRAWN[7], DRAWN[3]]
    assert [draw(5, t.index, [t.kind]) for t in DRAWN[:50]] == DRAWN[:50]
    assert draw(6, 7) != DRAWN[7]
    assert len(set(DRAWN)) > 870
    assert {draw(5, index, ANYWHERE).kind for index in range(50)} == {"restarts"}


def test_everything_is_drawn():
    assert {(t.kind, t.mode, t.codec) for t in DRAWN} == {
        (kind, mode, codec) for kind in KINDS for mode in MODES for codec in CODECS
    }
    for name, kind in KINDS.items():
        of_kind = [trial for trial in DRAWN if trial.kind == name]
        strikes = [strike for trial in of_kind for strike in trial.strikes]
        assert {t.servers for t in of_kind} == set(kind.servers)
        assert {t.restarts for t in of_kind} == set(kind.restarts)
        assert {len(t.strikes) for t in of_kind} == {1, 2, 3}
        assert {(s.victim, s.moment) for s in strikes} == {
            (victim.name, moment) for victim in kind.victims for moment in MOMENTS
        }
        blows = {(victim.name, blow) for victim in kind.victims for blow in victim.blows}
        assert {(s.victim, s.blow) for s in strikes} == blows


@pytest.mark.parametrize("trial", DRAWN[:60])
def test_a_trial_can_be_carried_out(trial):
    assert 1 <= len(trial.strikes) <= RESTARTS
    servers = [s for s in trial.strikes if s.survived and s.victim != "worker"]
    ended = sum(not strike.survived for strike in trial.strikes)
    assert len(servers) <= 1 + ended
    survived = [s for s in trial.strikes if s.survived and s.victim == "worker"]
    assert len({strike.rank for strike in survived}) == len(survived) < WORKERS
    for before, strike in zip((None, *trial.strikes), trial.strikes, strict=False):
        ranks = {
            "mpiexec": [-1],
            "rank 0": [0],
            "server": range(1, trial.servers),
            "worker": range(trial.servers, trial.servers + WORKERS),
        }
        assert strike.rank in ranks[strike.victim]
        assert 0 <= strike.step < trial.steps
        assert (strike.moment, strike.survived) != ("start", True)
        assert strike.moment != "start" or before is None or not before.survived
    again = f"bin/chaos --seed 5 --first {trial.index} --runs 1 --kind {trial.kind}"
    assert trial.repeat == again


# What is judged

SYNC = Trial(1, 0, "restarts", "sync", "none", 1, (Strike("worker", 2, "step", 50),))
ASYNC = replace(SYNC, mode="async")
LIVE = Strike("worker", 2, "step", 50, survived=True)
ELASTIC = Trial(1, 0, "elastic", "async", "none", 1, (LIVE,))
SUMMARY = {
    "params_sha256": "a", "test_accuracy": 0.98, "steps": 1080, "updates": 1080, "skipped_steps": 0,
}  # fmt: skip
GOOD = Outcome(
    seconds=3.0,
    status=0,
    summary=SUMMARY,
    struck=(Struck(SYNC.strikes[0], 1, resumed_s=2.0),),
    samples={1: 1437, 2: 1437},
    steps=(30, 30, 30),
    stderr="noise\npsgrad: restart 1 of 3 in 1 s, from X; it ended with: mpiexec was lost\n",
)
LOST = replace(
    GOOD,
    summary={**SUMMARY, "updates": 90, "workers_lost": [1]},
    struck=(Struck(LIVE, 1, 0.02, 0.1),),
    stderr="",
)
EXPECTED = reference([GOOD], [replace(GOOD, summary={**SUMMARY, "test_accuracy": 0.96})])


def test_references_are_of_all_undisturbed_runs():
    other = {**SUMMARY, "params_sha256": "b", "test_accuracy": 0.96, "updates": 1083}
    made = reference([GOOD, replace(GOOD, summary=other)])
    both = frozenset({1080, 1083})
    assert made == Reference(frozenset("ab"), (0.98, 0.96), frozenset({1080}), both, 1437)
    assert EXPECTED.fewer == (0.96,)


@pytest.mark.parametrize("trial", [SYNC, ASYNC])
def test_a_good_run_is_judged_good(trial):
    assert judge(trial, GOOD, EXPECTED) == []
    late = replace(GOOD, stderr="")  # struck when all was done
    assert judge(trial, late, EXPECTED) == []


@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_has_gone_on_without_a_worker_is_judged_good(mode):
    trial = replace(ELASTIC, mode=mode)
    assert judge(trial, with_summary(LOST, test_accuracy=0.957), EXPECTED) == []
    unsaid = replace(LOST, samples={1: 1437, 2: 1405}, steps=(30, 30, 29))
    assert judge(trial, unsaid, EXPECTED) == []


def test_a_run_that_could_not_go_on_may_fail_and_has_to_say_so():
    trial = replace(SYNC, restarts=0)
    failed = replace(GOOD, status=1, summary=None, stderr="noise\npsgrad: error: rank 2 is gone\n")
    assert judge(trial, failed, EXPECTED) == []
    assert judge(trial, replace(failed, left=["process 7"]), EXPECTED) == ["left process 7"]
    mute = replace(failed, stderr="noise\n")
    assert judge(trial, mute, EXPECTED) == ["exit status 1 without a cause"]
    assert judge(trial, replace(failed, status=0), EXPECTED) == ["no completion record"]


def with_summary(outcome, **changes):
    return replace(outcome, summary={**outcome.summary, **changes})


@pytest.mark.parametrize(
    ("trial", "outcome", "faults"),
    [
        (SYNC, replace(GOOD, hung=True, summary=None), ["hung: not over after 3 s"]),
        (SYNC, replace(GOOD, status=137), ["exit status 137"]),
        (SYNC, replace(GOOD, status=1, summary=None), ["exit status 1", "no completion record"]),
        (SYNC, replace(GOOD, summary=None), ["no completion record"]),
        (SYNC, with_summary(GOOD, params_sha256="b"), ["other parameters than undisturbed"]),
        (ASYNC, with_summary(GOOD, params_sha256="b"), []),
        (SYNC, with_summary(GOOD, steps=1079), ["1079 steps, undisturbed 1080"]),
        (ASYNC, with_summary(GOOD, updates=1081), ["1081 updates, undisturbed 1080"]),
        (ASYNC, with_summary(GOOD, test_accuracy=0.974), ["accuracy 0.9740, undisturbed 0.9800"]),
        (ASYNC, with_summary(GOOD, test_accuracy=0.986), ["accuracy 0.9860, undisturbed 0.9800"]),
        (ASYNC, with_summary(GOOD, test_accuracy=0.976), []),
        (ASYNC, with_summary(GOOD, skipped_steps=2), ["2 steps were not finite"]),
        (SYNC, replace(GOOD, left=["process 7", "/dev/shm/x"]), ["left process 7", "left /dev/s"]),
        (SYNC, replace(GOOD, struck=()), ["ended unasked, one of: mpiexec was lost"]),
        (SYNC, with_summary(GOOD, workers_lost=[0]), ["workers [0] are lost, nobody has"]),
        (ELASTIC, with_summary(LOST, test_accuracy=0.95), ["accuracy 0.9500, undisturbed 0.96"]),
        (ELASTIC, with_summary(LOST, workers_lost=[0, 1]), ["workers [0] are lost, nobody has"]),
        (ELASTIC, replace(LOST, samples={1: 1438}), ["epoch 1 has used 1438 samples of 1437"]),
        (ELASTIC, replace(LOST, samples={1: 1404}), ["33 samples were not used, 1 workers lost"]),
        (ELASTIC, with_summary(LOST, updates=92), ["92 updates of 90 to 91"]),
        (ELASTIC, with_summary(LOST, updates=89), ["89 updates of 90 to 91"]),
        (
            replace(ELASTIC, codec="int8", mode="sync"),
            with_summary(LOST, updates=29),
            ["29 updates of 30 to 94"],
        ),
        (ELASTIC, replace(LOST, status=1), ["exit status 1"]),
        (ELASTIC, replace(LOST, stderr=GOOD.stderr), ["ended unasked, one of: mpiexec was lost"]),
    ],
)
def test_a_planted_fault_is_judged_wrong(trial, outcome, faults):
    found = judge(trial, outcome, EXPECTED)
    assert len(found) == len(faults), found
    assert all(text.startswith(start) for text, start in zip(found, faults, strict=True))


# What is said


def test_the_table_counts_all_of_it():
    times = [(SYNC, replace(GOOD, struck=(Struck(SYNC.strikes[0], 1, resumed_s=float(n)),)), [])
             for n in range(1, 9)]  # fmt: skip
    hung = replace(GOOD, hung=True, struck=(), stderr="")
    stopped = replace(LIVE, blow=STOPPED)
    silent = replace(LOST, struck=(Struck(stopped, 1, 4.0, 0.2, 0.01),))
    led = Strike("rank 0", 0, "step", 9, survived=True)
    failover = (
        replace(SYNC, kind="replicas"),
        replace(LOST, struck=(Struck(led, 1, 0.1, 0.3),)),
        [],
    )
    done = [
        *times,
        failover,
        (SYNC, hung, ["hung"]),
        (ELASTIC, LOST, []),
        (ELASTIC, silent, ["status 1"]),
    ]
    rows = dict(line.split("  ", 1) for line in figures.table(done).splitlines())
    assert {name: text.strip() for name, text in rows.items()} == {
        "runs": "12",
        "blows": "11, 8 attempts ended by them",
        "over before a blow": "1",
        "hangs": "1",
        "wrong": "1",
        "elastic: worker killed": "1",
        "elastic: worker stopped": "1",
        "replicas: rank 0 killed": "1",
        "restarts: worker killed": "8",
        "killed, told": "median 0.020 s, p99 0.020 s, max 0.020 s, 1 times",
        "silent, shut out": "median 4.000 s, p99 4.000 s, max 4.000 s, 1 times",
        "pause, async": "median 0.100 s, p99 0.100 s, max 0.100 s, 1 times",
        "pause, ssp": "none",
        "pause, sync": "none",
        "pause, failover": "median 0.300 s, p99 0.300 s, max 0.300 s, 1 times",
        "server killed, told": "median 0.100 s, p99 0.100 s, max 0.100 s, 1 times",
        "step after shut out": "median 0.010 s, p99 0.010 s, max 0.010 s, 1 times",
        "started again": "median 5.000 s, p99 8.000 s, max 8.000 s, 8 times",
    }
    assert figures.table([]).endswith("none")


def test_a_run_in_a_line():
    judged = campaign.Judged(SYNC, replace(GOOD, status=1), ["status 1"])
    assert judged.line == (
        "   0 restarts sync none 1 server: worker 2 killed at step 50; 1 of 1 struck, resumed "
        "[2.00] s, status 1, 3.0 s: FAILED: status 1"
    )
    assert campaign.Judged(ELASTIC, LOST, []).line.endswith("ok")


STEADY = [0.1 * n for n in range(1, 21)]


@pytest.mark.parametrize(
    ("late", "before", "expected"),
    [
        ({}, 10, 0.0),
        ({10: 0.3}, 10, 0.3),  # the step after the blow
        ({13: 0.3}, 10, 0.3),
        ({9: 0.3}, 10, 0.0),  # the one before
        ({17: 0.3}, 10, 0.0),  # too long after it
        ({1: 0.3}, 0, 0.3),
        ({}, 20, None),  # no step behind
    ],
)
def test_a_pause_is_the_longest_gap_behind_a_blow(late, before, expected):
    seconds = [at + sum(s for step, s in late.items() if step <= n) for n, at in enumerate(STEADY)]
    assert tails.pause(seconds, before, 0.5) == pytest.approx(expected)


def test_samples_and_steps_of_all_workers(tmp_path):
    paths = [tmp_path / "metrics.jsonl", tmp_path / "metrics-1.jsonl", tmp_path / "not there"]
    for path in paths[:2]:
        path.write_text(
            '{"kind": "step", "epoch": 1, "samples": 32}\n'
            '{"kind": "step", "epoch": 2, "samples": 31}\n{"kind": "summary", "summary": {}}\n'
            '{"kind": "step", "epoch": 2, "sam'
        )
    assert tails.samples(paths) == {1: 64, 2: 62}
    assert tails.steps(paths) == [2, 2, 0]


def test_the_steps_of_an_attempt_are_told_from_those_before(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    tail.read()
    assert tail.step == 0
    first = '{"kind": "step", "step": 1, "seconds": 0.1}\n'
    path.write_text(first + '{"kind": "step", "step": 2, "seconds": 0.2}\n{"kind": "st')
    tail.read()
    assert (tail.step, tail.seconds) == (2, [0.1, 0.2])
    with path.open("a") as file:
        file.write('ep", "step": 3, "seconds": 0.3}\n{"kind": "summary"}\n')
    tail.read()
    assert tail.step == 3
    tail.begin()  # resumed: behind what is there
    tail.read()
    assert tail.step == 0
    with path.open("a") as file:
        file.write('{"kind": "step", "step": 2, "seconds": 0.2}\n')
    tail.read()
    assert tail.step == 2
    tail.begin()  # from its start: anew
    path.write_text('{"kind": "step", "step": 1, "seconds": 0.1}\n')
    tail.read()
    assert tail.step == 1


# Real ranks


@pytest.mark.parametrize(("kind", "index"), [("restarts", 13), ("elastic", 26)])
def test_a_disturbed_run_ends_well(mpi, tmp_path, kind, index):
    if kind == "elastic" and mpi.name != "openmpi":
        pytest.skip(f"ranks may die on Open MPI 5, this is {mpi.name}")
    argv = ["chaos", "--runs", 1, "--seed", 11, "--first", index, "--limit", 150, "--kind", kind]
    ended = mpi.psgrad([*argv, "--json", tmp_path / "out.json"], timeout=300)
    assert ended.status == 0, ended.stdout + ended.stderr
    (record,) = json.loads((tmp_path / "out.json").read_text())
    assert record["faults"] == []
    assert record["outcome"]["struck"]
    assert re.search(r"^wrong +0$", ended.stdout, re.MULTILINE)


def test_a_command_line_that_cannot_be(capsys):
    assert cli.main(["chaos", "--runs", "0"]) == 2

    assert "expected a count of at least 1" in capsys.readouterr().err
