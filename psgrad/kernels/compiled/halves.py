"""Sixteen bits by numba. NumPy has no bfloat16, and numba no float16: all is done on bits."""

from __future__ import annotations

import numpy as np
from numba import types  # type: ignore[import-not-found,import-untyped,unused-ignore]

from psgrad.kernels.chunks import Float32, Scratch, Uint16
from psgrad.kernels.compiled.jit import (
    F4,
    I4,
    IN_F4,
    IN_U2,
    NOTHING,
    OUT_F4,
    OUT_U2,
    U2,
    U4,
    U8,
    check_sizes,
    compiled,
    inner,
)
from psgrad.kernels.halves import FP16, Half


@inner
def _fp16(v: F4) -> tuple[U2, F4]:
    """``halves.to_fp16`` of one element: its code, and what that stands for."""
    v = F4(min(max(v, F4(-65504)), F4(65504)))
    bits = F4(v).view(U4)
    sign = U4(bits & U4(0x8000_0000))
    anchor = max(U4(bits & U4(0x7F80_0000)), U4((127 - 14) << 23))
    a = U4(U4(anchor + U4(13 << 23)) | sign).view(F4)
    total = F4(v + a)
    t = F4(total).view(U4)
    return U2(U4(U4(U4(sign >> U4(16)) + t) + U4(t >> U4(13))) + U4(0x0800)), F4(total - a)


@inner
def _bf16(v: F4) -> tuple[U2, F4]:
    bits = F4(v).view(U4)
    up = U4(U4(bits + U4(0x7FFF)) + U4(U4(bits >> U4(16)) & U4(1)))
    largest = min(U4(up & U4(0x7FFF_FFFF)), U4(0x7F7F_FFFF))
    kept = U4(U4(largest | U4(bits & U4(0x8000_0000))) & U4(0xFFFF_0000))
    return U2(kept >> U4(16)), U4(kept).view(F4)


@compiled(IN_F4, OUT_F4, types.boolean, types.boolean, OUT_U2, returns=types.uint16)
def _encode_half(x: Float32, kept: Float32, keep: bool, fp16: bool, out: Uint16) -> U2:
    """All codes or-ed, without signs."""
    n, found = U8(x.size), U2(0)
    if fp16 and keep:
        for i in range(n):
            v = F4(kept[i] + x[i])
            code, rounded = _fp16(v)
            kept[i] = v - rounded
            out[i] = code
            found = U2(found | code)
    elif fp16:
        for i in range(n):
            code, _ = _fp16(F4(x[i]))
            out[i] = code
            found = U2(found | code)
    elif keep:
        for i in range(n):
            v = F4(kept[i] + x[i])
            code, rounded = _bf16(v)
            kept[i] = v - rounded
            out[i] = code
            found = U2(found | code)
    else:
        for i in range(n):
            code, _ = _bf16(F4(x[i]))
            out[i] = code
            found = U2(found | code)
    return U2(found & U2(0x7FFF))


def encode_half(
    kind: Half, x: Float32, residual: Float32 | None, out: Uint16, scratch: Scratch
) -> bool:
    check_sizes(out.size == x.size and (residual is None or residual.size == x.size))
    kept = NOTHING if residual is None else residual
    return bool(_encode_half(x, kept, residual is not None, kind is FP16, out))


@inner
def _from_fp16(code: U2) -> F4:
    """Exact, and without denormal numbers, which a CPU may be told to take for zero."""
    bits = U4(U4(code) & U4(0x7FFF))
    small = F4(I4(bits)) * F4(2.0**-24)
    normal = U4(U4(bits << U4(13)) + U4((127 - 15) << 23))
    value = F4(small).view(U4) if bits < U4(0x0400) else normal
    return U4(value | U4(U4(code & U2(0x8000)) << U4(16))).view(F4)


@inner
def _from_bf16(code: U2) -> F4:
    return U4(U4(code) << U4(16)).view(F4)


@compiled(types.boolean, IN_U2, types.float32, OUT_F4, types.boolean)
def _add_half(fp16: bool, codes: Uint16, share: F4, out: Float32, first: bool) -> None:
    m = U8(out.size)
    if fp16 and first:
        for i in range(m):
            out[i] = _from_fp16(U2(codes[i])) * share
    elif fp16:
        for i in range(m):
            out[i] = out[i] + _from_fp16(U2(codes[i])) * share
    elif first:
        for i in range(m):
            out[i] = _from_bf16(U2(codes[i])) * share
    else:
        for i in range(m):
            out[i] = out[i] + _from_bf16(U2(codes[i])) * share


def add_half(kind: Half, codes: Uint16, share: np.float32, out: Float32, first: bool) -> None:
    check_sizes(codes.size == out.size)
    _add_half(kind is FP16, codes, share, out, first)
