"""Codecs, selection and optimizers on a GPU against NumPy's; and twice the same, bit for bit.

``tests/test_cuda_*.py`` run the same kernels thread by thread on a CPU.
"""

from __future__ import annotations

import numpy as np
import pytest

from psgrad.codecs import Workspace
from psgrad.codecs.scaled import Form
from psgrad.kernels import bits, plain, quantize, select
from psgrad.kernels.chunks import Noise
from psgrad.kernels.hashing import stream
from psgrad.optimizers import AdamW

pytestmark = pytest.mark.gpu

F4 = np.float32
FORMS = {
    "int8": Form(3, 256, 127, bits.BYTES),
    "int4": Form(4, 64, 7, bits.NIBBLES),
    "int4:32768": Form(4, 32768, 7, bits.NIBBLES),
    "crumbs": Form(5, 32, 1, bits.CRUMBS),
    "ternary": Form(6, 128, 1, bits.TRITS),
}
SIZES = (1, 33, 4096, 100_003, 3_000_017)


def drawn(n, seed):
    return np.random.default_rng(seed).standard_normal(n).astype(F4)


def same(there, here):
    np.testing.assert_array_equal(there.get().view(np.uint8), here.view(np.uint8))


@pytest.mark.parametrize("noise", [None, Noise(stream(1, 2, 3), 5)])
@pytest.mark.parametrize("name", FORMS)
def test_payloads_have_the_same_bytes_and_sums_the_same_bits(gpu, name, noise):
    from psgrad.kernels import cuda_scaled

    form, xp = FORMS[name], gpu.xp
    for n in SIZES:
        x, kept = drawn(n, 1), drawn(n, 2) * F4(0.25)
        steps = np.zeros(form.blocks(n), F4)
        packed = np.zeros(bits.packed_nbytes(n, form.coding), np.uint8)
        runs = []
        for _ in range(2):
            there = xp.asarray(kept)
            codes = cuda_scaled.Codes(xp.zeros_like(xp.asarray(steps)), xp.asarray(packed))
            found = xp.zeros(1, np.uint32)
            cuda_scaled.encode_scaled(
                form, quantize.block_max, xp.asarray(x), there, codes, noise, found
            )
            runs.append((codes, there))
        plain.encode_scaled(form, quantize.block_max, x, kept, steps, packed, noise, Workspace())
        for codes, there in runs:
            same(codes.steps, steps)
            same(codes.packed, packed)
            same(there, kept)
        shares, out = [F4(0.7), F4(-0.3)], np.zeros(n, F4)
        there = xp.zeros(n, np.float32)
        cuda_scaled.add_payloads(form, [codes for codes, _ in runs], shares, there, True)
        for i, share in enumerate(shares):
            for start in range(0, n, bits.GROUP):
                at, block = bits.packed_nbytes(start, form.coding), start // form.block
                size = min(bits.GROUP, n - start)
                part = out[start : start + size]
                plain.add_scaled(form, steps[block:], packed[at:], size, share, part, i == 0)
        same(there, out)


@pytest.mark.parametrize("n", SIZES)
def test_the_largest_are_the_same(gpu, n):
    from psgrad.kernels import cuda_select

    for k in {1, max(1, n // 100), n}:
        v, add = np.round(drawn(n, 1), 3), np.round(drawn(n, 2), 3)
        there = [gpu.asarray(v.copy()) for _ in range(2)]
        found = [cuda_select.top_k(it, k, gpu.asarray(add)) for it in there]
        low = F4(2)
        reached = cuda_select.reaching(gpu.asarray(v.copy()), low, n, gpu.asarray(add))
        want = select.reaching(v.copy(), low, n, Workspace(), add)
        same(reached.where, want.where)
        same(reached.values, want.values)
        want = select.top_k(v, k, Workspace(), add)
        for it, got in zip(there, found, strict=True):
            same(got.where, want.where)
            same(got.values, want.values)
            same(it, v)


def test_adamw_has_the_same_bits(gpu):
    from psgrad.kernels import cuda_optim

    n, it = 100_003, AdamW()
    params, slots = drawn(n, 1), it.init(n)
    there = [gpu.asarray(a.copy()) for a in (params, slots["mean"], slots["square_mean"])]
    for step in (1, 2, 3):
        grad = drawn(n, step + 1)
        moments = it.beta1, it.beta2, it.eps
        on_device = there[0], gpu.asarray(grad.copy()), there[1], there[2]
        cuda_optim.adam(*on_device, step, 0.1, 0.01, *moments, decoupled=True)
        it.apply(params, grad, slots, step, 0.1, 0.01, np.empty((1, n), F4))
    for got, want in zip(there, (params, slots["mean"], slots["square_mean"]), strict=True):
        same(got, want)
