"""matplotlib, for pictures without a screen."""

from __future__ import annotations

from pathlib import Path
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


def check(path: str) -> None:
    """Before anything is measured: raises ``ConfigError`` where ``path`` cannot get a picture."""
    pyplot()
    folder = Path(path).parent
    if not folder.is_dir():
        raise ConfigError(f"--plot {path}: there is no folder {folder}; make it first")
