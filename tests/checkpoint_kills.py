"""Writes a second checkpoint beside a first one, again and again, and is killed at each call.

``python checkpoint_kills.py FOLDER`` leaves FOLDER/CASE-MODE-N, where a process was killed at its
N-th call, and prints how many calls each case makes: those of FOLDER/CASE-MODE-done.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from checkpoint_files import save
from system_calls import Calls

# Case -> (steps there before, step, keep). The last one's content has another mode.
CASES = {
    "another": ((100,), 200, 2),
    "the only one": ((100,), 200, 1),
    "prunes two": ((100, 200, 300), 400, 2),
    "replaces": ((100, 200), 200, 2),
    "replaces the only one": ((100,), 100, 1),
}
# How it dies: before the call; half-way through a write; with the power, so that what was not
# synced is lost.
MODES = {"killed": {}, "half": {"half": True}, "lossy": {"lossy": True}}


def attempt(folder, case, at, options):
    """Whether the second checkpoint was written to the end; the number of calls if it was."""
    before, step, keep = CASES[case]
    with Calls():
        for one in before:
            save(folder, one, keep=9, mode="before")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with Calls(at, **options) as calls:
            save(folder, step, keep, mode="after")
        os.write(write, b"%d" % len(calls.log))
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    said = os.read(read, 99)
    os.close(read)
    assert os.WIFSIGNALED(status) != bool(said), status
    return int(said) if said else None


def main(folder):
    counts = {}
    for case in CASES:
        for mode, options in MODES.items():
            at, count = 0, None
            while count is None:
                at += 1
                # The name is only known afterwards.
                path = folder / f"{case}-{mode}-{at}"
                count = attempt(path, case, at, options)
            path.rename(folder / f"{case}-{mode}-done")
            counts[f"{case}-{mode}"] = count
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
