"""The record of a simulated run, and its picture for Perfetto."""

from __future__ import annotations

import itertools
import json

import pytest
from simulation import PAYLOAD, SECOND, anywhere, chatter, message

from psgrad.transport.clockwork import StallError
from psgrad.transport.faults import Kill
from psgrad.transport.network import Network
from psgrad.transport.simulated import Simulation
from psgrad.transport.trace import write_chrome_trace


def test_a_trace_tells_the_story_of_a_message():
    def program(transport):
        if transport.rank == 0:
            transport.send(1, message(4, PAYLOAD), bytearray(PAYLOAD))
        else:
            transport.connect([0])
            transport.receive(anywhere)

    sim = Simulation(2, SECOND, trace=True)
    sim.run(program)
    story = [(e.time_s, e.rank, e.what, e.peer, e.start_s, e.end_s) for e in sim.trace]
    assert story == [
        (0, 0, "send", 1, 0, 2),
        (0, 0, "end", -1, 0, 0),
        (1, 1, "enter", 0, 1, 3),
        (3, 1, "arrive", 0, 0, 0),
        (3, 1, "receive", -1, 0, 3),
        (3, 1, "take", 0, 0, 0),
        (3, 1, "end", -1, 0, 0),
    ]
    assert {e.header.clock for e in sim.trace if e.header} == {4}


def test_without_a_trace_nothing_is_kept():
    sim = Simulation(4)
    sim.run(chatter)
    assert sim.trace == []


def test_chrome_trace(tmp_path):
    sim = Simulation(3, Network(jitter=1.0), [Kill(2, at_s=1e-5)], trace=True)
    with pytest.raises(StallError):
        sim.run(chatter)
    path, again = tmp_path / "trace.json", tmp_path / "again.json"
    write_chrome_trace(path, sim.trace, ["coordinator", "worker 0"])
    write_chrome_trace(again, iter(sim.trace), ["coordinator", "worker 0"])
    assert path.read_bytes() == again.read_bytes()
    records = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    names = [r["args"]["name"] for r in records if r["name"] == "process_name"]
    assert names == ["rank 0 (coordinator)", "rank 1 (worker 0)", "rank 2"]
    sent = [r["id"] for r in records if r["ph"] == "s"]
    assert len(sent) == len(set(sent)) == sim.messages
    assert {r["id"] for r in records if r["ph"] == "f"} <= set(sent)
    assert [r["pid"] for r in records if r["name"] == "kill"] == [2]
    spans = sorted((r["pid"], r["tid"], r["ts"], r["dur"]) for r in records if r["ph"] == "X")
    assert {tid for _, tid, *_ in spans} == {0, 1, 2}
    for (pid, tid, ts, dur), after in itertools.pairwise(spans):
        if (pid, tid) == after[:2]:
            assert ts + dur <= after[2] + 1e-6, "one thing at a time in a row"
