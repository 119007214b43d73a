"""Records and logs of a rank, under a clock that the test holds."""

from __future__ import annotations

import io
import json

import pytest

from psgrad.metrics import Journal, Silent, Sink


@pytest.fixture
def moments():
    """The clock: what ``now`` returns next; the first is the start."""
    return iter([100.0, 100.25, 101.5, 102.0])


def test_records_are_lines_of_json(tmp_path, moments):
    journal = Journal(tmp_path, "worker-1", moments.__next__, metrics="metrics.jsonl")
    journal.record("step", step=1, loss=0.5)
    journal.record("summary", mode="ssp", bound=None)
    journal.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"seconds": 0.25, "kind": "step", "step": 1, "loss": 0.5},
        {"seconds": 1.5, "kind": "summary", "mode": "ssp", "bound": None},
    ]


def test_logs_are_lines_for_people(tmp_path, moments):
    journal = Journal(tmp_path, "coordinator-0", moments.__next__)
    journal.log("worker 0 is done")
    journal.close()
    assert (tmp_path / "logs" / "coordinator-0.log").read_text() == "     0.250 worker 0 is done\n"


def test_a_line_is_in_the_file_at_once(tmp_path, moments):
    journal = Journal(tmp_path, "worker-1", moments.__next__, metrics="metrics.jsonl")
    journal.log("one")
    journal.record("two")
    try:
        assert "one" in (tmp_path / "logs" / "worker-1.log").read_text()
        assert "two" in (tmp_path / "metrics.jsonl").read_text()
    finally:
        journal.close()


def test_only_the_rank_that_is_asked_keeps_metrics(tmp_path, moments):
    journal = Journal(tmp_path, "worker-2", moments.__next__)
    journal.record("step", step=1)
    journal.close()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_ranks_share_a_folder(tmp_path):
    journals = [Journal(tmp_path / "run", f"worker-{r}", lambda: 0.0) for r in (1, 2)]
    for rank, journal in enumerate(journals, start=1):
        journal.log(f"rank {rank}")
        journal.close()
    assert sorted(p.name for p in (tmp_path / "run" / "logs").iterdir()) == [
        "worker-1.log",
        "worker-2.log",
    ]


def test_silent_keeps_nothing():
    sink: Sink = Silent()
    assert sink.record("step", loss=1.0) is None
    assert sink.log("text") is None


def test_a_log_may_be_on_the_screen_too(tmp_path, moments):
    screen = io.StringIO()
    journal = Journal(tmp_path, "coordinator-0", moments.__next__, echo=screen)
    journal.log("worker 0 is done")
    journal.close()
    assert screen.getvalue() == "coordinator-0:      0.250 worker 0 is done\n"
