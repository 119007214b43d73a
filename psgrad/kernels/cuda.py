"""The kernels on a GPU, by CuPy and the CUDA source beside this file.

What each function guarantees stands in `psgrad.kernels.Kernels`; importing this module needs CuPy.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Final

import cupy
import numpy as np
from numpy.typing import NDArray

from psgrad.errors import ConfigError, unknown_name
from psgrad.kernels import ACTIVATIONS, LAYER_NORM_EPS, Array
from psgrad.kernels.cuda_launch import launch
from psgrad.kernels.gemm import Product, product

xp = cupy
device = "gpu"

SUFFIX: Final = {"f": "f32", "d": "f64"}
WARP: Final = 32
WARPS: Final = 8
"""Warps in a block: 256 threads, as a row of WARP columns by WARPS rows, or in a line."""
MAX_BLOCKS: Final = 2048
"""Enough blocks to fill any GPU several times over; the kernels stride over the rest."""


def unavailable() -> str:
    """Why no GPU can be used, in a few words; empty when one can."""
    try:
        return "" if cupy.cuda.runtime.getDeviceCount() > 0 else "CuPy counts 0 devices"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return str(error)


def pci_ids() -> tuple[str, ...]:
    """The PCI ids of the GPUs that this process sees, by their numbers. Makes no CUDA context."""
    runtime = cupy.cuda.runtime
    return tuple(str(runtime.deviceGetPCIBusId(i)) for i in range(runtime.getDeviceCount()))


def use(number: int) -> None:
    """From now on this process works on the GPU ``number``."""
    cupy.cuda.runtime.setDevice(number)


def asarray(host: NDArray[Any]) -> Array:
    return cupy.asarray(host)


def copy_to_device(source: NDArray[Any], out: Array) -> None:
    out.set(source)


def copy_to_host(source: Array, out: NDArray[Any]) -> None:
    source.get(out=out)


def synchronize() -> None:
    cupy.cuda.get_current_stream().synchronize()


def matmul(a: Array, b: Array, out: Array | None = None, precision: str = "float32") -> Array:
    if precision == "float32":
        return cupy.matmul(a, b, out=out)
    if out is None:
        out = cupy.empty((*a.shape[:-1], b.shape[-1]), np.float32)
    if out.size:
        assert out.flags.c_contiguous, "a product needs a contiguous result"
        _tensor_cores(product(a, b, functools.partial(_converted, precision)), out, precision)
    return out


def _tensor_cores(it: Product, out: Array, precision: str) -> None:
    """out[..., m, n] float32 of factors that have ``precision``; sums are in float32."""
    cublas, runtime = cupy.cuda.cublas, cupy.cuda.runtime
    kind = {"float16": runtime.CUDA_R_16F, "bfloat16": runtime.CUDA_R_16BF}
    compute = cublas.CUBLAS_COMPUTE_32F
    if precision == "tf32":
        compute = cublas.CUBLAS_COMPUTE_32F_FAST_TF32
    factors: list[int] = []
    for factor in (it.b, it.a):  # see kernels.gemm for the order
        place = factor.array.data.ptr, kind.get(precision, runtime.CUDA_R_32F)
        factors += [*place, factor.leading, factor.stride]
    flips = int(it.b.flipped), int(it.a.flipped)  # CUBLAS_OP_N is 0, CUBLAS_OP_T 1
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    cublas.gemmStridedBatchedEx(
        cupy.cuda.device.get_cublas_handle(), *flips, it.n, it.m, it.k,
        one.ctypes.data, *factors, zero.ctypes.data,
        out.data.ptr, runtime.CUDA_R_32F, it.n, it.m * it.n, it.batch,
        compute, cublas.CUBLAS_GEMM_DEFAULT_TENSOR_OP,
    )  # fmt: skip


def _converted(precision: str, x: Array) -> Array:
    """x as cuBLAS reads ``precision``, contiguous; bfloat16 as uint16, CuPy having no such type."""
    x = cupy.ascontiguousarray(x)
    if precision == "float16":
        return x.astype(np.float16)
    return _bfloat16()(x) if precision == "bfloat16" else x


@functools.cache
def _bfloat16() -> Any:
    """float32 to bfloat16, to the nearest, ties to even; NaN stays NaN."""
    return cupy.ElementwiseKernel(
        "float32 x",
        "uint16 y",
        "const unsigned int u = __float_as_uint(x);"
        "y = x != x ? 0x7fc0 : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;",
        "psgrad_bfloat16",
    )


def bias_activation(z: Array, bias: Array, kind: str) -> Array:
    if kind not in (*ACTIVATIONS, "identity"):
        raise ConfigError(unknown_name("activation", kind, ACTIVATIONS))
    h = cupy.empty_like(z) if kind == "gelu" else z
    if z.size:
        rows, cols = z.shape
        grid = (math.ceil(cols / WARP), min(math.ceil(rows / WARPS), MAX_BLOCKS))
        _launch(f"bias_{kind}", grid, (WARP, WARPS), z, bias, h, np.int64(rows), np.int64(cols))
    return h


def activation_backward(grad: Array, z: Array, h: Array, kind: str) -> None:
    if kind not in (*ACTIVATIONS, "identity"):
        raise ConfigError(unknown_name("activation", kind, ACTIVATIONS))
    if grad.size and kind != "identity":
        grid = (min(math.ceil(grad.size / (WARP * WARPS)), MAX_BLOCKS),)
        _launch(f"{kind}_backward", grid, (WARP * WARPS,), grad, z, h, np.int64(grad.size))


def softmax_cross_entropy(logits: Array, labels: Array, scale: float) -> Array:
    rows, classes = logits.shape
    stats = cupy.empty((2, rows), dtype=np.float64)
    if rows:
        _launch(
            "softmax_cross_entropy",
            (math.ceil(rows / WARPS),),
            (WARP, WARPS),
            logits,
            cupy.ascontiguousarray(labels, dtype=np.int64),
            stats,
            np.int64(rows),
            np.int64(classes),
            logits.dtype.type(scale),
        )
    return stats.sum(axis=1)


def embed(ids: Array, tokens: Array, positions: Array) -> Array:
    return (tokens[ids] + positions).reshape(-1, tokens.shape[1])


def embed_backward(grad: Array, ids: Array, tokens_grad: Array, positions_grad: Array) -> None:
    positions_grad += grad.reshape(*ids.shape, -1).sum(axis=0)
    # A product and not additions in the order of threads, which would not repeat.
    onehot = ids.reshape(1, -1) == cupy.arange(len(tokens_grad))[:, None]  # [v, b * t]
    tokens_grad += cupy.matmul(onehot.astype(grad.dtype), grad)


def layer_norm(x: Array, gain: Array, bias: Array) -> tuple[Array, Array, Array]:
    centred = x - x.mean(axis=1, keepdims=True)
    inverse = 1.0 / cupy.sqrt((centred * centred).mean(axis=1, keepdims=True) + LAYER_NORM_EPS)
    centred *= inverse
    return centred * gain + bias, centred, inverse


def layer_norm_backward(
    grad: Array, centred: Array, inverse: Array, gain: Array, gain_grad: Array, bias_grad: Array
) -> None:
    bias_grad += grad.sum(axis=0)
    gain_grad += (grad * centred).sum(axis=0)
    grad *= gain
    along = (grad * centred).mean(axis=1, keepdims=True)
    grad -= grad.mean(axis=1, keepdims=True)
    grad -= centred * along
    grad *= inverse


def causal_softmax(scores: Array, scale: float) -> None:
    t = scores.shape[-1]
    scores *= scale
    scores += cupy.triu(cupy.full((t, t), -np.inf, scores.dtype), 1)
    scores -= scores.max(axis=-1, keepdims=True)
    cupy.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)


def causal_softmax_backward(grad: Array, p: Array, scale: float) -> None:
    grad -= (grad * p).sum(axis=-1, keepdims=True)
    grad *= p
    grad *= scale


def _launch(name: str, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Any) -> None:
    """Queue kernel ``name`` of the first argument's dtype."""
    launch("nn", f"{name}_{SUFFIX[arguments[0].dtype.char]}", grid, block, *arguments)
