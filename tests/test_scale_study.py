"""``psgrad simulate`` for scale: options, table, JSON and pictures."""

from __future__ import annotations

import json
import sys
from dataclasses import fields

import pytest

from psgrad.errors import ConfigError
from psgrad.scale import study
from psgrad.scale.calibrate import Prediction
from psgrad.scale.machine import TYPICAL, CodecCosts
from psgrad.scale.study import Options, counts, simulate

SMALL = {
    "workers": (1, 4),
    "params": 4000,
    "servers": 2,
    "chunk_bytes": 2048,
    "steps": 10,
    "pace": "exponential:mean=0.001",
}


def test_every_option_says_what_it_is():
    for option in fields(Options):
        assert option.metadata["help"], option.name
        read = option.metadata["read"]
        assert option.default in (None, "") or read is bool or callable(read)
        if read not in (bool, str) and option.name != "workers":
            assert read(str(option.default)) == option.default
    assert counts("1,16,256,16") == (1, 16, 256)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": ()}, "workers needs one number at least, such as 1,16,256"),
        ({"workers": (1, 5000)}, "workers must be from 1 to 4096, got 5000"),
        ({"servers": 0}, "servers must be from 1 to 64, got 0"),
        ({"staleness": 0}, "staleness must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"codec": "int9"}, "int9"),
        ({"pull_codec": "int8"}, "pull_codec int8 is for runs with a codec; give one"),
        ({"pace": "walk"}, "pace 'walk'"),
        ({"bandwidth": 0.0}, "bandwidth must be a number above 0, got 0.0"),
    ],
)
def test_options_that_cannot_be(change, message):
    with pytest.raises(ConfigError, match=message):
        Options(**change)


@pytest.mark.parametrize("text", ["", "1,x", "4.5"])
def test_counts_that_cannot_be(text):
    with pytest.raises(ConfigError, match="expected whole numbers such as 1,16,256, got"):
        counts(text)


def test_a_table(capsys):
    simulate(Options(**SMALL), {})
    head, names, *rows = capsys.readouterr().out.splitlines()
    assert head == (
        "4,000 parameters in 8 chunks on 2 servers; 20 us, 10 Gb/s; exponential:mean=0.001; "
        "typical processors"
    )
    assert names == study.HEAD
    assert [row.split()[:3] for row in rows] == [
        [workers, mode, "none"] for mode in ("sync", "ssp(3)", "async") for workers in "14"
    ]


def test_with_a_codec_and_as_json(capsys):
    options = Options(**SMALL, codec="int8", pull_codec="fp16", json=True, seed=7)
    simulate(options, {})
    *_, last = capsys.readouterr().out.splitlines()
    record = json.loads(last)
    assert record["options"]["seed"] == 7
    assert record["machine"]["codecs"][0]["spec"] == "none"
    rows = record["rows"]
    assert [row["codec"] for row in rows] == ["none"] * 6 + ["int8, fp16"] * 6
    assert [row["workers"] for row in rows] == [1, 4] * 6
    assert rows[0]["mode"] == "sync"
    assert rows[0]["efficiency"] == pytest.approx(1.0)
    assert rows[1]["throughput"] > rows[0]["throughput"]
    # A quarter of the bytes come in, half go out; what servers do for it takes longer.
    assert (
        rows[6]["nic_in"] / rows[6]["throughput"]
        < 0.5 * rows[0]["nic_in"] / (rows[0]["throughput"])
    )
    assert record["predictions"] == []


def test_ideal_processors_are_faster():
    def rate(**more):
        return study.play_row(Options(**SMALL, **more), TYPICAL, ("none", "none"), 4, 0)

    assert rate(ideal=True).figures.throughput > rate().figures.throughput
    assert rate(ideal=True).figures.processor == 0


def test_servers_without_a_chunk_are_noticed(capsys):
    simulate(Options(**{**SMALL, "servers": 12, "workers": (1,)}), {})
    assert "4 servers have no chunk; try --chunk-bytes 333" in capsys.readouterr().out
    simulate(Options(**{**SMALL, "servers": 12, "workers": (1,), "chunk_bytes": 333}), {})
    assert "no chunk" not in capsys.readouterr().out


def test_calibrated(capsys, monkeypatch):
    asked = []
    machine = TYPICAL.with_codecs([])

    def calibrate(specs, environ, rounds, done):
        asked.append((specs, environ, rounds))
        return machine, [Prediction(1, (0.01,), (0.008,))]

    monkeypatch.setattr(study, "calibrate", calibrate)
    simulate(Options(**SMALL, calibrate=True, rounds=2, json=True), {"A": "B"})
    lines = capsys.readouterr().out.splitlines()
    assert asked == [(["none", "none"], {"A": "B"}, 2)]
    assert lines[0].startswith("messages: ")
    assert "error +25%" in "".join(lines)
    assert any(line.endswith("processors as measured here") for line in lines)
    assert json.loads(lines[-1])["predictions"][0]["error"] == pytest.approx(0.25)


def test_pictures(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    one, two = tmp_path / "scale.png", tmp_path / "bounds.png"
    pace = "pareto:mean=0.001,alpha=1.5"
    options = {**SMALL, "pace": pace, "plot": str(one), "plot_bounds": str(two)}
    simulate(Options(**options, codec="sign", json=True), {})
    assert one.read_bytes().startswith(b"\x89PNG")
    assert two.read_bytes().startswith(b"\x89PNG")
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["bound"] for row in record["bounds"]] == list(study.BOUNDS)


@pytest.mark.parametrize("option", ["plot", "plot_bounds"])
def test_pictures_need_matplotlib_before_anything_takes_time(option, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"--plot needs matplotlib; pip install 'psgrad\[plot\]'"):
        simulate(Options(**SMALL, **{option: "x.png"}), {})
    assert capsys.readouterr().out == ""


def test_an_unknown_codec_is_measured_here(monkeypatch, capsys):
    monkeypatch.setattr(
        "psgrad.scale.machine.codec_costs", lambda spec: CodecCosts(spec, 0.1, 1e-9, 1e-9, 1e-9)
    )
    simulate(Options(**SMALL, codec="topk:0.02", json=True), {})
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["machine"]["codecs"][-1]["spec"] == "topk:0.02"
