"""Compiled kernels give the bits of NumPy's: payloads, residuals, sums, selections."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgrad.codecs import parse
from psgrad.codecs.base import BLOCK, Key, Workspace
from psgrad.kernels import bits, chunks, halves, plain, select

needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None,
    reason="numba is not installed: pip install 'psgrad[compiled]'",
)
F4 = np.float32
MAX = np.finfo(F4).max
KEY = Key(seed=1, worker=2, step=3, start=5)

DENSE = (
    "fp16", "bf16",
    "int8", "int8:16", "int8:32768", "int8:rounding=stochastic",
    "int4", "int4:16", "int4:block=32,rounding=stochastic",
    "qsgd", "qsgd:levels=1,block=16", "qsgd:levels=127,block=512",
    "ternary", "ternary:16", "sign", "sign:32",
)  # fmt: skip
SPARSE = (
    "topk:0.01",
    "topk:0.01+int8",
    "topk:0.001+bf16",
    "topk:0.3",
    "topk:0.01,select=threshold",
)
SHARES = ((True, F4(1)), (False, F4(-0.7)), (False, F4(0.3)))  # with ``first``, and without
SIZES = (0, 1, 31, 32, 33, 4095, 4096, 4097, BLOCK + 1, 100_000)


@pytest.fixture(scope="module")
def compiled():
    from psgrad.kernels import compiled

    return compiled


@contextmanager
def using(kernels):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "fastest", lambda: kernels)
        yield


def gaussian(n, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(F4)


def any_bits(n, seed):
    """Every finite number is as likely as any other; halved, so that two may be added."""
    numbers = np.random.default_rng(seed).integers(0, 1 << 32, n, np.uint32)
    numbers[numbers & 0x7F80_0000 == 0x7F80_0000] ^= 0x4000_0000
    return numbers.view(F4) * F4(0.5)


def ties(n, seed):
    """Middles between the codes of int8, int4 and fp16, and equal magnitudes for top-k."""
    x = np.random.default_rng(seed).integers(-13, 14, n).astype(F4)
    x[::16] = 14 if seed % 2 else 254
    x[1::3] *= F4(1 + 2.0**-11)
    return x


KINDS = {
    "gaussian": gaussian,
    "zero": lambda n, seed: np.zeros(n, F4),
    "minus zero": lambda n, seed: np.full(n, -0.0, F4),
    "constant": lambda n, seed: np.full(n, -3.7, F4),
    "small": lambda n, seed: gaussian(n, seed, 1e-7),
    "denormal": lambda n, seed: gaussian(n, seed, 1e-43),
    "tiny": lambda n, seed: gaussian(n, seed, 1e-37),
    "huge": lambda n, seed: np.clip(gaussian(n, seed), -3, 3) * F4(5e37),
    "largest": lambda n, seed: np.where(gaussian(n, seed) > 0, MAX, -MAX) / F4(2),
    "around the end of fp16": lambda n, seed: F4(65504) * (1 + gaussian(n, seed, 1e-3)),
    "ties": ties,
    "sparse": lambda n, seed: gaussian(n, seed) * (np.arange(n) % 37 == seed % 37),
    "any bits": any_bits,
}


def same(one, other):
    np.testing.assert_array_equal(one.view(np.uint8), other.view(np.uint8))


def outcome(kernels, spec, x, residual, key=KEY):
    """All that a codec leaves behind: payload, residual, and the sum of two payloads."""
    codec, kept = parse(spec), None if residual is None else residual.copy()
    out = np.full(codec.nbytes_max(x.size), 0xA5, np.uint8)
    total = np.full(x.size, np.nan, F4)
    with using(kernels):
        payload = out[: codec.encode(x, kept, out, key, Workspace())]
        opened = codec.open(payload, x.size)
        for first, share in SHARES:
            for start in range(0, x.size, BLOCK):
                opened.add_to(total[start : start + BLOCK], start, share, first)
    return payload, x if kept is None else kept, total


def assert_twins(compiled, spec, x, residual, key=KEY):
    before = x.copy()
    results = [outcome(kernels, spec, x, residual, key) for kernels in (compiled, plain)]
    for one, other in zip(*results, strict=True):
        same(one, other)
    same(x, before)


# Codecs, whole


@needs_numba
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", [*DENSE, *SPARSE])
def test_the_same_bytes_residuals_and_sums(compiled, spec, kind):
    for seed, n in enumerate(SIZES if kind in ("gaussian", "ties", "any bits") else SIZES[:-2]):
        x = KINDS[kind](n, seed).astype(F4)
        assert_twins(compiled, spec, x, None)
        assert_twins(compiled, spec, x, (x[::-1] * F4(0.25)).copy())


@needs_numba
@pytest.mark.parametrize("spec", [*DENSE, *SPARSE])
def test_the_largest_numbers(compiled, spec):
    """They saturate: the next code would be infinity, or a step that is too large."""
    bits = np.random.default_rng(1).integers(0x7F7F_0000, 0x7F7F_FFFF, 5000, np.uint32, True)
    x = np.where(bits & 1, bits, bits | 0x8000_0000).astype(np.uint32).view(F4)
    for residual in (None, np.zeros_like(x)):
        with np.errstate(over="ignore"):  # of sums of payloads
            assert_twins(compiled, spec, x, residual)


@needs_numba
@given(
    spec=st.sampled_from((*DENSE, *SPARSE)),
    n=st.integers(0, 3 * BLOCK),
    seed=st.integers(0, 1000),
    start=st.integers(0, 1 << 40),
)
def test_any_numbers_anywhere(compiled, spec, n, seed, start):
    x, residual = any_bits(n, seed), any_bits(n, seed + 1)
    assert_twins(compiled, spec, x, residual, Key(seed, 1, 2, start))


@needs_numba
@pytest.mark.parametrize("spec", ["int8:rounding=stochastic", "qsgd", "ternary"])
@pytest.mark.parametrize("start", [(1 << 33) - 70_001, (1 << 33) - 1, 1 << 33, (1 << 33) + 1])
def test_noise_where_its_key_changes(compiled, spec, start):
    x = gaussian(100_000)
    assert_twins(compiled, spec, x, np.zeros_like(x), Key(1, 2, 3, start))


@needs_numba
@pytest.mark.parametrize("spec", [*DENSE, *SPARSE])
def test_memory_that_is_read_only_or_at_odd_addresses(compiled, spec):
    n, codec = 70_000, parse(spec)
    x = gaussian(n)
    x.flags.writeable = False
    expected, _, total = outcome(plain, spec, x, None)
    memory = np.zeros(codec.nbytes_max(n) + 1, np.uint8)
    with using(compiled):
        size = codec.encode(x, None, memory[1:], KEY, Workspace())
        same(memory[1 : 1 + size], expected)
        memory.flags.writeable = False
        opened = codec.open(memory[1 : 1 + size], n)
        sums = np.zeros(n, F4)
        for first, share in SHARES:
            for start in range(0, n, BLOCK):
                opened.add_to(sums[start : start + BLOCK], start, share, first)
    same(sums, total)


@needs_numba
def test_a_used_workspace_changes_nothing(compiled):
    work = Workspace()
    for seed, n in enumerate((100_000, 33, 4097, 100_000)):
        for spec in (*DENSE, *SPARSE):
            x, codec = gaussian(n, seed), parse(spec)
            out = np.full(codec.nbytes_max(n), 0x5A, np.uint8)
            with using(compiled):
                payload = out[: codec.encode(x, None, out, KEY, work)]
            same(payload, outcome(plain, spec, x, None)[0])


# Kernels, one by one


@needs_numba
@pytest.mark.parametrize("coding", [bits.NIBBLES, bits.CRUMBS, bits.TRITS, bits.SIGNS, bits.BYTES])
@pytest.mark.parametrize("size", [1, 7, 8, 33, 4097, bits.GROUP])
def test_any_bytes_are_read_alike(compiled, coding, size):
    form = types.SimpleNamespace(block=64, coding=coding, blocks=lambda n: -(-n // 64))
    rng = np.random.default_rng(size)
    packed = rng.integers(0, 256, bits.packed_nbytes(size, coding), np.uint8)
    steps = gaussian(form.blocks(size))
    for m in {1, size // 2 + 1, size}:
        for first in (True, False):
            sums = np.full((2, m), 0.1, F4)
            for kernels, out in zip((compiled, plain), sums, strict=True):
                kernels.add_scaled(form, steps, packed, size, F4(0.7), out, first)
            same(sums[0], sums[1])


@needs_numba
@pytest.mark.parametrize("kind", [halves.FP16, halves.BF16], ids=lambda kind: kind.name)
def test_every_code_of_16_bits(compiled, kind):
    codes = np.arange(1 << 16, dtype=np.uint16)
    codes = codes[codes & 0x7FFF < kind.infinity]
    for share in (F4(1), F4(-0.3)):
        for first in (True, False):
            sums = np.full((2, codes.size), 1e-3, F4)
            for kernels, out in zip((compiled, plain), sums, strict=True):
                kernels.add_half(kind, codes, share, out, first)
            same(sums[0], sums[1])


@needs_numba
@given(
    n=st.integers(0, 70),
    low=st.sampled_from([0.0, 1e-45, 1e-38, 0.5, 1.0, 2.0, 1e38]),
    start=st.integers(0, 1 << 33),
    end=st.integers(0, 5),
    data=st.data(),
)
def test_what_a_scan_collects(compiled, n, low, start, end, data):
    values = st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 0.25, -0.5, 1.0, -1.0, 2.0, MAX / 2])
    v = np.array(data.draw(st.lists(values, min_size=n, max_size=n)), F4)
    add = np.array(data.draw(st.lists(values, min_size=n, max_size=n)), F4)
    for added in (None, add):
        results = []
        for kernels in (compiled, plain):
            where, found, total = np.zeros(n + end, np.int64), np.zeros(n + end, F4), v.copy()
            stop = kernels.collect(total, added, F4(low), start, where, found, end, Workspace())
            results.append((where[end:stop], found[end:stop], total))
        for one, other in zip(*results, strict=True):
            same(one, other)


@needs_numba
@pytest.mark.parametrize("k", [1, 100, 30_000, 150_000, 200_001])
@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_of_many(compiled, kind, k):
    """With candidates that have to be cut on the way, and scans that have to be repeated."""
    v, add = KINDS[kind](200_001, k).astype(F4), KINDS[kind](200_001, k + 1).astype(F4)
    for pick in (select.top_k, select.above_threshold):
        results = []
        for kernels in (compiled, plain):
            total = v.copy()
            with using(kernels):
                results.append((*pick(total, k, Workspace(), add), total))
        for one, other in zip(*results, strict=True):
            same(one, other)


def wrong_sizes():
    x, short = np.ones(64, F4), np.ones(63, F4)
    form = parse("int8:16")._form
    steps, codes = np.zeros(4, F4), np.zeros(64, np.uint8)
    two = np.zeros(64, np.uint16)
    where = np.zeros(64, np.int64)
    measure, work = chunks.Measure, Workspace()
    half, low = halves.FP16, F4(0.5)
    return {
        "steps": lambda k: k.encode_scaled(form, measure, x, None, steps[:3], codes, None, work),
        "codes": lambda k: k.encode_scaled(form, measure, x, None, steps, codes[:63], None, work),
        "residual": lambda k: k.encode_scaled(form, measure, x, short, steps, codes, None, work),
        "packed": lambda k: k.add_scaled(form, steps, codes[:63], 64, low, x, True),
        "steps read": lambda k: k.add_scaled(form, steps[:3], codes, 64, low, x, True),
        "beyond the group": lambda k: k.add_scaled(form, steps, codes, 63, low, x, True),
        "halves": lambda k: k.encode_half(half, x, None, two[:63], work),
        "residual of halves": lambda k: k.encode_half(half, x, short, two, work),
        "halves read": lambda k: k.add_half(half, two[:63], low, x, True),
        "room": lambda k: k.collect(x, None, low, 0, where, short, 0, work),
        "room at the end": lambda k: k.collect(x, None, low, 0, where, x.copy(), 1, work),
        "added": lambda k: k.collect(x, short, low, 0, where, x.copy(), 0, work),
    }


@needs_numba
@pytest.mark.parametrize("case", wrong_sizes())
def test_nothing_is_written_beyond_an_end(compiled, case):
    with pytest.raises(ValueError, match="do not have the sizes that go together"):
        wrong_sizes()[case](compiled)


# Which of them run


@needs_numba
def test_numba_is_used_where_it_is_installed(compiled):
    assert chunks.fastest() is compiled
    assert compiled.name == f"numba {importlib.import_module('numba').__version__}"


@pytest.fixture
def fresh_import(monkeypatch):
    """Forgets the compiled kernels, so that the next import runs them again."""
    import psgrad.kernels

    for name in [name for name in sys.modules if name.startswith("psgrad.kernels.compiled")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(psgrad.kernels, "compiled", raising=False)
    return monkeypatch


def test_without_numba_numpy_runs(fresh_import):
    fresh_import.setitem(sys.modules, "numba", None)
    assert chunks.fastest.__wrapped__() is plain
    assert plain.name == "numpy"


def test_numba_that_cannot_be_used_is_said_and_done_without(fresh_import):
    fresh_import.setitem(sys.modules, "numba", types.ModuleType("numba"))
    with pytest.warns(
        RuntimeWarning, match="kernels run on NumPy, numba cannot be used: cannot import"
    ):
        assert chunks.fastest.__wrapped__() is plain


def test_numba_waits_for_the_first_chunk():
    code = "import sys, psgrad.codecs, psgrad.cli; sys.exit('numba' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_numba
def test_a_function_whose_code_cannot_be_kept_is_compiled_all_the_same(compiled):
    from numba import types as numba_types

    from psgrad.kernels.compiled.jit import compiled as compile_for

    source: dict = {}
    exec("def twice(i):\n    return 2 * i", source)  # it has no file to lie beside
    twice = compile_for(numba_types.int64, returns=numba_types.int64)(source["twice"])
    assert twice(21) == 42
    assert len(twice.signatures) == 1


@needs_numba
def test_kept_code_is_named_after_what_it_depends_on(compiled):
    from psgrad.kernels.compiled import jit, select

    assert select._collect.py_func.__qualname__ == f"_collect-{jit._VARIANT}"
