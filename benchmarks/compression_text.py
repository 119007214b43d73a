"""Loss curves on real text: ``benchmarks/compression_text.py TEXT.txt --plot docs/loss.png``.

A character-level MLP (8 characters in, the next one out) with 3 workers in sync mode, with float32
gradients and with four codecs; the training loss of worker 0, smoothed over 50 steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CODECS = ("none", "topk:0.01", "int8", "int4", "sign")
SMOOTH = 50  # steps


def curve(text: Path, codec: str, epochs: int) -> tuple[list[float], float]:
    """Worker 0's loss at each step, and the accuracy on the test part."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "psgrad", "run", "--np", "4", "--", "--dataset", str(text),
                   "--set", "model.hidden=[256]", "--mode", "sync", "--codec", codec,
                   "--optimizer", "sgd", "--learning-rate", "0.5", "--batch-size", "128",
                   "--epochs", str(epochs), "--run-dir", str(run),
                   "--progress", "off"]  # fmt: skip
        subprocess.run(command, capture_output=True, timeout=1200, check=True)
        lines = (run / "metrics.jsonl").read_text().splitlines()
        accuracy = json.loads((run / "summary.json").read_text())["test_accuracy"]
    records = [json.loads(line) for line in lines]
    return [r["loss"] for r in records if r["kind"] == "step"], accuracy


def main() -> None:
    """Trains with each codec, prints where it ends, and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--plot", type=Path, default=Path("loss.png"))
    arguments = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for codec in CODECS:
        losses, accuracy = curve(arguments.text, codec, arguments.epochs)
        smooth = np.convolve(losses, np.ones(SMOOTH) / SMOOTH, mode="valid")
        name = "float32" if codec == "none" else codec
        axes.plot(np.arange(SMOOTH, len(losses) + 1), smooth, label=name, linewidth=1.2)
        print(f"{name:12} loss {smooth[-1]:.4f}, test accuracy {accuracy:.4f}", flush=True)
    axes.set(xlabel="step of worker 0", ylabel="training loss", title="Compressed gradients")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(arguments.plot, dpi=120)


if __name__ == "__main__":
    main()
