"""The progress line under a clock that the test holds."""

from __future__ import annotations

import io

import pytest

from psgrad.progress import PLAIN_S, REDRAW_S, Progress, Snapshot, render


def snapshot(step, **changes):
    values = {
        "epoch": 0, "epochs": 4, "step": step, "samples": 100.0 * step, "nbytes": 2_000_000 * step,
        "loss": 0.25, "accuracy": 0.5, "staleness": 1, **changes,
    }  # fmt: skip
    return Snapshot(**values)


class Clock:
    """The time that ``Progress`` sees."""

    seconds = 1000.0

    def __call__(self):
        return self.seconds


def shown(style, moments):
    """What is printed when snapshot k is shown at the k-th of ``moments``; True marks the last."""
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, style, clock)
    for step, (moment, last) in enumerate(moments, start=1):
        clock.seconds = 1000.0 + moment
        progress.show(snapshot(step), last=last)
    return stream.getvalue()


def test_a_line_in_full():
    assert render(snapshot(3), None, seconds=2.0) == (
        "epoch 1/4  step 3  150 samples/s  loss 0.2500  accuracy 0.500  staleness 1  3.0 MB/s"
    )


def test_rates_are_those_since_the_line_before():
    assert "  200 samples/s" in render(snapshot(9), snapshot(5), seconds=2.0)
    assert "  4.0 MB/s" in render(snapshot(9), snapshot(5), seconds=2.0)


def test_large_numbers_and_the_last_epoch():
    text = render(snapshot(1, epoch=4, samples=1234567.0), None, 1.0)
    assert text.startswith("epoch 4/4  step 1  1,234,567 samples/s")


@pytest.mark.parametrize(("style", "every"), [("line", REDRAW_S), ("plain", PLAIN_S)])
def test_lines_come_no_more_often_than_they_should(style, every):
    moments = [(0.0, False), (0.5 * every, False), (every, False), (1.5 * every, False),
               (2.5 * every, False)]  # fmt: skip
    text = shown(style, moments)
    assert [f"step {k}  " in text for k in range(1, 6)] == [False, False, True, False, True]


def test_plain_lines_are_whole_lines():
    text = shown("plain", [(PLAIN_S, False), (2 * PLAIN_S, False)])
    assert [line.split("  ")[1] for line in text.splitlines()] == ["step 1", "step 2"]
    assert text.endswith("\n")
    assert "\r" not in text


def test_a_redrawn_line_covers_the_one_before():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(stream, "line", clock)
    clock.seconds += 1
    progress.show(snapshot(1, samples=123_456_789.0))
    clock.seconds += 1
    progress.show(snapshot(2, samples=123_456_790.0))
    _, first, second = stream.getvalue().replace("\r\n", "").split("\r")
    assert len(second) == len(first) > len(second.rstrip())


@pytest.mark.parametrize("style", ["line", "plain"])
def test_the_last_line_is_shown_at_once_and_is_of_the_whole_run(style):
    every = REDRAW_S if style == "line" else PLAIN_S
    text = shown(style, [(every, False), (1.25 * every, True)])
    last = text.replace("\r", "\n").rstrip("\n").splitlines()[-1]
    assert f"step 2  {200 / (1.25 * every):,.0f} samples/s" in last
    assert text.endswith("\n")


def test_off_prints_nothing():
    assert shown("off", [(PLAIN_S, False), (2 * PLAIN_S, True)]) == ""


def test_no_time_at_all_is_no_division_by_zero():
    assert "samples/s" in shown("plain", [(0.0, True)])
