"""A worker's answers from its servers: what does not fit is refused by name."""

from __future__ import annotations

import pytest
from scripted_transport import Scripted

from psgrad.control import COUNTED
from psgrad.errors import ConfigError, ProtocolError, WireError
from psgrad.messages import Header, Kind, encode_json
from psgrad.optimizers import SGD
from psgrad.options import Options
from psgrad.roles import Roles
from psgrad.worker import Worker


@pytest.fixture
def transport():
    return Scripted(rank=1)


@pytest.fixture
def worker(transport):
    return Worker(transport, Roles(3, 1), Options(optimizer=SGD(0.1)), run=77)


def met(transport, sequence=1, **said):
    transport.arrives(0, Header(Kind.MET, sequence=sequence), encode_json(said))


def test_a_mean(transport, worker):
    met(transport, mean={"x": 3}, running=[0, 1], lost={})
    assert worker.mean({"x": 1.0}) == {"x": 3.0}
    assert (worker.survivors, worker.lost) == ((0, 1), {})
    met(transport, 2, mean={}, running=[0], lost={"1": 7})
    worker.barrier()
    assert (worker.survivors, worker.lost) == ((0,), {1: 7})
    met(transport, 3, error="all must bring the same names", first=0)
    with pytest.raises(ConfigError, match="the same names") as caught:
        worker.mean({"x": 1.0})
    assert caught.value.spokesman


@pytest.mark.parametrize(
    ("sequence", "said", "error", "text"),
    [
        (
            1,
            {"mean": {"x": "1"}, "running": [0], "lost": {}},
            WireError,
            "field 'x' of MET must be float",
        ),
        (1, {"mean": 7, "running": [0], "lost": {}}, WireError, "field 'mean' of MET must be dict"),
        (1, {"mean": {"x": 1.0}}, WireError, "payload of MET has no field 'running'"),
        (1, {"error": 7, "first": 0}, WireError, "field 'error' of MET must be str"),
        (
            2,
            {"mean": {"x": 1.0}, "running": [0], "lost": {}},
            ProtocolError,
            "waits for rendezvous 1 of 1 values",
        ),
        (
            1,
            {"mean": {"y": 1.0}, "running": [0], "lost": {}},
            ProtocolError,
            "waits for rendezvous 1 of 1 values",
        ),
    ],
)
def test_a_mean_of_another_shape_is_refused_by_name(transport, worker, sequence, said, error, text):
    met(transport, sequence, **said)
    with pytest.raises(error, match=text):
        worker.mean({"x": 1.0})


def test_counters(transport, worker):
    stats = {**dict.fromkeys(COUNTED, 3), "balance": 1.0}
    transport.arrives(0, Header(Kind.STATS_ARE), encode_json(stats))
    assert worker.server_stats() == [stats]
    for payload, text in ((b"[]", "must be an object"), (b"{}", "has no field 'updates'")):
        transport.arrives(0, Header(Kind.STATS_ARE), payload)
        with pytest.raises(WireError, match=text):
            worker.server_stats()
