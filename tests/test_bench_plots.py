"""Pictures need an extra, and no screen."""

from __future__ import annotations

import sys

import pytest

from psgrad.bench import plots
from psgrad.errors import ConfigError


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"--plot needs matplotlib; pip install 'psgrad\[plot\]'"):
        plots.pyplot()


def test_without_a_screen():
    matplotlib = pytest.importorskip("matplotlib")
    assert hasattr(plots.pyplot(), "subplots")
    assert matplotlib.get_backend().lower() == "agg"
