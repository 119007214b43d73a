"""Options of the command line as arguments of ``psgrad.run``."""

from __future__ import annotations

import inspect

import pytest

from psgrad import optimizers, session
from psgrad.arguments import Parser
from psgrad.errors import ConfigError
from psgrad.run_options import RUN_OPTIONS, add_run_options, run_arguments


def arguments_of(*argv, leave_out=()):
    parser = Parser(prog="psgrad bench thing")
    add_run_options(parser, leave_out)
    return run_arguments(parser.parse_args(argv))


def test_each_one_is_a_keyword_of_run():
    known = inspect.signature(session.run).parameters
    assert {keyword for keyword, _, _ in RUN_OPTIONS.values()} <= set(known)


# Ranks of a measurement are known by MPI's numbers.
ALWAYS = {"staleness": 0, "optimizer": optimizers.SGD(), "placement": "first"}


def test_what_is_not_given_is_left_to_run():
    assert arguments_of() == ALWAYS


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["--servers", "2"], {"servers": 2}),
        (["--codec", "topk:0.01", "--feedback", "none"], {"codec": "topk:0.01",
                                                          "feedback": "none"}),
        (["--pull-codec", "int8", "--zstd", "on"], {"pull_codec": "int8", "zstd": "on"}),
        (["--chunk-bytes", "1M", "--window", "3"], {"chunk_bytes": 1 << 20, "window": 3}),
        (["--optimizer", "adam"], {"optimizer": optimizers.Adam()}),
        (["--aggregate", "krum:1"], {"aggregate": "krum:1"}),
        (["--mode", "async"], {"staleness": None}),
        (["--mode", "ssp"], {"staleness": 3}),
        (["--mode", "ssp", "--staleness", "7"], {"staleness": 7}),
    ],
)  # fmt: skip
def test_what_is_given(argv, found):
    assert arguments_of(*argv) == {**ALWAYS, **found}


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--staleness", "2"], "--staleness is for --mode ssp, got --mode sync"),
        (["--optimizer", "adm"], "unknown optimizer 'adm'; did you mean 'adam'"),
        (["--codec", "int9"], "unknown codec 'int9'"),
        (["--chunk-bytes", "8"], "chunk_bytes must be from 64"),
        (["--servers", "0"], "argument --servers: expected a count of at least 1"),
        (["--mode", "later"], "argument --mode: invalid choice: 'later'"),
    ],
)
def test_mistakes(argv, error):
    with pytest.raises(ConfigError, match=error):
        arguments_of(*argv)


def test_some_can_be_left_out():
    with pytest.raises(ConfigError, match="unrecognized arguments: --window"):
        arguments_of("--window", "3", leave_out=["--window"])
    assert "window" not in arguments_of(leave_out=["--window"])
