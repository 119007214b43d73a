"""Pictures of the cost model's figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psgrad.bench.plots import pyplot
from psgrad.scale.rows import Row

COLOURS = {"sync": "tab:blue", "async": "tab:red"}  # ssp: what is left
STYLES = ("-", "--", ":")


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Throughput, efficiency and server load against workers, and the spread of staleness.

    Raises ``ConfigError`` without matplotlib.
    """
    figure, axes = pyplot().subplots(2, 2, figsize=(11, 8), layout="constrained")
    codecs = list(dict.fromkeys(row.codec for row in rows))
    modes = list(dict.fromkeys(row.figures.mode for row in rows))
    for codec in codecs:
        for mode in modes:
            some = [r.figures for r in rows if (r.codec, r.figures.mode) == (codec, mode)]
            look = {
                "color": COLOURS.get(mode, "tab:green"),
                "linestyle": STYLES[codecs.index(codec) % len(STYLES)],
                "marker": ".",
                "label": mode if len(codecs) == 1 else f"{mode}, {codec}",
            }
            workers = [f.workers for f in some]
            axes[0, 0].plot(workers, [f.throughput for f in some], **look)
            axes[0, 1].plot(workers, [100 * f.efficiency for f in some], **look)
            axes[1, 1].plot(workers, [100 * f.load for f in some], **look)
    names = (("steps a second, all workers", "efficiency in %"), ("", "busiest server's load in %"))
    for (i, j), axis in np.ndenumerate(axes):
        if (i, j) != (1, 0):
            axis.set(xscale="log", xlabel="workers", ylabel=names[i][j])
        axis.grid(alpha=0.3)
    axes[0, 0].set_yscale("log")
    axes[0, 0].legend(fontsize=8)
    axes[0, 1].set_ylim(0, 105)
    axes[1, 1].set_ylim(0, 105)
    _plot_staleness(axes[1, 0], [row for row in rows if row.codec == codecs[0]])
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _plot_staleness(axis: Any, rows: Sequence[Row]) -> None:
    most = max(row.figures.workers for row in rows)
    for row in rows:
        figures = row.figures
        if figures.workers != most or row.bound == 0:
            continue
        shares = 100 * np.array(figures.staleness)
        colour = COLOURS.get(figures.mode, "tab:green")
        axis.step(np.arange(shares.size), shares, where="mid", color=colour, label=figures.mode)
    axis.set(
        xlabel="steps ahead of the slowest worker",
        ylabel="% of answers",
        title=f"staleness, {most} workers",
    )
    axis.xaxis.get_major_locator().set_params(integer=True)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)


def plot_bounds(rows: Sequence[Row], title: str, path: Path) -> None:
    """Throughput and mean staleness against the bound; async is drawn at the right."""
    figure, axis = pyplot().subplots(figsize=(8, 5), layout="constrained")
    other = axis.twinx()
    names = ["async" if r.bound is None else str(r.bound) for r in rows]
    places = np.arange(len(rows))
    axis.plot(places, [r.figures.throughput for r in rows], "o-", label="throughput")
    stale = [r.figures.staleness_mean for r in rows]
    other.plot(places, stale, "s--", color="tab:red", label="mean staleness")
    axis.set_xticks(places, names)
    axis.set(xlabel="staleness bound (0: sync)", ylabel="steps a second, all workers", title=title)
    axis.set_ylim(bottom=0)
    other.set(ylabel="mean staleness, steps")
    other.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    figure.legend(loc="upper left", bbox_to_anchor=(0, 1), bbox_transform=axis.transAxes)
    figure.savefig(path, dpi=120)
