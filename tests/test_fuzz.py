"""A slice of what ``bin/fuzz`` does, and what its checks are worth: decoders with planted bugs."""

from __future__ import annotations

import resource
import signal
import warnings

import numpy as np
import pytest
from fuzz import __main__ as program
from fuzz import engine
from fuzz.engine import Target, inputs, run
from fuzz.mutate import BLOCK
from fuzz.targets import TARGETS

from psgrad.codecs import CODECS
from psgrad.errors import WireError
from psgrad.messages import HEADER_NBYTES, Header, Kind

SLICE = 300
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())


@every_target
def test_only_errors_of_psgrad_come_out(target):
    report = run(target, 1, 0, SLICE)
    assert report.problem == ""
    assert report.inputs == SLICE
    assert report.accepted > 0, "all are refused: it gets nowhere"
    assert report.errors, "all are accepted: it changes nothing"


@every_target
def test_what_was_not_changed_is_accepted(target):
    target.read(0, target.samples[0])


def test_every_decoder_is_a_target():
    assert {f"codec-{name}" for name in CODECS} <= TARGETS.keys()
    assert {"register", "meet", "share", "settle", "header", "record", "npz", "csv"} <= set(TARGETS)
    assert {"manifest", "content", "tensors", "state", "resuming"} <= set(TARGETS)


def test_every_kind_is_said_to_somebody():
    def kinds(role):
        targets = [target for name, target in TARGETS.items() if name.startswith(role + "-")]
        return {Header.decode(sample).kind for target in targets for sample in target.samples}

    answers = {Kind.REGISTERED, Kind.ACK, Kind.PARAMS, Kind.LEFT, Kind.MET, Kind.STATS_ARE,
               Kind.SHARED, Kind.RECEIVED, Kind.CUT, Kind.FENCED, Kind.STOPPED}  # fmt: skip
    turns = {Kind.REPLICATE, Kind.PAYLOAD}
    # Of ranks that have servers with replicas, without a payload; the last one never travels.
    bare = {Kind.REPLICATED, Kind.STANDIN, Kind.ENDED, Kind.MOVED}
    # Of ranks that come in the place of lost workers: tests/test_server_joins.py.
    outside = {Kind.JOIN, Kind.PLACE, Kind.ADMIT}
    assert kinds("server") == set(Kind) - answers - turns - bare - outside
    assert kinds("replica") == turns
    assert kinds("worker") == answers - {Kind.SHARED} | {Kind.LOST, Kind.ASK}


@pytest.mark.parametrize("name", ["header", "register", "codec-topk"])
def test_an_input_follows_from_seed_and_number(name):
    target, first = TARGETS[name], BLOCK - 20
    some = list(inputs(target, 3, first, 40))
    assert [number for number, _, _ in some] == list(range(first, first + 40))
    assert list(inputs(target, 3, first, 40)) == some
    assert list(inputs(target, 3, first + 25, 5)) == some[25:30]
    assert list(inputs(target, 4, first, 40)) != some


# Planted bugs


def raises(data):
    return {0: "zero"}[0 if len(data) < 16 else 1]


def allocates(data):
    return bytes(1 << 24) if len(data) > 16 else None


def asks_for_too_much(data):
    return np.zeros(1 << 42) if len(data) > 16 else None


def warns(data):
    return np.float32(3e38) * np.float32(len(data)) if len(data) > 16 else None


def never_ends(data):
    while len(data) > 16:
        pass


def says_too_much(data):
    if len(data) > 16:
        raise WireError("two\nlines")


PLANTED = [
    (raises, "KeyError: 1"),
    (allocates, "MemoryError: 16777"),
    (asks_for_too_much, "Unable to allocate 32.0 TiB"),
    (warns, "RuntimeWarning: overflow"),
    (never_ends, "TooSlowError: a block of planted took"),
    (says_too_much, "AssertionError: the error is not a line: 'two"),
]


def planted(read):
    return Target("planted", (bytes(16), b"x" * 12), lambda _, data: read(data))


@pytest.mark.parametrize(("read", "text"), PLANTED)
def test_a_planted_bug_is_found_and_can_be_repeated(read, text, monkeypatch):
    if read is never_ends:
        monkeypatch.setattr(engine, "MOST_S", 0.5)
    monkeypatch.setattr(engine, "TRACED", 1024)
    report = run(planted(read), 5, 0, 2000)
    head, command, data = report.problem.split("\n    ")
    number = int(head.split("input ")[1].split(" ")[0])
    assert text in head
    assert command == f"repeat: bin/fuzz --target planted --seed 5 --first {number} --inputs 1"
    [(_, _, made)] = inputs(planted(read), 5, number, 1)
    assert data == f"{len(made)} bytes: {made.hex()}"
    again = run(planted(read), 5, number, 1)
    assert text in again.problem


def test_limits_are_as_they_were_after_a_run():
    def limits():
        return (
            resource.getrlimit(resource.RLIMIT_AS),
            signal.getsignal(signal.SIGPROF),
            signal.getitimer(signal.ITIMER_PROF),
            list(warnings.filters),
        )

    before = limits()
    assert run(planted(raises), 5, 0, 100).problem
    assert limits() == before


def test_a_header_with_a_bug_would_be_found():
    """One that trusts the byte of the kind: the checksum is right, so it gets that far."""
    target = TARGETS["header"]

    def trusting(sample, data):
        if len(data) >= HEADER_NBYTES:
            Header.decode(Header(Kind(data[5])).encode())

    bad = Target("header", target.samples, trusting, repair=target.repair)
    assert "is not a valid Kind" in run(bad, 1, 0, 5000).problem


# The command line


def test_the_table(capsys):
    argv = ["--target", "settle", "--target", "header", "--inputs", "400", "--seed", "9"]
    assert program.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["settle", "header", "all"]
    assert int(lines[3].split()[1]) >= 400


def test_two_processes_share_the_inputs(capsys):
    assert program.main(["--target", "settle", "--inputs", "3000", "--jobs", "2"]) == 0
    assert int(capsys.readouterr().out.splitlines()[1].split()[1]) == 3000


def test_a_bug_is_a_status_of_1(capsys, monkeypatch):
    monkeypatch.setitem(TARGETS, "planted", planted(raises))
    assert program.main(["--target", "planted", "--inputs", "2000", "--seed", "5"]) == 1
    assert "bin/fuzz: planted: input " in capsys.readouterr().err
