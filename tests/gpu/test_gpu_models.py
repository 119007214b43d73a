"""The CUDA kernels and the models on them against the CPU, the specification.

Tolerance: the largest difference over the largest value is at most 1e-5 in float32 and 1e-12 in
float64; the last bits of tanh and exp and the order of sums differ.
"""

from __future__ import annotations

import numpy as np
import pytest

from psgrad.errors import ConfigError
from psgrad.kernels import ACTIVATIONS, cpu
from psgrad.models import MLP, Softmax

pytestmark = pytest.mark.gpu

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}
KINDS = (*ACTIVATIONS, "identity")
both_floats = pytest.mark.parametrize("dtype", list(TOLERANCE))


def close(device_array, host_array, kernels, dtype):
    back = np.empty(host_array.shape, dtype)
    kernels.copy_to_host(device_array, back)
    assert host_array.dtype == dtype
    largest = np.abs(host_array).max(initial=1e-3)
    assert np.abs(back - host_array).max(initial=0) <= TOLERANCE[dtype] * largest


@both_floats
def test_copies(gpu, dtype):
    host = np.arange(12, dtype=dtype).reshape(3, 4)
    flat = gpu.xp.zeros(12, dtype=dtype)
    gpu.copy_to_device(host, flat.reshape(3, 4))
    gpu.synchronize()
    close(gpu.asarray(host), host, gpu, dtype)
    close(flat, host.ravel(), gpu, dtype)


@both_floats
@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (3, 10), (64, 33), (1000, 257), (20_000, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_bias_activation_and_backward(gpu, kind, shape, dtype):
    random = np.random.default_rng(1)
    z = (3 * random.standard_normal(shape)).astype(dtype)
    bias = random.standard_normal(shape[1]).astype(dtype)
    grad = random.standard_normal(shape).astype(dtype)
    there_z, there_grad = gpu.asarray(z), gpu.asarray(grad)
    there_h = gpu.bias_activation(there_z, gpu.asarray(bias), kind)
    h = cpu.bias_activation(z, bias, kind)
    assert (there_h is there_z) == (h is z)
    close(there_h, h, gpu, dtype)
    close(there_z, z, gpu, dtype)
    gpu.activation_backward(there_grad, there_z, there_h, kind)
    cpu.activation_backward(grad, z, h, kind)
    close(there_grad, grad, gpu, dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_huge_values(gpu, kind):
    z = np.array([[np.nan, 1e30, -1e30, 0.0]], dtype=np.float32)
    there_z = gpu.asarray(z)
    there_h = gpu.bias_activation(there_z, gpu.asarray(np.zeros(4, np.float32)), kind)
    there_grad = gpu.asarray(np.ones_like(z))
    gpu.activation_backward(there_grad, there_z, there_h, kind)
    h = cpu.bias_activation(z, np.zeros(4, np.float32), kind)
    grad = np.ones_like(z)
    cpu.activation_backward(grad, z, h, kind)
    for there, here in ((there_h, h), (there_grad, grad)):
        back = np.empty_like(here)
        gpu.copy_to_host(there, back)
        np.testing.assert_array_equal(back, here)


def test_an_unknown_activation(gpu):
    z = gpu.asarray(np.zeros((1, 1)))
    with pytest.raises(ConfigError, match="unknown activation 'rely'; did you mean 'relu'"):
        gpu.bias_activation(z, z[0], "rely")
    with pytest.raises(ConfigError, match="unknown activation 'rely'; did you mean 'relu'"):
        gpu.activation_backward(z, z, z, "rely")


@both_floats
@pytest.mark.parametrize("labels_dtype", [np.int32, np.int64])
@pytest.mark.parametrize(
    ("rows", "classes"), [(0, 3), (1, 1), (7, 2), (9, 10), (33, 32), (5, 33), (4, 5000)]
)
def test_softmax_cross_entropy(gpu, rows, classes, labels_dtype, dtype):
    random = np.random.default_rng(2)
    logits = (5 * random.standard_normal((rows, classes))).astype(dtype)
    labels = random.integers(0, classes, rows).astype(labels_dtype)
    there = gpu.asarray(logits)
    there_totals = gpu.softmax_cross_entropy(there, gpu.asarray(labels), 0.5)
    totals = cpu.softmax_cross_entropy(logits, labels, 0.5)
    assert there_totals.dtype == np.float64
    loss, correct = there_totals.tolist()
    assert loss == pytest.approx(totals[0], rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])
    assert correct == totals[1]
    close(there, logits, gpu, dtype)


@both_floats
@pytest.mark.parametrize(("label", "loss", "right"), [(0, 0.0, 1), (1, 1e4, 0), (2, 2e4, 0)])
def test_logits_of_ten_thousand(gpu, dtype, label, loss, right):
    logits = gpu.asarray(np.array([[1e4, 0.0, -1e4]], dtype=dtype))
    totals = gpu.softmax_cross_entropy(logits, gpu.asarray(np.array([label])), 1.0)
    assert totals.tolist() == [loss, right]


def test_of_equal_logits_the_first_is_the_answer(gpu):
    logits = gpu.asarray(np.zeros((70, 70), np.float32))
    totals = gpu.softmax_cross_entropy(logits, gpu.asarray(np.arange(70)), 1.0)
    assert totals.tolist()[1] == 1


def test_nan_in_a_row_is_a_nan_loss(gpu):
    host = np.zeros((2, 40), np.float32)
    host[1, 37] = np.nan
    logits = gpu.asarray(host)
    loss, _ = gpu.softmax_cross_entropy(logits, gpu.asarray(np.zeros(2, np.int64)), 1.0).tolist()
    assert np.isnan(loss)
    back = np.empty_like(host)
    gpu.copy_to_host(logits, back)
    assert np.isnan(back).any(axis=1).tolist() == [False, True]


@both_floats
@pytest.mark.parametrize(
    "model",
    [Softmax(), *(MLP((70, 33), kind) for kind in ACTIVATIONS), MLP((64, 48, 32, 16), "gelu")],
    ids=str,
)
def test_a_model_on_the_gpu_is_the_model_on_the_cpu(gpu, model, dtype):
    random = np.random.default_rng(3)
    start = model.init(64, 10, seed=0)
    params = {
        name: (p + 0.1 * random.standard_normal(p.shape)).astype(dtype) for name, p in start.items()
    }
    grads = {name: np.zeros_like(p) for name, p in params.items()}
    x = random.standard_normal((100, 64)).astype(dtype)
    y = random.integers(0, 10, 100)

    flat = gpu.xp.zeros(sum(p.size for p in params.values()), dtype=dtype)
    there_params, there_grads, begin = {}, {}, 0
    for name, p in params.items():
        there_params[name] = gpu.asarray(p)
        there_grads[name] = flat[begin : begin + p.size].reshape(p.shape)
        begin += p.size
    there_x, there_y = gpu.asarray(x), gpu.asarray(y)

    for options in ({}, {"scale": 0.5, "accumulate": True}):
        there_loss, there_correct = model.loss_and_grad(
            there_params, there_x, there_y, there_grads, gpu, **options
        )
        loss, correct = model.loss_and_grad(params, x, y, grads, cpu, **options)
        assert there_loss == pytest.approx(loss, rel=TOLERANCE[dtype])
        assert there_correct == correct
        close(flat, np.concatenate([g.ravel() for g in grads.values()]), gpu, dtype)
    total, hits = model.evaluate(there_params, there_x, there_y, gpu)
    assert total == pytest.approx(model.evaluate(params, x, y, cpu)[0], rel=TOLERANCE[dtype])
    assert hits == there_correct
