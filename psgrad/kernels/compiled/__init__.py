"""`ChunkKernels` by numba: one pass over memory. The twin of ``kernels.plain``, bit for bit.

Importing this module imports numba and compiles, or loads what was compiled before. Every function
has one signature, so nothing is compiled later.
"""

from __future__ import annotations

from psgrad.kernels.compiled.halves import add_half, encode_half
from psgrad.kernels.compiled.jit import NAME as name  # noqa: N811
from psgrad.kernels.compiled.scaled import encode_scaled
from psgrad.kernels.compiled.select import collect
from psgrad.kernels.compiled.unpack import add_scaled
from psgrad.kernels.compiled.update import sgd

__all__ = ["add_half", "add_scaled", "collect", "encode_half", "encode_scaled", "name", "sgd"]
