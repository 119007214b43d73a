"""State of a wrong shape, in a message or in a checkpoint: one line that says what is wrong."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
from fuzz import stored as samples
from fuzz.recovery import Memory

from psgrad.checkpoint.convert import parameters
from psgrad.checkpoint.manifest import Manifest
from psgrad.checkpoint.strict_json import parse
from psgrad.checkpoint.writer import InlineWriter
from psgrad.codecs.adaptive import Adaptive, FastestChoice
from psgrad.codecs.choice import load
from psgrad.committing import Committing
from psgrad.cuts import LAST, Cut, CutPlan, Every, Marks
from psgrad.data import Batches
from psgrad.errors import CheckpointError, ConfigError, ProtocolError
from psgrad.guard import StepGuard
from psgrad.resuming import Resuming
from psgrad.saving import ServerSaving
from psgrad.shard import Shard
from psgrad.tally import Tally
from psgrad.worker_state import ARRAY, unpack

# A manifest


CONTENT = json.loads(samples.CONTENTS[0])


def changed(*path, to):
    content = copy.deepcopy(CONTENT)
    at = content
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    return json.dumps(content).encode()


OWN = ("state", "worker_states", "0")
RESUMING = [
    (("step",), LAST + 1, "the number of checkpoint"),
    (("state", "workers"), 0, "workers of checkpoint 7 must be a whole number from 1"),
    (("state", "workers"), 10**18, "workers of checkpoint 7 must be a whole number from 1"),
    (("state", "workers"), "2", "workers of checkpoint 7 must be a whole number from 1"),
    (("state", "chunk_bytes"), -1, "chunk_bytes of checkpoint 7 must be a whole number"),
    (("state", "learning_rate"), None, "learning_rate of checkpoint 7 must be a number, got None"),
    (("state", "layout"), [], "checkpoint 7: "),
    (("state", "chunks"), [], "chunks of checkpoint 7 must be an object, got []"),
    (("state", "clocks"), {}, "checkpoint 7 has no worker"),
    (("state", "clocks"), {"2": 1}, "a key in clocks of checkpoint 7 must be a whole number from"),
    (("state", "clocks", "0"), -1, "a clock of checkpoint 7 must be a whole number"),
    (("state", "clocks", "0"), 2**64, "a clock of checkpoint 7 must be a whole number"),
    (OWN, None, "worker 0 of checkpoint 7 must be an object, got None"),
    ((*OWN, "weight"), "x", "weight of worker 0 of checkpoint 7 must be a number, got 'x'"),
    ((*OWN, "rate"), -0.5, "rate of worker 0 of checkpoint 7 must be at least 0, got -0.5"),
    ((*OWN, "kept"), 7, "kept of worker 0 of checkpoint 7 must be an object, got 7"),
    ((*OWN, "encoder"), [], "encoder of worker 0 of checkpoint 7 must be an object, got []"),
    ((*OWN, "guard"), 7, "guard of worker 0 of checkpoint 7 must be an object, got 7"),
]


def resuming(data):
    return Resuming(samples.Stored(Manifest.from_bytes(samples.sealed(data))), 2, True)


@pytest.mark.parametrize(("path", "to", "text"), RESUMING)
def test_a_manifest_of_a_wrong_shape_is_refused_by_name(path, to, text):
    with pytest.raises(CheckpointError) as caught:
        resuming(changed(*path, to=to))
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_layout_of_any_size_costs_nothing_before_it_is_compared():
    layout = copy.deepcopy(CONTENT["state"]["layout"])
    layout["segments"] = [{**layout["segments"][0], "stop": 1 << 40}]
    layout["tensors"] = [{**layout["tensors"][0], "shape": [1 << 40], "stop": 1 << 40}]
    found = resuming(changed("state", "layout", to=layout))
    assert "does not fit" in found.differs(samples.LAYOUT)


def test_nothing_is_exported_that_files_cannot_hold():
    layout = copy.deepcopy(CONTENT["state"]["layout"])
    layout["segments"] = [{**layout["segments"][0], "stop": 1 << 40}]
    layout["tensors"] = [{**layout["tensors"][0], "shape": [1 << 40], "stop": 1 << 40}]
    content = Manifest.from_bytes(samples.sealed(changed("state", "layout", to=layout)))
    with pytest.raises(CheckpointError, match=r"no layout that fits its files: .* in 4096 bytes"):
        parameters(samples.Stored(content))


@pytest.mark.parametrize("text", [b'{"a": 1e999}', b'{"a": [-1e999]}'])
def test_a_number_beyond_all_numbers_is_not_infinity(text):
    with pytest.raises(ValueError, match="1e999 is beyond all numbers"):
        parse(text)


CHUNK = ("state", "chunks", "1")
RECORDS = [
    (CHUNK, 7, "chunk/1 must be an object, got 7"),
    ((*CHUNK, "version"), -1, "version of chunk/1 must be a whole number"),
    ((*CHUNK, "position"), -1.0, "position of chunk/1 must be finite and at least 0"),
    ((*CHUNK, "rate"), None, "rate of chunk/1 must be a number, got None"),
    ((*CHUNK, "slots"), None, "chunk/1 was saved with optimizer state None"),
    ((*CHUNK, "parked"), 7, "parked of chunk/1 must be a list, got 7"),
    ((*CHUNK, "parked"), [[0, 4]], "a parked push of chunk/1 must have worker, clock, weight"),
    ((*CHUNK, "parked"), [7], "a parked push of chunk/1 must have worker, clock, weight"),
    ((*CHUNK, "parked"), [[0, 4, "8", -1, True]], "weight of a parked push of chunk/1 must be"),
    ((*CHUNK, "parked"), [[0, 4, 8, -0.5, True]], "a parked push of chunk/1 has the learning rate"),
    ((*CHUNK, "parked"), [[0, 4, 0, -1, True]], "a parked push of chunk/1 has weight 0 and"),
    ((*CHUNK, "parked"), [[0, 4, 8, -1, 1]], "a parked push of chunk/1 has weight 8 and carries 1"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "to", "text"), RECORDS)
def test_a_chunk_of_a_wrong_shape_is_refused_by_name(path, to, text):
    found = resuming(changed(*path, to=to))
    shard = Shard(samples.LAYOUT, samples.CHUNKS, range(2), samples.rules_of(samples.OPTIONS, 1))
    with pytest.raises(CheckpointError) as caught:
        shard.load({0: 3, 1: 2}, found.chunk_records, found.source)
    assert str(caught.value).startswith(text)


# Parts of a worker's state


ARRAYS = [
    {ARRAY: "float32"},
    {ARRAY: "object", "shape": [], "data": ""},
    {ARRAY: ["float32"], "shape": [], "data": ""},
    {ARRAY: "uint8", "shape": [-1], "data": "AAAA"},
    {ARRAY: "uint8", "shape": [True, 3], "data": "AAAA"},
    {ARRAY: "uint8", "shape": [10**400], "data": "AAAA"},
    {ARRAY: "uint8", "shape": "3", "data": "AAAA"},
    {ARRAY: "uint8", "shape": [3], "data": [0, 0, 0]},
    {ARRAY: "uint8", "shape": [3], "data": "A\nAAA"},
    {ARRAY: "bool", "shape": [1], "data": "Ag=="},
]


@pytest.mark.parametrize("record", ARRAYS)
def test_an_array_that_is_none_is_refused(record):
    with pytest.raises(CheckpointError, match="a checkpoint has an array that is none: ") as caught:
        unpack({"a": [record]}, samples.no_row)
    assert "\n" not in str(caught.value)


def test_a_state_that_is_nested_without_end_is_refused():
    state: list = []
    for _ in range(100_000):
        state = [state]
    with pytest.raises(CheckpointError, match="kept is nested too deep"):
        unpack(state, samples.no_row, "kept")


STATES = [
    (samples.read_tally, samples.TALLY, "steps", None, "steps of a tally must be a whole number"),
    (samples.read_tally, samples.TALLY, "pushes", -1, "pushes of a tally must be a whole number"),
    (samples.read_tally, samples.TALLY, "loss", "x", "loss of a tally must be a number, got 'x'"),
    (samples.read_scale, samples.SCALE, "value", 3.0, "value of a loss scale must be a power of"),
    (
        samples.read_scale,
        samples.SCALE,
        "good",
        True,
        "good of a loss scale must be a whole number",
    ),
    *(
        (samples.read_local, samples.local_steps(0.5).state_dict(), key, to, text)
        for key, to, text in (
            ("count", 1.5, "count of local steps must be a whole number"),
            ("applied", None, "applied of local steps must be a whole number"),
            ("slots", [], "slots of local steps must be an object"),
            ("slots", {"mean": np.zeros(3)}, "mean of local steps must be float32[56], got array("),
            ("slots", {"mean": 7}, "mean of local steps must be float32[56], got 7"),
            ("copy", [1.0], "copy of local steps must be float32[56], got [1.0]"),
            ("guard", 7, "a guard must be an object, got 7"),
        )
    ),
]


@pytest.mark.parametrize(("read", "state", "key", "to", "text"), STATES)
def test_a_kept_state_of_a_wrong_shape_is_refused_by_name(read, state, key, to, text):
    read(state)
    with pytest.raises(CheckpointError) as caught:
        read({**state, key: to})
    assert str(caught.value).startswith(text)
    with pytest.raises(CheckpointError):
        read([1])


def test_a_tally_of_a_wrong_shape_changes_nothing():
    tally = Tally(SimpleNamespace(clock=0))
    with pytest.raises(CheckpointError):
        tally.load_state_dict({**samples.TALLY, "accuracy": None})
    assert (tally.steps, tally.samples, tally.pushes, tally.loss) == (0, 0, 0, 0.0)


@pytest.mark.parametrize("state", [{"skipped": 1}, {"skipped": -1, "in_a_row": 0}, {"x": 1}])
def test_a_guard_goes_on_from_counts(state):
    with pytest.raises(CheckpointError, match="a guard"):
        StepGuard(samples.LAYOUT, (), None).load_state_dict(state)


LEFTOVERS = [
    ({"²": np.arange(3)}, "leftovers must be int64 arrays by epoch"),
    ({"9" * 5000: np.arange(3)}, "leftovers must be int64 arrays by epoch"),
    ({"0": [1, 2]}, "leftovers must be int64 arrays by epoch"),
    ({"0": np.array([-1, 5])}, "leftovers of epoch 0 have samples -1 to 5, the data set has 30"),
    ({"0": np.array([3, 30])}, "leftovers of epoch 0 have samples 3 to 30, the data set has 30"),
]


@pytest.mark.parametrize(("leftovers", "text"), LEFTOVERS)
def test_leftovers_that_no_data_set_has_are_refused(leftovers, text):
    batches = Batches(np.arange(10), 4, 1, 0, 2, samples=30)
    with pytest.raises(ConfigError, match=text) as caught:
        batches.load_state_dict({"epoch": 0, "position": 0, "leftovers": leftovers})
    assert "\n" not in str(caught.value)
    assert batches.state_dict() == {"epoch": 0, "position": 0}


@pytest.mark.parametrize("state", [None, 7, [1], [["epoch"]], {"epoch": [], "position": 0}])
def test_a_cursor_that_is_none_is_refused(state):
    with pytest.raises(ConfigError, match="data cursor"):
        Batches(np.arange(10), 4, 1, 0, 2).load_state_dict(state)


def test_a_codecs_state_has_the_same_dtypes():
    mine = {"left": np.zeros(2, np.int64)}
    for given in (np.array([0.5, 1.5]), [1, 2], None):
        with pytest.raises(ConfigError, match="left must be an array of int64, got"):
            load(mine, {"left": given})
    assert mine["left"].tolist() == [0, 0]


def test_a_choice_among_candidates_that_are_not_there_is_refused():
    choice = FastestChoice(Adaptive(), samples.CHUNKS, lambda: 0.0)
    state = {name: array.copy() for name, array in choice.state_dict().items()}
    state["used"][0] = 5
    with pytest.raises(ConfigError, match="codec state uses candidates"):
        choice.load_state_dict(state)


# Checkpoints while they are made


def saving():
    return ServerSaving(Memory(), InlineWriter(), 0)


def written_by(server):
    """The names of the tensors of the last checkpoint that was written."""
    (report,) = server.reports()
    return report["file"]["nbytes"]


class OneChunk:
    """A shard, as far as it is copied."""

    def save(self, keep):
        return {}


ROW = np.ones(4, np.float32)


def row(worker):
    return SimpleNamespace(worker=worker, chunk=0, version=0)


def test_rows_of_a_worker_that_died_before_its_marker_are_left_out():
    server = saving()
    server.row(row(0), ROW)
    server.row(row(1), ROW)
    server.marked(0, ["residual"], 0.0)
    server.copy(OneChunk(), Cut(1, {0: 1}), lambda: 0.0)
    assert written_by(server) == ROW.nbytes


def test_rows_of_the_next_marker_do_not_go_into_this_checkpoint():
    server = saving()
    for number in (1, 2):
        server.row(row(0), number * ROW[:number])
        server.marked(0, ["residual"], 0.0)
    server.copy(OneChunk(), Cut(1, {0: 1}), lambda: 0.0)
    assert written_by(server) == 4
    server.copy(OneChunk(), Cut(2, {0: 2}), lambda: 0.0)
    assert written_by(server) == 8


def test_rows_that_a_marker_does_not_name_are_refused():
    server = saving()
    server.row(row(0), ROW)
    with pytest.raises(ProtocolError, match="worker 0 sent 1 parts of rows and named 0 rows"):
        server.marked(0, [], 0.0)


def test_markers_go_forward():
    marks = Marks()
    marks.put(0, 4, 4)
    for number, clock in ((4, 4), (3, 5), (5, 3)):
        with pytest.raises(ProtocolError, match=f"worker 0 marks checkpoint {number} at clock"):
            marks.put(0, number, clock)
    assert marks.complete([0]) == Cut(4, {0: 4})
    marks.use_up()
    with pytest.raises(ProtocolError, match="worker 0 marks checkpoint 4 at clock 4, after 4"):
        marks.put(0, 4, 4)
    marks.put(0, 5, 4)


def test_clocks_that_no_cut_can_have_are_refused():
    plan = CutPlan(Every(steps=1), None, {0: 0})
    with pytest.raises(ProtocolError, match=f"worker 0 is at clock {1 << 40}, cuts end at {LAST}"):
        plan.saw(0, 1 << 40)
    assert plan.clocks == {0: 0}


def report(number):
    file = {"name": "server-1.safetensors", "nbytes": 4, "checksum": "crc32:00000000"}
    return {"number": number, "error": None, "file": file, "chunks": {}, "workers": [0]}


@pytest.mark.parametrize("number", [0, -1, 3, LAST + 1])
def test_a_report_of_a_checkpoint_that_cannot_be_is_refused(number):
    plan = CutPlan(Every(steps=1), None, {}, number=3)
    committing = Committing(Memory(), InlineWriter(), plan, 1, lambda _: None)
    with pytest.raises(ProtocolError, match=f"a server reports checkpoint {number}, the last cut"):
        committing.take(report(number))
    assert not committing.busy


def test_a_report_may_come_before_the_last_marker():
    said = []
    plan = CutPlan(Every(steps=1), None, {}, number=3)
    committing = Committing(Memory(), InlineWriter(), plan, 1, said.append)
    plan.number = 4  # as it was announced
    committing.take(report(4))
    committing.marked(0, {})
    committing.opened(Cut(4, {0: 4}))
    committing.advance()
    assert committing.advance() == "checkpoint 4 is safe"
    assert said == []


def test_a_state_that_is_no_json_costs_the_checkpoint_and_not_the_run():
    said = []
    committing = Committing(
        Memory(), InlineWriter(), CutPlan(Every(steps=1), None, {}), 1, said.append
    )
    committing.marked(0, {"x": float("nan")})
    committing.opened(Cut(1, {0: 1}))
    committing.take(report(1))
    committing.advance()
    committing.advance()
    assert "checkpoint 1 was not written: its state is no JSON" in said[0]
