"""The CUDA kernels and their launch code on a CPU: a stand-in for CuPy over ``cuda_host``.

``RawModule`` compiles the very source by g++ with ``cuda_host/cuda_host.h`` before it; a launch
checks the type of each argument against the kernel's, then runs every thread of every block.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

import psgrad.kernels

GXX = shutil.which("g++")
needs_gxx = pytest.mark.skipif(GXX is None, reason="g++ is not on the PATH: no CUDA is emulated")
HEADER = Path(__file__).with_name("cuda_host") / "cuda_host.h"
KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(')
RUN = """
extern "C" const char* run_NAME(unsigned* grid, unsigned* block, void** args, int backwards) {
    return cuda_host::launch(NAME, grid, block, args, backwards);
}
extern "C" int types_NAME(int* out) { return cuda_host::types(NAME, out); }
"""


class Array(np.ndarray):
    """An array "of the device"."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


def of_device(host):
    """A copy, so that the CPU's arrays are not changed behind its back."""
    return np.array(host).view(Array)


def plain_names(text):
    """The kernels of a source: after the preprocessor, for macros make some of them."""
    command = [GXX, "-E", "-P", "-x", "c++", "-std=c++17", "-"]
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return KERNEL.findall(re.sub(r"\s+", " ", result.stdout))


class Module:
    """``cupy.RawModule`` of a source."""

    built: ClassVar[dict[str, ctypes.CDLL]] = {}
    folder: Path
    backwards = 0

    def __init__(self, code, options=("--std=c++17", "--ftz=false")):
        assert options == ("--std=c++17", "--ftz=false")
        if code not in self.built:
            text = code + "".join(RUN.replace("NAME", name) for name in plain_names(code))
            stem = self.folder / f"kernels{len(self.built)}"
            stem.with_suffix(".cpp").write_text(text, encoding="utf-8")
            command = [GXX, "-O1", "-std=c++17", "-ffp-contract=off", "-fPIC", "-shared"]
            command += ["-Wno-unknown-pragmas", "-include", str(HEADER)]
            command += [str(stem.with_suffix(".cpp")), "-o", str(stem.with_suffix(".so"))]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stderr[:4000]
            self.built[code] = ctypes.CDLL(str(stem.with_suffix(".so")))
        self.library = self.built[code]

    def get_function(self, name):
        run, types_of = self.library[f"run_{name}"], self.library[f"types_{name}"]
        run.restype = ctypes.c_char_p
        room = (ctypes.c_int * 64)()
        kinds = room[: types_of(room)]

        def kernel(grid, block, arguments):
            assert len(arguments) == len(kinds), f"{name} takes {len(kinds)} arguments"
            values = []
            for i, (argument, kind) in enumerate(zip(arguments, kinds, strict=True)):
                if isinstance(argument, np.ndarray):
                    assert isinstance(argument, Array), f"argument {i} of {name} is on the host"
                    assert kind == 0, f"argument {i} of {name} is no pointer"
                    argument = np.uint64(argument.ctypes.data)
                assert kind == kind_of(argument) or (kind == 0 and argument.dtype == np.uint64), (
                    f"argument {i} of {name} has another type"
                )
                values.append(np.array([argument]))
            pointers = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))
            sizes = [(ctypes.c_uint * 3)(*size, *[1] * (3 - len(size))) for size in (grid, block)]
            fault = run(*sizes, pointers, self.backwards)
            if fault is not None:
                raise RuntimeError(f"{name}: {fault.decode()}")

        return kernel


def kind_of(scalar):
    """As ``cuda_host::types`` tells it: the size, negative for floats."""
    return -scalar.dtype.itemsize if scalar.dtype.kind == "f" else scalar.dtype.itemsize


def stand_in():
    """What of CuPy the launch code uses."""
    it = ModuleType("cupy")
    it.ndarray = Array
    it.RawModule = Module
    it.asarray = it.ascontiguousarray = lambda a, dtype=None: np.array(a, dtype).view(Array)
    it.zeros = lambda n, dtype: np.zeros(n, dtype).view(Array)
    # What is not written must not pass for a result.
    it.empty = lambda n, dtype: np.full(n, 77, dtype).view(Array)
    it.empty_like = lambda a: np.full_like(a, 77)
    it.cuda = SimpleNamespace(compiler=SimpleNamespace(CompileException=RuntimeError))
    return it


@contextlib.contextmanager
def emulated(folder):
    """The launch modules over the stand-in, as attributes."""
    Module.folder = Path(folder)
    from psgrad.kernels import chunks, plain

    names = ("cuda_launch", "cuda_scaled", "cuda_select", "cuda_optim", "cuda")
    before = {name: sys.modules.get(name) for name in ("cupy", *full(names))}
    fastest = chunks.fastest
    try:
        chunks.fastest = lambda: plain  # the specification, and nothing to compile
        for name in before:
            sys.modules.pop(name, None)
        sys.modules["cupy"] = stand_in()
        yield SimpleNamespace(
            **{name: importlib.import_module(f"psgrad.kernels.{name}") for name in names}
        )
    finally:
        chunks.fastest = fastest
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
        for name in names:
            vars(psgrad.kernels).pop(name, None)


def full(names):
    return [f"psgrad.kernels.{name}" for name in names]


# What the tests share


def drawn(n, seed, kind="gaussian"):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n)
    if kind == "ties":
        x = rng.integers(-13, 14, n)
        x[::16] = 14 if seed % 2 else 254
    elif kind == "huge":
        x = np.clip(x, -3, 3) * 5e37
    elif kind == "tiny":
        x = x * 1e-41
    elif kind == "holes":
        x = x * (np.arange(n) // 700 % 2)
    return x.astype(np.float32)


KINDS = ("gaussian", "ties", "huge", "tiny", "holes")


def same(got, want):
    np.testing.assert_array_equal(np.asarray(got).view(np.uint8), want.view(np.uint8))
