"""Campaigns of kills: what is drawn, that what is wrong is judged wrong, and a short real one."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from psgrad import cli
from psgrad.chaos import campaign
from psgrad.chaos.judge import Outcome, Reference, judge, reference
from psgrad.chaos.trial import (
    CODECS,
    MODES,
    MOMENTS,
    RESTARTS,
    STEPS,
    VICTIMS,
    WORKERS,
    Kill,
    Trial,
    draw,
)
from psgrad.chaos.victims import Tail

DRAWN = [draw(5, index) for index in range(400)]

# What is drawn


def test_a_trial_depends_on_seed_and_index_alone():
    assert [draw(5, index) for index in (7, 3)] == [DRAWN[7], DRAWN[3]]
    assert draw(6, 7) != DRAWN[7]
    assert len(set(DRAWN)) > 390


def test_everything_is_drawn():
    kills = [kill for trial in DRAWN for kill in trial.kills]
    assert {(t.mode, t.codec, t.servers) for t in DRAWN} == {
        (mode, codec, servers) for mode in MODES for codec in CODECS for servers in (1, 2)
    }
    assert {(k.victim, k.moment) for k in kills} == {(v, m) for v in VICTIMS for m in MOMENTS}
    assert {len(trial.kills) for trial in DRAWN} == {1, 2, 3}
    assert Counter(kill.frozen for kill in kills)[True] > len(kills) // 10


@pytest.mark.parametrize("trial", DRAWN[:50])
def test_a_trial_can_be_carried_out(trial):
    assert len(trial.kills) <= RESTARTS
    for kill in trial.kills:
        ranks = {
            "mpiexec": [-1],
            "rank 0": [0],
            "server": range(1, trial.servers),
            "worker": range(trial.servers, trial.servers + WORKERS),
        }
        assert kill.rank in ranks[kill.victim]
        assert 0 <= kill.step < STEPS
    assert trial.repeat == f"bin/chaos --seed 5 --first {trial.index} --runs 1"


# What is judged

SYNC = Trial(1, 0, "sync", "none", 1, (Kill("worker", 2, "step", 50),))
ASYNC = replace(SYNC, mode="async")
SUMMARY = {"params_sha256": "a", "test_accuracy": 0.98, "steps": 1080, "skipped_steps": 0}
GOOD = Outcome(
    seconds=3.0,
    status=0,
    summary=SUMMARY,
    killed=1,
    recoveries=(2.0,),
    stderr="noise\npsgrad: restart 1 of 3 in 1 s, from X; it ended with: mpiexec was lost\n",
)
EXPECTED = reference([SUMMARY])


def test_references_are_means_and_sets():
    made = reference([SUMMARY, {**SUMMARY, "params_sha256": "b", "test_accuracy": 0.96}])
    assert made == Reference(frozenset("ab"), (0.98, 0.96), frozenset({1080}))
    distances = [made.distance(value) for value in (0.95, 0.96, 0.97, 0.98, 0.985)]
    assert distances == pytest.approx([0.01, 0.0, 0.0, 0.0, 0.005])


@pytest.mark.parametrize("trial", [SYNC, ASYNC])
def test_a_good_run_is_judged_good(trial):
    assert judge(trial, GOOD, EXPECTED) == []
    late = replace(GOOD, stderr="")  # killed when all was done
    assert judge(trial, late, EXPECTED) == []


def with_summary(**changes):
    return replace(GOOD, summary={**SUMMARY, **changes})


@pytest.mark.parametrize(
    ("trial", "outcome", "faults"),
    [
        (SYNC, replace(GOOD, hung=True, summary=None), ["hung: not over after 3 s"]),
        (SYNC, replace(GOOD, status=137), ["exit status 137"]),
        (SYNC, replace(GOOD, status=1, summary=None), ["exit status 1", "no completion record"]),
        (SYNC, replace(GOOD, summary=None), ["no completion record"]),
        (SYNC, with_summary(params_sha256="b"), ["other parameters than undisturbed"]),
        (ASYNC, with_summary(params_sha256="b"), []),
        (SYNC, with_summary(steps=1079), ["1079 steps, undisturbed 1080"]),
        (ASYNC, with_summary(steps=1081), ["1081 steps, undisturbed 1080"]),
        (ASYNC, with_summary(test_accuracy=0.974), ["accuracy 0.9740, undisturbed 0.9800 to 0.98"]),
        (ASYNC, with_summary(test_accuracy=0.986), ["accuracy 0.9860, undisturbed 0.9800 to 0.98"]),
        (ASYNC, with_summary(test_accuracy=0.976), []),
        (ASYNC, with_summary(skipped_steps=2), ["2 steps were not finite"]),
        (SYNC, replace(GOOD, left=["process 7", "/dev/shm/x"]), ["left process 7", "left /dev/s"]),
        (SYNC, replace(GOOD, killed=0), ["ended unasked, one of: mpiexec was lost"]),
    ],
)
def test_a_planted_fault_is_judged_wrong(trial, outcome, faults):
    found = judge(trial, outcome, EXPECTED)
    assert len(found) == len(faults)
    assert all(text.startswith(start) for text, start in zip(found, faults, strict=True))


def test_the_table_counts_all_of_it():
    judged = [campaign.Judged(SYNC, replace(GOOD, recoveries=(float(n),)), []) for n in range(1, 9)]
    judged += [
        campaign.Judged(SYNC, replace(GOOD, hung=True, recoveries=(), killed=0), ["hung"]),
        campaign.Judged(SYNC, replace(GOOD, status=1, recoveries=(30.0, 9.0)), ["status 1"]),
    ]
    rows = dict(line.split(maxsplit=1) for line in campaign.table(judged).splitlines())
    assert rows == {
        "runs": "10",
        "kills": "9, 10 attempts ended by them",
        "over": "before a kill  1",
        "hangs": "1",
        "wrong": "1",
        "recovery": "median 5.50 s, p90 9.00 s, max 30.00 s",
    }
    assert "FAILED: status 1" in judged[-1].line
    assert judged[0].line.endswith("ok")
    assert campaign.table([]).endswith("none")


def test_the_steps_of_an_attempt_are_told_from_those_before(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    tail.read()
    assert tail.step == 0
    path.write_text('{"kind": "step", "step": 1}\n{"kind": "step", "step": 2}\n{"kind": "st')
    tail.read()
    assert tail.step == 2
    with path.open("a") as file:
        file.write('ep", "step": 3}\n{"kind": "summary"}\n')
    tail.read()
    assert tail.step == 3
    tail.begin()  # resumed: behind what is there
    tail.read()
    assert tail.step == 0
    with path.open("a") as file:
        file.write('{"kind": "step", "step": 2}\n')
    tail.read()
    assert tail.step == 2
    tail.begin()  # from its start: anew
    path.write_text('{"kind": "step", "step": 1}\n')
    tail.read()
    assert tail.step == 1


# Real ranks


@pytest.mark.parametrize("index", [13, 16])
def test_a_killed_run_ends_as_if_nothing_had_been(mpi, tmp_path, index):
    argv = ["chaos", "--runs", "1", "--seed", "11", "--first", index, "--limit", "150"]
    ended = mpi.psgrad([*argv, "--json", tmp_path / "out.json"], timeout=300)
    assert ended.status == 0, ended.stdout + ended.stderr
    (record,) = json.loads((tmp_path / "out.json").read_text())
    assert record["faults"] == []
    assert record["outcome"]["killed"] >= 1
    assert record["trial"]["index"] == index
    assert "wrong               0" in ended.stdout


def test_a_command_line_that_cannot_be(capsys):
    assert cli.main(["chaos", "--runs", "0"]) == 2

    assert "expected a count of at least 1" in capsys.readouterr().err
