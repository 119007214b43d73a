"""Every CUDA source goes through nvcc for the oldest, a common and a new GPU, without a spill."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from emulated_cuda import GXX, emulated, plain_names

import psgrad.kernels

NVCC = shutil.which("nvcc")
HERE = Path(psgrad.kernels.__file__).parent
FAMILIES = ("scaled", "select", "optim")  # nn.cu is compiled by test_kernels.py
ARCHITECTURES = (75, 80, 90)


def text_of(family, folder):
    with emulated(folder) as cuda:
        return cuda.cuda_launch.source(family)


@pytest.mark.skipif(
    NVCC is None or GXX is None, reason="nvcc is not on the PATH: the CUDA sources are not compiled"
)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_sources_compile_without_warnings_and_spills(family, tmp_path):
    source, text = tmp_path / f"{family}.cu", text_of(family, tmp_path)
    source.write_text(text, encoding="utf-8")
    command = [NVCC, "-std=c++17", "-Werror", "all-warnings", "-Xptxas", "-v", "-fatbin"]
    for arch in ARCHITECTURES:
        command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    result = subprocess.run(
        [*command, "-o", str(tmp_path / "out.fatbin"), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    entries = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", result.stderr)
    assert sorted(entries) == sorted(
        (name, str(arch)) for name in plain_names(text) for arch in ARCHITECTURES
    )
    assert len(entries) >= 3 * len(ARCHITECTURES)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", result.stderr)
    assert spills
    assert set(spills) == {"0"}


def test_every_source_belongs_to_a_family_and_includes_nothing(tmp_path):
    with emulated(tmp_path) as cuda:
        files = {name for names in cuda.cuda_launch.SOURCES.values() for name in names}
        assert set(cuda.cuda_launch.SOURCES) == {"nn", *FAMILIES}
    assert files == {path.stem for path in HERE.glob("*.cu")}
    for path in HERE.glob("*.cu"):
        assert "#include" not in path.read_text(encoding="utf-8")  # NVRTC needs no header
