"""The coordinator's part in checkpoints: parts come in any order, all of them make one."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from psgrad.checkpoint import Checkpoint, InlineWriter, Store, found
from psgrad.committing import Committing
from psgrad.cuts import Announcement, Cut, CutPlan, Every


class Room:
    """A coordinator, what it warns of, and servers that write for it."""

    def __init__(self, folder, servers=2, number=0, keep=9):
        self.workers = {}  # of each cut
        self.store = Store(folder, keep)
        self.warnings = []
        self.plan = CutPlan(Every(steps=1), None, {}, number)
        self.committing = Committing(
            self.store, InlineWriter(), self.plan, servers, self.warnings.append
        )
        self.committing.registered({"workers": 2}, {0: 0, 1: 0})

    def marks(self, **records):
        for worker, record in records.items():
            self.committing.marked(int(worker[1:]), record)

    def opened(self, number, **clocks):
        self.workers[number] = [int(w[1:]) for w in clocks]
        self.committing.opened(Cut(number, {int(w[1:]): c for w, c in clocks.items()}))

    def written(self, number, server, error=None, workers=None):
        report = {"number": number, "error": error, "file": None, "chunks": {}, "workers": []}
        if error is None:
            tensors = {f"chunk/{server}/params": np.zeros(2, np.float32)}
            file = self.store.write(number, f"server-{server}.safetensors", tensors)
            report |= {"file": asdict(file), "chunks": {str(server): {"version": number}}}
            report["workers"] = self.workers.get(number, [0, 1]) if workers is None else workers
        self.committing.take(report)

    def settle(self):
        said = []
        for _ in range(9):
            text = self.committing.advance()
            said += [] if text is None else [text]
        return said

    def state(self, number):
        return Checkpoint.open(self.store.folder / f"step-{number:08d}").manifest.state


@pytest.fixture
def room(tmp_path):
    return Room(tmp_path)


def test_all_parts_make_a_checkpoint(room):
    room.marks(w0="zero", w1="one")
    room.opened(3, w0=3, w1=4)
    room.written(3, 1)
    assert room.settle() == []
    assert room.committing.busy
    room.written(3, 0)
    assert room.settle() == ["checkpoint 3 is safe"]
    assert not room.committing.busy
    assert room.state(3) == {
        "workers": 2,
        "clocks": {"0": 3, "1": 4},
        "worker_states": {"0": "zero", "1": "one"},
        "chunks": {"0": {"version": 3}, "1": {"version": 3}},
    }
    assert asdict(room.committing.committed) == {
        "checkpoints": 1, "checkpoints_failed": 0, "checkpoint_newest": 3,
    }  # fmt: skip


def test_a_part_may_be_there_before_the_last_marker_is_here(room):
    room.written(3, 1)
    assert room.committing.busy
    room.marks(w0="zero", w1="one")
    room.opened(3, w0=3, w1=3)
    room.written(3, 0)
    assert room.settle() == ["checkpoint 3 is safe"]


def test_early_parts_of_two_checkpoints(room):
    room.written(1, 1)
    room.written(2, 1)
    for number in (1, 2):
        room.marks(w0=number, w1=number)
    for number in (1, 2):
        room.opened(number, w0=number, w1=number)
        room.written(number, 0)
    assert room.settle() == ["checkpoint 1 is safe", "checkpoint 2 is safe"]
    assert room.state(1)["worker_states"] == {"0": 1, "1": 1}


def test_a_worker_that_is_at_its_next_marker_is_in_each_as_it_was(room):
    room.marks(w0="first of 0")
    room.marks(w0="second of 0", w1="first of 1")
    room.opened(1, w0=1, w1=1)
    room.marks(w1="second of 1")
    room.opened(2, w0=2, w1=2)
    for number in (1, 2):
        for server in (0, 1):
            room.written(number, server)
    room.settle()
    assert room.state(1)["worker_states"] == {"0": "first of 0", "1": "first of 1"}
    assert room.state(2)["worker_states"] == {"0": "second of 0", "1": "second of 1"}


def test_who_has_marked_and_left_is_in_as_it_was_at_its_marker(room):
    room.marks(w0="marker of 0")
    room.committing.left(0, "last words of 0")
    room.marks(w1="first of 1")
    room.opened(1, w0=1, w1=1)
    room.marks(w1="second of 1")
    room.opened(2, w1=2)
    for number in (1, 2):
        for server in (0, 1):
            room.written(number, server)
    room.settle()
    assert room.state(1)["worker_states"] == {"0": "marker of 0", "1": "first of 1"}
    assert room.state(2)["worker_states"] == {"0": "last words of 0", "1": "second of 1"}
    assert room.state(2)["clocks"] == {"1": 2}


def test_one_part_that_failed_is_a_checkpoint_that_failed(room, tmp_path):
    for number in (1, 2):
        room.marks(w0="", w1="")
        room.opened(number, w0=number, w1=number)
    room.written(1, 0)
    room.written(1, 1)
    room.written(2, 0)
    room.written(2, 1, "server-1.safetensors: No space left on device")
    said = room.settle()
    assert said[0] == "checkpoint 1 is safe"
    text = (
        "checkpoint 2 was not written: server-1.safetensors: No space left on device; training "
        "goes on, the newest one is 1"
    )
    assert said[1:] == room.warnings == [text]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"], "nothing is left of it"
    assert room.committing.committed.checkpoints_failed == 1
    assert not room.committing.busy


def test_a_commit_that_fails_is_a_checkpoint_that_failed(room, tmp_path):
    room.marks(w0="", w1="")
    room.opened(1, w0=1, w1=1)
    room.written(1, 0)
    room.written(1, 1)
    (tmp_path / ".step-00000001.tmp" / "server-1.safetensors").unlink()
    [text] = room.settle()
    assert room.warnings == [text]
    assert text.startswith("checkpoint 1 was not written: ")
    assert "server-1.safetensors is not there" in text
    assert text.endswith("; training goes on, there is none yet")
    assert list(tmp_path.iterdir()) == []


def test_the_newest_is_the_one_that_the_run_began_with(tmp_path):
    room = Room(tmp_path, servers=1, number=40)
    room.marks(w0="", w1="")
    room.opened(41, w0=1, w1=1)
    room.written(41, 0, "no luck")
    assert room.settle() == [
        "checkpoint 41 was not written: no luck; training goes on, the newest one is 40"
    ]


def test_the_next_cut_is_announced_when_this_one_is_settled(tmp_path):
    for error in (None, "no luck"):
        room = Room(tmp_path / str(error), servers=1)
        room.store.prepare()
        assert room.committing.announce(0.0) is None
        room.committing.saw(0, 1)
        room.committing.saw(1, 1)
        assert room.committing.announce(1.0) == Announcement(1, 0)
        room.committing.saw(0, 9)
        assert room.committing.announce(2.0) is None
        room.marks(w0="", w1="")
        room.opened(1, w0=1, w1=1)
        room.written(1, 0, error)
        assert room.committing.announce(3.0) is None
        room.settle()
        assert room.committing.announce(4.0) == Announcement(5, 0)


def test_old_ones_go(tmp_path):
    room = Room(tmp_path, servers=1, keep=2)
    for number in (1, 2, 3):
        room.marks(w0="", w1="")
        room.opened(number, w0=number, w1=number)
        room.written(number, 0)
        room.settle()
    assert [path.name for path in found(tmp_path)] == ["step-00000003", "step-00000002"]


# Workers that die


def test_who_has_died_is_in_no_checkpoint_to_come(room):
    room.marks(w0="zero", w1="one")
    room.committing.lose(1)
    room.opened(3, w0=3)
    for server in (0, 1):
        room.written(3, server, workers=[0])
    assert room.settle() == ["checkpoint 3 is safe"]
    state = room.state(3)
    assert (state["clocks"], state["worker_states"]) == ({"0": 3}, {"0": "zero"})


def test_whose_marker_came_to_some_servers_only_is_not_in_it(room):
    room.marks(w0="zero", w1="one")
    room.opened(3, w0=3, w1=4)
    room.written(3, 0, workers=[0, 1])
    room.written(3, 1, workers=[0])
    assert room.settle() == ["checkpoint 3 is safe"]
    assert room.state(3)["clocks"] == {"0": 3}


def test_a_checkpoint_of_nobody_is_none(room, tmp_path):
    room.marks(w1="one")
    room.opened(3, w1=4)
    room.written(3, 0, workers=[1])
    room.written(3, 1, workers=[])
    [said] = room.settle()
    assert "checkpoint 3 was not written: the workers that it is of have died" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opened", [True, False])
def test_what_only_some_servers_could_make_is_given_up(room, tmp_path, opened):
    """The last marker, of a worker that died, came to one of two servers."""
    room.marks(w1="one")
    if opened:
        room.opened(3, w1=4)
        room.written(3, 0, workers=[1])
    else:
        room.written(3, 1, workers=[1])
    assert room.settle() == []
    assert room.committing.busy
    room.committing.give_up()
    assert not room.committing.busy
    assert room.warnings == [
        "checkpoint 3 was not written: a worker has died while it was made; training goes on, "
        "there is none yet"
    ]
    assert list(tmp_path.iterdir()) == []
    room.committing.give_up()
    assert len(room.warnings) == 1


def test_intervals_do_not_get_longer_by_deaths(room):
    room.committing.announce(0.0)
    room.committing.lose(1)
    room.committing.saw(0, 1)
    assert room.committing.announce(1.0) is not None, "a step of each worker that lives"
