"""The kernels in NumPy: the specification that the CUDA twin is tested against.

What each function guarantees stands in `psgrad.kernels.Kernels`.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from psgrad.errors import ConfigError, unknown_name
from psgrad.kernels import ACTIVATIONS, LAYER_NORM_EPS
from psgrad.kernels.precision import rounded

xp = np
device = "cpu"

GELU_ROOT: Final = math.sqrt(2.0 / math.pi)
GELU_CUBIC: Final = 0.044715
# Beyond it the tanh of GELU is exactly 1, in float64 too: clipping only keeps z^3 from overflowing.
GELU_LIMIT: Final = 10.0


def asarray(host: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(host)


def copy_to_device(source: NDArray[Any], out: NDArray[Any]) -> None:
    np.copyto(out, source, casting="no")


def copy_to_host(source: NDArray[Any], out: NDArray[Any]) -> None:
    np.copyto(out, source, casting="no")


def synchronize() -> None:
    """NumPy has finished when it returns."""


def matmul(
    a: NDArray[Any],
    b: NDArray[Any],
    out: NDArray[Any] | None = None,
    precision: str = "float32",
) -> NDArray[Any]:
    product: NDArray[Any] = np.matmul(rounded(a, precision), rounded(b, precision), out=out)
    return product


def bias_activation(z: NDArray[Any], bias: NDArray[Any], kind: str) -> NDArray[Any]:
    np.add(z, bias, out=z)
    if kind == "gelu":
        _, h = _gelu_tanh(z)
        h += 1.0
        h *= z
        h *= 0.5
        return h
    if kind == "relu":
        np.maximum(z, 0.0, out=z)
    elif kind == "tanh":
        np.tanh(z, out=z)
    elif kind != "identity":
        raise ConfigError(unknown_name("activation", kind, ACTIVATIONS))
    return z


def activation_backward(grad: NDArray[Any], z: NDArray[Any], h: NDArray[Any], kind: str) -> None:
    if kind == "gelu":
        grad *= _gelu_slope(z)
    elif kind == "relu":
        grad *= h > 0
    elif kind == "tanh":
        slope = h * h
        np.subtract(1.0, slope, out=slope)
        grad *= slope
    elif kind != "identity":
        raise ConfigError(unknown_name("activation", kind, ACTIVATIONS))


def softmax_cross_entropy(
    logits: NDArray[Any], labels: NDArray[Any], scale: float
) -> NDArray[np.float64]:
    rows = np.arange(len(logits))
    best = logits.argmax(axis=1)
    logits -= logits[rows, best][:, None]
    label_logit = logits[rows, labels]
    np.exp(logits, out=logits)
    total = logits.sum(axis=1)
    loss = np.sum(np.log(total) - label_logit, dtype=np.float64)
    logits *= (scale / total)[:, None]
    logits[rows, labels] -= scale
    return np.array([loss, np.count_nonzero(best == labels)], dtype=np.float64)


def embed(ids: NDArray[Any], tokens: NDArray[Any], positions: NDArray[Any]) -> NDArray[Any]:
    h: NDArray[Any] = tokens[ids]  # [b, t, n]
    h += positions
    return h.reshape(-1, tokens.shape[1])


def embed_backward(
    grad: NDArray[Any],
    ids: NDArray[Any],
    tokens_grad: NDArray[Any],
    positions_grad: NDArray[Any],
) -> None:
    positions_grad += grad.reshape(*ids.shape, -1).sum(axis=0)
    order = ids.ravel().argsort(kind="stable")
    found, starts = np.unique(ids.ravel()[order], return_index=True)
    if found.size:
        tokens_grad[found] += np.add.reduceat(grad[order], starts, axis=0)


def layer_norm(
    x: NDArray[Any], gain: NDArray[Any], bias: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    centred: NDArray[Any] = x - x.mean(axis=1, keepdims=True)
    y: NDArray[Any] = centred * centred
    inverse: NDArray[Any] = 1.0 / np.sqrt(y.mean(axis=1, keepdims=True) + LAYER_NORM_EPS)
    centred *= inverse
    np.multiply(centred, gain, out=y)
    y += bias
    return y, centred, inverse


def layer_norm_backward(
    grad: NDArray[Any],
    centred: NDArray[Any],
    inverse: NDArray[Any],
    gain: NDArray[Any],
    gain_grad: NDArray[Any],
    bias_grad: NDArray[Any],
) -> None:
    bias_grad += grad.sum(axis=0)
    product = grad * centred
    gain_grad += product.sum(axis=0)
    grad *= gain
    np.multiply(grad, centred, out=product)
    np.multiply(centred, product.mean(axis=1, keepdims=True), out=product)
    grad -= grad.mean(axis=1, keepdims=True)
    grad -= product
    grad *= inverse


def causal_softmax(scores: NDArray[Any], scale: float) -> None:
    t = scores.shape[-1]
    scores *= scale
    scores += np.triu(np.full((t, t), -np.inf, scores.dtype), 1)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)


def causal_softmax_backward(grad: NDArray[Any], p: NDArray[Any], scale: float) -> None:
    grad -= np.sum(grad * p, axis=-1, keepdims=True)
    grad *= p
    grad *= scale


def _gelu_tanh(z: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """z within the limit, and tanh(sqrt(2/pi) (z + 0.044715 z^3)) of it."""
    clipped = np.clip(z, -GELU_LIMIT, GELU_LIMIT)
    t = clipped * clipped
    t *= GELU_CUBIC
    t += 1.0
    t *= clipped
    t *= GELU_ROOT
    np.tanh(t, out=t)
    return clipped, t


def _gelu_slope(z: NDArray[Any]) -> NDArray[Any]:
    """(1 + t + z (1 - t^2) sqrt(2/pi) (1 + 3 * 0.044715 z^2)) / 2, with t the tanh of GELU."""
    clipped, t = _gelu_tanh(z)
    slope: NDArray[Any] = clipped * clipped
    slope *= 3.0 * GELU_CUBIC
    slope += 1.0
    slope *= clipped
    slope *= GELU_ROOT
    slope *= 1.0 - t * t
    slope += t
    slope += 1.0
    slope *= 0.5
    return slope
