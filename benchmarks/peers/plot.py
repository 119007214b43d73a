"""The picture of a record: ``python -m peers.plot RECORD.json PICTURE.png``; needs matplotlib."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from peers.systems import BY_NAME, IN_PLACE, MEMCPY
from peers.table import Row, counted, limit_ms, rows
from psgrad.bench import plots
from psgrad.bench.figures import in_bytes

OURS: Final = "tab:blue"
PEERS: Final = "silver"
LOG_FROM: Final = 30.0  # the longest over the shortest bar, from which on the axis is logarithmic


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Horizontal bars of the medians, one panel for each number of workers, the limit a line."""
    pyplot = plots.pyplot()
    counts = record["workers"]
    panels = {workers: rows(record, workers) for workers in counts}
    names = list(dict.fromkeys(row.system for found in panels.values() for row in found))
    figure, all_axes = pyplot.subplots(
        1, len(counts), sharey=True, sharex=True, squeeze=False, layout="constrained",
        figsize=(2.6 + 3.4 * len(counts), 1.3 + 0.33 * len(names)),
    )  # fmt: skip
    for axes, (workers, found) in zip(all_axes[0], panels.items(), strict=True):
        _panel(axes, found, names, limit_ms(record, workers))
        axes.set_title(counted(workers))
    spreads = [row.spread for found in panels.values() for row in found if row.spread]
    logarithmic = is_logarithmic([spread.median for spread in spreads])
    first = all_axes[0][0]
    if logarithmic:
        first.set_xscale("log")
    first.set_yticks(range(len(names)), [BY_NAME[name].label for name in names])
    first.invert_yaxis()
    room = 2.2 if logarithmic else 1.17  # for the number beside the longest bar
    first.set_xlim(right=room * max((spread.most for spread in spreads), default=1.0))
    figure.suptitle(f"One step of {in_bytes(record['nbytes'])} on one machine, ms")
    handles, labels = all_axes[0][-1].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower right", frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def is_logarithmic(medians: Sequence[float]) -> bool:
    """Whether bars so different are read better on a logarithmic axis."""
    return bool(medians) and max(medians) >= LOG_FROM * min(medians)


def _panel(axes: Any, found: Sequence[Row], names: Sequence[str], limit: float | None) -> None:
    for row in found:
        spread, place = row.spread, names.index(row.system)
        if spread is None:
            where = {
                "xycoords": axes.get_yaxis_transform(),
                "va": "center",
                "fontsize": 8,
                "backgroundcolor": "white",
            }
            axes.annotate("did not run", (0.03, place), **where)
            continue
        color = OURS if BY_NAME[row.system].module == IN_PLACE.module else PEERS
        ends = [[spread.median - spread.least], [spread.most - spread.median]]
        axes.barh(place, spread.median, color=color)
        axes.errorbar(spread.median, place, xerr=ends, color="black", linewidth=1, capsize=2)
        axes.annotate(
            f"{spread.median:.3g}", (spread.most, place), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    if limit is not None:
        label = f"limit: all bytes at the rate of {MEMCPY.label}"
        axes.axvline(limit, color="black", linestyle="--", linewidth=1, label=label)
    axes.grid(alpha=0.3, axis="x", which="both")
    axes.set_axisbelow(True)


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
