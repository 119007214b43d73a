"""Signals that ask to stop are noted, told and waited for, and what was there before comes back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from psgrad.stops import STOPS, Stops

LONG_S = 60.0


@pytest.mark.parametrize("signum", STOPS)
def test_a_signal_is_noted_and_told(signum):
    told = []
    with Stops() as stops:
        stops.told = lambda: told.append(list(stops.signums))
        os.kill(os.getpid(), signum)
        os.kill(os.getpid(), signum)
        assert stops.wait(LONG_S)
    assert told == [[signum], [signum, signum]]


def test_without_a_signal_a_wait_takes_its_time():
    with Stops() as stops:
        assert not stops.wait(0.0)
        assert not stops.wait(0.02)
        assert stops.signums == []


def test_a_signal_ends_a_wait_whichever_thread_the_kernel_interrupts():
    with Stops() as stops:
        # A thread that takes it, while this one waits.
        sender = threading.Timer(
            0.05, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        )
        sender.start()
        assert stops.wait(LONG_S)
        sender.join()
    assert stops.signums == [signal.SIGTERM]


def test_other_signals_end_no_wait():
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        with Stops() as stops:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert not stops.wait(0.02)
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_what_was_there_comes_back_and_what_is_ignored_stays_so():
    before = [signal.getsignal(signum) for signum in STOPS]
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stops() as stops:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stops.wait(0.01)
    finally:
        signal.signal(signal.SIGHUP, ignored)
    assert [signal.getsignal(signum) for signum in STOPS] == before
    assert signal.set_wakeup_fd(-1) == -1
