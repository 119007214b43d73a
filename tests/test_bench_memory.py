"""What ranks take of memory: by hand, and against what they do take; rates on tiny sizes."""

from __future__ import annotations

import json

import pytest

from psgrad.bench import memory
from psgrad.bench.memory import Item, Rate
from psgrad.optimizers import Adam, Momentum
from psgrad.options import Options

N = 1 << 20  # bytes: 16 chunks of 64 KiB
CHUNK = 1 << 16
RING = 4 * (104 + 4096)
SCRATCH = 4 * 32768

GROWTH = """
import json, sys, tracemalloc
import numpy as np
import psgrad
from psgrad.kernels import chunks

nbytes, options = int(sys.argv[1]), json.loads(sys.argv[2])
options["optimizer"] = psgrad.Adam()
found = []

def main(worker):
    worker.register({"w": np.zeros(nbytes // 4, np.float32)})
    worker.grads["w"] = np.random.default_rng(1).standard_normal(nbytes // 4, np.float32)
    for _ in range(4):
        worker.step()
    tracemalloc.reset_peak()
    worker.step()
    found.append(tracemalloc.get_traced_memory()[1])

chunks.fastest()  # numba has memory of its own
tracemalloc.start()
psgrad.run(main, **options)
peak = found[0] if found else tracemalloc.get_traced_memory()[1]
from mpi4py import MPI
peaks = np.zeros(MPI.COMM_WORLD.size, np.int64)
MPI.COMM_WORLD.Gather(np.array([peak]), peaks)
if MPI.COMM_WORLD.rank == 0:
    print(json.dumps(peaks.tolist()))
"""


def held(items):
    return {item.what: item.nbytes for item in items}


def of(role, ranks=3, nbytes=N, **options):
    chosen = Options(**{"shared_memory": "off", **options})
    layout = memory.layout_of(nbytes)
    items = {"server": memory.server_items, "worker": memory.worker_items}[role]
    return held(items(layout, chosen, chosen.roles(ranks)))


def test_a_server():
    assert of("server") == {
        "parameters": N,
        "float32 from workers": 2 * 8 * CHUNK,
        "scratch of updates": 2 * SCRATCH,
        "posted receives": 2 * RING,
    }


def test_a_worker():
    assert of("worker") == {"parameters": N, "gradients": N, "posted receives": RING}


@pytest.mark.parametrize(
    ("options", "what", "nbytes"),
    [
        ({"optimizer": Adam()}, "optimizer state", 2 * N),
        ({"optimizer": Momentum()}, "optimizer state", N),
        ({"servers": 2}, "parameters", N // 2),
        ({"servers": 2}, "float32 from workers", 1 * 8 * CHUNK),
        ({"window": 2}, "float32 from workers", 2 * 2 * CHUNK),
        ({"window": 99}, "float32 from workers", 2 * 16 * CHUNK),
        ({"chunk_bytes": 1 << 18, "window": 3}, "float32 from workers", 2 * 3 * (1 << 18)),
        ({"staleness": 3}, "parameters under way", 2 * 8 * CHUNK),
        ({"staleness": None}, "parameters under way", 2 * 8 * CHUNK),
        ({"codec": "int8"}, "float32 from workers", 2 * 8 * CHUNK),
        ({"codec": "qsgd"}, "float32 from workers", 8 * CHUNK),
        ({"codec": "topk:0.01", "feedback": "ef21"}, "estimate of the gradient (ef21)", N),
    ],
)
def test_what_options_add_to_a_server(options, what, nbytes):
    assert of("server", **options)[what] == nbytes


def test_shared_memory():
    server, worker = of("server", shared_memory="auto"), of("worker", shared_memory="auto")
    assert server["float32 from workers"] == 8 * CHUNK, "of worker 0's first values"
    assert "parameters" not in worker
    assert worker["gradients"] == N
    assert of("worker", shared_memory="auto", staleness=3)["parameters"] == N
    assert of("worker", shared_memory="auto", pull_codec="int8")["parameters"] == N
    encoded = of("server", shared_memory="auto", codec="int8")
    assert encoded["float32 from workers"] == 2 * 8 * CHUNK


def test_what_a_pull_codec_adds_to_a_server():
    shared = of("server", pull_codec="topk:0.01")["what workers hold (pull codec)"]
    each = of("server", pull_codec="topk:0.01", staleness=3)["what workers hold (pull codec)"]
    assert each - shared == N, "a copy for each of two workers instead of one for both"
    encoded = of("server", pull_codec="int8")["encoded parameters (pull codec)"]
    assert N / 4 < encoded < 1.1 * N / 4


@pytest.mark.parametrize(
    ("options", "what", "least", "most"),
    [
        ({"codec": "int8"}, "feedback (codec)", N, N + 64),
        ({"codec": "topk:0.01", "feedback": "dgc"}, "feedback (codec)", 2 * N, 2 * N),
        ({"codec": "int8"}, "payloads (codec)", N / 4, 1.1 * N / 4),
        ({"pull_codec": "int8"}, "encoded parameters under way", N / 8, 1.1 * N / 8),
        ({"pull_codec": "int8", "servers": 2}, "encoded parameters under way", N / 4, 1.1 * N / 4),
    ],
)
def test_what_codecs_add_to_a_worker(options, what, least, most):
    assert least <= of("worker", ranks=4, **options)[what] <= most


def test_a_layout_takes_no_memory():
    assert memory.layout_of(1 << 40).size == 1 << 38


@pytest.mark.parametrize(
    "options",
    [
        {"servers": 1},
        {"servers": 1, "staleness": 1},
        {"servers": 1, "codec": "int8", "pull_codec": "int8"},
        {"servers": 1, "codec": "topk:0.05", "pull_codec": "topk:0.05"},
    ],
    ids=lambda options: ",".join(map(str, options.values())),
)
def test_ranks_take_no_more_than_that(mpi, options):
    nbytes = 8 << 20
    options = {**options, "shared_memory": "off"}
    status, stdout, stderr = mpi.run(3, ["-c", GROWTH, str(nbytes), json.dumps(options)])
    assert status == 0, stderr
    server, *workers = json.loads(stdout)
    reckoned = of("server", nbytes=nbytes, optimizer=Adam(), **options)
    room = 4 << 20  # modules that are loaded meanwhile, messages
    if "codec" in options:
        room += 2 * 8 * nbytes // 16  # scratch: a chunk for each that is under way, at most
    assert 3 * nbytes < server < sum(reckoned.values()) + room
    # The gradient that the test makes, and what its own arrays take.
    own = nbytes
    reckoned = of("worker", nbytes=nbytes, **options)
    for worker in workers:
        assert 2 * nbytes < worker < sum(reckoned.values()) + own + room


@pytest.mark.parametrize("threads", [1, 3])
def test_rates(threads):
    found = memory.rates(4000, 2, threads)
    assert [(rate.what, rate.moved) for rate in found] == [
        ("copy", 8000),
        ("add", 12000),
        ("add in place", 12000),
        ("read", 4000),
    ]
    for rate in found:
        assert (rate.threads, rate.nbytes, len(rate.samples)) == (threads, 4000, 2)
        assert min(rate.samples) > 0


def test_a_rate_is_traffic_over_the_median():
    rate = Rate("copy", 1, 4 << 20, 8 << 20, (0.001, 0.002, 0.004))
    assert rate.rate == pytest.approx(8.388608 / 2)
    head, columns, line = memory.rate_table([rate], 4 << 20).splitlines()
    assert head == "arrays of 4 MiB; GB/s of traffic"
    assert columns.split() == ["threads", "median", "ms", "min", "-", "max", "GB/s"]
    assert line.split() == ["copy", "1", "2.000", "1.000", "-", "4.000", "4.2"]


def test_items_add_up():
    items = {
        "server": [Item("parameters", 2 << 20), Item("gradients under way", 1 << 20)],
        "worker": [Item("parameters", 4 << 20)],
    }
    lines = memory.item_table(items, Options().roles(3), 4 << 20).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["server", "parameters", "2.00", "0.50"],
        ["gradients", "under", "way", "1.00", "0.25"],
        ["together", "3.00", "0.75"],
        ["worker", "parameters", "4.00", "1.00"],
        ["together", "4.00", "1.00"],
    ]
