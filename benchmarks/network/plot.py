"""The picture of a record: the time of a step beside what the wire allows, and accuracy by time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from network.figures import Row, in_bits
from psgrad.bench.plots import pyplot

SMALLEST_S: Final = 1e-4
LOOK: Final = (0.78, 0.98)  # where the curves differ


def plot(rows: list[Row], path: Path) -> None:
    """Draws what ``rows`` have. A curve is that of one run, at the step time of each rate."""
    rates = list(dict.fromkeys(row.rate for row in rows))
    ways = list(dict.fromkeys(row.way for row in rows))
    curves = {row.way: row.curve for row in rows if row.curve}
    panels = 1 + (len(rates) if curves else 0)
    figure, axes = pyplot().subplots(
        1, panels, figsize=(4.6 * panels, 4.4), layout="constrained", squeeze=False
    )
    _bars(axes[0][0], rows, rates, ways)
    for axis, rate in zip(axes[0][1:], rates, strict=False):
        for i, way in enumerate(ways):
            row = next((r for r in rows if r.rate == rate and r.way == way), None)
            if row is None or way not in curves:
                continue
            seconds = [step * row.median_s for step, _ in curves[way]]
            axis.plot(seconds, [a for _, a in curves[way]], color=f"C{i}", label=way, linewidth=1.2)
        axis.set(xscale="log", xlabel="seconds of steps", ylabel="test accuracy", ylim=LOOK)
        axis.set_title(f"{in_bits(rate)}/s")
        axis.grid(alpha=0.3, which="both")
        if axis.lines:
            axis.legend(fontsize="small", loc="lower right")
    figure.savefig(path, dpi=120)


def _bars(axis: Any, rows: list[Row], rates: list[int], ways: list[str]) -> None:
    """Step times on a logarithmic scale, a group for each way; a black line is the wire's floor."""
    height = 0.8 / len(rates)
    for j, rate in enumerate(rates):
        for i, way in enumerate(ways):
            row = next((r for r in rows if r.rate == rate and r.way == way), None)
            if row is None:
                continue
            y = i + (j - (len(rates) - 1) / 2) * height
            spread = [[row.median_s - row.least_s], [row.most_s - row.median_s]]
            axis.barh(y, row.median_s, height, xerr=spread, color=f"C{j}", alpha=0.6)
            floor = max(row.floor_s, SMALLEST_S)
            axis.plot([floor, floor], [y - height / 2, y + height / 2], "k-", linewidth=2)
    axis.set(xscale="log", xlabel="seconds a step (black: the wire alone)")
    axis.set_yticks(range(len(ways)), ways)
    axis.invert_yaxis()
    for j, rate in enumerate(rates):
        axis.plot([], [], "s", color=f"C{j}", alpha=0.6, label=f"{in_bits(rate)}/s")
    axis.legend(fontsize="small", loc="lower right")
    axis.grid(alpha=0.3, axis="x", which="both")
