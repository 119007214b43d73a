"""A worker's part in checkpoints: what it sends, when, and in which order."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from shard_copies import CHUNKS, LAYOUT, values

from psgrad.checkpoint import InlineWriter
from psgrad.cuts import Announcement, Every, Markers
from psgrad.errors import CheckpointError, ConfigError
from psgrad.marking import Marking, Position
from psgrad.messages import NO_RATE, Kind, decode_json
from psgrad.session import Session
from psgrad.transport.simulated import Simulation
from psgrad.worker_state import unpack

AT_4 = Position(4, 16.0, NO_RATE)


class Links:
    """Takes down what is told, with copies of what was in memory at the flush."""

    def __init__(self, markers):
        self.markers, self.told = markers, []

    def tell(self, server, header, payload=None):
        self.told.append((server, header, payload))

    def tell_all(self, header, payload=None):
        for server in (0, 1):
            self.tell(server, header, payload)

    def flush(self):
        self.told = [
            (*each[:2], each[2].copy())
            if each != "flush" and isinstance(each[2], np.ndarray)
            else each
            for each in self.told
        ]
        self.told.append("flush")


class Encoder:
    """Keeps a residual and a threshold."""

    def __init__(self):
        self.state = {"feedback.residual": values(3), "choice.thresholds": np.arange(2.0)}

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        if state.keys() != self.state.keys():
            raise ConfigError("codec state has other names")
        self.state = state


def marking(encoder=None, every="2", bound=0, **fields):
    links = Links(Markers(Every.parse(every), bound, **fields))
    guard = SimpleNamespace(counts={"skipped": 1, "in_a_row": 1})
    guard.state_dict = lambda: guard.counts
    guard.load_state_dict = lambda state: setattr(guard, "counts", state)
    state = SimpleNamespace(
        layout=LAYOUT, chunks=CHUNKS, guard=guard, owner=[c.index % 2 for c in CHUNKS]
    )
    return Marking(links, links, state, encoder), links


def test_rows_then_a_marker_on_every_link_then_a_flush():
    made, links = marking(Encoder())
    made.kept = {"mine": {"vector": values(4), "step": 4}}
    made.mark_if_due(AT_4)
    *messages, last = links.told
    assert last == "flush"
    for server in (0, 1):
        mine = [(header, payload) for to, header, payload in messages if to == server]
        rows, (mark, said) = mine[:-1], mine[-1]
        assert (mark.kind, mark.clock, mark.sequence) == (Kind.MARK, 4, 4)
        said = decode_json(said)
        assert said["rows"] == ["encoder.feedback.residual", "kept.mine.vector"]
        chunks = [chunk for chunk in CHUNKS if chunk.index % 2 == server]
        assert [(h.kind, h.chunk, h.version, h.segment, h.layout) for h, _ in rows] == [
            (Kind.STATE, chunk.index, row, chunk.segment, LAYOUT.digest)
            for chunk in chunks
            for row in (0, 1)
        ]
        for header, payload in rows:
            chunk = CHUNKS[header.chunk]
            vector = (values(3), values(4))[header.version]
            assert payload.tobytes() == vector[chunk.start : chunk.stop].tobytes()
        back = unpack(said["state"], lambda name: name)
        assert (back["clock"], back["weight"], back["rate"]) == (4, 16.0, NO_RATE)
        assert back["guard"] == {"skipped": 1, "in_a_row": 1}
        assert back["kept"] == {"mine": {"vector": "kept.mine.vector", "step": 4}}
        assert back["encoder"]["choice.thresholds"].tolist() == [0.0, 1.0]


def test_a_marker_is_sent_once():
    made, links = marking()
    for clock in (1, 2, 2, 3, 4):
        made.mark_if_due(Position(clock, 1.0, NO_RATE))
    marks = [told[1] for told in links.told if told != "flush"]
    assert [(mark.clock, mark.sequence) for mark in marks] == [(2, 2), (2, 2), (4, 4), (4, 4)]


def test_what_was_announced_is_marked_where_the_worker_is():
    made, links = marking(bound=None)
    made.mark_if_due(AT_4)
    assert links.told == []
    links.markers.announced = Announcement(9, 0)
    made.mark_if_due(AT_4)
    assert (links.told[0][1].clock, links.told[0][1].sequence) == (4, 9)
    assert not links.markers.asked


@pytest.mark.parametrize("name", ["over", "paused"])
def test_who_has_left_or_knows_no_state_yet_does_not_mark(name):
    made, links = marking()
    setattr(made, name, True)
    made.mark_if_due(AT_4)
    assert links.told == []
    setattr(made, name, False)
    made.mark_if_due(AT_4)
    assert links.told, "it was not forgotten"


def test_what_is_kept_is_that_of_the_last_push():
    made, links = marking(bound=None, announced=Announcement(1, 0))
    made.kept, made.next = {"x": "old"}, {"x": "new"}
    made.mark_if_due(AT_4)
    assert decode_json(links.told[0][2])["state"]["kept"] == {"x": "old"}
    made.pushed()
    links.markers.announced = Announcement(2, 0)
    made.mark_if_due(AT_4)
    assert decode_json(links.told[-2][2])["state"]["kept"] == {"x": "new"}


def test_last_words():
    made, _ = marking(Encoder())
    said = decode_json(made.last_words(AT_4))["state"]
    assert (said["clock"], said["encoder"]["feedback.residual"]) == (4, {"psgrad.array": "row"})
    assert marking(every="")[0].last_words(AT_4) is None
    assert not marking(every="")[0].wanted


# Going on


def resuming(state, same=True, record=None):
    return SimpleNamespace(
        same_number=same,
        record_of=lambda worker: {"guard": {"skipped": 5}} if record is None else record,
        all_kept=lambda worker: {"x": worker},
        encoder_state=lambda worker, mine: state,
    )


def test_going_on():
    encoder = Encoder()
    made, _ = marking(encoder)
    state = {"feedback.residual": values(8), "choice.thresholds": np.zeros(2)}
    made.load(resuming(state), 1)
    assert encoder.state is state
    assert made._state.guard.counts == {"skipped": 5}
    assert made.kept == made.next == {"x": 1}, "a checkpoint may come before keep()"


def test_going_on_with_another_number_of_workers():
    encoder = Encoder()
    made, _ = marking(encoder)
    made.load(resuming(encoder.state, same=False), 1)
    assert made._state.guard.counts == {"skipped": 1, "in_a_row": 1}
    assert made.kept == {}


@pytest.mark.parametrize("encoder", [Encoder(), None])
def test_the_state_of_another_encoder_is_refused(encoder):
    made, _ = marking(encoder)
    with pytest.raises(CheckpointError, match="resume with the codec and feedback of the saved"):
        made.load(resuming({"feedback.velocity": values(1)}), 0)


def test_nothing_saved_and_nothing_wanted():
    marking(None)[0].load(resuming({}), 0)


# On simulated ranks: what may be waited for


def session(main, workers=2, every="1", **options):
    options = {"codec": "none", "staleness": 1, "window": 1, "chunk_bytes": 64, **options}

    def program(transport):
        with Session(transport=transport, report=lambda _: None, writer=InlineWriter) as opened:
            return opened.run(main, checkpoint_every=every, **options)

    return Simulation(workers + 1, seed=1).run(program)[1:]


def grads():
    return {"w": np.ones(40, np.float32), "b": np.ones(7, np.float32)}


def test_a_marker_goes_out_in_the_middle_of_a_step(tmp_path):
    """Worker 1 waits for worker 0's marker, worker 0, in a step, at mean() for worker 1."""

    def main(worker):
        worker.register(grads())
        for step in range(6):
            if worker.rank == 0 and step == 3:
                worker.ready("w")
                worker.sleep(1.0)  # meanwhile worker 1 has marked
                worker.mean({"x": 1.0})
                worker.step()
            else:
                worker.step(grads())
        if worker.rank == 1:
            worker.mean({"x": 1.0})
        return worker.clock

    assert session(main, staleness=None, checkpoint_dir=str(tmp_path)) == [6, 6]


def test_a_marker_goes_out_while_a_step_in_parts_ends(tmp_path):
    """Worker 0 ends a step while a push before it waits for one of worker 1, which a cut holds."""

    def main(worker):
        worker.register({"w": np.ones(40, np.float32)})
        if worker.rank == 0:
            for _ in range(4):
                worker.push({"w": np.ones(40, np.float32)})  # the fourth waits for two of worker 1
            worker.ready("w")
            worker.sleep(1.0)
            worker.step_async()
            worker.wait()
        else:
            worker.sleep(0.5)
            for _ in range(6):
                worker.step({"w": np.ones(40, np.float32)})
                worker.pull()  # brings what was announced behind the step
        return worker.clock

    options = {"window": 8, "chunk_bytes": 4096, "every": "0.2s"}
    assert session(main, checkpoint_dir=str(tmp_path), **options) == [5, 6]


def test_parts_are_kept_once(tmp_path):
    def main(worker):
        worker.register(grads())
        part = SimpleNamespace(state_dict=dict, load_state_dict=lambda state: None)
        assert worker.keep("x", part) is False
        with pytest.raises(ConfigError, match=re.escape("keep() was called twice for 'x'")):
            worker.keep("x", part)

    session(main, checkpoint_dir=str(tmp_path))
