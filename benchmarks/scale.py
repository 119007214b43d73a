"""The cost model, measured: ``benchmarks/scale.py --out benchmarks/results/scale.json``.

The time and memory of 4096 workers and 64 servers, how far the model is from the event simulator
and from closed forms, calibration on this machine, and the pictures of docs/scale.rst.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from scale_events import timelines  # noqa: E402

from psgrad.arguments import output  # noqa: E402
from psgrad.pace import Constant, Exponential, Pace, Pareto  # noqa: E402
from psgrad.scale.calibrate import calibrate, report  # noqa: E402
from psgrad.scale.figures import Figures  # noqa: E402
from psgrad.scale.flow import play  # noqa: E402
from psgrad.scale.machine import TYPICAL  # noqa: E402
from psgrad.scale.model import Case  # noqa: E402
from psgrad.scale.study import Options, play_row, simulate  # noqa: E402
from psgrad.transport.network import Network  # noqa: E402

MODES = {"sync": 0, "ssp(3)": 3, "async": None}
LARGEST = {
    "exponential": "exponential:mean=0.1",
    "pareto": "pareto:mean=0.1,alpha=1.5",
}
PICTURE = Options(
    workers=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    servers=16,
    chunk_bytes=1 << 20,
    bandwidth=3.125e9,
    codec="topk:0.01",
    pull_codec="int8",
    plot=str(ROOT / "docs" / "scale-workers.png"),
)
STRAGGLERS = Options(
    workers=(64,),
    servers=16,
    chunk_bytes=1 << 20,
    bandwidth=3.125e9,
    pace="pareto:mean=0.1,alpha=1.5",
    steps=200,
    plot_bounds=str(ROOT / "docs" / "scale-staleness.png"),
)


def largest(mode: str, pace: str) -> dict[str, Any]:
    """One run with as many workers and servers as there may be, of 100 steps, in this process."""
    options = Options(workers=(4096,), servers=64, chunk_bytes=1 << 20, pace=LARGEST[pace])
    start = time.process_time()
    row = play_row(options, TYPICAL, ("none", "none"), 4096, MODES[mode])
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    return {"mode": mode, "pace": pace, "seconds": seconds, "peak_gib": peak, "row": row.record()}


def largest_runs() -> list[dict[str, Any]]:
    """All of them, each in a process of its own."""
    records = []
    for mode, pace in itertools.product(MODES, LARGEST):
        command = [sys.executable, __file__, "--largest", mode, pace]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        records.append(json.loads(done.stdout))
        r = records[-1]
        print(f"4096 x 64 x 100, {mode}, {pace}: {r['seconds']:.1f} s, {r['peak_gib']:.2f} GiB")
    return records


def agreement() -> dict[str, Any]:
    """Relative differences to the event simulator in the time of a step, up to 16 workers."""
    networks = {
        "10 Gb/s, 20 us": Network(20e-6, 1.25e9),
        "20 MB/s, 100 us": Network(1e-4, 2e7),
        "links slower than NICs": Network(5e-5, 2e7, nic_bandwidth=5e7),
    }
    paces: dict[str, Pace] = {
        "constant": Constant(1e-3),
        "none": Constant(0.0),
        "exponential": Exponential(1e-3, 3),
        "pareto": Pareto(1e-3, 1.5, 3),
    }
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    for network, pace, workers, servers, chunk_bytes in itertools.product(
        networks.values(), paces.values(), (1, 2, 4, 8, 16), (1, 2, 4), (1024, 4096)
    ):
        for mode, bound in MODES.items():
            case = Case(
                workers, servers, 4000, chunk_bytes, bound, 4, 12, pace=pace, network=network
            )
            model, events = (Figures.of(timeline) for timeline in timelines(case))
            found[mode].append(abs(model.step_s / events.step_s - 1))
    result = {
        mode: {"cases": len(errors), "median": median(errors), "most": max(errors)}
        for mode, errors in found.items()
    }
    print("differences to the event simulator:", json.dumps(result))
    return result


def harmonic() -> list[dict[str, float]]:
    """The time of a synchronous step with exponential times over the mean times H_W, less 1."""
    records = []
    for workers in (2, 10, 50, 250):
        pace, network = Exponential(1.0, 1), Network(0.0, math.inf)
        figures = Figures.of(play(Case(workers, n=64, steps=2000, pace=pace, network=network)))
        expected = sum(1 / k for k in range(1, workers + 1))
        records.append({"workers": workers, "error": figures.step_s / expected - 1})
    print("exponential times, against H_W:", json.dumps(records))
    return records


def calibration(rounds: int) -> dict[str, Any]:
    """Predictions of steps on this machine against what happens."""
    machine, predictions = calibrate(["none"], os.environ, rounds, print)
    print(report(machine, predictions))
    return {
        "machine": asdict(machine),
        "predictions": [asdict(p) | {"error": p.error} for p in predictions],
    }


def main() -> None:
    """Measures what is asked for and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=output, help="write the figures to this JSON file")
    parser.add_argument("--rounds", type=int, default=10, help="of calibration; 0: none")
    parser.add_argument("--largest", nargs=2, metavar=("MODE", "PACE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.largest:
        print(json.dumps(largest(*arguments.largest)))
        return
    record: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "largest": largest_runs(),
        "agreement": agreement(),
        "harmonic": harmonic(),
    }
    if arguments.rounds:
        record["calibration"] = calibration(arguments.rounds)
    for options in (PICTURE, STRAGGLERS):
        simulate(options, os.environ)
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
