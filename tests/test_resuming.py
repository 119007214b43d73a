"""How runs go on from checkpoints: which one is found, and what N workers hand to M."""

from __future__ import annotations

import re
from dataclasses import asdict
from itertools import product
from typing import ClassVar

import numpy as np
import pytest
from shard_copies import CHUNK_BYTES, CHUNKS, LAYOUT, Memory, values

from psgrad.checkpoint import Checkpoint, InlineWriter, Store, found
from psgrad.checkpointing import CheckpointOptions
from psgrad.errors import CheckpointError, ConfigError
from psgrad.layout import Layout
from psgrad.optimizers import Momentum
from psgrad.options import Options
from psgrad.resuming import Resuming, find, open_checkpoint, read_row
from psgrad.roles import Roles
from psgrad.session import Session
from psgrad.shard import Shard
from psgrad.transport.simulated import Simulation
from psgrad.worker_state import WorkerState

# Which one


def store(folder, *numbers, **state):
    made = Store(folder, 9)
    made.prepare()
    for number in numbers:
        file = made.write(number, "server-0.safetensors", {"x": values(number)})
        made.commit(number, [file], state)
    return folder


def test_without_a_wish_there_is_none():
    assert find(CheckpointOptions()).path == ""


def test_the_newest_of_a_folder(tmp_path):
    store(tmp_path, 3, 7, 5)
    for options in (
        CheckpointOptions(resume=str(tmp_path)),
        CheckpointOptions(folder=str(tmp_path), resume="auto"),
    ):
        assert find(options) == (str(tmp_path / "step-00000007"), ())


def test_one_of_them_by_its_name(tmp_path):
    store(tmp_path, 3, 7)
    path = tmp_path / "step-00000003"
    assert find(CheckpointOptions(resume=str(path))).path == str(path)
    other = path.rename(tmp_path / "copied")
    assert find(CheckpointOptions(resume=str(other))).path == str(other)


def spoil(path):
    file = path / "server-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return file


def test_one_that_is_damaged_is_said_and_the_one_before_is_taken(tmp_path):
    store(tmp_path, 3, 7)
    file = spoil(tmp_path / "step-00000007")
    found_ = find(CheckpointOptions(folder=str(tmp_path), resume="auto"))
    assert found_.path == str(tmp_path / "step-00000003")
    assert len(found_.said) == 1
    assert str(file) in found_.said[0]


def test_one_that_was_asked_for_by_name_is_not_replaced(tmp_path):
    store(tmp_path, 3, 7)
    spoil(tmp_path / "step-00000007")
    with pytest.raises(CheckpointError, match="is damaged"):
        find(CheckpointOptions(resume=str(tmp_path / "step-00000007")))


def test_auto_begins_at_the_start_where_there_is_none(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        found_ = find(CheckpointOptions(folder=str(folder), resume="auto"))
        text = f"there is no checkpoint in {folder} yet: the run begins at its start"
        assert found_ == ("", (text,))


def test_auto_does_not_begin_at_the_start_where_all_are_damaged(tmp_path):
    """Who has lost all work is to know it before the run, not after."""
    store(tmp_path, 3)
    spoil(tmp_path / "step-00000003")
    with pytest.raises(CheckpointError, match=r"there is no valid checkpoint in .*is damaged"):
        find(CheckpointOptions(folder=str(tmp_path), resume="auto"))


@pytest.mark.parametrize("name", ["", "nowhere", "step-00000099"])
def test_a_folder_without_any(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"no valid checkpoint in|is not a checkpoint"):
        find(CheckpointOptions(resume=str(tmp_path / name)))


# What it says


def record(residual_name="residual", weight=1.0, **kept):
    state = {
        "clock": 4,
        "weight": weight,
        "rate": -1.0,
        "guard": {"skipped": 2, "in_a_row": 1},
        "encoder": {f"feedback.{residual_name}": np.zeros(LAYOUT.size, np.float32)},
        "kept": kept,
    }
    return dict(WorkerState.of(state, LAYOUT.size).record)


def stored(clocks, before=None, records=None, rows=None, **changes):
    """A checkpoint of workers at ``clocks``; ``rows`` are (worker, name) -> vector."""
    before = len(clocks) if before is None else before
    records = {w: record() for w in range(before)} if records is None else records
    state = {
        "workers": before,
        "layout": asdict(LAYOUT),
        "chunk_bytes": CHUNK_BYTES,
        "learning_rate": 0.1,
        "chunks": {},
        "clocks": {str(worker): clock for worker, clock in clocks.items()},
        "worker_states": {str(worker): each for worker, each in records.items()},
        **changes,
    }
    tensors = {
        f"chunk/{c.index}/worker/{worker}/{name}": vector[c.start : c.stop]
        for (worker, name), vector in (rows or {}).items()
        for c in CHUNKS
    }
    return Memory(tensors, state)


NAME = "encoder.feedback.residual"


def residuals(*workers):
    return {(worker, NAME): values(6, worker) for worker in workers}


def mine(name="feedback.residual"):
    return {name: np.zeros(LAYOUT.size, np.float32)}


def test_each_worker_goes_on_where_it_was():
    resuming = Resuming(stored({0: 4, 2: 6}, before=3, rows=residuals(0, 2)), 3, True)
    assert resuming.same_number
    assert [resuming.clock_of(worker) for worker in range(3)] == [4, 4, 6], "1 had left"
    for worker in (0, 2):
        state = resuming.encoder_state(worker, mine())
        assert state["feedback.residual"].tobytes() == values(6, worker).tobytes()
    assert not resuming.encoder_state(1, mine())["feedback.residual"].any()


def test_another_number_of_workers_begins_at_the_slowest_clock():
    for workers in (1, 2, 4):
        resuming = Resuming(stored({0: 4, 1: 7, 2: 6}), workers, True)
        assert [resuming.clock_of(worker) for worker in range(workers)] == [4] * workers


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_in_sync_mode_each_has_the_weighted_mean_of_what_was_held_back(workers):
    records = {0: record(weight=1.0), 1: record(weight=3.0), 2: record(weight=100.0)}
    resuming = Resuming(stored({0: 4, 1: 4}, 3, records, residuals(0, 1)), workers, True)
    expected = 0.25 * values(6, 0) + 0.75 * values(6, 1)
    for worker in range(workers):
        state = resuming.encoder_state(worker, mine())
        np.testing.assert_allclose(state["feedback.residual"], expected, rtol=1e-6, atol=1e-7)


def test_weights_of_0_are_a_plain_mean():
    records = {0: record(weight=0.0), 1: record(weight=0.0)}
    resuming = Resuming(stored({0: 4, 1: 4}, 2, records, residuals(0, 1)), 1, True)
    expected = 0.5 * values(6, 0) + 0.5 * values(6, 1)
    state = resuming.encoder_state(0, mine())
    np.testing.assert_allclose(state["feedback.residual"], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_elsewhere_the_sum_is_kept(workers):
    resuming = Resuming(stored({0: 4, 1: 9, 2: 5}, rows=residuals(0, 1, 2)), workers, False)
    total = sum(
        resuming.encoder_state(worker, mine())["feedback.residual"] for worker in range(workers)
    )
    expected = values(6, 0) + values(6, 1) + values(6, 2)
    np.testing.assert_allclose(total, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("together", [True, False])
def test_an_estimate_is_a_plain_mean(together):
    """The servers hold the plain mean of all of them, whatever the weights."""
    name = "feedback.estimate"
    records = {w: record("estimate", weight=1.0 + w) for w in (0, 1)}
    rows = {(w, f"encoder.{name}"): values(6, w) for w in (0, 1)}
    state = Resuming(stored({0: 4, 1: 4}, 2, records, rows), 3, together).encoder_state(
        2, mine(name)
    )
    np.testing.assert_allclose(state[name], 0.5 * (values(6, 0) + values(6, 1)), rtol=1e-6)


@pytest.mark.parametrize("workers", [2, 3])
def test_another_encoder_is_refused_whatever_the_number(workers):
    resuming = Resuming(stored({0: 4, 1: 4}, rows=residuals(0, 1)), workers, True)
    if workers == 2:  # the encoder itself looks
        assert resuming.encoder_state(0, {}).keys() == {"feedback.residual"}
        return
    for other in ({}, mine("feedback.velocity"), {**mine(), **mine("choice.thresholds")}):
        with pytest.raises(ConfigError, match=re.escape("the saved state has feedback.residual")):
            resuming.encoder_state(0, other)


def test_small_arrays_go_on_as_those_of_a_worker_before():
    state = {"encoder": {"choice.thresholds": np.arange(3.0)}, "kept": {}}
    records = {w: dict(WorkerState.of(state, LAYOUT.size).record) for w in (0, 1)}
    resuming = Resuming(stored({0: 4, 1: 4}, 2, records), 3, True)
    got = resuming.encoder_state(2, {"choice.thresholds": np.zeros(3)})
    assert got["choice.thresholds"].tolist() == [0.0, 1.0, 2.0]
    other = np.full(5, 7.0)
    assert resuming.encoder_state(2, {"choice.thresholds": other})["choice.thresholds"] is other


def test_what_was_kept_goes_to_the_same_worker():
    row = values(8)
    records = {0: record(data={"epoch": 1, "row": row}), 1: record(), 2: record(data={"row": row})}
    rows = {(0, "kept.data.row"): row}
    resuming = Resuming(stored({0: 4, 1: 4}, 3, records, rows), 3, True)
    state = resuming.kept(0, "data")
    assert state["epoch"] == 1
    assert state["row"].tobytes() == row.tobytes()
    assert resuming.all_kept(0).keys() == {"data"}
    assert resuming.kept(1, "data") is None
    assert resuming.kept(2, "data") == {"row": None}, "who had left has no vectors"
    assert resuming.resumed.states == {
        0: {"data": {"epoch": 1, "row": None}}, 1: {}, 2: {"data": {"row": None}},
    }  # fmt: skip
    assert (resuming.resumed.number, resuming.resumed.workers) == (7, 3)
    other = Resuming(stored({0: 4, 1: 4}, 3, records, rows), 2, True)
    assert other.kept(0, "data") is None


def test_other_parameters_are_said_in_words():
    resuming = Resuming(stored({0: 4}), 1, True)
    assert resuming.differs(LAYOUT) is None
    other = Layout.of({"w": np.zeros((4, 6), np.float32), "b": np.zeros(8, np.float32)})
    assert resuming.differs(other).startswith("checkpoint 7 does not fit: this run ")


@pytest.mark.parametrize(
    "change",
    [
        {"workers": "many"}, {"layout": 5}, {"layout": {}}, {"chunk_bytes": None},
        {"learning_rate": []}, {"chunks": 3}, {"clocks": []}, {"clocks": {"x": 1}},
        {"clocks": {"0": "x"}}, {"worker_states": []}, {"worker_states": {"x": {}}},
    ],
)  # fmt: skip
def test_a_manifest_with_another_state_is_refused(change):
    memory = stored({0: 4})
    memory.manifest.state.update(change)
    with pytest.raises(CheckpointError, match=r"checkpoint 7|not a layout"):
        Resuming(memory, 1, True)


def test_a_manifest_that_lacks_something_is_refused():
    for key in stored({0: 4}).manifest.state:
        memory = stored({0: 4})
        del memory.manifest.state[key]
        with pytest.raises(CheckpointError, match=f"checkpoint 7 has no '{key}'"):
            Resuming(memory, 1, True)


def test_a_checkpoint_without_workers_is_refused():
    with pytest.raises(CheckpointError, match="checkpoint 7 has no worker"):
        Resuming(stored({}, before=1), 1, True)


def test_rows_of_another_shape_are_refused():
    rows = residuals(0)
    for wrong in (np.zeros(3, np.float32), np.zeros(CHUNKS[0].size)):
        memory = stored({0: 4}, rows=rows)
        memory.tensors[f"chunk/0/worker/0/{NAME}"] = wrong
        with pytest.raises(CheckpointError, match=re.escape(f"chunk/0/worker/0/{NAME} is ")):
            Resuming(memory, 1, True).encoder_state(0, mine())


def test_opened_for_this_run(tmp_path):
    state = stored({0: 4}).manifest.state
    store(tmp_path, 7, **state)
    path, roles = str(tmp_path / "step-00000007"), Roles(2, 1)
    assert open_checkpoint(path, Options(chunk_bytes=CHUNK_BYTES), roles).number == 7
    text = f"chunk_bytes is 128, checkpoint 7 was made with {CHUNK_BYTES}; resume with that"
    with pytest.raises(ConfigError, match=re.escape(text)):
        open_checkpoint(path, Options(chunk_bytes=128), roles)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        open_checkpoint(str(tmp_path / "elsewhere"), Options(), roles)


# The grid: from each number of servers and workers to each other one


SIZES = list(product((1, 2, 3), (1, 2, 3, 4)))
OPTIMIZER = Momentum(0.05)


class Remembered(Shard):
    """Shows itself to the test, as it is when it goes on."""

    last: ClassVar[list[dict]] = []

    def load(self, clocks, records, source, rate=None):
        super().load(clocks, records, source, rate)
        for index, state in self.chunks.items():
            Remembered.last.append({
                "chunk": index, "params": state.params.copy(), "velocity":
                state.slots["velocity"].copy(), "version": state.version, "rate": state.rate,
            })  # fmt: skip


def play(servers, workers, main, bound, **options):
    def program(transport):
        with Session(
            transport=transport, shard=Remembered, report=lambda _: None, writer=InlineWriter
        ) as session:
            return session.run(
                main, servers=servers, staleness=bound, optimizer=OPTIMIZER, codec="topk:0.2",
                chunk_bytes=CHUNK_BYTES, **options,
            )  # fmt: skip

    return Simulation(servers + workers, seed=3).run(program)[servers:]


def arrays():
    return {"w": values(0)[:24].reshape(4, 6), "b": values(0)[24:]}


def trains(worker):
    params = worker.register(arrays())
    if worker.rank == 0:
        worker.set_lr(0.04)
    for step in range(1, 6):
        grad = values(2, worker.rank, step)
        worker.step({"w": grad[:24].reshape(4, 6) + params["w"], "b": grad[24:]},
                    weight=1.0 + worker.rank)  # fmt: skip


def looks(worker):
    worker.register(arrays())
    residual = worker._exchange._encoder.state_dict()["feedback.residual"].copy()
    worker.pull(dense=True)
    pulled = np.concatenate([worker.params["w"].reshape(-1), worker.params["b"]])
    clock = worker.clock
    worker.barrier()  # nobody has pushed what it held back
    worker.leave()
    worker.barrier()
    return residual, pulled, clock


@pytest.mark.parametrize("bound", [0, 2, None], ids=["sync", "ssp", "async"])
@pytest.mark.parametrize(("servers", "workers"), SIZES)
def test_from_each_size_to_each_other_one(tmp_path, servers, workers, bound):
    play(servers, workers, trains, bound, checkpoint_dir=str(tmp_path), checkpoint_every="2",
         checkpoint_keep=9)  # fmt: skip
    path = found(tmp_path)[-1]
    checkpoint = Checkpoint.open(path)
    state = checkpoint.manifest.state
    assert len(state["clocks"]) == workers
    held = np.zeros((workers, LAYOUT.size), np.float32)
    for worker in range(workers):
        read_row(checkpoint, CHUNKS, worker, NAME, held[worker])
    assert held.any(axis=1).all()
    weights = np.array([state["worker_states"][str(w)]["weight"] for w in range(workers)])
    assert weights.tolist() == [1.0 + w for w in range(workers)]
    params = np.concatenate([checkpoint.tensor(f"chunk/{c.index}/params") for c in CHUNKS])
    for then_servers, then_workers in SIZES:
        Remembered.last.clear()
        told = play(then_servers, then_workers, looks, bound, resume=str(path))
        assert sorted(each["chunk"] for each in Remembered.last) == [c.index for c in CHUNKS]
        if not any(state["chunks"][str(c.index)]["parked"] for c in CHUNKS):
            check_shards(checkpoint)
            assert {pulled.tobytes() for _, pulled, _ in told} == {params.tobytes()}
        got = np.stack([residual for residual, _, _ in told])
        if then_workers == workers:
            assert got.tobytes() == held.tobytes()
            assert {w: clock for w, (_, _, clock) in enumerate(told)} == {
                int(w): clock for w, clock in state["clocks"].items()
            }
        elif bound == 0:
            expected = (weights[:, None] * held).sum(axis=0) / weights.sum()
            np.testing.assert_allclose(got, [expected] * then_workers, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_allclose(got.sum(axis=0), held.sum(axis=0), rtol=1e-5, atol=1e-6)
            assert {clock for _, _, clock in told} == {min(state["clocks"].values())}


def check_shards(checkpoint):
    for each in Remembered.last:
        where = f"chunk/{each['chunk']}"
        record_ = checkpoint.manifest.state["chunks"][str(each["chunk"])]
        assert each["params"].tobytes() == checkpoint.tensor(f"{where}/params").tobytes()
        velocity = checkpoint.tensor(f"{where}/slot/velocity")
        assert each["velocity"].tobytes() == velocity.tobytes()
        assert velocity.any()
        assert (each["version"], each["rate"]) == (record_["version"], record_["rate"])
        assert record_["rate"] == 0.04
