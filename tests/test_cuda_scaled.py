"""The CUDA kernels, run thread by thread on the CPU, against the kernels that they are twins of.

What this cannot see: real races, memory models, the rounding of another compiler's sqrt and exp.
"""

from __future__ import annotations

import numpy as np
import pytest
from emulated_cuda import KINDS, Module, drawn, needs_gxx, of_device, same
from hypothesis import given, settings
from hypothesis import strategies as st

from psgrad.codecs import Key, Workspace, parse
from psgrad.codecs.base import BLOCK
from psgrad.codecs.scaled import Form
from psgrad.codecs.wire import HEADER_NBYTES
from psgrad.kernels import bits, plain, quantize
from psgrad.kernels.chunks import Noise
from psgrad.kernels.hashing import stream

pytestmark = needs_gxx

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
