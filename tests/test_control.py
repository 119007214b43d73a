"""Payloads of control messages: typed values, or an error of one line that names the field."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from psgrad import control
from psgrad.errors import WireError
from psgrad.layout import MOST_ELEMENTS, Layout, SegmentOptions
from psgrad.messages import Kind, encode_json

LAYOUT = Layout.of(
    {name: np.zeros((2, 3), np.float32) for name in ("a", "b")},
    [SegmentOptions("b", members=(0, 2), weight_decay=0.5)],
)


def test_what_was_sent_comes_back():
    assert control.registration(encode_json({"layout": asdict(LAYOUT)}), 0) == LAYOUT
    assert control.registration(encode_json({"problem": "none"}), 0) == "none"
    assert control.part(encode_json({"values": {"x": 1}, "weight": 2})) == ({"x": 1.0}, 2.0)
    assert math.isnan(control.part(b'{"values": {"x": NaN}, "weight": 0}').values["x"])
    assert control.scale(encode_json({"scale": 0.25})) == 0.25
    offer = {"grads": "here", "params": None, "more": 1}
    found = control.fields(encode_json(offer), Kind.SHARE, grads=control.TEXT, params=control.TEXT)
    assert found == {"grads": "here", "params": None}


REFUSED = [
    (control.scale, None, "control payload is not JSON"),
    (control.scale, b"\xff", "control payload is not JSON"),
    (control.scale, b"[" * 100_000, "control payload is not JSON"),
    (control.scale, b"7", "payload of SETTLE must be an object, got 7"),
    (control.scale, b"[1]", "payload of SETTLE must be an object, got list"),
    (control.scale, b"{}", "payload of SETTLE has no field 'scale'"),
    (control.scale, b'{"scale": "1"}', "field 'scale' of SETTLE must be float, got '1'"),
    (control.scale, b'{"scale": true}', "field 'scale' of SETTLE must be float, got True"),
    (control.scale, b'{"scale": 1.5}', "field 'scale' of SETTLE must be from 0 to 1, got 1.5"),
    (control.scale, b'{"scale": NaN}', "field 'scale' of SETTLE must be from 0 to 1, got nan"),
    (control.scale, b'{"scale": 1%s}' % (b"0" * 400), "field 'scale' of SETTLE must be float, got"),
    (control.part, b'{"values": {}}', "payload of MEET has no field 'weight'"),
    (control.part, b'{"values": [], "weight": 1}', "field 'values' of MEET must be dict, got list"),
    (control.part, b'{"values": {"x": null}, "weight": 1}', "field 'x' of MEET must be float"),
    (control.part, b'{"values": {}, "weight": -1}', "field 'weight' of MEET must be finite and"),
    (control.part, b'{"values": {}, "weight": Infinity}', "field 'weight' of MEET must be finite"),
]  # fmt: skip


@pytest.mark.parametrize(("read", "payload", "text"), REFUSED)
def test_another_shape_is_refused_by_name(read, payload, text):
    with pytest.raises(WireError) as caught:
        read(payload)
    assert str(caught.value).startswith(text)
    assert len(str(caught.value)) < 150


MARK = {"rows": ["a", "b"], "state": {"x": [1, {"y": None}]}}
FILE = {"name": "a", "nbytes": 1, "checksum": "c"}
COUNTED = dict.fromkeys(control.COUNTED, 3)


def test_what_servers_and_markers_say_comes_back():
    met = control.result(b'{"mean": {"x": 1}, "running": [2, 4], "lost": {"3": 7}}')
    assert (met.mean, met.error, met.running, met.lost) == ({"x": 1.0}, None, (2, 4), {3: 7})
    nan = control.result(b'{"mean": {"x": NaN}, "running": [0], "lost": {}}')
    assert math.isnan(nan.mean["x"])
    failed = control.result(b'{"error": "no", "first": 2}')
    assert (failed.error, failed.first) == ("no", 2)
    assert control.counters(encode_json({**COUNTED, "balance": 1.5}))["balance"] == 1.5
    assert control.marker(encode_json(MARK)) == (["a", "b"], MARK["state"])
    assert control.last_state(b'{"state": {}}') == {}
    said = {"number": 3, "error": None, "file": FILE, "chunks": {"0": {}}, "workers": [0]}
    assert control.written(encode_json(said)) == said
    failed = {"number": 3, "error": "no space", "file": None, "chunks": {}, "workers": []}
    assert control.written(encode_json(failed)) == failed


def written(**changes):
    return encode_json(
        {"number": 3, "error": None, "file": FILE, "chunks": {}, "workers": [0], **changes}
    )


def met(**changes):
    return encode_json({"mean": {}, "running": [0], "lost": {}, **changes})


NEW_KINDS = [
    (control.result, b"[1]", "payload of MET must be an object, got list"),
    (control.result, b"{}", "payload of MET has no field 'mean'"),
    (control.result, met(mean={"x": "1"}), "field 'x' of MET must be float"),
    (control.result, met(running=[]), "field 'running' of MET must have worker indices, got list"),
    (control.result, met(running=[0.5]), "field 'running' of MET must have worker indices"),
    (control.result, met(lost={"x": 1}), "field 'lost' of MET must have worker indices"),
    (control.result, met(lost={"1": "2"}), "field '1' of MET must be int"),
    (control.result, b'{"error": null, "first": 0}', "field 'error' of MET must be str, got None"),
    (control.counters, b"7", "payload of STATS_ARE must be an object, got 7"),
    (control.counters, b"{}", "payload of STATS_ARE has no field 'updates'"),
    (control.counters, encode_json({**COUNTED, "x": ""}), "field 'x' of STATS_ARE must be"),
    (control.marker, b'{"rows": [1], "state": {}}', "field 'rows' of MARK must be names, each"),
    (control.marker, b'{"rows": ["a", "a"], "state": {}}', "field 'rows' of MARK must be names, e"),
    (control.marker, b'{"rows": [], "state": []}', "field 'state' of MARK must be dict, got list"),
    (control.marker, b'{"rows": [], "state": {"a": [NaN]}}', "payload of MARK has nan, which no"),
    (control.marker, b'{"rows": [], "state": {"a": 1e999}}', "payload of MARK has inf, which"),
    (control.last_state, b'{"state": {"a": %s}}' % (300 * b"[" + 300 * b"]"), "payload of LEAVE"),
    (control.last_state, b"null", "payload of LEAVE must be an object, got None"),
    (control.written, written(file=None), "payload of WRITTEN must have an error or a file, and"),
    (control.written, written(error="no"), "payload of WRITTEN must have an error or a file, and"),
    (control.written, written(file={}), "payload of WRITTEN has no field 'name'"),
    (control.written, written(file={**FILE, "nbytes": True}), "field 'nbytes' of WRITTEN must be"),
    (control.written, written(chunks={"0": float("inf")}), "payload of WRITTEN has inf, which no"),
]  # fmt: skip


@pytest.mark.parametrize(("read", "payload", "text"), NEW_KINDS)
def test_another_shape_of_what_is_new_is_refused_by_name(read, payload, text):
    test_another_shape_is_refused_by_name(read, payload, text)


def test_an_offer_is_text_or_null():
    with pytest.raises(WireError, match="field 'grads' of SHARE must be str or null, got 7"):
        control.fields(b'{"grads": 7}', Kind.SHARE, grads=control.TEXT)


def changed(*path, to=None):
    record = json.loads(LAYOUT.to_json())
    at = record
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    return record


LAYOUTS = [
    (changed("tensors", to=7), "not a layout: TypeError"),
    (changed("tensors", to=[]), "tensors have 0 elements, segments 12"),
    (changed("segments", to=[]), "tensors[0] is not in segment 0"),
    ({"tensors": [], "segments": []}, "tensors have 0 elements, segments 0"),
    (changed("tensors", 1, "name", to=7), "tensors[1] has a field of another type"),
    (changed("tensors", 1, "name", to="a"), "two tensors have one name"),
    (changed("tensors", 1, "start", to=6.0), "tensors[1] has a field of another type"),
    (changed("tensors", 1, "start", to=0), "tensors[1] has elements 0 to 12, which does not fit"),
    (changed("tensors", 1, "shape", to=[2, 4]), "tensors[1] has elements 6 to 12, which does not"),
    (changed("tensors", 1, "shape", to=[-2, -3]), "tensors[1] has a field of another type"),
    (changed("tensors", 1, "shape", to=[6] + [1] * 64), "tensors[1] has elements 6 to 12, which"),
    (changed("tensors", 1, "segment", to=0), "tensors[1] is not in segment 0"),
    (changed("tensors", 1, "segment", to=2), "tensors[1] is not in segment 2"),
    (changed("tensors", 1, "more", to=2), "not a layout: TypeError"),
    (changed("segments", 1, "index", to=0), "segments[1] has index 0 and elements 6 to 12"),
    (changed("segments", 1, "stop", to=MOST_ELEMENTS + 1), "segments[1] has index 1 and elements"),
    (changed("segments", 1, "start", to=True), "segments[1] has a field of another type"),
    (changed("segments", 1, "options", to={}), "not a layout: KeyError('members')"),
    (changed("segments", 1, "options", "match", to=[]), "segments[1] has a field of another type"),
    (changed("segments", 1, "options", "members", to=["a"]), "not a layout: TypeError"),
    (changed("segments", 1, "options", "weight_decay", to=-1), "not a layout: ConfigError"),
    (changed("segments", 1, "options", "weight_decay", to=10**400), "not a layout: OverflowError"),
]


@pytest.mark.parametrize(("record", "text"), LAYOUTS)
def test_a_layout_that_no_worker_can_have_is_refused_by_name(record, text):
    with pytest.raises(WireError) as caught:
        control.registration(encode_json({"layout": record}), 3)
    assert str(caught.value).startswith("payload of REGISTER of worker 3: not a layout: ")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("number", "newest", "problem", "status", "text"),
    [
        (9, 9, None, 75, "stopped by X: checkpoint 9 is safe; go on with resume auto"),
        (
            9, 4, "disk full", 75,
            "stopped by X, but checkpoint 9 was not written: disk full; go on from checkpoint 4 "
            "with resume auto",
        ),
        (
            9, 0, "disk full", 1,
            "stopped by X, and nothing is saved: checkpoint 9 was not written: disk full",
        ),
    ],
)  # fmt: skip
def test_what_a_run_that_was_stopped_ends_with(number, newest, problem, status, text):
    told = control.Stopped("X", number, newest, problem)
    assert control.stopped(encode_json(told._asdict())) == told
    assert (told.error.exit_status, str(told.error)) == (status, text)


def test_what_asks_for_a_stop_is_text():
    assert control.stop(encode_json({"reason": "SIGUSR1"})) == "SIGUSR1"
    with pytest.raises(WireError, match="field 'reason' of STOP must be str, got 7"):
        control.stop(encode_json({"reason": 7}))
