"""The models' kernels in CUDA, run on the CPU; and the emulator itself."""

from __future__ import annotations

import numpy as np
import pytest
from emulated_cuda import Module, drawn, needs_gxx, of_device

from psgrad.kernels import ACTIVATIONS, cpu

pytestmark = needs_gxx

F4 = np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 10), (64, 33), (300, 67)])
def test_the_kernels_of_models_agree_within_rounding(cuda, shape, dtype):
    tolerance = {np.float32: 1e-5, np.float64: 1e-12}[dtype]
    for kind in (*ACTIVATIONS, "identity"):
        z, grad = (drawn(shape[0] * shape[1], i).reshape(shape).astype(dtype) * 3 for i in (1, 2))
        bias = drawn(shape[1], 3).astype(dtype)
        there_z, there_grad = of_device(z), of_device(grad)
        there_h = cuda.cuda.bias_activation(there_z, of_device(bias), kind)
        h = cpu.bias_activation(z, bias, kind)
        cuda.cuda.activation_backward(there_grad, there_z, there_h, kind)
        cpu.activation_backward(grad, z, h, kind)
        for got, want in ((there_h, h), (there_z, z), (there_grad, grad)):
            atol = tolerance * np.abs(want).max(initial=1)
            np.testing.assert_allclose(got, want, rtol=0, atol=atol)
    logits = drawn(shape[0] * shape[1], 4).reshape(shape).astype(dtype) * 5
    labels = np.random.default_rng(5).integers(0, shape[1], shape[0])
    there = of_device(logits)
    totals = cuda.cuda.softmax_cross_entropy(there, of_device(labels), 0.5)
    want = cpu.softmax_cross_entropy(logits, labels, 0.5)
    np.testing.assert_allclose(totals, want, rtol=tolerance)
    np.testing.assert_allclose(there, logits, rtol=0, atol=tolerance)


# The emulator itself: what it must not let pass

FAULTY = """
extern "C" __global__ void no_barrier(float* out) {
    __shared__ float room[64];
    room[threadIdx.x] = 1.0f + threadIdx.x;
    BARRIER
    out[threadIdx.x] = room[63 - threadIdx.x];
}
extern "C" __global__ void half_a_block(float* out) {
    if (threadIdx.x < 32) __syncthreads();
    out[threadIdx.x] = 1.0f;
}
extern "C" __global__ void half_a_warp(float* out) {
    if (threadIdx.x & 1) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}
extern "C" __global__ void two_functions(float* out) {
    const unsigned all = 0xffffffffu;
    if (threadIdx.x & 1) out[0] = __ballot_sync(all, 1);
    else out[1] = __shfl_xor_sync(all, 1.0f, 1);
}
"""
FAULTS = {
    "half_a_block": "deadlock",
    "half_a_warp": "deadlock",
    "two_functions": "lanes call different functions",
}


def test_the_emulator_sees_barriers_that_are_missing_or_not_reached_by_all(cuda):
    wanted = np.arange(64, 0, -1, dtype=F4)
    for barrier in ("__syncthreads();", ""):
        module = Module(FAULTY.replace("BARRIER", barrier))
        out = of_device(np.zeros(64, F4))
        module.get_function("no_barrier")((1,), (64,), (out,))
        assert np.array_equal(out, wanted) == bool(barrier)
    for name, fault in FAULTS.items():
        with pytest.raises(RuntimeError, match=fault):
            module.get_function(name)((1,), (64,), (out,))


def test_the_emulator_refuses_arguments_of_other_types(cuda):
    x = of_device(drawn(8, 1))
    sizes = np.int64(8), F4(0.1), F4(0)
    for wrong in (
        (x, x, np.int32(8), *sizes[1:]),
        (x, x, sizes[0], np.float64(0.1), F4(0)),
        (x, np.array(x), *sizes),
        (x, x, *sizes, F4(0)),
    ):
        with pytest.raises(AssertionError, match=r"of sgd|sgd takes"):
            cuda.cuda_launch.launch("optim", "sgd", (1,), (32,), *wrong)
