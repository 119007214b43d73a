"""matplotlib, for pictures without a screen."""

from __future__ import annotations

from typing import Any

from psgrad.errors import ConfigError


def pyplot() -> Any:
    """``matplotlib.pyplot``; raises ``ConfigError`` where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(
            "--plot needs matplotlib; pip install 'psgrad[plot]', or leave it out"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as module

    return module
