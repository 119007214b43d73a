"""Accuracy with compressed gradients against float32: ``benchmarks/compression_accuracy.py``.

An MLP of 200,650 parameters on the bundled digits, 3 workers, SGD, five seeds. For each mode and
codec: the mean test accuracy with its range, and how many times fewer bytes were pushed.
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
          ("int4", "none"), ("sign", "none"), ("none", "int8"), ("int8", "int8")]  # fmt: skip


def train(mode: str, codec: str, pull_codec: str, seed: int) -> dict[str, Any]:
    """The summary of one run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "psgrad", "run", "--np", "4", "--", *RUN, "--json",
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
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    rows = []
    print(f"{'mode':6}{'codec':16}{'pull':6}{'accuracy':>9}{'range':>16}{'pushed':>9}{'pulled':>8}")
    for mode in ("sync", "ssp", "async"):
        for codec, pull_codec in CODECS:
            runs = [train(mode, codec, pull_codec, 1 + i) for i in range(arguments.seeds)]
            accuracy = [run["test_accuracy"] for run in runs]
            dense = 4 * 200_650 * mean(run["steps"] for run in runs)
            row = {
                "mode": mode,
                "codec": codec,
                "pull_codec": pull_codec,
                "accuracy": accuracy,
                "pushed_times_fewer": dense / mean(run["bytes_pushed"] for run in runs),
                "pulled_times_fewer": dense / mean(run["bytes_pulled"] for run in runs),
            }
            rows.append(row)
            print(
                f"{mode:6}{codec:16}{pull_codec:6}{mean(accuracy):9.4f}"
                f"   {min(accuracy):.4f}-{max(accuracy):.4f}"
                f"{row['pushed_times_fewer']:8.1f}x{row['pulled_times_fewer']:7.1f}x",
                flush=True,
            )
    if arguments.out:
        machine = {"date": str(date.today()), "cpu": platform.processor() or platform.machine()}
        arguments.out.write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
