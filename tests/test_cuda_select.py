"""Selection and optimizers in CUDA, run on the CPU, against NumPy's: equal bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from emulated_cuda import KINDS, Module, drawn, needs_gxx, of_device, same

from psgrad.codecs import Workspace
from psgrad.kernels import select
from psgrad.optimizers import OPTIMIZERS

pytestmark = needs_gxx

F4 = np.float32


@pytest.fixture(params=[0, 1], ids=["forwards", "backwards"])
def order(request, monkeypatch):
    """Threads of a block in both orders: of two that write to one place, either may be last."""
    monkeypatch.setattr(Module, "backwards", request.param)


def assert_finds_alike(got, want):
    same(got.where, want.where)
    same(got.values, want.values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 33, 4097, 70_003])
def test_the_largest_are_the_same_with_ties_to_the_lowest_index(cuda, order, n, kind):
    for k in {1, max(1, n // 100), max(1, n // 3), n}:
        v, add = drawn(n, k, kind), drawn(n, k + 1, kind) * F4(0.5)
        there = of_device(v)
        got = cuda.cuda_select.top_k(there, k, of_device(add))
        assert_finds_alike(got, select.top_k(v, k, Workspace(), add))
        same(there, v)


@pytest.mark.parametrize("kind", KINDS)
def test_what_reaches_a_threshold_is_the_same(cuda, order, kind):
    n = 40_001
    for low in (0.0, 0.1, 2.0, 1e38):
        for most in (50, n):
            v, add = drawn(n, 3, kind), drawn(n, 4, kind)
            there = of_device(v)
            got = cuda.cuda_select.reaching(there, F4(low), most, of_device(add))
            assert_finds_alike(got, select.reaching(v, F4(low), most, Workspace(), add))
            same(there, v)


def test_a_selection_of_what_does_not_fit_is_refused(cuda):
    v = of_device(drawn(10, 1))
    for k in (0, 11):
        with pytest.raises(ValueError, match=f"k must be from 1 to 10, got {k}"):
            cuda.cuda_select.top_k(v, k)
    for call in (cuda.cuda_select.top_k, lambda *a: cuda.cuda_select.reaching(a[0], F4(1), *a[1:])):
        with pytest.raises(ValueError, match="the same size, got 10 and 9"):
            call(v, 3, v[1:])


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
