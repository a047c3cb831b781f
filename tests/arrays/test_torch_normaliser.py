"""The divisions of a normalisation on torch's devices: plain operators, and kernels of Triton."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from polarlib.arrays.torch_normaliser import normaliser  # noqa: E402

SHAPES = [(1, 1), (3, 5), (100, 64), (2, 30, 70), (257, 129)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def orders(x):
    """The same matrices by rows, by columns, and as a part of larger ones."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    part = wide[..., ::2]
    part.copy_(x)
    return x.contiguous(), x.mT.contiguous().mT, part


def expected_by_norm(x, factor, power):
    a = x.double().numpy()
    with np.errstate(invalid="ignore"):
        s = factor * np.sqrt((a * a).sum((-2, -1), keepdims=True))
        s = np.where(s == 0, 1.0, np.where(np.isfinite(s), s, np.nan))
        s = 2.0 ** np.floor(np.log2(s)) if power else s
        return a / np.where(a.any((-2, -1), keepdims=True), s, 1.0)


def expected_bound(g, bound, slack, sums):
    n, f = g.shape[-1], np.linalg.norm(g, axis=(-2, -1))
    if bound == "schatten4":
        return np.sqrt(f * (1 + slack))
    mean = np.trace(g, axis1=-2, axis2=-1) / n
    spread = np.maximum(f * f * (1 + sums) / n - mean * mean, 0) * (n - 1)
    return np.sqrt(mean + np.sqrt(spread) + f * slack)


def check(shape, dtype, by_norm, by_gram, *, few=False):
    """Compare both divisions with NumPy in double precision."""
    eps = torch.finfo(dtype).eps
    largest = torch.finfo(dtype).max
    draw = torch.randn(shape, generator=torch.manual_seed(0), dtype=torch.float64)
    draw = draw / draw.abs().max()
    for scale in (1.0, 0.99 * largest, 64 * torch.finfo(dtype).tiny, 0.0, np.nan, np.inf):
        for x in orders((draw * scale).to(dtype))[: 2 if few else 3]:
            before = x.clone()
            for power, factor in [(True, 1.3), (False, 1.3), (True, 1.0)][: 2 if few else 3]:
                y = by_norm(x, factor, power)
                want = expected_by_norm(x, factor, power)
                if not np.isfinite(scale):
                    assert bool(y.isnan().all())
                    continue
                slack = eps * np.maximum(np.abs(want), torch.finfo(dtype).tiny)
                assert np.all(np.abs(y.double().numpy() - want) <= slack)
                assert y.dtype == dtype
            assert torch.equal(x.nan_to_num(), before.nan_to_num())
    for bound, x in itertools.product(("moments", "schatten4"), orders(draw.to(dtype))[:2]):
        y, g = x.clone(), (x.double().mT @ x.double()).to(dtype)
        s = 1.01 * expected_bound(g.double().numpy(), bound, 0.003, 1e-6)[..., None, None]
        want = y.double().numpy() / s, g.double().numpy() / s**2
        for found, wanted in zip(by_gram(y, g, bound, 0.003, 1e-6, 1.01), want, strict=True):
            slack = eps * np.maximum(np.abs(wanted), torch.finfo(dtype).tiny)
            assert np.all(np.abs(found.double().numpy() - wanted) <= slack)
        zero = torch.zeros_like(y), torch.zeros_like(g)
        assert not any(t.any() for t in by_gram(*zero, bound, 0.003, 1e-6, 1.01))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_operators_divide_as_they_say(shape, dtype):
    check(shape, dtype, *normaliser())


def test_the_gram_matrix_may_be_of_fewer_bits():
    x = torch.randn(40, 20, generator=torch.manual_seed(0))
    g = (x.mT @ x).to(torch.bfloat16)
    exact = expected_bound(g.double().numpy(), "moments", 0.01, 1e-6)
    y, h = normaliser().by_gram(x.clone(), g.clone(), "moments", 0.01, 1e-6, 1.0)
    assert torch.allclose(y, x / float(exact), rtol=1e-6, atol=0)
    assert torch.allclose(h.float(), g.float() / float(exact) ** 2, rtol=2**-8, atol=0)


def test_meta_tensors_keep_shape_and_order():
    x = torch.empty(6, 3, dtype=torch.bfloat16, device="meta").mT
    y = normaliser().by_norm(x, 1.0, True)
    assert (y.shape, y.stride(), y.dtype, y.device) == (x.shape, x.stride(), x.dtype, x.device)
    g = torch.empty(3, 3, dtype=torch.bfloat16, device="meta")
    assert normaliser().by_gram(x, g, "moments", 0.0, 0.0, 1.0) == (x, g)


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def run_here(argument, **environment):
    """Run this file as a program: Triton reads its settings once in a process."""
    subprocess.run(
        [sys.executable, __file__, argument], check=True, env={**os.environ, **environment}
    )


@needs_triton
def test_kernels_divide_as_they_say():
    run_here("interpret", TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile(capability):
    run_here(str(capability))


def interpret():
    """Kernels as Triton interprets them; its conversion to bfloat16 truncates, so without that."""
    from polarlib.arrays import torch_normaliser, triton_normaliser

    def by_norm(x, factor, power):
        y = torch.empty_like(x)
        triton_normaliser.by_norm(*map(torch_normaliser._flat, (x, y)), factor, power)
        return y

    def by_gram(y, g, bound, *how):
        flat = map(torch_normaliser._flat, (y, g))
        triton_normaliser.by_gram(*flat, bound == "moments", *how)
        return y, g

    # Few programs, as each takes milliseconds; shares of several blocks all the same.
    triton_normaliser.MOST_SUMS, triton_normaliser.BLOCK = 2, 256
    for shape, dtype in zip(SHAPES, itertools.cycle((torch.float32, torch.float16)), strict=False):
        check(shape, dtype, by_norm, by_gram, few=True)


def compile_for(capability):
    """Both kernels and their sums, for every format, without a device."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compiled

    from polarlib.arrays import triton_normaliser

    sizes = {"MOST": triton_normaliser.MOST_SUMS, "BLOCK": triton_normaliser.BLOCK}
    numbers = dict.fromkeys(("slack", "sums", "safety", "factor"), "fp32")
    numbers |= dict.fromkeys(("size", "order"), "i32") | {"partial": "*fp64"}
    flags = {"norm": "POWER", "gram": "MOMENTS"}
    every = triton_normaliser.kernels()._asdict().items()
    for (name, kernel), kind in itertools.product(every, ("bf16", "fp16", "fp32")):
        types = numbers | dict.fromkeys("xyg", f"*{kind}")
        fixed = dict(sizes)
        if flag := flags.get(name):
            fixed[flag] = True
        signature = {a: types[a] for a in kernel.arg_names if a not in fixed}
        source = ASTSource(
            kernel, signature=signature | dict.fromkeys(fixed, "constexpr"), constexprs=fixed
        )
        found = compiled(source, target=GPUTarget("cuda", capability, 32))
        assert len(found.asm["cubin"]) > 1000
        assert f".target sm_{capability}" in found.asm["ptx"]


if __name__ == "__main__":
    interpret() if sys.argv[1] == "interpret" else compile_for(int(sys.argv[1]))
