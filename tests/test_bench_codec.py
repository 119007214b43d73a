"""The codec benchmark on tiny sizes: what it computes, not how fast."""

from __future__ import annotations

import json

import numpy as np
import pytest

from psgrad import cli
from psgrad.bench import codec as bench
from psgrad.codecs import CODECS, Workspace, parse
from psgrad.errors import ConfigError
from psgrad.kernels import chunks


def test_every_codec_has_a_row():
    """But for ``adaptive``: what it costs is what the codecs cost that it chooses from."""
    assert {spec.partition(":")[0] for spec in bench.SPECS} == set(CODECS) - {"adaptive"}


def test_rows():
    heard = []
    rows = bench.bench_codecs(4096, ["none", "int8", "topk:0.01"], 1, heard.append)
    assert heard == [row.codec for row in rows] == ["none", "int8", "topk:0.01"]
    none, int8, topk = rows
    assert none.bits == pytest.approx(32, abs=0.1)
    assert (none.error_gauss, none.break_even) == (0.0, 0.0)
    assert 8 < int8.bits < 8.5
    assert 0.001 < int8.error_gauss < 0.02
    assert topk.bits < 1
    assert 0.9 < topk.error_gauss < 1
    assert topk.error_rows < topk.error_gauss, "few rows hold most of it"
    assert all(row.break_even > 0 for row in rows[1:])
    lines = bench.table(rows, 4096).splitlines()
    assert lines[1] == f"kernels: {chunks.fastest().name}"
    assert len(lines) == 4 + len(rows)


def test_break_even_is_bytes_saved_over_seconds_spent():
    values = dict.fromkeys(bench.Row.__dataclass_fields__, 0.0)
    row = bench.Row(**{**values, "codec": "x", "bits": 8.0, "encode": 2.0, "accumulate": 4.0})
    assert row.break_even == pytest.approx(8 * 0.75 / 0.75)


def test_accumulate_is_the_mean():
    x = np.random.default_rng(1).standard_normal((3, 70_000)).astype(np.float32)
    codec, payloads = parse("none"), []
    for part in x:
        out = np.zeros(codec.nbytes_max(part.size), np.uint8)
        payloads.append(out[: codec.encode(part, None, out, bench.KEY, Workspace())])
    total = np.zeros(70_000, np.float32)
    bench.accumulate(codec, payloads, total)
    assert np.allclose(total, x.mean(axis=0), atol=1e-6)


def test_a_real_gradient():
    gradient = bench.real_gradient()
    assert gradient.dtype == np.float32
    assert np.isfinite(gradient).all()
    assert np.array_equal(gradient, bench.real_gradient())


def test_the_command(capsys, tmp_path, monkeypatch):
    for name in cli.BLAS_THREADS:
        monkeypatch.setenv(name, "1")
    assert (
        cli.main(["bench", "codec", "--n", "1K", "--codec", "sign", "--repeats", "1", "--json"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1,024 elements of float32")
    record = json.loads(lines[-1])
    assert record["n"] == 1024
    assert [row["codec"] for row in record["rows"]] == ["sign"]
    assert [row["kernels"] for row in record["rows"]] == [chunks.fastest().name]


def test_a_picture(tmp_path):
    rows = bench.bench_codecs(1024, ["none", "int8"], 1, str)
    path = tmp_path / "codecs.png"
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"pip install 'psgrad\[plot\]'"):
            bench.plot(rows, path)
    else:
        bench.plot(rows, path)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_list_of_codecs(capsys):
    assert cli.main(["codecs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(CODECS)
    assert all(CODECS[line.split()[0]].summary in line for line in lines)


@pytest.mark.parametrize("count", ["0", "1x", "", "-3", "1.5M"])
def test_counts_that_cannot_be(capsys, count):
    assert cli.main(["bench", "codec", f"--n={count}"]) == 2
    assert "expected a count of at least 1, such as 4096, 64K or 16M" in capsys.readouterr().err
