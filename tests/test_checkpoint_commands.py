"""``psgrad checkpoint``: what it prints, and the status that it ends with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from checkpoint_files import SHAPES, save
from safetensors.numpy import load_file

from psgrad import checkpoint_commands, cli


@pytest.fixture
def folder(tmp_path):
    """A whole one, one whose file is cut, one without a manifest."""
    save(tmp_path, 100)
    os.truncate(save(tmp_path, 200) / "server-1.safetensors", 9)
    (save(tmp_path, 300) / "manifest.json").unlink()
    return tmp_path


def psgrad(capsys, *argv):
    """(status, lines of stdout, lines of stderr)."""
    status = cli.main(["checkpoint", *map(str, argv)])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err.splitlines()


def test_ls(capsys, folder):
    size = sum(file.stat().st_size for file in (folder / "step-00000100").glob("server-*"))
    assert psgrad(capsys, "ls", folder) == (
        0,
        [
            "checkpoint     saved at              mode  workers  servers  clocks      size",
            f"step-00000300  damaged: {folder}/step-00000300 is not a checkpoint: it has no "
            "manifest.json",
            f"step-00000200  damaged: {folder}/step-00000200/server-1.safetensors has 9 bytes "
            "instead of 424",
            f"step-00000100  2026-11-22T17:00:00Z  ssp   3        2        100 to 102  {size} B",
        ],
        [],
    )


def test_ls_as_json(capsys, folder):
    status, (line,), _ = psgrad(capsys, "ls", folder, "--json")
    assert status == 0
    *damaged, whole = json.loads(line)
    assert [record["name"] for record in damaged] == ["step-00000300", "step-00000200"]
    assert all("step-00000" in record["fault"] for record in damaged)
    assert whole.pop("nbytes") > 0
    assert whole.pop("psgrad")
    assert whole == {
        "path": str(folder / "step-00000100"),
        "name": "step-00000100",
        "step": 100,
        "saved_at": "2026-11-22T17:00:00Z",
        "mode": "ssp",
        "workers": 3,
        "servers": 2,
        "clocks": {"0": 100, "1": 102, "2": 101},
        "cut_ms": None,
        "wait_ms": None,
        "fault": None,
    }


@pytest.mark.parametrize(
    ("said", "row"),
    [
        ({"clocks": {"0": 7, "1": 7}}, "2026-11-22T17:00:00Z  ssp 3 2 7"),
        ({"clocks": {}, "saved_at": None, "mode": 1, "workers": "3"}, "the-files - - 2 -"),
        ({"clocks": [1], "servers": None}, "2026-11-22T17:00:00Z ssp 3 - -"),
        ({"clocks": {"0": "x"}}, "2026-11-22T17:00:00Z ssp 3 2 -"),
    ],
)
def test_ls_says_what_the_state_says(capsys, tmp_path, said, row):
    path = save(tmp_path, 1, **said)
    status, (_, line), _ = psgrad(capsys, "ls", path)
    assert status == 0
    saved, *others = line.split()[1:-2]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", saved)
    assert others == row.split()[1:]
    assert saved == row.split()[0] or said.get("saved_at", "") is None, "the time of the file"


def test_ls_of_nothing(capsys, tmp_path):
    assert psgrad(capsys, "ls", tmp_path) == (0, [f"there is no checkpoint in {tmp_path}"], [])
    assert psgrad(capsys, "ls", tmp_path, "--json") == (0, ["[]"], [])


def test_verify(capsys, folder):
    size = sum(file.stat().st_size for file in (folder / "step-00000100").glob("server-*"))
    whole = f"step-00000100  ok, 2 files, {size} B"
    status, lines, errors = psgrad(capsys, "verify", folder)
    assert (status, lines[2], errors) == (1, whole, [])
    assert lines[0].startswith("step-00000300  damaged: ")
    assert lines[1].startswith("step-00000200  damaged: ")
    assert psgrad(capsys, "verify", folder / "step-00000100") == (0, [whole], [])
    assert psgrad(capsys, "verify", folder / "step-00000300")[0] == 1


def test_verify_reads_every_byte(capsys, tmp_path, monkeypatch):
    path = save(tmp_path, 100)
    content = bytearray((path / "server-0.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "server-0.safetensors").write_bytes(content)
    assert psgrad(capsys, "ls", tmp_path)[1][1].startswith("step-00000100  2026")
    monkeypatch.chdir(path)
    status, (line,), _ = psgrad(capsys, "verify", ".")
    assert status == 1
    assert line.startswith("step-00000100  damaged: server-0.safetensors is damaged: its checksum")


def test_verify_of_nothing(capsys, tmp_path):
    expected = [f"psgrad: error: there is no checkpoint in {tmp_path}"]
    assert psgrad(capsys, "verify", tmp_path) == (1, [], expected)


def test_convert(capsys, folder):
    out = folder / "model.safetensors"
    status, lines, _ = psgrad(capsys, "convert", folder / "step-00000100", out)
    assert (status, lines) == (0, [f"3 parameters in {out}"])
    assert {name: array.shape for name, array in load_file(out).items()} == SHAPES


@pytest.mark.parametrize(
    ("argv", "status", "text"),
    [
        ([], 2, "name what to do: ls, verify, convert; see psgrad checkpoint --help"),
        (["lst"], 2, "argument WHAT: invalid choice: 'lst'"),
        (["ls"], 2, "the following arguments are required: DIR"),
        (["ls", "none"], 2, "there is no folder none; name the folder of the checkpoints"),
        (["verify", "none"], 2, "there is no folder none"),
        (["convert", "none"], 2, "the following arguments are required: OUT"),
        (["convert", "none", "a.npz"], 1, "none is not a checkpoint: it has no manifest.json"),
        (["convert", "step-00000200", "a.npz"], 1, "step-00000200/server-1.safetensors has 9"),
        (["convert", "step-00000100", "a.pt"], 2, "a.pt must end with .safetensors or .npz"),
        (["convert", "step-00000100", "there.npz"], 2, "there.npz is there already"),
    ],
)
def test_mistakes_are_one_line(capsys, folder, monkeypatch, argv, status, text):
    monkeypatch.chdir(folder)
    (folder / "there.npz").touch()
    got, lines, errors = psgrad(capsys, *argv)
    assert (got, lines) == (status, [])
    assert len(errors) == 1
    assert errors[0].startswith(f"psgrad: error: {text}")


def test_help_needs_no_numpy():
    script = (
        "import sys\nfrom psgrad.cli import main\n"
        "try:\n    main(['checkpoint', '--help'])\n"
        "finally:\n    assert 'numpy' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    for name in ("ls", "verify", "convert"):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (201_326_592, "201.3 MB"),
        (25 * 10**8, "2.5 GB"),
    ],
)
def test_sizes(nbytes, text):
    assert checkpoint_commands._size(nbytes) == text
