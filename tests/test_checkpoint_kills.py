"""A writer that is killed at any of its calls leaves a checkpoint that is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import content_of, save
from checkpoint_kills import CASES, MODES

from psgrad.checkpoint import Store, newest, verify

SCRIPT = Path(__file__).with_name("checkpoint_kills.py")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """(The folder of all folders, calls of each case and mode)."""
    folder = tmp_path_factory.mktemp("kills")
    paths = [str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")]
    # One thread: the script forks.
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], env=environ, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_there_is_a_whole_one_after_each(killed, case, mode):
    everything, counts = killed
    before, step, keep = CASES[case]
    calls = counts[f"{case}-{mode}"]
    assert calls > 20
    seen = []
    for name in [*range(1, calls + 1), "done"]:
        folder = everything / f"{case}-{mode}-{name}"
        checkpoint, skipped = newest(folder)
        which = checkpoint.manifest.state["mode"]
        assert skipped == []
        assert content_of(checkpoint) == (step if which == "after" else before[-1])
        seen.append(which)

        # The next run tidies up, may still read the same one, and goes on.
        Store(folder, keep).prepare()
        left = sorted(path.name for path in folder.iterdir())
        assert {name.removesuffix(".old")[:8] for name in left} == {"step-000"}, left
        assert content_of(checkpoint) == checkpoint.manifest.step
        again, _ = newest(folder)
        assert (content_of(again), again.manifest.state["mode"]) == (
            checkpoint.manifest.step,
            which,
        )
        save(folder, 900, keep)
        for path in folder.iterdir():
            verify(path)
        assert len(list(folder.iterdir())) == min(keep, len(left) + 1)
    # From some call on it is the new one, and never again the old one.
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {"before", "after"}
    assert seen[-1] == "after"
