"""CUDA sources beside this file to kernels that can be launched. Importing it needs CuPy.

A source comes after what `SOURCES` says; so none includes a file. NVRTC compiles a source when
the first of its kernels is launched, and CuPy keeps what came of it on disk.
"""

from __future__ import annotations

import functools
from importlib import resources
from types import MappingProxyType
from typing import Any, Final

import cupy

from psgrad.errors import ConfigError

SOURCES: Final = MappingProxyType(
    {
        "nn": ("nn",),
        "scaled": ("common", "hash", "scaled"),
        "select": ("common", "select"),
        "optim": ("common", "optim"),
    }
)
"""The files of each family of kernels, in the order in which they are compiled as one."""
OPTIONS: Final = ("--std=c++17", "--ftz=false")
"""Nothing that relaxes arithmetic: results are those of the CPU, rounding for rounding."""


def launch(
    family: str, name: str, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Any
) -> None:
    """Queue kernel ``name`` of ``family``.cu on the current stream; kernels get bare pointers.

    Raises ConfigError with the cure where CuPy cannot compile it.
    """
    for argument in arguments:
        if isinstance(argument, cupy.ndarray):
            assert argument.flags.c_contiguous, f"{name} needs contiguous arrays"
    _function(family, name)(grid, block, arguments)


def source(family: str) -> str:
    """The text that is compiled for ``family``."""
    here = resources.files("psgrad.kernels")
    texts = (here.joinpath(f"{name}.cu").read_text(encoding="utf-8") for name in SOURCES[family])
    return "\n".join(texts)


@functools.cache
def _function(family: str, name: str) -> Any:
    try:
        return _module(family).get_function(name)
    except (RuntimeError, cupy.cuda.compiler.CompileException) as error:
        cause = (str(error).splitlines() or ["no reason given"])[0]
        raise ConfigError(
            f"CuPy cannot compile the GPU kernels ({cause}): it needs NVRTC and the CUDA headers, "
            "which pip install 'cupy-cuda13x[ctk]' (or cuda12x) brings; or use device 'cpu'"
        ) from error


@functools.cache
def _module(family: str) -> Any:
    return cupy.RawModule(code=source(family), options=OPTIONS)
