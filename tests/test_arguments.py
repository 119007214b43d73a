"""Values on command lines, and errors that are one line."""

from __future__ import annotations

import argparse

import pytest

from psgrad.arguments import Parser, count, is_rank, output, size, sizes
from psgrad.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("4096", 4096), ("4K", 4096), ("64k", 65536), ("16M", 16 << 20), ("2G", 2 << 30)],
)
def test_counts(text, value):
    assert count(text) == value


@pytest.mark.parametrize("text", ["0", "0K", "1x", "", "K", "-3", "1.5M", "4 K", "²", "1_000"])
def test_counts_that_cannot_be(text):
    with pytest.raises(argparse.ArgumentTypeError, match="a count of at least 1, such as 4096"):
        count(text)


def test_sizes_are_bytes_of_float32():
    assert size("4") == 4
    assert sizes("4K, 64M,4K,12") == (4096, 64 << 20, 12)
    with pytest.raises(argparse.ArgumentTypeError, match=r"a multiple of 4 such as 4K .* got '6'"):
        sizes("4K,6")


def test_a_file_to_write_needs_its_folder(tmp_path):
    assert output("out.json").name == "out.json"
    assert output(str(tmp_path / "out.json")) == tmp_path / "out.json"
    lost = tmp_path / "lost"
    with pytest.raises(argparse.ArgumentTypeError, match=f"there is no folder {lost}; make it"):
        output(str(lost / "out.json"))
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{tmp_path}' is no name of a file"):
        output(str(tmp_path))
    with pytest.raises(argparse.ArgumentTypeError, match="'' is no name of a file"):
        output("")


def test_a_mistake_is_an_error_of_one_line():
    parser = Parser(prog="psgrad thing")
    parser.add_argument("--n", type=count)
    with pytest.raises(ConfigError, match=r"^argument --n: .* got 'x'; see psgrad thing --help$"):
        parser.parse_args(["--n", "x"])


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"SLURM_PROCID": "0"}, False),  # a batch script has it, too
        ({"OMPI_COMM_WORLD_RANK": "0"}, True),
        ({"PMIX_RANK": "3"}, True),
        ({"PMI_RANK": "1"}, True),
    ],
)
def test_ranks_know_that_they_are(environ, expected):
    assert is_rank(environ) is expected
