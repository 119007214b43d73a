"""The CUDA kernels of sequences and the transformer on them against the CPU, the specification."""

from __future__ import annotations

import numpy as np
import pytest
from test_gpu_models import TOLERANCE, both_floats, close

from psgrad.kernels import PRECISIONS, cpu
from psgrad.kernels.precision import with_precision
from psgrad.models import Transformer

pytestmark = pytest.mark.gpu


def drawn(*shape, dtype, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@both_floats
def test_products(gpu, dtype):
    a, b = drawn(6, 2, 5, 4, dtype=dtype), drawn(6, 2, 3, 4, dtype=dtype)
    got = gpu.matmul(gpu.asarray(a), gpu.asarray(b).swapaxes(-1, -2))
    close(got, np.matmul(a, b.swapaxes(-1, -2)), gpu, dtype)
    out = gpu.asarray(np.zeros((4, 3), dtype))
    gpu.matmul(gpu.asarray(a[0, 0]).T, gpu.asarray(a[0, 1])[:, :3], out=out)
    close(out, a[0, 0].T @ a[0, 1][:, :3], gpu, dtype)


@both_floats
@pytest.mark.parametrize(("b", "t", "v", "n"), [(1, 1, 1, 1), (3, 5, 7, 33), (16, 64, 65, 128)])
def test_embed_and_backward(gpu, b, t, v, n, dtype):
    ids = np.random.default_rng(0).integers(0, v, (b, t))
    tokens, positions = drawn(v, n, dtype=dtype), drawn(t, n, dtype=dtype, seed=2)
    h = gpu.embed(gpu.asarray(ids), gpu.asarray(tokens), gpu.asarray(positions))
    close(h, cpu.embed(ids, tokens, positions), gpu, dtype)
    grad = drawn(b * t, n, dtype=dtype, seed=3)
    there = [gpu.asarray(tokens.copy()), gpu.asarray(positions.copy())]
    again = [gpu.asarray(tokens.copy()), gpu.asarray(positions.copy())]
    gpu.embed_backward(gpu.asarray(grad), gpu.asarray(ids), *there)
    gpu.embed_backward(gpu.asarray(grad), gpu.asarray(ids), *again)
    cpu.embed_backward(grad, ids, tokens, positions)
    close(there[0], tokens, gpu, dtype)
    close(there[1], positions, gpu, dtype)
    for one, other in zip(there, again, strict=True):
        assert bool((one == other).all()), "it does not repeat"


@both_floats
@pytest.mark.parametrize(("m", "n"), [(1, 1), (7, 33), (1000, 128), (64, 5000)])
def test_layer_norm_and_backward(gpu, m, n, dtype):
    x = drawn(m, n, dtype=dtype) + dtype(2)
    gain, bias = drawn(n, dtype=dtype, seed=2), drawn(n, dtype=dtype, seed=3)
    there = gpu.layer_norm(gpu.asarray(x), gpu.asarray(gain), gpu.asarray(bias))
    here = cpu.layer_norm(x, gain, bias)
    for got, want in zip(there, here, strict=True):
        close(got, want, gpu, dtype)
    grad = drawn(m, n, dtype=dtype, seed=4)
    sums = [np.ones(n, dtype), np.zeros(n, dtype)]
    there_grad, there_sums = gpu.asarray(grad.copy()), [gpu.asarray(s.copy()) for s in sums]
    gpu.layer_norm_backward(there_grad, *there[1:], gpu.asarray(gain), *there_sums)
    cpu.layer_norm_backward(grad, *here[1:], gain, *sums)
    for got, want in zip([there_grad, *there_sums], [grad, *sums], strict=True):
        close(got, want, gpu, dtype)


@both_floats
@pytest.mark.parametrize("shape", [(1, 1), (33, 33), (2, 3, 64, 64), (1, 300, 300)])
def test_causal_softmax_and_backward(gpu, shape, dtype):
    scores, grad = 4 * drawn(*shape, dtype=dtype), drawn(*shape, dtype=dtype, seed=2)
    there, there_grad = gpu.asarray(scores.copy()), gpu.asarray(grad.copy())
    gpu.causal_softmax(there, 0.3)
    cpu.causal_softmax(scores, 0.3)
    close(there, scores, gpu, dtype)
    gpu.causal_softmax_backward(there_grad, there, 0.3)
    cpu.causal_softmax_backward(grad, scores, 0.3)
    close(there_grad, grad, gpu, dtype)


@both_floats
def test_the_transformer_on_the_gpu_is_that_on_the_cpu(gpu, dtype):
    model, random = Transformer(layers=2, heads=4, width=32, context=24), np.random.default_rng(3)
    params = {name: p.astype(dtype) for name, p in model.init(24, 11, seed=0).items()}
    grads = {name: np.zeros_like(p) for name, p in params.items()}
    x, y = random.integers(0, 11, (2, 6, 24))
    there_params = {name: gpu.asarray(p) for name, p in params.items()}
    there_grads = {name: gpu.asarray(g.copy()) for name, g in grads.items()}
    there_x, there_y = gpu.asarray(x), gpu.asarray(y)
    for options in ({}, {"scale": 0.5, "accumulate": True}):
        there_loss, _ = model.loss_and_grad(
            there_params, there_x, there_y, there_grads, gpu, **options
        )
        loss, _ = model.loss_and_grad(params, x, y, grads, cpu, **options)
        assert there_loss == pytest.approx(loss, rel=10 * TOLERANCE[dtype])
        for name, grad in grads.items():
            back = np.empty_like(grad)
            gpu.copy_to_host(there_grads[name], back)
            # Sums over many layers, in another order.
            np.testing.assert_allclose(
                back, grad, rtol=0, atol=20 * TOLERANCE[dtype] * np.abs(grad).max(), err_msg=name
            )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (128, 512, 384)])
def test_products_of_rounded_factors(gpu, shape, precision):
    """cuBLAS may round tf32 in its own way, to one last place more; sums are in another order."""
    m, k, n = shape
    reduced = with_precision(gpu, precision)
    a, b = drawn(m, k, dtype=np.float32), drawn(k, n, dtype=np.float32, seed=2)
    want = cpu.matmul(a, b, None, precision)
    places = 2.0**-9 if precision == "tf32" else 1e-6
    bound = places * (np.abs(a) @ np.abs(b))
    there_a, there_b = gpu.asarray(a), gpu.asarray(b)
    flipped_b = gpu.asarray(np.ascontiguousarray(b.T)).T
    out = gpu.asarray(np.zeros((m, n), np.float32))
    assert reduced.matmul(there_a, there_b, out=out) is out
    for got in (out, reduced.matmul(there_a, flipped_b)):
        back = np.empty_like(want)
        gpu.copy_to_host(got, back)
        assert (np.abs(back - want) <= bound).all()


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_batches_of_products_and_what_does_not_fit(gpu, precision):
    reduced = with_precision(gpu, precision)
    a, b = drawn(6, 2, 5, 4, dtype=np.float32), drawn(6, 2, 3, 4, dtype=np.float32)
    got = reduced.matmul(gpu.asarray(a), gpu.asarray(b).swapaxes(-1, -2))
    back = np.empty((6, 2, 5, 3), np.float32)
    gpu.copy_to_host(got, back)
    want = cpu.matmul(a, b.swapaxes(-1, -2), None, precision)
    np.testing.assert_allclose(back, want, rtol=1e-5, atol=1e-2 if precision == "tf32" else 1e-5)
    huge = np.array([[7e4, 1.0]], np.float32)
    product = reduced.matmul(gpu.asarray(huge), gpu.asarray(np.ones((2, 1), np.float32)))
    assert bool(gpu.xp.isinf(product).all()) == (precision == "float16")
    nan = np.array([[np.nan, 1.0]], np.float32)
    product = reduced.matmul(gpu.asarray(nan), gpu.asarray(np.ones((2, 1), np.float32)))
    assert bool(gpu.xp.isnan(product).all())
