"""Accuracy with compressed gradients against float32: ``benchmarks/compression_accuracy.py``.

An MLP of 200,650 parameters on the bundled digits, 3 workers, SGD, five seeds. For each mode and
codec: the mean test accuracy with its range, and how many times fewer bytes were pushed. Over MPI,
or with ``--simulate`` in the simulator, where a run follows from its seed.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

RUN = ["--model", "mlp", "--set", "model.hidden=[512,320]", "--dataset", "digits",
       "--optimizer", "sgd", "--learning-rate", "0.2", "--epochs", "30"]  # fmt: skip
CODECS = [("none", "none"), ("topk:0.01", "none"), ("topk:0.01+int8", "none"), ("int8", "none"),
          ("int4", "none"), ("sign", "none"), ("none", "int8"), ("int8", "int8"),
          ("topk:0.01", "topk:0.02"), ("topk:0.01+int8", "topk:0.02+int8"),
          ("topk:0.01,scope=global", "none"), ("topk:0.01,select=threshold", "none"),
          ("adaptive", "none")]  # fmt: skip
CARRIERS = {
    False: ["run", "--np", "4", "--"],
    True: ["train", "--pace", "exponential:mean=0.01", "--simulate"],
}


def train(mode: str, codec: str, pull_codec: str, seed: int, simulate: bool) -> dict[str, Any]:
    """The summary of one run."""
    start = [*CARRIERS[simulate], *([f"workers=3,seed={seed}"] if simulate else [])]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "psgrad", *start, *RUN, "--json",
                   "--mode", mode, "--codec", codec, "--pull-codec", pull_codec,
                   "--seed", str(seed), "--run-dir", f"{folder}/run",
                   "--progress", "off"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def main() -> None:
    """Runs everything and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--simulate", action="store_true", help="in the simulator, without MPI")
    parser.add_argument("--codec", action="append", help="only these codecs of pushes")
    parser.add_argument("--pull-codec", action="append", help="only these codecs of pulls")
    parser.add_argument("--out", type=Path, help="put the figures into this JSON file")
    arguments = parser.parse_args()
    rows = []
    print(
        f"{'mode':6}{'codec':27}{'pull':15}{'accuracy':>9}{'range':>16}{'pushed':>9}{'pulled':>8}"
    )
    for mode in ("sync", "ssp", "async"):
        for codec, pull_codec in CODECS:
            if codec not in (arguments.codec or [codec]):
                continue
            if pull_codec not in (arguments.pull_codec or [pull_codec]):
                continue
            runs = [
                train(mode, codec, pull_codec, 1 + i, arguments.simulate)
                for i in range(arguments.seeds)
            ]
            accuracy = [run["test_accuracy"] for run in runs]
            dense = 4 * 200_650 * mean(run["steps"] for run in runs)
            row = {
                "carrier": "simulated" if arguments.simulate else "mpi",
                "mode": mode,
                "codec": codec,
                "pull_codec": pull_codec,
                "accuracy": accuracy,
                "pushed_times_fewer": dense / mean(run["bytes_pushed"] for run in runs),
                "pulled_times_fewer": dense / mean(run["bytes_pulled"] for run in runs),
            }
            rows.append(row)
            print(
                f"{mode:6}{codec:27}{pull_codec:15}{mean(accuracy):9.4f}"
                f"   {min(accuracy):.4f}-{max(accuracy):.4f}"
                f"{row['pushed_times_fewer']:8.1f}x{row['pulled_times_fewer']:7.1f}x",
                flush=True,
            )
    if arguments.out:
        save(arguments.out, rows)


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """Puts ``rows`` into the file, in the place of those with the same name."""
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    names = ("carrier", "mode", "codec", "pull_codec")
    new = {tuple(row.get(name, "mpi") for name in names) for row in rows}
    kept = [row for row in known if tuple(row.get(name, "mpi") for name in names) not in new]
    machine = {"date": str(date.today()), "cpu": platform.processor() or platform.machine()}
    path.write_text(json.dumps({**machine, "rows": kept + rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
