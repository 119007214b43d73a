"""Calibration: the probes on real ranks, and what is made of their figures."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from psgrad.errors import LaunchError
from psgrad.scale import calibrate
from psgrad.scale.calibrate import Prediction, middle, predict, report
from psgrad.scale.machine import TYPICAL, CodecCosts, Machine


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["link"], {"latency_s"}),
        (["messages", 64, 16], {"server_s", "worker_s"}),
        (["steps", 10_000, 3], {"step_s"}),
    ],
)
def test_probes(mpi, tmp_path, arguments, names):
    out = tmp_path / "records"
    probe, *rest = arguments
    status, _, err = mpi.run(2, ["-m", "psgrad.scale.probe", probe, out, *rest])
    assert (status, err) == (0, "")
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == 2
    figures = {name: value for record in records for name, value in record.items()}
    assert figures.keys() == names
    assert all(0 < seconds < 1 for seconds in figures.values())


def test_the_middle_of_machines():
    machines = [
        Machine(2, float(i), judge_s=10.0 * i, codecs=(CodecCosts("int8", 1, i, 0, 2 * i),))
        for i in (3, 1, 2, 9, 4)
    ]
    found = middle(machines)
    assert found.cores == 2
    assert (found.latency_s, found.judge_s) == (3.0, 30.0)
    assert found.codecs == (CodecCosts("int8", 1, 3, 0, 6),)


def test_an_error_compares_each_round_with_itself():
    """The third round was disturbed from its beginning to its end."""
    prediction = Prediction(1, (1.1, 1.2, 12.0), (1.0, 1.0, 10.0))
    assert prediction.error == pytest.approx(0.2)


def test_predictions_grow_with_the_workers():
    machine = replace(TYPICAL, cores=64)
    times = [predict(machine, workers) for workers in (1, 2, 3)]
    # A server takes that long for the pushes alone.
    least = 16 * machine.server_message_s + (1 << 24) * machine.byte_s
    assert all(w * least < t < 3 * w * least for w, t in enumerate(times, 1))
    assert times == sorted(times)
    crowded = [predict(TYPICAL, workers) for workers in (1, 2, 3)]
    assert crowded[0] == times[0]
    assert crowded[2] > times[2]


def test_rounds(monkeypatch):
    """Every round measures everything; no ranks are started here."""
    calls, heard = [], []

    def on_ranks(ranks, probe, arguments, environ):
        calls.append((ranks, probe, *arguments))
        size = arguments[1] if probe == "messages" else 0
        return {
            "link": {"latency_s": 1e-5},
            "messages": {"server_s": 1e-4 + size * 1e-9, "worker_s": 2e-4},
            "steps": {"step_s": 0.01 * ranks},
        }[probe]

    sums = {"judge_s": 1e-10, "accumulate_s": 1e-10, "apply_s": 1e-10, "copy_s": 1e-10}
    monkeypatch.setattr(calibrate, "_on_ranks", on_ranks)
    monkeypatch.setattr(calibrate, "arithmetic", lambda: sums)
    machine, predictions = calibrate.calibrate(["none"], {}, 2, heard.append)
    assert len(calls) == 2 * 6
    assert {(2, "link"), (2, "steps", 1 << 22, 15), (4, "steps", 1 << 22, 15)} <= set(calls)
    assert heard == ["calibrate: round 1 of 2", "calibrate: round 2 of 2"]
    # A nanosecond an element, less the arithmetic, over four bytes.
    assert machine.byte_s == pytest.approx(0.2e-9, rel=1e-3)
    assert machine.cores == len(os.sched_getaffinity(0))
    assert [p.workers for p in predictions] == [1, 2, 3]
    assert predictions[2].measured_s == (0.04, 0.04)
    lines = report(machine, predictions).splitlines()
    assert lines[0].startswith("messages: 10 us and 0.20 ns a byte; of a processor, 200 us")
    assert "1 worker with 4,194,304 parameters: predicted " in lines[2]
    assert "measured 20.0 ms (20.0 to 20.0), error " in lines[2]


def test_ranks_that_cannot_be_started(monkeypatch):
    monkeypatch.setattr(calibrate, "run", lambda plan, environ: 7)
    monkeypatch.setattr(calibrate, "prepare", lambda launch, environ, terminal: None)
    with pytest.raises(LaunchError, match="on 2 ranks ended with status 7; leave --calibrate out"):
        calibrate.measure({})
