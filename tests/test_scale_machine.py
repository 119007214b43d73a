"""What processors take: figures measured in this process, and what is made of them."""

from __future__ import annotations

import pytest

from psgrad.errors import ConfigError
from psgrad.scale import machine
from psgrad.scale.machine import TYPICAL, CodecCosts, Machine, arithmetic, codec_costs
from psgrad.scale.model import Costs

INT8 = CodecCosts("int8", 1.0, 0.1, 0.2, 0.3)
MACHINE = Machine(
    2, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, (CodecCosts("none", 4.0, 0.0, 0.0, 0.0), INT8)
)


@pytest.mark.parametrize(
    ("codec", "pull_codec", "bound", "expected"),
    [
        ("none", "none", 0, {"accumulate_s": 6.0}),
        ("none", "none", 3, {"accumulate_s": 6.0, "reply_s": 8.0}),  # copied before it is sent
        ("int8", "none", 0, {"encode_s": 0.1, "accumulate_s": 0.3}),
        ("none", "int8", 0, {"accumulate_s": 6.0, "reply_s": 0.1, "decode_s": 0.2}),
        (
            "int8",
            "int8",
            None,
            {"encode_s": 0.1, "accumulate_s": 0.3, "reply_s": 2.1, "decode_s": 0.2},
        ),
    ],
)
def test_costs_of_a_run(codec, pull_codec, bound, expected):
    """The network's share is left to the network: a byte costs no processor time."""
    same = {"worker_message_s": 3.0, "server_message_s": 4.0, "judge_s": 5.0, "apply_s": 7.0}
    found = MACHINE.costs(codec, pull_codec, bound)
    assert found.receive_s == 0
    assert vars(found) == pytest.approx(vars(Costs(**same, **expected)))


def test_bytes_of_a_codec():
    assert (MACHINE.nbytes("none"), MACHINE.nbytes("int8")) == (4.0, 1.0)


def test_what_is_not_known_is_measured(monkeypatch):
    monkeypatch.setattr(machine, "codec_costs", lambda spec: CodecCosts(spec, 9, 9, 9, 9))
    wider = MACHINE.with_codecs(["sign", "int8", "none", "sign"])
    assert [codec.spec for codec in wider.codecs] == ["none", "int8", "sign"]
    assert wider.codecs[1] is INT8
    assert MACHINE.with_codecs(["int8"]) == MACHINE


def test_a_codec_on_this_machine():
    found = codec_costs("int8", n=6000, chunk=2000)
    assert 1.0 < found.nbytes < 1.1
    assert min(found.encode_s, found.decode_s, found.accumulate_s) > 0
    with pytest.raises(ConfigError):
        codec_costs("int9")


def test_arithmetic_of_this_machine(monkeypatch):
    monkeypatch.setattr(machine, "N", 1 << 15)
    monkeypatch.setattr(machine, "CHUNK", 1 << 12)
    figures = arithmetic()
    assert figures.keys() == {"judge_s", "copy_s", "accumulate_s", "apply_s"}
    assert all(0 <= seconds < 1e-3 for seconds in figures.values())
    assert figures["judge_s"] * figures["copy_s"] > 0


def test_the_typical_machine_makes_sense():
    costs = TYPICAL.costs("topk:0.01", "int8", None)
    assert all(0 <= value < 1e-3 for value in vars(costs).values())
    assert all(0 < codec.nbytes <= 4 for codec in TYPICAL.codecs)
