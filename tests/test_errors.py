"""The exception tree: exit statuses, what catches what, and the text for a misspelt name."""

from __future__ import annotations

import doctest
import inspect

import pytest

from psgrad import errors
from psgrad.errors import PsgradError, unknown_name

TREE = {
    "ConfigError": (2, ValueError),
    "DataError": (2, ValueError),
    "LayoutError": (2, ValueError),
    "NonFiniteError": (1, ArithmeticError),
    "CheckpointError": (1, PsgradError),
    "RankLostError": (1, PsgradError),
    "FencedError": (1, PsgradError),
    "Preempted": (75, PsgradError),
    "NotSavedError": (1, errors.Preempted),
    "StalledError": (1, PsgradError),
    "WireError": (1, PsgradError),
    "ProtocolError": (1, PsgradError),
    "LaunchError": (2, PsgradError),
}


def test_the_tree_is_whole():
    kinds = {
        name
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, PsgradError) and kind is not PsgradError
    }
    assert kinds == TREE.keys()
    for name, (status, _) in TREE.items():
        line = next(line for line in errors.__doc__.splitlines() if f" {name}" in line)
        assert line.rstrip().endswith(str(status))


@pytest.mark.parametrize("name", TREE)
def test_each_is_caught_as_what_it_is(name):
    kind, (status, python) = getattr(errors, name), TREE[name]
    error = kind("text")
    assert isinstance(error, PsgradError)
    assert isinstance(error, python)
    assert (error.exit_status, str(error), error.spokesman) == (status, "text", None)


def test_the_root_ends_a_program_with_1():
    assert PsgradError("text").exit_status == 1


def test_a_spokesman_is_of_one_error_alone():
    error = PsgradError("text")
    error.spokesman = True
    assert PsgradError("text").spokesman is None


@pytest.mark.parametrize(
    ("name", "known", "text"),
    [
        ("adm", ["sgd", "adam"], "unknown kind 'adm'; did you mean 'adam'? Known: adam, sgd"),
        ("xyz", ["sgd", "adam"], "unknown kind 'xyz'. Known: adam, sgd"),
        ("", ["sgd"], "unknown kind ''. Known: sgd"),
        (7, ["sgd"], "unknown kind 7. Known: sgd"),
        ("stepp", {"step": 1, "steps": 2}, "unknown kind 'stepp'; did you mean 'step' or 'steps'? "
                                           "Known: step, steps"),
    ],
)  # fmt: skip
def test_an_unknown_name(name, known, text):
    assert unknown_name("kind", name, known) == text


def test_the_example_in_the_docstring():
    assert doctest.testmod(errors).failed == 0
