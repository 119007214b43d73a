"""A server's part in checkpoints: what it copies at a cut, what it writes, what it says."""

from __future__ import annotations

import re

import numpy as np
import pytest
from shard_copies import CHUNKS, cut_at, flat, push, shard_of, values

from psgrad.checkpoint import InlineWriter, Store, open_tensors
from psgrad.committing import Committing
from psgrad.cuts import Announcement, Cut, CutPlan, Every
from psgrad.errors import ProtocolError
from psgrad.messages import Header, Kind, encode_json
from psgrad.saving import Checkpoints, ServerSaving


class SlowWriter:
    """Work is done when the test says so."""

    def __init__(self):
        self.work, self.result = None, None

    @property
    def busy(self):
        return self.work is not None or self.result is not None

    def submit(self, work):
        assert not self.busy
        self.work = work

    def finish(self):
        self.result, self.work = self.work(), None

    def poll(self):
        result, self.result = self.result, None
        return result


def rows(saving, worker, row, vector):
    for chunk in CHUNKS:
        header = Header(Kind.STATE, worker=worker, chunk=chunk.index, version=row)
        saving.row(header, vector[chunk.start : chunk.stop].copy())


def marked(saving, worker, vector, name="residual", now_s=0.0):
    rows(saving, worker, 0, vector)
    saving.marked(worker, [name], now_s)


def row_of(path, worker, name="residual"):
    file = open_tensors(path)
    return np.concatenate(
        [file.tensor(f"chunk/{chunk.index}/worker/{worker}/{name}") for chunk in CHUNKS]
    )


@pytest.fixture
def saving(tmp_path):
    return ServerSaving(Store(tmp_path, 2), InlineWriter(), 3)


def test_a_cut_is_written_and_told(saving, tmp_path):
    shard = shard_of()
    push(shard, 1, 1)
    for worker in (0, 1):
        marked(saving, worker, values(9, worker))
    saving.copy(shard, Cut(5, {0: 0, 1: 1}), lambda: 0.0)
    assert saving.busy
    [report] = saving.reports()
    assert not saving.busy
    assert saving.reports() == [], "once"
    assert (report["number"], report["error"]) == (5, None)
    assert report["file"]["name"] == "server-3.safetensors"
    assert sorted(report["chunks"]) == sorted(str(chunk.index) for chunk in CHUNKS)
    path = tmp_path / ".step-00000005.tmp" / "server-3.safetensors"
    assert path.stat().st_size == report["file"]["nbytes"]
    file = open_tensors(path)
    kept = np.concatenate([file.tensor(f"chunk/{c.index}/params") for c in CHUNKS])
    assert kept.tobytes() == flat(shard).tobytes()
    for worker in (0, 1):
        assert row_of(path, worker).tobytes() == values(9, worker).tobytes()


def test_it_is_a_copy(tmp_path):
    writer = SlowWriter()
    saving, shard = ServerSaving(Store(tmp_path, 2), writer, 0), shard_of()
    before = flat(shard).tobytes()
    saving.marked(0, [], 0.0)
    saving.copy(shard, cut_at(1, [0]), lambda: 0.0)
    push(shard, 0, 1)
    writer.finish()
    file = open_tensors(tmp_path / ".step-00000001.tmp" / "server-0.safetensors")
    kept = np.concatenate([file.tensor(f"chunk/{c.index}/params") for c in CHUNKS])
    assert kept.tobytes() == before != flat(shard).tobytes()


def test_who_is_at_its_next_marker_has_rows_of_both(saving, tmp_path):
    """A worker that pushes without waiting marks twice before another one has marked once."""
    shard = shard_of(0)
    marked(saving, 0, values(1), "a")
    marked(saving, 0, values(2), "b")
    rows(saving, 0, 0, values(3))  # of its third one, which has not come
    marked(saving, 1, values(4), "a")
    saving.copy(shard, cut_at(1, (0, 1)), lambda: 0.0)
    saving.reports()
    marked(saving, 1, values(5), "b")
    saving.copy(shard, cut_at(2, (0, 1)), lambda: 0.0)
    saving.reports()
    first, second = (tmp_path / f".step-0000000{n}.tmp" / "server-3.safetensors" for n in (1, 2))
    assert row_of(first, 0, "a").tobytes() == values(1).tobytes()
    assert row_of(first, 1, "a").tobytes() == values(4).tobytes()
    assert row_of(second, 0, "b").tobytes() == values(2).tobytes()
    assert row_of(second, 1, "b").tobytes() == values(5).tobytes()


def test_while_one_is_written_the_next_one_is_given_up(tmp_path):
    writer = SlowWriter()
    saving, shard = ServerSaving(Store(tmp_path, 2), writer, 0), shard_of()
    for number in (1, 2):
        marked(saving, 0, values(number))
        saving.copy(shard, cut_at(number, [0]), lambda: 0.0)
    [report] = saving.reports()
    assert (report["number"], report["error"]) == (2, "the one before it is still being written")
    assert (report["file"], report["chunks"]) == (None, {})
    writer.finish()
    assert [report["number"] for report in saving.reports()] == [1]
    marked(saving, 0, values(3))
    saving.copy(shard, cut_at(3, [0]), lambda: 0.0)
    writer.finish()
    [report] = saving.reports()
    assert report["error"] is None
    path = tmp_path / ".step-00000003.tmp" / "server-0.safetensors"
    assert row_of(path, 0).tobytes() == values(3).tobytes(), "rows of the one given up are gone"


def test_a_problem_is_told_and_nothing_is_written(saving, tmp_path):
    marked(saving, 0, values(1))
    saving.copy(shard_of(), cut_at(1, [0]), lambda: 0.0, "no luck")
    [report] = saving.reports()
    assert (report["number"], report["error"], report["chunks"]) == (1, "no luck", {})
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_says_is_in_the_report(tmp_path):
    saving = ServerSaving(Store(tmp_path / "nowhere", 2), InlineWriter(), 0)
    saving.marked(0, [], 0.0)
    saving.copy(shard_of(), cut_at(1, [0]), lambda: 0.0)
    [report] = saving.reports()
    assert report["error"] == "server-0.safetensors: No such file or directory"


def test_rows_without_names_are_refused(saving):
    rows(saving, 0, 1, values(1))
    with pytest.raises(ProtocolError, match="worker 0 sent 2 parts of rows and named 1"):
        saving.marked(0, ["residual"], 0.0)


def test_memory_is_used_again_and_given_back(saving):
    shard = shard_of(bound=1)
    for clock in (1, 2, 3):
        push(shard, 0, clock)
    sizes = []
    for number in (1, 2):
        saving.marked(0, [], 0.0)
        saving.copy(shard, cut_at(number, [0]), lambda: 0.0)
        saving.reports()
        sizes.append({name: id(memory) for name, memory in saving._copies.items()})
        if number == 1:
            assert "chunk/0/parked/0/3" in sizes[0]
            push(shard, 1, 1)
            push(shard, 1, 2)
    assert "chunk/0/parked/0/3" not in sizes[1], "what no checkpoint needs is kept no longer"
    assert sizes[1].items() <= sizes[0].items()


def test_how_long_it_took(saving):
    times = iter([5.0, 5.25, 9.0, 9.1])
    marked(saving, 0, values(0), now_s=3.0)
    marked(saving, 1, values(1), now_s=4.0)
    saving.copy(shard_of(), cut_at(1, (0, 1)), lambda: next(times))
    assert (saving.saved.checkpoint_wait_s, saving.saved.checkpoint_copy_s) == (2.0, 0.25)
    saving.reports()
    marked(saving, 0, values(0), now_s=8.5)
    saving.copy(shard_of(), cut_at(2, [0]), lambda: next(times))
    assert (saving.saved.checkpoint_wait_s, saving.saved.checkpoint_copy_s) == (2.0, 0.25)


# With the coordinator's part


def checkpoints(folder, bound=0, servers=1, coordinator=True, every="2"):
    store, warnings = Store(folder, 9), []
    plan = CutPlan(Every.parse(every), bound, {})
    committing = Committing(store, InlineWriter(), plan, servers, warnings.append)
    saving = ServerSaving(store, InlineWriter(), 0)
    made = Checkpoints(saving, committing if coordinator else None, bound == 0)
    made.registered(shard_of(), {}, {0: 0, 1: 0})
    return made, warnings


class At:
    """A shard that stands at a cut, or at none."""

    def __init__(self, cut=None, shard=None):
        self.cuts, self.shard = [] if cut is None else [cut], shard

    def mark(self, worker, number, clock):
        pass

    def cut(self):
        return self.cuts.pop() if self.cuts else None

    def resume(self):
        return []

    def __getattr__(self, name):
        return getattr(self.shard, name)


def mark(made, worker, clock):
    said = encode_json({"rows": [], "state": {"weight": 1.0}})
    made.see(At(), Header(Kind.MARK, worker=worker, clock=clock), said, lambda: 0.0)


def until_idle(made):
    said = []
    for _ in range(9):
        reports, text = made.advance()
        assert reports == []
        said += [text] if text else []
        if not made.busy:
            return said
    raise AssertionError("it never ends")


def test_in_sync_mode_a_cut_is_at_one_clock(tmp_path):
    made, warnings = checkpoints(tmp_path)
    for worker in (0, 1):
        mark(made, worker, 2)
    made.cut_if_complete(At(cut_at(2, (0, 1)), shard_of(0)), lambda: 0.0)
    assert until_idle(made) == ["checkpoint 2 is safe"]
    assert warnings == []
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    assert made.stats()["checkpoints"] == 1


def not_in_step():
    return Cut(2, {0: 2, 1: 3}), shard_of(0)


def in_a_round():
    """Worker 1 has left, with a push that is further than the cut."""
    shard = shard_of(0)
    push(shard, 1, 1)
    assert not shard.is_between_rounds
    return Cut(2, {0: 0}), shard


@pytest.mark.parametrize("case", [not_in_step, in_a_round])
def test_a_cut_in_sync_mode_where_workers_are_not_in_step_fails_and_the_run_goes_on(tmp_path, case):
    made, warnings = checkpoints(tmp_path)
    cut, shard = case()
    for worker, clock in cut.clocks.items():
        mark(made, worker, clock)
    made.cut_if_complete(At(cut, shard), lambda: 0.0)
    where = ", ".join(f"worker {w} at {c}" for w, c in cut.clocks.items())
    text = (
        f"checkpoint 2 was not written: workers were not in step: {where}; training goes on, "
        f"there is none yet"
    )
    assert until_idle(made) == warnings == [text]
    assert list(tmp_path.iterdir()) == []


def test_elsewhere_workers_are_where_they_are(tmp_path):
    made, warnings = checkpoints(tmp_path, bound=None)
    cut, shard = Cut(2, {0: 2, 1: 3}), shard_of()
    for worker, clock in cut.clocks.items():
        mark(made, worker, clock)
    made.cut_if_complete(At(cut, shard), lambda: 0.0)
    assert until_idle(made) == ["checkpoint 2 is safe"]
    assert warnings == []


def test_another_server_reports_to_the_coordinator(tmp_path):
    made, _ = checkpoints(tmp_path, coordinator=False)
    mark(made, 0, 2)
    made.cut_if_complete(At(cut_at(2, [0]), shard_of(0)), lambda: 0.0)
    assert made.busy
    [report], said = made.advance()
    assert (report["number"], said) == (2, None)
    assert not made.busy
    assert made.announce(Header(Kind.PUSH), 0.0) is None
    with pytest.raises(ProtocolError, match="only the coordinator takes reports"):
        made.take(report)


def test_pushes_move_the_plan_and_other_messages_do_not(tmp_path):
    made, _ = checkpoints(tmp_path, bound=None, every="1")
    assert made.announce(Header(Kind.PULL, worker=0, clock=9), 0.0) is None
    assert made.announce(Header(Kind.PULL, worker=0, clock=9), 1.0) is None
    assert made.announce(Header(Kind.STEP, worker=0, clock=1), 2.0) is None
    assert made.announce(Header(Kind.SETTLE, worker=1, clock=1), 3.0) == Announcement(1, 0)


def test_who_leaves_is_in_checkpoints_with_its_last_words(tmp_path):
    made, _ = checkpoints(tmp_path)
    said = encode_json({"state": {"last": "words"}})
    made.see(At(), Header(Kind.LEAVE, worker=1, clock=1), said, lambda: 0.0)
    mark(made, 0, 2)
    made.cut_if_complete(At(cut_at(2, [0]), shard_of(0)), lambda: 0.0)
    until_idle(made)
    content = (tmp_path / "step-00000002" / "manifest.json").read_text()
    assert re.search(
        r'"worker_states": \{"0": \{"weight": 1.0\}, "1": \{"last": "words"\}\}', content
    )


def test_a_cut_goes_on_without_one_that_has_died(tmp_path):
    made, warnings = checkpoints(tmp_path, bound=None)
    for worker in (0, 1):
        mark(made, worker, 2)
    made.lose(1, At(cut_at(2, [0]), shard_of(0)), lambda: 0.0)
    assert until_idle(made) == ["checkpoint 2 is safe"]
    assert warnings == []
    mark(made, 0, 3)
    made.cut_if_complete(At(cut_at(3, [0]), shard_of(0)), lambda: 0.0)
    assert until_idle(made) == ["checkpoint 3 is safe"]


def test_its_rows_are_forgotten(saving, tmp_path):
    shard = shard_of(0)
    marked(saving, 1, values(1))
    rows(saving, 1, 0, values(2))
    saving.forget(1)
    marked(saving, 0, values(3))
    saving.copy(shard, Cut(5, {0: 1}), lambda: 0.0)
    [report] = saving.reports()
    assert report["workers"] == [0]
    path = tmp_path / ".step-00000005.tmp" / "server-3.safetensors"
    names = open_tensors(path).names
    assert {name for name in names if "worker" in name} == {
        f"chunk/{chunk.index}/worker/0/residual" for chunk in CHUNKS
    }


def test_giving_up_waits_for_what_is_being_written(tmp_path):
    made, warnings = checkpoints(tmp_path, bound=None)
    mark(made, 0, 2)
    made.cut_if_complete(At(cut_at(2, [0]), shard_of(0)), lambda: 0.0)
    made.give_up()
    assert until_idle(made) == ["checkpoint 2 is safe"]
    assert warnings == []
