"""Records: what is written comes back, whatever became of the rank."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgrad.errors import DataError
from psgrad.messages import Header, Kind, Verdict
from psgrad.record import ANSWERED, CHOSE, TOOK, Entry, Recorder, differences, read, read_all

ABOUT = {"rank": 0, "size": 5}
STEP = Header(
    Kind.STEP, Verdict.NONE, chunk=3, clock=5, version=7, rate=0.5, nbytes=1 << 40, flags=5
)


def written(*calls, choices=None, about=ABOUT):
    """The bytes of a record, and what the calls returned."""
    file = io.BytesIO()
    recorder = Recorder(file, about, choices)
    returned = [getattr(recorder, name)(*arguments) for name, *arguments in calls]
    return file.getvalue(), returned


def test_golden_bytes_of_format_1():
    data, _ = written(("took", 2, STEP), ("chose", 4, 8))
    line, _, rest = data.partition(b"\n")
    assert line == b'{"format": 1, "magic": "psgrad record", "rank": 0, "size": 5}'
    assert rest.hex(" ", 4) == bytes.fromhex(
        "01060005 02000000 03000000 ffffffff 0500000000000000 0700000000000000 000000000000e03f"
        "03080000 00000000 04000000 00000000 0000000000000000 0000000000000000 0000000000000000"
    ).hex(" ", 4)


def test_what_is_written_comes_back():
    answer = STEP._replace(kind=Kind.PARAMS, verdict=Verdict.APPLIED, nbytes=12)
    data, _ = written(
        ("took", 2, STEP), ("answered", 2, answer), ("chose", 4, 8), ("took", 1, STEP)
    )
    record = read(data, "a file")
    assert record.about["size"] == 5
    assert [entry.what for entry in record.entries] == [TOOK, ANSWERED, CHOSE, TOOK]
    assert record.entries[1] == Entry(
        ANSWERED, Kind.PARAMS, Verdict.APPLIED, 5, 2, 3, 12, 5, 7, 0.5
    )
    assert record.order == [2, 1]
    assert record.choices == [8]


def test_choices_are_played_back_and_then_left_alone():
    _, returned = written(*[("chose", 0, 3)] * 3, choices=[8, 4])
    assert returned == [8, 4, 3]


@given(st.integers(0, 200))
def test_whole_entries_count_wherever_a_rank_was_killed(cut):
    data, _ = written(*[("took", peer, STEP) for peer in range(5)])
    line = data.index(b"\n") + 1
    order = read(data[: line + cut], "a file").order
    assert order == list(range(cut // 40))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "is not a record"),
        (b"nonsense\n", "is not a record"),
        (b"[1, 2]\n", "is not a record"),
        (b'{"magic": "psgrad record", "format": 2}\n', "has format 2, this psgrad reads 1"),
        (b"[" * 100_000, "is not a record"),
    ],
)
def test_other_files_are_refused(data, text):
    with pytest.raises(DataError, match=f"a file {text}"):
        read(data, "a file")


@pytest.mark.parametrize("about", [{"size": 1}, {"rank": "0", "size": 1}, {"rank": 0, "size": -1}])
def test_who_wrote_it_is_in_a_record(about):
    data, _ = written(about=about)
    with pytest.raises(DataError, match=r"a file: (rank|size) must be a whole number, got"):
        read(data, "a file")


@pytest.mark.parametrize(("what", "kind"), [(0, 6), (4, 6), (TOOK, 0), (ANSWERED, 99)])
def test_an_entry_that_no_rank_writes_is_refused(what, kind):
    data, _ = written(("took", 2, STEP), ("chose", 4, 99), ("took", 2, STEP))
    assert len(read(data, "a file").entries) == 3
    at = len(data) - 40
    with pytest.raises(DataError, match=f"entry 2 is damaged: what {what}, kind {kind}"):
        read(data[:at] + bytes([what, kind]) + data[at + 2 :], "a file")


@pytest.mark.parametrize("what", ["took", "answered"])
def test_a_rank_that_does_not_exist_is_refused(what):
    """An order with it would wait for ever."""
    data, _ = written(("took", 4, STEP), (what, 5, STEP))
    with pytest.raises(DataError, match="a file: entry 1 is damaged: rank 5, ranks go from 0 to 4"):
        read(data, "a file")
    data, _ = written(about={"rank": 3, "size": 3})
    with pytest.raises(DataError, match="a file is of rank 3, its run had 3 ranks"):
        read(data, "a file")


def test_differences_are_named():
    one, _ = written(("took", 2, STEP), ("chose", 4, 8))
    other, _ = written(("took", 2, STEP._replace(clock=6)), ("chose", 4, 8), ("chose", 4, 8))
    first, second = differences(read(one, "a"), read(other, "b"))
    assert first == (
        "entry 0: recorded: took STEP of chunk 3 at clock 5, version 7, rank 2; "
        "repeated: took STEP of chunk 3 at clock 6, version 7, rank 2"
    )
    assert second == "entry 2: recorded: nothing; repeated: chose codec 8 for chunk 4"


def test_sizes_do_not_count():
    """The zstd stage measures; what it does changes no value."""
    one, other = (written(("took", 2, STEP._replace(nbytes=n)))[0] for n in (100, 90))
    assert list(differences(read(one, "a"), read(other, "b"))) == []


def test_the_records_of_a_run(tmp_path):
    for rank in range(11):
        data, _ = written(("took", rank, STEP), about={"rank": rank, "size": 11})
        (tmp_path / f"rank-{rank}.record").write_bytes(data)
    assert [record.order for record in read_all(tmp_path)] == [[rank] for rank in range(11)]
    (tmp_path / "rank-3.record").unlink()
    (tmp_path / "rank-3.record").mkdir()
    with pytest.raises(DataError, match=r"cannot read a record in .*: Is a directory"):
        read_all(tmp_path)
    (tmp_path / "rank-3.record").rmdir()
    with pytest.raises(DataError, match="should have ranks 0 to 10, has"):
        read_all(tmp_path)
    with pytest.raises(DataError, match="there is no record in "):
        read_all(tmp_path / "nothing")
