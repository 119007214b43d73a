"""Speed-up from 1 to 4 workers, measured here, and the cost model's continuation to 1024.

``benchmarks/scaling.py --out benchmarks/results/scaling.json --plot docs/scaling.png``

Weak scaling in sync mode: every worker has a batch of its own, of one size, so that W workers have
W times the samples in a step. Efficiency is the throughput of W workers over W times that of one
process that computes the same gradients alone. The model takes what messages and arithmetic cost
from a calibration on this machine, and gives each rank a core of its own and each node a link.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from psgrad.arguments import count, output  # noqa: E402
from psgrad.bench.machine import describe  # noqa: E402
from psgrad.bench.plots import check, pyplot  # noqa: E402
from psgrad.errors import PsgradError  # noqa: E402
from psgrad.scale.calibrate import calibrate  # noqa: E402
from psgrad.scale.study import Options, play_row  # noqa: E402

MEASURED = (1, 2, 3, 4)
MODELLED = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SERVERS = 16
BANDWIDTH = 3.125e9  # bytes a second of a link: 25 Gb/s
PATIENCE_S = 300.0


def measured(workers: int, width: int, batch: int, steps: int) -> dict[str, Any]:
    """The figures of one run on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        sizes = [str(number) for number in (width, batch, steps)]
        program = [str(HERE / "scaling_step.py"), *sizes, str(out)]
        command = [sys.executable, "-m", "psgrad", "run", "--np", str(workers + 1), "--", *program]
        subprocess.run(command, check=True, timeout=PATIENCE_S)
        record: dict[str, Any] = json.loads(out.read_text())
    return record


def measure(width: int, batch: int, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Each number of workers in turn, ``rounds`` times; medians of the rounds' medians."""
    found: dict[int, list[dict[str, Any]]] = {workers: [] for workers in MEASURED}
    for _ in range(rounds):
        for workers in MEASURED:
            found[workers].append(measured(workers, width, batch, steps))
    alone = median(median(run["compute_s"]) for runs in found.values() for run in runs)
    rows = []
    for workers, runs in found.items():
        seconds = [median(run["step_s"]) for run in runs]
        rows.append(
            {
                "workers": workers,
                "parameters": runs[0]["parameters"],
                "compute_s": alone,
                "step_s": median(seconds),
                "least_s": min(seconds),
                "most_s": max(seconds),
                "samples_per_s": workers * batch / median(seconds),
                "speed_up": workers * alone / median(seconds),
                "efficiency": alone / median(seconds),
            }
        )
    return rows


def model(parameters: int, compute_s: float, batch: int) -> list[dict[str, Any]]:
    """The same for up to 1024 workers, by the cost model."""
    machine, _ = calibrate(["none"], os.environ, 5, lambda _: None)
    options = Options(
        workers=MODELLED,
        servers=SERVERS,
        params=parameters,
        batch=batch,
        bandwidth=BANDWIDTH,
        pace=f"constant:seconds={compute_s:.6f}",
    )
    rows = []
    for workers in MODELLED:
        row = play_row(options, machine, ("none", "none"), workers, 0)
        step_s = row.figures.step_s
        rows.append(
            {
                "workers": workers,
                "step_s": step_s,
                "samples_per_s": workers * batch / step_s,
                "speed_up": workers * compute_s / step_s,
                "efficiency": compute_s / step_s,
            }
        )
    return rows


def table(record: dict[str, Any]) -> str:
    """Both parts for a person."""
    lines = [
        f"{'':10}{'workers':>8}{'step ms':>10}{'samples/s':>12}{'speed-up':>10}{'efficiency':>12}"
    ]
    for name in ("measured", "model"):
        lines += [
            f"{name:10}{row['workers']:8}{1e3 * row['step_s']:10.2f}{row['samples_per_s']:12.0f}"
            f"{row['speed_up']:10.2f}{100 * row['efficiency']:11.0f}%"
            for row in record[name]
        ]
    return "\n".join(lines)


def plot(record: dict[str, Any], path: Path) -> None:
    """Speed-up and efficiency against workers; what is measured is marked."""
    figure, axes = pyplot().subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    cores = record["machine"]["cores"]
    for axis, key, factor, label in (
        (axes[0], "speed_up", 1, "speed-up over one process"),
        (axes[1], "efficiency", 100, "efficiency in %"),
    ):
        rows = record["model"]
        axis.plot(
            [r["workers"] for r in rows], [factor * r[key] for r in rows], "--", color="tab:gray",
            marker=".", label=f"model: a core each, 25 Gb/s, {SERVERS} servers",
        )  # fmt: skip
        rows = record["measured"]
        axis.plot(
            [r["workers"] for r in rows],
            [factor * r[key] for r in rows],
            "o-",
            color="tab:blue",
            label=f"measured: {cores} cores for all ranks, 1 server",
        )
        axis.axvspan(0.8, max(MEASURED) * 1.15, color="tab:blue", alpha=0.08)
        axis.set(xscale="log", xlabel="workers", ylabel=label, xlim=(0.8, 1300))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_yscale("log")
    axes[0].plot(MODELLED, MODELLED, ":", color="black", linewidth=1)
    axes[1].set_ylim(0, 105)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measures, plays the model, and writes both down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=count, default=512, help="of two hidden layers (512)")
    parser.add_argument("--batch", type=count, default=512, help="samples of a worker's step (512)")
    parser.add_argument("--steps", type=count, default=30, help="of each run (30)")
    parser.add_argument(
        "--rounds", type=count, default=5, help="runs of each number of workers (5)"
    )
    parser.add_argument("--out", type=output, help="write the figures to this JSON file")
    parser.add_argument("--plot", type=output, help="draw them to this PNG")
    a = parser.parse_args()
    if a.plot:
        check(str(a.plot))
    rows = measure(a.width, a.batch, a.steps, a.rounds)
    record = {
        "date": date.today().isoformat(),
        "machine": describe(mpi=True),
        "width": a.width,
        "batch": a.batch,
        "measured": rows,
        "model": model(rows[0]["parameters"], rows[0]["compute_s"], a.batch),
    }
    print(table(record))
    if a.plot:
        plot(record, a.plot)
    if a.out:
        a.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except PsgradError as error:
        sys.exit(f"benchmarks/scaling.py: {error}")
