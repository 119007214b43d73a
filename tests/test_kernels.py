"""The CPU kernels against the formulas they stand for, the choice of a device, the CUDA source."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import psgrad.kernels
from psgrad.errors import ConfigError
from psgrad.kernels import ACTIVATIONS, cpu, load

FLOATS = (np.float32, np.float64)
KINDS = (*ACTIVATIONS, "identity")


def exact(kind: str, z: float) -> float:
    if kind == "relu":
        return max(z, 0.0)
    if kind == "tanh":
        return math.tanh(z)
    if kind == "gelu":
        return 0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    return z


# ---- choosing a device


@pytest.fixture
def fake_cupy(monkeypatch):
    """Puts a stand-in for CuPy where ``import cupy`` finds it, and forgets kernels.cuda after."""

    def forget():
        sys.modules.pop("psgrad.kernels.cuda", None)
        vars(psgrad.kernels).pop("cuda", None)

    def put(get_device_count):
        class DriverError(RuntimeError):
            pass

        def count():
            result = get_device_count()
            if isinstance(result, str):
                raise DriverError(result)
            return result

        runtime = SimpleNamespace(getDeviceCount=count, CUDARuntimeError=DriverError)
        stand_in = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
        monkeypatch.setitem(sys.modules, "cupy", stand_in)

    forget()
    yield put
    forget()


@pytest.fixture
def no_cupy(monkeypatch, fake_cupy):
    monkeypatch.setitem(sys.modules, "cupy", None)


def test_the_cpu_is_always_there():
    assert load("cpu") is cpu
    assert load("cpu").device == "cpu"
    assert load("cpu").xp is np


def test_an_unknown_device_names_the_nearest():
    with pytest.raises(
        ConfigError, match=r"unknown device 'gup'; did you mean 'gpu'\? Known: auto"
    ):
        load("gup")


def test_without_cupy_auto_is_the_cpu(no_cupy):
    assert load("auto") is cpu


def test_without_cupy_gpu_says_what_to_install(no_cupy):
    with pytest.raises(ConfigError, match=r"needs CuPy.*pip install 'psgrad\[cuda13x\]'") as caught:
        load("gpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [0, "cudaErrorNoDevice: no CUDA-capable device is detected"])
def test_without_a_device(fake_cupy, count):
    fake_cupy(lambda: count)
    assert load("auto") is cpu
    with pytest.raises(ConfigError, match="needs a CUDA GPU, found none") as caught:
        load("gpu")
    assert (count or "counts 0 devices") in str(caught.value)


@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_with_a_device(fake_cupy, device):
    fake_cupy(lambda: 2)
    assert load(device).device == "gpu"


# ---- moving arrays


def test_copies_go_into_the_array_given():
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    there, back = cpu.xp.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
    cpu.copy_to_device(host, there)
    cpu.synchronize()
    cpu.copy_to_host(there, back)
    assert np.array_equal(back, host)
    assert np.array_equal(cpu.asarray(host), host)
    assert cpu.asarray(host).dtype == host.dtype


@pytest.mark.parametrize("copy", [cpu.copy_to_device, cpu.copy_to_host])
def test_a_copy_never_casts(copy):
    with pytest.raises(TypeError, match="float64"):
        copy(np.zeros(3, np.float64), np.zeros(3, np.float32))


# ---- bias and activation

GRID = np.array([-40.0, -10.5, -9.5, -3.0, -1.0, -0.1, 0.0, 0.1, 0.7, 2.0, 9.5, 10.5, 40.0])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
def test_bias_activation_is_the_formula(kind, dtype):
    z = np.stack([GRID, GRID[::-1]]).astype(dtype)
    bias = np.linspace(-1, 1, GRID.size).astype(dtype)
    want = [[exact(kind, float(v)) for v in row] for row in z + bias]
    h = cpu.bias_activation(z, bias, kind)
    assert h.dtype == dtype
    # Where gelu is almost 0 it is a difference of nearly equal numbers, hence an absolute bound.
    scale = 40 * np.finfo(dtype).eps
    np.testing.assert_allclose(h, want, rtol=scale, atol=scale)


@pytest.mark.parametrize("kind", KINDS)
def test_what_bias_activation_leaves_in_z(kind):
    z, bias = np.array([[1.0, -2.0]]), np.array([0.5, 0.25])
    h = cpu.bias_activation(z, bias, kind)
    if kind == "gelu":
        assert h is not z
        assert z.tolist() == [[1.5, -1.75]]
    else:
        assert h is z


@pytest.mark.parametrize("kind", KINDS)
def test_backward_is_the_slope(kind):
    step = 1e-6
    points = GRID[GRID != 0][None, :]  # relu has a kink at 0
    zero = np.zeros(points.size)
    forward = [cpu.bias_activation(points + s, zero, kind) for s in (step, -step)]
    z = points.copy()
    h = cpu.bias_activation(z, zero, kind)
    grad = np.full_like(points, 3.0)
    cpu.activation_backward(grad, z, h, kind)
    np.testing.assert_allclose(grad, 3 * (forward[0] - forward[1]) / (2 * step), atol=2e-8)


def test_the_slope_of_relu_at_zero_is_zero():
    z = np.zeros((1, 1))
    h = cpu.bias_activation(z, np.zeros(1), "relu")
    grad = np.ones((1, 1))
    cpu.activation_backward(grad, z, h, "relu")
    assert grad.tolist() == [[0.0]]


def test_gelu_of_huge_values_does_not_overflow():
    z = np.array([[1e30, -1e30]], dtype=np.float32)
    h = cpu.bias_activation(z, np.zeros(2, np.float32), "gelu")
    grad = np.ones_like(z)
    cpu.activation_backward(grad, z, h, "gelu")
    assert h.tolist() == [[float(np.float32(1e30)), 0.0]]
    assert grad.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_nan(kind):
    h = cpu.bias_activation(np.array([[np.nan, 1.0]]), np.zeros(2), kind)
    assert np.isnan(h).tolist() == [[True, False]]


def test_an_unknown_activation():
    z = np.zeros((1, 1))
    text = "unknown activation 'rely'; did you mean 'relu'"
    with pytest.raises(ConfigError, match=text):
        cpu.bias_activation(z, np.zeros(1), "rely")
    with pytest.raises(ConfigError, match=text):
        cpu.activation_backward(z, z, z, "rely")


# ---- softmax cross-entropy


def naive_row(logits, label):
    """-log softmax[label] and softmax, in exact summation, for logits small enough for exp."""
    total = math.fsum(math.exp(v) for v in logits)
    return math.log(total) - logits[label], [math.exp(v) / total for v in logits]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_softmax_is_the_formula(data):
    rows = data.draw(st.integers(1, 5))
    classes = data.draw(st.integers(1, 6))
    values = st.floats(-30, 30, allow_subnormal=False)
    flat = data.draw(st.lists(values, min_size=rows * classes, max_size=rows * classes))
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    logits = np.array(flat).reshape(rows, classes)
    want = [naive_row(row, label) for row, label in zip(logits.tolist(), labels, strict=True)]

    grad = logits.copy()
    totals = cpu.softmax_cross_entropy(grad, np.array(labels), 0.25)

    assert (totals.shape, totals.dtype) == ((2,), np.float64)
    assert totals[0] == pytest.approx(math.fsum(loss for loss, _ in want), rel=1e-12, abs=1e-12)
    hits = zip(logits.tolist(), labels, strict=True)
    assert totals[1] == sum(row.index(max(row)) == label for row, label in hits)
    onehot = np.eye(classes)[labels]
    expected = 0.25 * (np.array([p for _, p in want]) - onehot)
    np.testing.assert_allclose(grad, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("label", "loss", "right", "grad"),
    [(0, 0.0, 1, [0, 0, 0]), (1, 1e4, 0, [1, -1, 0]), (2, 2e4, 0, [1, 0, -1])],
)
def test_logits_of_ten_thousand(dtype, label, loss, right, grad):
    logits = np.array([[1e4, 0.0, -1e4]], dtype=dtype)
    totals = cpu.softmax_cross_entropy(logits, np.array([label]), 1.0)
    assert totals.tolist() == [loss, right]
    assert logits.dtype == dtype
    assert logits.tolist() == [grad]


def test_of_equal_logits_the_first_is_the_answer():
    totals = cpu.softmax_cross_entropy(np.zeros((3, 3)), np.array([0, 1, 2]), 1.0)
    assert totals[1] == 1


def test_no_rows_no_loss():
    totals = cpu.softmax_cross_entropy(np.zeros((0, 3)), np.zeros(0, np.int64), 1.0)
    assert totals.tolist() == [0.0, 0.0]


def test_float32_losses_are_summed_in_float64():
    rows = 100_000
    totals = cpu.softmax_cross_entropy(
        np.zeros((rows, 2), np.float32), np.zeros(rows, np.int64), 1.0
    )
    one = float(np.log(np.float32(2)))
    assert totals[0] == pytest.approx(rows * one, rel=1e-12)


# ---- the CUDA source

NVCC = shutil.which("nvcc")
SOURCE = Path(psgrad.kernels.__file__).with_name("nn.cu")


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH: nn.cu is not compiled")
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90"])
def test_the_cuda_source_compiles(arch, tmp_path):
    out = tmp_path / "nn.cubin"
    command = [NVCC, f"-arch={arch}", "-std=c++17", "-Werror", "all-warnings", "-cubin"]
    result = subprocess.run(
        [*command, "-o", str(out), str(SOURCE)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    binary = out.read_bytes()
    names = [f"bias_{kind}" for kind in KINDS] + [f"{kind}_backward" for kind in ACTIVATIONS]
    for name in [*names, "softmax_cross_entropy"]:
        for suffix in ("f32", "f64"):
            assert f".text.{name}_{suffix}\0".encode() in binary


def test_the_cuda_source_includes_nothing():
    # NVRTC compiles it on machines without the toolkit's headers.
    assert "#include" not in SOURCE.read_text(encoding="utf-8")
