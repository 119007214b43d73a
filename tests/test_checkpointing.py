"""What a run may be told about checkpoints."""

from __future__ import annotations

import re

import pytest

from psgrad.checkpointing import CheckpointOptions
from psgrad.cuts import Every
from psgrad.errors import ConfigError


def test_the_default_is_none():
    options = CheckpointOptions()
    assert not options.every
    assert (options.folder, options.keep, options.resume) == ("", 2, "")


def test_as_given():
    options = CheckpointOptions("there", "60s", 5, "auto")
    assert options.every == Every(seconds=60.0)
    assert (options.folder, options.keep, options.resume) == ("there", 5, "auto")
    assert options == CheckpointOptions("there", "60s", 5, "auto")


@pytest.mark.parametrize("resume", ["runs/1/checkpoints", "runs/1/checkpoints/step-00000007"])
def test_a_run_may_go_on_and_make_none_itself(resume):
    assert not CheckpointOptions(resume=resume).every


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"folder": 7}, "checkpoint_dir must be a string, got 7"),
        ({"folder": None}, "checkpoint_dir must be a string, got None"),
        ({"spec": 500}, "checkpoint_every must be a string, got 500"),
        ({"resume": True}, "resume must be a string, got True"),
        ({"folder": "x", "spec": "0"}, "checkpoint_every must be a number of steps of at least 1"),
        ({"folder": "x", "spec": "5x"}, "or of seconds, such as 600s, got '5x'"),
        ({"keep": 0}, "checkpoint_keep must be at least 1, got 0"),
        ({"keep": -3}, "checkpoint_keep must be at least 1, got -3"),
        ({"keep": 1.5}, "checkpoint_keep must be at least 1, got 1.5"),
        ({"keep": "2"}, "checkpoint_keep must be at least 1, got '2'"),
        ({"keep": None}, "checkpoint_keep must be at least 1, got None"),
        ({"spec": "500"}, "checkpoint_every needs checkpoint_dir, a folder to write them to"),
        ({"resume": "auto"}, "resume auto needs checkpoint_dir, the folder to look in"),
    ],
)
def test_what_cannot_be(fields, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        CheckpointOptions(**fields)
