"""Rows of the table of ``psgrad simulate``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from psgrad.scale.figures import Figures

BOUNDS: Final = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, None)
"""Staleness bounds of the picture that goes through them."""


@dataclass(frozen=True)
class Row:
    """The figures of one case. ``codec`` is what gradients, and after a comma parameters, go as."""

    codec: str
    bound: int | None
    samples: float  # a second, of all workers
    figures: Figures

    def record(self) -> dict[str, Any]:
        """For a program."""
        return {
            "codec": self.codec,
            "bound": self.bound,
            "samples": self.samples,
            **asdict(self.figures),
            "staleness_mean": self.figures.staleness_mean,
            "staleness_max": self.figures.staleness_max,
        }


HEAD: Final = (
    f"{'workers':>7} {'mode':9}{'codec':18}{'steps/s':>10}{'samples/s':>12}{'efficiency':>11}"
    f"{'staleness':>11}{'most':>6}{'in':>7}{'out':>6}{'cpu':>6}"
)
"""Over the lines. In, out and cpu are the busiest server's loads."""


def line(row: Row) -> str:
    """A row for a person."""
    f = row.figures
    return (
        f"{f.workers:7} {f.mode:9}{row.codec:18}{f.throughput:10.4g}{row.samples:12.4g}"
        f"{f.efficiency:11.1%}{f.staleness_mean:11.2f}{f.staleness_max:6}"
        f"{f.nic_in:7.0%}{f.nic_out:6.0%}{f.processor:6.0%}"
    )
