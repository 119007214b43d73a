"""The options of ``psgrad.run``: each mistake is one line before anything starts."""

from __future__ import annotations

import math

import numpy as np
import pytest

import psgrad
from psgrad.codecs import Compression
from psgrad.errors import ConfigError
from psgrad.options import LARGEST_CHUNK_BYTES, Options

REFUSED = [
    ({"servers": 0}, "servers must be a whole number of at least 1, got 0"),
    ({"servers": "1"}, "servers must be a whole number of at least 1, got '1'"),
    ({"servers": 1.0}, "servers must be a whole number of at least 1, got 1.0"),
    ({"servers": True}, "servers must be a whole number of at least 1, got True"),
    ({"staleness": -1}, "staleness must be a whole number of at least 0, got -1; 0 is synch"),
    ({"staleness": True}, "staleness must be a whole number of at least 0, got True"),
    ({"window": 0}, "window must be a whole number of at least 1, got 0"),
    ({"server_threads": -1}, "server_threads must be a whole number of at least 0, got -1"),
    ({"reference_bytes": -1}, "reference_bytes must be a whole number of at least 0, got -1"),
    ({"pull_codec": "qsgd"}, "pull codec 'qsgd' is for gradients"),
    ({"shared_memory": "yes"}, "unknown shared_memory 'yes'"),
    (
        {"shared_memory": "on", "pull_codec": "int8"},
        "with pull codec 'int8' parameters travel, with shared_memory on they do not",
    ),
    ({"window": 1.5}, "window must be a whole number of at least 1, got 1.5"),
    ({"chunk_bytes": -1}, "chunk_bytes must be a whole number of at least 0, got -1"),
    ({"chunk_bytes": 63}, "chunk_bytes must be from 64 to 1073741824, or 0 for the default grid"),
    ({"chunk_bytes": LARGEST_CHUNK_BYTES + 1}, "chunk_bytes must be from 64 to 1073741824"),
    ({"clip_norm": 0}, "clip_norm must be a number above 0, or None, got 0"),
    ({"clip_norm": "1"}, "clip_norm must be a number above 0, or None, got '1'"),
    ({"clip_norm": float("nan")}, "clip_norm must be a number above 0, or None, got nan"),
    ({"clip_norm": True}, "clip_norm must be a number above 0, or None, got True"),
    ({"seed": 1 << 32}, "seed must be below 2^32, got 4294967296"),
    ({"optimizer": "sgd"}, "optimizer must be one such as psgrad.SGD(0.1), got 'sgd'"),
    ({"optimizer": psgrad.SGD}, "optimizer must be one such as psgrad.SGD(0.1), got <class"),
    ({"schedule": "cosine"}, "schedule must be one such as psgrad.Cosine(total=1000), got 'cos"),
    ({"segments": ["b"]}, "segments must be a list of psgrad.SegmentOptions"),
    ({"segments": "b"}, "segments must be a list of psgrad.SegmentOptions"),
    ({"codec": None}, "codec must be a string, got None"),
    ({"codec": "nne"}, "unknown codec 'nne'; did you mean 'none'?"),
    ({"pull_codec": "nne"}, "unknown codec 'nne'; did you mean 'none'?"),
    ({"feedback": "eff"}, "unknown feedback 'eff'; did you mean 'ef'"),
    ({"feedback": "ef"}, "feedback 'ef' needs a codec that loses something, got 'none'"),
    (
        {"codec": "sign", "feedback": "ef21", "staleness": 3},
        "feedback ef21 needs sync mode (staleness 0), got staleness 3; use feedback ef",
    ),
    ({"zstd": "of"}, "unknown zstd mode 'of'; did you mean 'off'"),
    ({"fault_tolerant": 1}, "fault_tolerant must be True or False, got 1"),
    ({"lease": 0}, "lease must be a number of seconds above 0, got 0"),
    ({"lease": -1.0}, "lease must be a number of seconds above 0, got -1.0"),
    ({"lease": True}, "lease must be a number of seconds above 0, got True"),
    ({"lease": "30"}, "lease must be a number of seconds above 0, got '30'"),
    ({"lease": math.inf}, "lease must be a number of seconds above 0, got inf"),
    ({"lease": math.nan}, "lease must be a number of seconds above 0, got nan"),
    (
        {"fault_tolerant": True, "codec": "sign", "feedback": "ef21"},
        "feedback ef21 needs all workers in every round, fault_tolerant goes on without those",
    ),
    (
        {"fault_tolerant": True, "segments": [psgrad.SegmentOptions("b", members=(0,))]},
        "segment 'b' has members, and fault_tolerant in sync mode commits rounds of all workers",
    ),
    ({"replicas": 2, "servers": 2}, "replicas must be 0 or 1, got 2"),
    ({"replicas": 1}, "replicas 1 needs a second server to keep them, servers is 1; use --servers"),
    (
        {"replicas": 1, "servers": 2},
        "replicas 1 is for runs that go on when a rank dies; use psgrad run --elastic, or",
    ),
    (
        {"replicas": 1, "servers": 2, "fault_tolerant": True, "shared_memory": "on"},
        "with replicas 1 gradients and parameters go by message, with shared_memory on they do not",
    ),
]


@pytest.mark.parametrize(("changes", "text"), REFUSED)
def test_refused(changes, text):
    with pytest.raises(ConfigError) as caught:
        Options(**changes)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("changes", "commits", "room"),
    [
        ({}, False, 3),
        ({"fault_tolerant": True}, True, LARGEST_CHUNK_BYTES),
        ({"fault_tolerant": True, "staleness": 2, "lease": 0.5}, False, 3),
        ({"fault_tolerant": True, "staleness": None}, False, 3),
        (
            {
                "fault_tolerant": True,
                "staleness": 1,
                "segments": [psgrad.SegmentOptions("b", members=(0,))],
            },
            False,
            3,
        ),
    ],
)
def test_ranks_may_die(changes, commits, room):
    options = Options(window=3, **changes)
    assert (options.commits, options.room) == (commits, room)


def test_accepted():
    options = Options(
        servers=np.int64(2), staleness=None, clip_norm=np.float32(0.5), chunk_bytes=64,
        segments=psgrad.SegmentOptions("b"), optimizer=psgrad.Adam(),
    )  # fmt: skip
    assert (options.servers, options.clip_norm) == (2, 0.5)
    assert type(options.servers) is int
    assert options.segments == (psgrad.SegmentOptions("b"),)
    assert options.compression == Compression(zstd="auto")
    assert options == Options(**options.describe())


@pytest.mark.parametrize(
    ("asked", "cores", "servers", "threads"),
    [(0, 1, 1, 1), (0, 2, 1, 2), (0, 2, 3, 1), (0, 64, 1, 8), (0, 12, 3, 4), (5, 1, 2, 5)],
)
def test_threads_of_a_server(asked, cores, servers, threads):
    assert Options(server_threads=asked).threads(cores, servers) == threads


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1, "psgrad needs at least 2 ranks"),
        (2, "servers must be from 1 to 1 with 2 ranks, got 2"),
        (4, "segment 'b' has member 2, but worker indices go from 0 to 1"),
    ],
)
def test_the_ranks_must_suffice(size, text):
    options = Options(servers=2, segments=[psgrad.SegmentOptions("b", members=(0, 2))])
    with pytest.raises(ConfigError, match=text.replace("(", r"\(")):
        options.roles(size)
    assert options.roles(5).workers == 3


def test_replicas_get_everything_by_message():
    options = Options(replicas=1, servers=2, fault_tolerant=True)
    assert options.shared_memory == "off"
