"""Causal self-attention of several heads, between two dense layers that are not here.

For each sample and head, with q, k, v [t, d] out of the rows of qkv:

    s = q k^T,  p = softmax of s / sqrt(d) over the positions up to its own,  o = p v.

Backward, from do:  dv = p^T do,  dp = do v^T,  ds = p (dp - sum(dp p)) / sqrt(d) by rows,
dq = ds k,  dk = ds^T q.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from psgrad.kernels import Array, Kernels


class Attended(NamedTuple):
    """What `attend` keeps for `attend_backward`: q, k, v [b, heads, t, d], p [b, heads, t, t]."""

    q: Array
    k: Array
    v: Array
    p: Array


def attend(qkv: Array, samples: int, heads: int, kernels: Kernels) -> tuple[Array, Attended]:
    """o[b * t, n] of qkv[b * t, 3 n], whose columns are q, k and v, each head after head."""
    q, k, v = _split(qkv, samples, heads)
    p = kernels.matmul(q, k.swapaxes(-1, -2))  # [b, heads, t, d] [b, heads, d, t]
    kernels.causal_softmax(p, _scale(q))
    o = kernels.matmul(p, v)  # [b, heads, t, t] [b, heads, t, d]
    width = qkv.shape[1] // 3
    return o.transpose(0, 2, 1, 3).reshape(-1, width), Attended(q, k, v, p)


def attend_backward(grad: Array, saved: Attended, kernels: Kernels) -> Array:
    """d loss/d qkv [b * t, 3 n] from grad = d loss/d o [b * t, n]."""
    q, k, v, p = saved
    b, heads, t, d = q.shape
    do = grad.reshape(b, t, heads, d).transpose(0, 2, 1, 3)
    qkv_grad = kernels.xp.empty((b * t, 3 * heads * d), grad.dtype)
    dq, dk, dv = _split(qkv_grad, b, heads)  # views: what is put there is in qkv_grad
    dv[...] = kernels.matmul(p.swapaxes(-1, -2), do)  # [b, heads, t, t] [b, heads, t, d]
    ds = kernels.matmul(do, v.swapaxes(-1, -2))  # [b, heads, t, d] [b, heads, d, t]
    kernels.causal_softmax_backward(ds, p, _scale(q))
    dq[...] = kernels.matmul(ds, k)  # [b, heads, t, t] [b, heads, t, d]
    dk[...] = kernels.matmul(ds.swapaxes(-1, -2), q)
    return qkv_grad


def _scale(q: Array) -> float:
    """It keeps the variance of q k^T that of one product, whatever the width of a head."""
    return 1.0 / math.sqrt(q.shape[-1])


def _split(qkv: Array, samples: int, heads: int) -> tuple[Array, Array, Array]:
    """Views [b, heads, t, d] of the three thirds of qkv[b * t, 3 n]."""
    rows, columns = qkv.shape
    five = qkv.reshape(samples, rows // samples, 3, heads, columns // (3 * heads))
    q, k, v = five.transpose(2, 0, 3, 1, 4)
    return q, k, v
