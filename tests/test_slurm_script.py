"""What is read out of a batch script."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgrad.slurm.check import check
from psgrad.slurm.finding import Site
from psgrad.slurm.script import expand, parse
from psgrad.slurm.words import SHORT, option, options, seconds


@pytest.mark.parametrize(
    ("text", "limit_s"),
    [
        ("30", 1800), ("30:15", 1815), ("02:00:00", 7200), ("1-0", 86400), ("1-2", 93600),
        ("1-02:30", 95400), ("1-00:00:01", 86401), ("0", 0),
        ("UNLIMITED", None), ("", None), ("1:2:3:4", None), ("-5", None), ("1h", None),
    ],
)  # fmt: skip
def test_time_limits(text, limit_s):
    assert seconds(text) == limit_s


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--nodes=2 --time 5", [("nodes", "2"), ("time", "5")]),
        ("-N2 -n 4 -t=5", [("nodes", "2"), ("ntasks", "4"), ("time", "5")]),
        ("--requeue --exclusive -p x", [("requeue", ""), ("exclusive", ""), ("partition", "x")]),
        ("--requeue x", [("requeue", "")]),
        ("--mem", [("mem", "")]),
        ("-- x", []),
    ],
)
def test_options(words, found):
    assert list(options(words.split(), SHORT)) == found


@pytest.mark.parametrize(
    ("words", "value"),
    [("-n 4", "4"), ("-n4", "4"), ("--np=4", "4"), ("--np 4 -n 5", "5"), ("--npx 4", None),
     ("-n", ""), ("", None)],
)  # fmt: skip
def test_option(words, value):
    assert option(words.split(), "-n", "--np") == value


def test_expand():
    known = {"a": "1", "bc": "2"}
    assert expand("$a ${bc} $abc ${a}x $d $1", known) == "1 2 $abc 1x $d $1"


def test_options_end_where_commands_begin():
    script = parse("#!/bin/sh\n#SBATCH -N 2\n\n# x\n#SBATCH -n 3\nexport A=1\n#SBATCH -n 9\n")
    assert [(o.name, o.value, o.line) for o in script.options] == [
        ("nodes", "2", 2),
        ("ntasks", "3", 5),
    ]
    assert script.late == (7,)


def test_groups_have_their_own_options():
    script = parse("#!/bin/sh\n#SBATCH -n 1\n#SBATCH hetjob\n#SBATCH -n 3\n")
    assert (script.groups, script.number("ntasks", 0), script.number("ntasks", 1)) == (2, 1, 3)


@pytest.mark.parametrize(
    ("line", "launcher", "run", "train"),
    [
        ("psgrad run", "", "", ""),
        ("psgrad run --np 4 -- --mode sync", "", "--np 4", "--mode sync"),
        (
            "bin/psgrad run --launcher 'srun -x' -- a.toml",
            "srun -x",
            "--launcher srun_-x",
            "a.toml",
        ),
        ("srun -n 4 psgrad train a.toml", "srun -n 4", None, "a.toml"),
        ("time mpirun -n 4 python3 -m psgrad train", "mpirun -n 4", None, ""),
        ("A=1 B=2 /x/mpiexec psgrad train --x", "/x/mpiexec", None, "--x"),
        ("l='srun -a'; $l psgrad train", "srun -a", None, ""),
        ("psgrad train", "", None, ""),
    ],
)
def test_what_starts_psgrad(line, launcher, run, train):
    (start,) = parse(f"#!/bin/sh\n{line}\n").starts
    assert " ".join(start.launcher) == launcher
    words = None if run is None else tuple(word.replace("_", " ") for word in run.split())
    assert start.run == words
    assert " ".join(start.train) == train


@pytest.mark.parametrize(
    "line",
    ["srun hostname", "echo psgrad run", "psgrad doctor", "# psgrad run", "python my.py", ""],
)
def test_what_does_not_start_psgrad(line):
    assert parse(f"#!/bin/sh\n{line}\n").starts == []


def test_a_command_over_several_lines_has_the_number_of_the_first():
    (start,) = parse("#!/bin/sh\n\npsgrad run \\\n  --np 4 \\\n  -- x &\n").starts
    assert (start.command.line, start.run, start.train) == (3, ("--np", "4"), ("x",))
    assert start.command.background


@given(st.text(alphabet="#SBATCH srunpgad\\\n\"'$(){}=-&;|<>%0 \r\t", max_size=200))
def test_any_text_is_looked_through(text):
    for finding in check(text, Site("mpich")):
        assert 1 <= finding.line <= max(1, len(text.splitlines()))
