"""The layers of a transformer, forward and backward, with the hooks and gradients of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from psgrad.kernels import Array, Kernels
from psgrad.models.attention import Attended, attend, attend_backward
from psgrad.models.hooks import Hooks
from psgrad.models.layers import dense_grad


class Normed(NamedTuple):
    """What a layer norm keeps for its backward; ``y`` is its result. See `Kernels.layer_norm`."""

    y: Array
    centred: Array
    inverse: Array


class AttentionBranch(NamedTuple):
    """What the attention of a block keeps."""

    norm: Normed
    attended: Attended
    o: Array


class FeedBranch(NamedTuple):
    """What the two dense layers of a block keep: z and u as `Kernels.bias_activation` has them."""

    norm: Normed
    z: Array
    u: Array


@dataclass(frozen=True)
class Pass:
    """One way through the layers, and back: h[n, width] are the rows of all tokens.

    A block adds to h what two branches make of it, each behind a layer norm of its own:

        h = h + project(attend(qkv(norm1(h)))),  h = h + contract(gelu(expand(norm2(h)))),

    so backward the gradient of h goes around each branch as it is, and through it: dh = dh +
    branch'(dh). Without ``grads``, as for an evaluation, there is no way back.
    """

    params: Mapping[str, Array]
    kernels: Kernels
    hooks: Hooks
    grads: Mapping[str, Array]
    accumulate: bool = False

    def attention(self, h: Array, block: str, samples: int, heads: int) -> AttentionBranch:
        """Adds the first branch to h, in place."""
        norm = self.norm(h, f"{block}.norm1")
        qkv = self.dense(norm.y, f"{block}.qkv")
        o, attended = attend(qkv, samples, heads, self.kernels)
        h += self.dense(o, f"{block}.project")
        return AttentionBranch(norm, attended, o)

    def attention_backward(self, dh: Array, block: str, saved: AttentionBranch) -> None:
        """Adds to dh what comes back through the branch, in place."""
        do = self.dense_backward(dh, saved.o, f"{block}.project")
        dqkv = attend_backward(do, saved.attended, self.kernels)
        dy = self.dense_backward(dqkv, saved.norm.y, f"{block}.qkv")
        self.norm_backward(dy, saved.norm, f"{block}.norm1")
        dh += dy

    def feed(self, h: Array, block: str) -> FeedBranch:
        """Adds the second branch to h, in place."""
        norm = self.norm(h, f"{block}.norm2")
        z = self._product(norm.y, f"{block}.expand")
        u = self.kernels.bias_activation(z, self.params[f"{block}.expand.bias"], "gelu")
        h += self.dense(u, f"{block}.contract")
        return FeedBranch(norm, z, u)

    def feed_backward(self, dh: Array, block: str, saved: FeedBranch) -> None:
        """Adds to dh what comes back through the branch, in place."""
        dz = self.dense_backward(dh, saved.u, f"{block}.contract")
        self.kernels.activation_backward(dz, saved.z, saved.u, "gelu")
        dy = self.dense_backward(dz, saved.norm.y, f"{block}.expand")
        self.norm_backward(dy, saved.norm, f"{block}.norm2")
        dh += dy

    def embed(self, ids: Array) -> Array:
        """h of ids[b, t]."""
        names = ("embed.token", "embed.position")
        self.hooks.needs(names)
        return self.kernels.embed(ids, *(self.params[name] for name in names))

    def embed_backward(self, dh: Array, ids: Array) -> None:
        """The gradients of both tables."""
        names = ("embed.token", "embed.position")
        self.kernels.embed_backward(dh, ids, *self._sums(names))
        self.hooks.done(names)

    def norm(self, x: Array, name: str) -> Normed:
        """Layer norm of x[n, width]."""
        gain, bias = f"{name}.gain", f"{name}.bias"
        self.hooks.needs((gain, bias))
        return Normed(*self.kernels.layer_norm(x, self.params[gain], self.params[bias]))

    def norm_backward(self, dy: Array, saved: Normed, name: str) -> None:
        """dy becomes dx, in place."""
        names = (f"{name}.gain", f"{name}.bias")
        gain = self.params[names[0]]
        sums = self._sums(names)
        self.kernels.layer_norm_backward(dy, saved.centred, saved.inverse, gain, *sums)
        self.hooks.done(names)

    def dense(self, x: Array, name: str) -> Array:
        """x[n, in] W[in, out] + b[out]."""
        z = self._product(x, name)
        return self.kernels.bias_activation(z, self.params[f"{name}.bias"], "identity")

    def dense_backward(self, dz: Array, x: Array, name: str) -> Array:
        """dx[n, in] of dz[n, out], which it leaves as it is."""
        weight, bias = f"{name}.weight", f"{name}.bias"
        dense_grad(x, dz, self.grads[weight], self.grads[bias], self.kernels, self.accumulate)
        self.hooks.done((weight, bias))
        return self.kernels.matmul(dz, self.params[weight].T)  # [n, out] [out, in]

    def _product(self, x: Array, name: str) -> Array:
        weight = f"{name}.weight"
        self.hooks.needs((weight, f"{name}.bias"))
        return self.kernels.matmul(x, self.params[weight])  # [n, in] [in, out]

    def _sums(self, names: tuple[str, ...]) -> tuple[Array, ...]:
        """Gradients to which a kernel may add."""
        grads = tuple(self.grads[name] for name in names)
        if not self.accumulate:
            for grad in grads:
                grad[...] = 0
        return grads
