"""``benchmarks/network``: commands, counters, figures, and a small network for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgrad import launch
from psgrad.errors import LaunchError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from network import __main__ as program  # noqa: E402
from network import counters, figures, jobs, ways  # noqa: E402
from network import lan as network  # noqa: E402
from network.lan import Lan, LanError  # noqa: E402
from network.task import Lesson, Task, train  # noqa: E402
from network.ways import Tools, Way  # noqa: E402

GBIT = 10**9
LAN = Lan("t1", 4, GBIT)
TOOLS = Tools(Path("/mpi/bin/mpiexec"), Path("/torch/bin/python"), Path("/psgrad/bin/python"))
SMALL = Task(hidden=(40,), workers=2, warmup=1, timed=3, steps=6, evaluate_every=2)


# The network's commands


def test_no_command_reaches_beyond_the_namespaces():
    mine = {*LAN.names, LAN.switch}
    for command in LAN.building():
        if command[:3] == ["ip", "netns", "add"]:
            assert command[3] in mine
        elif command[:3] == ["ip", "link", "add"]:  # both ends are born where they belong
            assert {command[i + 1] for i, word in enumerate(command) if word == "netns"} <= mine
            assert command.count("netns") == 2
        else:
            assert command[1] == "-n"
            assert command[2] in mine


def test_both_ends_of_each_cable_have_a_bucket():
    buckets = [c for c in LAN.building() if "tbf" in c]
    places = [(c[2], c[c.index("dev") + 1]) for c in buckets]
    assert sorted(places) == sorted(
        [(LAN.host(i), "eth0") for i in range(4)] + [(LAN.switch, f"p{i}") for i in range(4)]
    )
    assert {c[c.index("rate") + 1] for c in buckets} == {"1000000000bit"}


@given(st.integers(10**6, 10**11))
def test_a_packet_fits_into_the_bucket(rate):
    lan = Lan("t", 1, rate)
    assert 1514 <= lan.packet_nbytes < lan.burst_nbytes
    assert lan.burst_nbytes <= max(3200, rate / 8 * 200e-6)


@pytest.mark.parametrize(
    ("hosts", "rate", "text"),
    [(0, GBIT, "from 1 to 250 hosts, got 0"), (2, 10, "from 1mbit to 100gbit, got 10 bit/s")],
)
def test_a_network_that_cannot_be(hosts, rate, text):
    with pytest.raises(LanError, match=text):
        Lan("t", hosts, rate)


def test_a_command_for_a_host_is_one_word_of_shell():
    enter, host, line = LAN.on_host(2, ["a b", "c'd"])
    assert (Path(enter).name, host) == ("enter", "t1-h2")
    assert subprocess.run(
        ["sh", "-c", line.replace("'a b'", "echo")], text=True, capture_output=True
    ).stdout == "c'd\n"  # fmt: skip


def test_without_root_it_says_so(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LanError, match="need root; run this with sudo"):
        network.check()


def test_without_tc_it_says_so(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(network.shutil, "which", lambda tool: None if tool == "tc" else "/" + tool)
    with pytest.raises(LanError, match="no program 'tc'; install iproute2"):
        network.check()


def test_the_reason_of_a_command_that_fails_is_told():
    with pytest.raises(LanError, match="no such file"):
        network.call(["sh", "-c", "echo no such file >&2; echo more >&2; exit 3"])


def test_the_program_refuses_in_one_line():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "network"), "--quick"],
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("benchmarks/network: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("program", ["network", "scale.py", "scaling.py"])
def test_a_folder_that_is_missing_is_said_before_the_work(tmp_path, program):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / program), "--out", str(tmp_path / "no" / "a")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"there is no folder {tmp_path / 'no'}; make it first" in done.stderr


@pytest.mark.parametrize(
    ("program", "option"),
    [("network", "--rounds"), ("scaling.py", "--rounds"), ("scaling.py", "--width")],
)
def test_counts_are_counts(program, option):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / program), option, "0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{option}: expected a count of at least 1" in done.stderr


# Ways


@pytest.mark.parametrize(
    ("way", "places", "ranks"),
    [
        (Way("ddp", servers=0), [1, 2, 3], ["worker 0", "worker 1", "worker 2"]),
        (Way("one"), [0, 1, 2, 3], ["server 0", "worker 0", "worker 1", "worker 2"]),
        (
            Way("three", servers=3),
            [1, 2, 3, 1, 2, 3],
            ["server 0", "server 1", "server 2", "worker 0", "worker 1", "worker 2"],
        ),
    ],
)
def test_where_ranks_are(way, places, ranks):
    assert way.places(3) == places
    assert way.ranks(3) == ranks


def test_servers_are_one_or_as_many_as_workers():
    with pytest.raises(LanError, match="1 or as many as workers, 3, got 2"):
        Way("two", servers=2).places(3)


def test_psgrad_is_started_from_the_switch(tmp_path):
    (command,) = ways.commands(Way("three", servers=3), LAN, Task(), TOOLS, tmp_path / "f")
    assert command[:5] == ["ip", "netns", "exec", "t1-sw", "/mpi/bin/mpiexec"]
    assert command[command.index("--host") + 1] == "t1-h1:2,t1-h2:2,t1-h3:2"
    assert command[command.index("-n") + 1] == "6"
    assert command[-3:] == [
        "/psgrad/bin/python", str(ways.HERE / "train_psgrad.py"), str(tmp_path / "f")
    ]  # fmt: skip


def test_ddp_is_started_host_by_host(tmp_path):
    commands = ways.commands(Way("ddp", servers=0), LAN, Task(), TOOLS, tmp_path / "f")
    assert [c[1] for c in commands] == ["t1-h1", "t1-h2", "t1-h3"]
    assert [c[2].split()[-1] for c in commands] == ["0", "1", "2"]
    without = replace(TOOLS, torch=None)
    with pytest.raises(LanError, match="give --torch-python"):
        ways.commands(Way("ddp", servers=0), LAN, Task(), without, tmp_path / "f")


def test_settings_given_by_hand_win():
    tools = replace(TOOLS, mca=(("btl_tcp_eager_limit", "300000"), ("pml", "cm")))
    found = tools.environment({"HOME": "/h"})
    assert found["OMPI_MCA_btl_tcp_eager_limit"] == "300000"
    assert (found["OMPI_MCA_pml"], found["HOME"]) == ("cm", "/h")


def test_all_ways_can_be_run():
    for way in ways.WAYS:
        place = ways.place(way, LAN, Task())
        assert len(place["ranks"]) == len(way.places(3))
        assert json.loads(json.dumps(place))["task"] == json.loads(Task().to_json())


# Counters


def test_bytes_of_a_bucket():
    text = json.dumps([{"kind": "noqueue", "bytes": 1}, {"kind": "tbf", "dev": "p0", "bytes": 77}])
    assert counters.sent(text, "p0") == 77
    with pytest.raises(ValueError, match="no token bucket at p1"):
        counters.sent(text, "p1")


def test_processor_time_is_of_all_threads():
    assert counters.cpu_ns(["1500 7 3\n", "500 0 1\n"]) == 2000


def test_busy_is_what_is_not_idle():
    # user nice system idle iowait irq softirq steal guest
    assert counters.busy_ticks("cpu  1 2 4 1000 2000 8 16 32 64 0\ncpu0 9 9 9") == 63


# What ranks do


def test_a_task_survives_a_command_line():
    task = Task(hidden=(3, 4), learning_rate=0.25)
    assert Task.from_json(task.to_json()) == task


def test_steps_readings_and_looks_come_in_this_order():
    events: list[str] = []

    def read() -> dict[str, Any]:
        events.append("read")
        return {"now_s": len(events)}

    def step() -> float:
        events.append("step")
        return 0.5

    def look() -> float:
        events.append("look")
        return 0.75

    diary = train(SMALL, step, lambda: events.append("barrier"), read, look)
    reading, looking = ["barrier", "read", "barrier"], ["barrier", "look", "barrier"]
    assert events == [
        "step", *reading, "step", "step", "step", *reading, *looking, "step", "step", *looking
    ]  # fmt: skip
    assert diary.curve == [(4, 0.75), (6, 0.75)]
    assert diary.compute_s == [0.5] * 6
    assert diary.before["now_s"] < diary.after["now_s"]


def test_other_workers_only_wait():
    diary = train(SMALL, lambda: 0.0, lambda: None, None, lambda: pytest.fail("looked"))
    assert (diary.before, diary.after, diary.curve) == ({}, {}, [])


def test_workers_start_alike_and_see_other_samples():
    lessons = [Lesson(SMALL, worker) for worker in (0, 1)]
    for name, values in lessons[0].initial.items():
        np.testing.assert_array_equal(values, lessons[1].initial[name])
    seen = [[lesson.batch()[0] for _ in range(100)] for lesson in lessons]
    assert {batch.shape for of_one in seen for batch in of_one} == {(SMALL.batch_size, 64)}
    assert not np.array_equal(seen[0][0], seen[1][0])


def test_the_model_has_16_mib():
    initial = Lesson(Task(), 0).initial
    nbytes = sum(values.nbytes for values in initial.values())
    assert abs(nbytes / (16 << 20) - 1) < 1e-3


# Figures


def diaries(task: Task, step_s: float) -> list[dict[str, Any]]:
    """What three workers could have written; worker 1 is the slowest, in one step by a half."""
    steps = [step_s] * task.steps
    slow = [*steps[: task.warmup], 1.5 * step_s, *steps[task.warmup + 1 :]]
    n = task.timed
    return [
        {
            "step_s": slow if worker == 1 else steps,
            "compute_s": [0.01 * (worker + 1)] * task.steps,
            "before": {"now_s": 1.0, "inward": [5, 5, 5, 5], "outward": [0, 0, 0, 0],
                       "cpu_ns": {"server 0": 0, "worker 0": 0}, "busy_ticks": 100},
            "after": {"now_s": 3.0, "inward": [5 + 3_000_000 * n, 5 + n, 5, 5],
                      "outward": [1_000_000 * n, 2 * n, 0, 0],
                      "cpu_ns": {"server 0": 4_000_000 * n, "worker 0": 2_000_000 * n},
                      "busy_ticks": 400},
            "curve": [[10, 0.5], [20, 0.94], [30, 0.96]] if worker == 0 else [],
            "facts": {"final_accuracy": 0.97} if worker == 0 else {},
        }
        for worker in range(3)
    ]  # fmt: skip


@pytest.fixture
def dense() -> figures.Row:
    task = Task(warmup=2, timed=4, steps=6)
    return figures.row(Way("dense"), GBIT, task, diaries(task, 0.1))


def test_a_row_is_of_the_timed_steps(dense):
    assert (dense.median_s, dense.least_s, dense.most_s) == pytest.approx((0.1, 0.1, 0.15))
    assert dense.compute_s == 0.03
    assert (dense.server_in, dense.server_out) == (3e6, 1e6)
    assert (dense.worker_in, dense.worker_out) == (1, 2)
    assert dense.floor_s == pytest.approx(0.024)
    assert dense.share == pytest.approx(0.024 * 4 / 0.45)
    assert dense.cpu_s == {"server 0": 0.004, "worker 0": 0.002}
    assert dense.busy == pytest.approx(1.5)
    assert dense.final_accuracy == 0.97


def test_a_row_survives_json(dense):
    assert figures.Row.of_record(json.loads(json.dumps(dense.record()))) == dense


def test_rounds_become_one_row(dense):
    rounds = [replace(dense, median_s=m, least_s=m / 2, most_s=2 * m) for m in (3.0, 1.0, 2.0)]
    rounds[1:] = [replace(row, curve=()) for row in rounds[1:]]
    one = figures.merged(rounds)
    assert (one.median_s, one.least_s, one.most_s) == (2.0, 0.5, 6.0)
    assert one.curve == dense.curve


def test_the_table_compares_with_ddp(dense):
    ddp = replace(dense, way=ways.DDP, median_s=0.4, curve=((10, 0.9), (20, 0.95)))
    slow = replace(dense, rate=10**8, median_s=1.0, curve=())
    first, second = figures.table([ddp, dense, slow]).split("\n\n")
    assert first.splitlines()[0] == "1 Gb a second"
    line = next(line for line in first.splitlines() if line.startswith("dense"))
    assert line.split()[1:6] == ["100", "100", "-", "150", "4.00"]
    # 95% of 0.925, the mean of DDP's looks, is reached at step 20: of 0.1 s here, of 1 s there.
    assert line.split()[-1] == "2.0"
    assert second.splitlines()[0] == "100 Mb a second"
    assert second.splitlines()[-1].split()[-1] == "20.0"


def test_nobody_looked_nothing_is_said(dense):
    row = replace(dense, curve=())
    assert row.accuracy is None
    assert figures.threshold([row]) is None
    assert figures.table([row]).splitlines()[-1].split()[-1] == "2.0"  # the worker's CPU time


def test_a_picture_is_drawn(dense, tmp_path):
    pytest.importorskip("matplotlib")
    from network.plot import plot

    plot([dense, replace(dense, way=ways.DDP, rate=10**8, curve=())], tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000


# The command line


@pytest.mark.parametrize(
    ("text", "rate"), [("1gbit", GBIT), ("100mbit", 10**8), ("2500kbit", 2_500_000)]
)
def test_rates(text, rate):
    assert program.rate_of(text) == rate


@pytest.mark.parametrize("text", ["", "1", "1gb", "fast", "1.5gbit", "-1mbit"])
def test_what_is_no_rate(text):
    with pytest.raises(LanError, match="such as 1gbit"):
        program.rate_of(text)


def test_slow_dense_ways_have_fewer_steps_and_others_do_not():
    base = Task(timed=20, evaluate_every=10)
    dense, sparse = Way("d"), Way("s", codec="int8", pull_codec="int8")
    assert program.task_for(dense, 10**8, base, 0).timed < 20
    assert program.task_for(sparse, 10**8, base, 0).timed == 20
    curve = program.task_for(dense, GBIT, base, 200)
    assert (curve.steps, curve.evaluate_every) == (200, 10)


def test_which_ways(monkeypatch):
    monkeypatch.setattr(program, "TORCH", Path("/nowhere"))

    def chosen(*words: str) -> list[Way]:
        return program.ways_of(program.parser().parse_args(words))

    assert not any(way.ddp for way in chosen())  # there is no torch
    assert chosen("--quick", "--torch-python", "p")[0].name == ways.DDP
    (way,) = chosen("--way", "dense", "--chunk-bytes", "65536")
    assert way.chunk_bytes == 65536
    assert [way.overlap for way in chosen("--quick", "--overlap")] == [True, True]
    assert chosen("--codec", "int8/topk:0.1")[-1].pull_codec == "topk:0.1"
    with pytest.raises(LanError, match="there is no way 'dens'; there are DDP"):
        chosen("--way", "dens")


def test_a_torch_that_is_none():
    arguments = program.parser().parse_args(["--torch-python", "/nowhere/python"])
    with pytest.raises(LanError, match=r"/nowhere/python is not a program|mpiexec"):
        program.tools_of(arguments)


# Jobs


@pytest.mark.parametrize(
    ("codes", "limit_s", "text"),
    [
        (["", ""], 30, ""),
        (["", "raise SystemExit(3)"], 30, "a process ended with status 3"),
        (["", "input()"], 0, "not done after 0 s (--timeout)"),
    ],
)
def test_a_job_is_watched(codes, limit_s, text):
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) for code in codes
    ]
    assert jobs.watch(started, limit_s) == text
    for process in started:
        process.communicate(b"\n")


def test_last_words_leave_out_what_is_always_said():
    text = "".join(f"line {i}\n" for i in range(20)) + "plm: setpgid failed\n"
    assert jobs.last_words(text).splitlines() == [f"line {i}" for i in range(8, 20)]
    assert jobs.last_words("setpgid\n") == "none"


def test_a_launcher_that_cannot_start_other_hosts():
    with pytest.raises(LanError, match="a path without spaces only, this one is at /a b/mpiexec"):
        Tools(Path("/a b/mpiexec"))


# For real


def real_mpiexec() -> Path:
    try:
        network.check()
        mpiexec = launch.find_mpiexec(launch.Launch(1, ("python",)), os.environ)
        if launch.identify(mpiexec, os.environ) != "openmpi":
            pytest.skip(f"{mpiexec} is not Open MPI's")
        Tools(mpiexec)
    except (LanError, LaunchError) as error:
        pytest.skip(str(error))
    return mpiexec


@pytest.fixture
def lan():
    real_mpiexec()
    plan = Lan(f"t{os.getpid()}", 3, 10**8)
    context = network.built(plan)
    try:
        context.__enter__()
    except LanError as error:
        pytest.skip(f"no network namespaces here: {error}")
    yield plan
    context.__exit__(None, None, None)
    assert not set(network.call(["ip", "netns", "list"]).split()) & {*plan.names, plan.switch}


@pytest.mark.parametrize("overlap", [False, True])
def test_gradients_cross_the_cables(lan, tmp_path, overlap):
    tools = Tools(real_mpiexec())
    way, task = Way("dense", overlap=overlap), replace(SMALL, hidden=(1000,))
    found = jobs.run(way, lan, task, tools, tmp_path / "job", 60)
    row = figures.row(way, lan.rate, task, found)
    nbytes = 4 * found[0]["facts"]["parameters"]
    # Frames and headers of messages are in it, and nothing else of this size.
    for one_way in (row.server_in, row.server_out):
        assert 2 * nbytes < one_way < 2 * nbytes * 1.12 + 20_000
    for one_way in (row.worker_in, row.worker_out):
        assert nbytes < one_way < nbytes * 1.12 + 10_000
    assert row.share < 1.1  # the buckets hold
    assert row.final_accuracy is not None
    assert set(row.cpu_s) == {"server 0", "worker 0", "worker 1"}
    assert found[0]["facts"]["host"] == lan.host(1)
    assert not any(network.inhabitants(name) for name in lan.names)


def test_a_job_that_fails_says_why_and_leaves_nothing(lan, tmp_path):
    tools = Tools(real_mpiexec(), python=Path("/bin/false"))
    with pytest.raises(LanError, match="dense: a process ended with status"):
        jobs.run(Way("dense"), lan, SMALL, tools, tmp_path / "job", 60)
    assert not any(network.inhabitants(name) for name in (*lan.names, lan.switch))


def test_what_still_runs_is_ended(lan):
    process = subprocess.Popen(lan.on_host(0, ["sleep", "1000"]))
    while not network.inhabitants(lan.host(0)):
        time.sleep(0.01)  # until it is there
    network.remove(lan)
    assert process.wait(10) != 0
