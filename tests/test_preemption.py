"""What asks a rank to stop from outside: signals that are noted, and the end of the walltime."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from psgrad import preemption
from psgrad.errors import ConfigError
from psgrad.preemption import KNOWN, Preemption, check


def send(signum):
    os.kill(os.getpid(), signum)


@pytest.fixture(autouse=True)
def handlers():
    """Every handler is what it was before the test."""
    names = [signal.Signals[f"SIG{name}"] for name in KNOWN]
    before = {signum: signal.getsignal(signum) for signum in names}
    yield before
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_a_signal_is_noted_and_does_nothing_else():
    with Preemption() as asked:
        assert asked.reason == ""
        send(signal.SIGUSR1)
        assert asked.reason == "SIGUSR1"


def test_the_first_of_several_is_the_reason():
    with Preemption(["USR1", "USR2"]) as asked:
        send(signal.SIGUSR2)
        send(signal.SIGUSR1)
        send(signal.SIGUSR1)
        assert asked.reason == "SIGUSR2"


def test_handlers_come_back_where_nothing_came(handlers):
    with Preemption(KNOWN):
        pass
    assert {signum: signal.getsignal(signum) for signum in handlers} == handlers


def test_what_comes_late_does_not_undo_a_clean_end():
    with Preemption():
        send(signal.SIGUSR1)
    send(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_one_of_these_is_what_it_was_before(signum):
    with Preemption([signum.name[3:]]) as asked:
        send(signum)
        assert asked.reason == signum.name
        assert signal.getsignal(signum) is signal.SIG_DFL


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_what_somebody_else_has_said_stays(handler):
    signal.signal(signal.SIGUSR1, handler)
    with Preemption() as asked:
        assert signal.getsignal(signal.SIGUSR1) is handler
        send(signal.SIGUSR1)
        assert asked.reason == ""
    assert signal.getsignal(signal.SIGUSR1) is handler


def test_off_the_main_thread_there_are_no_signals():
    seen = []

    def work():
        with Preemption() as asked:
            seen.append((signal.getsignal(signal.SIGUSR1), asked.reason))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(signal.SIG_DFL, "")]


class Clocks:
    """The two clocks of the machine, which go together."""

    def __init__(self, patch):
        self.now_s = 0.0
        patch.setattr(preemption.time, "time", lambda: 1_800_000_000.0 + self.now_s)
        patch.setattr(preemption.time, "monotonic", lambda: 50.0 + self.now_s)


def test_the_end_of_the_walltime_is_a_reason_too(monkeypatch):
    clocks = Clocks(monkeypatch)
    with Preemption(ends_at=1_800_000_600.0, margin_s=120.0) as asked:
        clocks.now_s = 479.9
        assert asked.reason == ""
        clocks.now_s = 480.0
        assert asked.reason == "the walltime, which ends in 120 s"
        clocks.now_s = 700.0
        assert asked.reason == "the walltime, which ends in 120 s"


@pytest.mark.parametrize(("ends_at", "margin_s"), [(0.0, 120.0), (1_800_000_600.0, 0.0)])
def test_without_an_end_or_a_margin_it_never_is(monkeypatch, ends_at, margin_s):
    clocks = Clocks(monkeypatch)
    asked = Preemption((), ends_at, margin_s)
    clocks.now_s = 1e9
    assert asked.reason == ""


def test_a_walltime_that_is_nearly_over_is_a_reason_at_once(monkeypatch):
    Clocks(monkeypatch)
    assert Preemption((), 1_800_000_060.0, 120.0).reason == "the walltime, which ends in 120 s"


def test_which_signals_may_ask():
    assert check(["USR1", "TERM"]) == ("USR1", "TERM")
    assert check([]) == ()


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ("USR1", r"stop_signals must be a list such as \['USR1'\], got 'USR1'"),
        (["KILL"], "unknown signal in stop_signals 'KILL'"),
        (["SIGUSR1"], "unknown signal in stop_signals 'SIGUSR1'; did you mean 'USR1'"),
        ([9], "unknown signal in stop_signals 9"),
    ],
)
def test_which_signals_may_not(names, text):
    with pytest.raises(ConfigError, match=text):
        check(names)
