"""The CUDA kernels, run thread by thread on the CPU, against the kernels that they are twins of.

What this cannot see: real races, memory models, the rounding of another compiler's sqrt and exp.
"""

from __future__ import annotations

import numpy as np
import pytest
from emulated_cuda import GXX, Module, emulated, of_device
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.codecs import Key, Workspace, parse
from psgrad.codecs.base import BLOCK
from psgrad.codecs.scaled import Form
from psgrad.codecs.wire import HEADER_NBYTES
from psgrad.kernels import bits, plain, quantize, select
from psgrad.kernels.chunks import Noise
from psgrad.kernels.hashing import stream
from psgrad.optimizers import OPTIMIZERS

pytestmark = pytest.mark.skipif(GXX is None, reason="g++ is not on the PATH: no CUDA is emulated")

F4 = np.float32
FORMS = {
    "int8": Form(3, 256, 127, bits.BYTES),
    "int8:16": Form(3, 16, 127, bits.BYTES),
    "int8:8192": Form(3, 8192, 127, bits.BYTES),
    "int4": Form(4, 64, 7, bits.NIBBLES),
    "int4:512": Form(4, 512, 7, bits.NIBBLES),
    "int4:32768": Form(4, 32768, 7, bits.NIBBLES),
    "crumbs": Form(5, 32, 1, bits.CRUMBS),
    "ternary": Form(6, 128, 1, bits.TRITS),
}
SIGN = Form(7, 512, 1, bits.SIGNS)
SIZES = (1, 31, 32, 33, 4095, 4096, 4097, 70_003)
STARTS = (0, 5, (1 << 33) - 601)


@pytest.fixture(scope="module")
def cuda(tmp_path_factory):
    with emulated(tmp_path_factory.mktemp("cuda")) as modules:
        yield modules


def drawn(n, seed, kind="gaussian"):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n)
    if kind == "ties":
        x = rng.integers(-13, 14, n)
        x[::16] = 14 if seed % 2 else 254
    elif kind == "huge":
        x = np.clip(x, -3, 3) * 5e37
    elif kind == "tiny":
        x = x * 1e-41
    elif kind == "holes":
        x = x * (np.arange(n) // 700 % 2)
    return x.astype(F4)


KINDS = ("gaussian", "ties", "huge", "tiny", "holes")


def same(got, want):
    np.testing.assert_array_equal(np.asarray(got).view(np.uint8), want.view(np.uint8))


def body(form, n):
    return np.full(form.blocks(n), 7, F4), np.full(bits.packed_nbytes(n, form.coding), 0xA5, "u1")


def encoded(cuda, form, measure, x, residual, noise):
    """steps, codes, residual and the flag, by the emulated kernel."""
    steps, packed = (of_device(a) for a in body(form, x.size))
    there_x = of_device(x)
    kept = None if residual is None else of_device(residual)
    found = of_device(np.zeros(1, np.uint32))
    codes = cuda.cuda_scaled.Codes(steps, packed)
    cuda.cuda_scaled.encode_scaled(form, measure, there_x, kept, codes, noise, found)
    same(there_x, x)
    return steps, packed, kept, int(found[0])


def assert_encodes_alike(cuda, form, x, residual, noise):
    steps, packed = body(form, x.size)
    kept = None if residual is None else residual.copy()
    measure = quantize.block_max
    plain.encode_scaled(form, measure, x, kept, steps, packed, noise, Workspace())
    there = encoded(cuda, form, measure, x, residual, noise)
    same(there[0], steps)
    same(there[1], packed)
    if kept is not None:
        same(there[2], kept)
    assert there[3] == bool(steps.any())


@pytest.mark.parametrize("name", FORMS)
def test_scaled_payloads_have_the_same_bytes(cuda, name):
    for seed, n in enumerate(SIZES):
        x, residual = drawn(n, seed), drawn(n, seed + 100) * F4(0.25)
        noise = Noise(stream(1, 2, 3), STARTS[seed % 3]) if seed % 2 else None
        assert_encodes_alike(cuda, FORMS[name], x, residual, noise)


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_payloads_of_odd_numbers(cuda, kind):
    for seed, form in enumerate(FORMS.values()):
        for noise in (None, Noise(stream(4, 5, 6), STARTS[2])):
            x = drawn(2_000, seed, kind)
            assert_encodes_alike(cuda, form, x, None, noise)
            assert_encodes_alike(cuda, form, x, x[::-1].copy() * F4(0.5), noise)


def test_a_payload_of_zeros_has_no_step(cuda):
    for form in FORMS.values():
        assert_encodes_alike(cuda, form, np.zeros(1000, F4), np.full(1000, -0.0, F4), None)


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(list(FORMS)),
    n=st.integers(1, 9_000),
    seed=st.integers(0, 1000),
    start=st.integers(0, 1 << 40),
    backwards=st.booleans(),
)
def test_scaled_payloads_anywhere(cuda, name, n, seed, start, backwards):
    Module.backwards = int(backwards)
    try:
        noise = Noise(stream(seed, 1, 2), start)
        assert_encodes_alike(cuda, FORMS[name], drawn(n, seed), drawn(n, seed + 1), noise)
    finally:
        Module.backwards = 0


def test_memory_at_addresses_that_are_not_wide(cuda):
    """x, residual and codes at odd places take the narrow loads and stores."""
    form, n = FORMS["int8"], 5_000
    memory = of_device(drawn(2 * n + 2, 1))
    x, residual = memory[1 : n + 1], memory[n + 1 : 2 * n + 1]
    want_x, want_kept = np.array(x), np.array(residual)
    steps, packed = body(form, n)
    plain.encode_scaled(
        form, quantize.block_max, want_x, want_kept, steps, packed, None, Workspace()
    )
    bytes_ = of_device(np.zeros(n + 1, np.uint8))
    codes = cuda.cuda_scaled.Codes(of_device(steps * 0), bytes_[1:])
    found = of_device(np.zeros(1, np.uint32))
    cuda.cuda_scaled.encode_scaled(form, quantize.block_max, x, residual, codes, None, found)
    same(np.array(bytes_[1:]), packed)
    same(np.array(residual), want_kept)


@pytest.mark.parametrize("n", SIZES)
def test_signs_are_the_same_and_scales_within_rounding(cuda, n):
    codec, x, residual = parse("sign"), drawn(n, n, "holes"), drawn(n, n + 1) * F4(0.25)
    x[: n // 3] = -0.0
    residual[: n // 3] = -0.0
    kept, out = residual.copy(), np.zeros(SIGN.nbytes(n), np.uint8)
    steps, packed, there_kept, _ = encoded(cuda, SIGN, quantize.block_mean, x, residual, None)
    if codec.nbytes_max(n) < SIGN.nbytes(n):
        return  # the CPU sends it raw
    codec.encode(x, kept, out, Key(1, 2, 3, 0), Workspace())
    want_steps, want_packed = SIGN.split(out[HEADER_NBYTES:], n)
    same(packed, want_packed)
    np.testing.assert_allclose(steps, want_steps, rtol=2**-16)
    np.testing.assert_allclose(there_kept, kept, rtol=0, atol=2**-15 * float(want_steps.max()))


@pytest.mark.parametrize("levels", [1, 7, 127])
def test_norms_agree_within_rounding_and_codes_within_one(cuda, levels):
    coding = {1: bits.CRUMBS, 7: bits.NIBBLES, 127: bits.BYTES}[levels]
    form, noise = Form(5, 64, levels, coding), Noise(stream(1, 2, 3), 7)
    for n, kind in ((33, "gaussian"), (4097, "holes"), (5000, "huge"), (3000, "tiny")):
        x = drawn(n, n, kind)
        steps, packed = body(form, n)
        plain.encode_scaled(form, quantize.block_norm, x, None, steps, packed, noise, Workspace())
        there = encoded(cuda, form, quantize.block_norm, x, None, noise)
        np.testing.assert_allclose(there[0], steps, rtol=2**-16)
        one, other = (bits.unpacked(np.array(p), coding, n) for p in (there[1], packed))
        difference = np.abs(one.astype(int) - other)
        assert difference.max() <= 1
        assert np.count_nonzero(difference) <= n // 500


@pytest.mark.parametrize("name", [*FORMS, "sign"])
def test_sums_of_payloads_have_the_same_bits(cuda, name):
    form = FORMS.get(name, SIGN)
    for n in SIZES:
        rng = np.random.default_rng(n)
        bodies = []
        for worker in range(3):
            steps, packed = body(form, n)
            steps[:] = drawn(steps.size, worker)
            packed[:] = rng.integers(0, 256, packed.size, np.uint8)
            bodies.append((steps, packed))
        shares = [F4(0.7), F4(-0.3), F4(1)]
        for first in (True, False):
            want = drawn(n, 9)
            there = of_device(want)
            for i, ((steps, packed), share) in enumerate(zip(bodies, shares, strict=True)):
                for start in range(0, n, BLOCK):
                    plain.add_scaled(
                        form, steps[start // form.block :],
                        packed[bits.packed_nbytes(start, form.coding) :],
                        min(BLOCK, n - start), share, want[start : start + BLOCK],
                        first and i == 0,
                    )  # fmt: skip
            payloads = [
                cuda.cuda_scaled.Codes(of_device(steps), of_device(packed))
                for steps, packed in bodies
            ]
            cuda.cuda_scaled.add_payloads(form, payloads, shares, there, first)
            same(there, want)


def test_arrays_that_do_not_fit_are_refused(cuda):
    form, n = FORMS["int4"], 100
    steps, packed = (of_device(a) for a in body(form, n))
    x, codes = of_device(drawn(n, 1)), cuda.cuda_scaled.Codes(steps, packed)
    short = cuda.cuda_scaled.Codes(steps, packed[:-1])
    wrong = {
        "codes": lambda it: it.encode_scaled(form, quantize.block_max, x, None, short, None, x),
        "kept": lambda it: it.encode_scaled(form, quantize.block_max, x, x[1:], codes, None, x),
        "read": lambda it: it.add_payloads(form, [short], [F4(1)], x, True),
        "shares": lambda it: it.add_payloads(form, [codes], [], x, True),
        "none": lambda it: it.add_payloads(form, [], [], x, True),
    }
    for call in wrong.values():
        with pytest.raises(ValueError, match="sizes that go together"):
            call(cuda.cuda_scaled)
    with pytest.raises(ValueError, match="sizes that go together"):
        cuda.cuda_optim.sgd(x, x[1:], 0.1, 0.0)


# Selection


def assert_finds_alike(got, want):
    same(got.where, want.where)
    same(got.values, want.values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 33, 4097, 70_003])
def test_the_largest_are_the_same_with_ties_to_the_lowest_index(cuda, n, kind):
    for k in {1, max(1, n // 100), max(1, n // 3), n}:
        v, add = drawn(n, k, kind), drawn(n, k + 1, kind) * F4(0.5)
        there = of_device(v)
        got = cuda.cuda_select.top_k(there, k, of_device(add))
        assert_finds_alike(got, select.top_k(v, k, Workspace(), add))
        same(there, v)


@pytest.mark.parametrize("kind", KINDS)
def test_what_reaches_a_threshold_is_the_same(cuda, kind):
    n = 40_001
    for low in (0.0, 0.1, 2.0, 1e38):
        for most in (50, n):
            v, add = drawn(n, 3, kind), drawn(n, 4, kind)
            there = of_device(v)
            got = cuda.cuda_select.reaching(there, F4(low), most, of_device(add))
            assert_finds_alike(got, select.reaching(v, F4(low), most, Workspace(), add))
            same(there, v)


# Optimizers


def update_on_device(optim, optimizer, params, grad, slots, hyper):
    """The launch that is ``optimizer.apply``."""
    name = type(optimizer).__name__.lower()
    arrays, (step, rate, decay) = (params, grad, *slots), hyper
    if name in ("adam", "adamw"):
        betas = optimizer.beta1, optimizer.beta2, optimizer.eps
        optim.adam(*arrays, step, rate, decay, *betas, decoupled=name == "adamw")
    elif name in ("momentum", "nesterov"):
        getattr(optim, name)(*arrays, rate, decay, optimizer.momentum)
    elif name == "sgd":
        optim.sgd(*arrays, rate, decay)
    elif name == "adagrad":
        optim.adagrad(*arrays, rate, decay, optimizer.eps)
    else:
        optim.rmsprop(*arrays, rate, decay, optimizer.alpha, optimizer.eps)


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "ftrl"])
def test_updates_have_the_same_bits(cuda, name, decay):
    optimizer = OPTIMIZERS[name]()
    for n in (1, 33, 4097):
        params, slots = drawn(n, n), optimizer.init(n)
        there = of_device(params), [of_device(slots[slot]) for slot in optimizer.slots]
        for step in (1, 2, 3):
            grad, rate = drawn(n, n + step), 0.1 / step
            hyper = step, rate, decay
            update_on_device(cuda.cuda_optim, optimizer, there[0], of_device(grad), there[1], hyper)
            optimizer.apply(params, grad, slots, *hyper, np.empty((2, n), F4))
            same(there[0], params)
            for got, slot in zip(there[1], optimizer.slots, strict=True):
                same(got, slots[slot])


# The emulator itself


BROKEN = {
    "a barrier that is missing": ("    if (PACKING == PLANES) {\n        __syncthreads();", "    if (PACKING == PLANES) {"),
    "a barrier that half of the block comes to": ("        __syncthreads();", "        if (threadIdx.x < 64) __syncthreads();"),
    "a shuffle that lanes leave out": ("const u32 other = __shfl_xor_sync(ALL_LANES, codes, 1);", "u32 other = 0; if (threadIdx.x & 1) other = __shfl_xor_sync(ALL_LANES, codes, 1);"),
    "a comparison with the wrong sign": ("if (bits > top) top = bits;", "if (bits < top) top = bits;"),
}  # fmt: skip
