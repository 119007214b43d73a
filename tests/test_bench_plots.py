"""Pictures need an extra, and no screen."""

from __future__ import annotations

import sys

import pytest

from psgrad import cli
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


def test_a_folder_that_is_not_there_is_said_before_anything_is_measured(tmp_path):
    pytest.importorskip("matplotlib")
    plots.check(str(tmp_path / "a.png"))
    plots.check("a.png")
    path = tmp_path / "lost" / "a.png"
    with pytest.raises(ConfigError, match=f"--plot {path}: there is no folder {path.parent}; make"):
        plots.check(str(path))


def test_every_command_that_draws_looks_first(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "lost" / "a.png"
    for command in (
        ["bench", "codec", "--plot", path],
        ["bench", "step", "--plot", path],
        ["simulate", "--workers", "4", "--plot", path],
        ["simulate", "--workers", "4", "--plot-bounds", path],
    ):
        assert cli.main([*map(str, command)]) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert said.err.startswith(f"psgrad: error: --plot {path}: there is no folder")
