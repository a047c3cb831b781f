"""Products of 16 bits in float32, where the processor has none: the arithmetic of native ones."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from conftest import HALF, library

import polarlib
from polarlib import orthogonalize
from polarlib.arrays import torch_ops, torch_settings
from polarlib.arrays.formats import format_of
from polarlib.arrays.library import is_complex
from polarlib.arrays.ops import ops_of
from polarlib.arrays.rounded import Rounded, rounded

SHAPES = {
    "square": (40, 40),
    "tall": (70, 24),
    "wide": (24, 70),
    "stack": (3, 40, 24),
    "stack of stacks": (2, 3, 20, 30),
    "not contiguous": (80, 40),
}
WITH_PRODUCTS = ("torch", "jax")
# A processor without 16-bit products, for torch: what oneDNN and torch's own loops may use.
WITHOUT = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def gaussian(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def matrix(lib, kind: str, name: str):
    x = lib.asarray(gaussian(SHAPES[kind]), name)
    return x[::2, :] if kind == "not contiguous" else x


def units(x: np.ndarray, y: np.ndarray, name: str) -> float:
    """Largest difference of entries, in units in the last place of them or of a typical one."""
    typical = math.sqrt(np.mean(np.square(y, dtype="f8")))
    size = np.maximum(np.maximum(np.abs(x), np.abs(y)), typical)
    return float((np.abs(x - y) / (format_of(name).epsilon * 2.0 ** np.floor(np.log2(size)))).max())


@pytest.fixture
def slow(monkeypatch):
    """A processor without 16-bit products, as torch's arithmetic sees it."""
    return lambda: monkeypatch.setattr(torch_ops, "multiplies_at_speed", lambda _: False)


@pytest.fixture
def quick(monkeypatch):
    """One that has them."""
    return lambda: monkeypatch.setattr(torch_ops, "multiplies_at_speed", lambda _: True)


PRODUCTS = {
    "gram": lambda ops, g, x: ops.gram(x),
    "matmul": lambda ops, g, x: ops.matmul(x, g),
    "gemm": lambda ops, g, x: ops.gemm(x, g, x, alpha=0.7, beta=1.2),
    "gemm into": lambda ops, g, x: ops.gemm(x, g, x, 1.0, 1.2, ops.buffer(x.shape, x)),
    "quadratic": lambda ops, g, x: ops.quadratic(g, (3.4, -4.7, 2.1)),
    "hermitian": lambda ops, g, x: ops.gemm_hermitian(g, g, g, 0.3, 1.0),
    "combine": lambda ops, g, x: ops.combine((0.3, 0.7), (x, x)),
    "multiple": lambda ops, g, x: ops.combine((0.3,), (x,)),
    "diagonal": lambda ops, g, x: ops.add_diagonal(ops.combine((1.0,), (g,)), 1.2),
}


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize(
    ("where", "kind"), [*(("torch", kind) for kind in SHAPES), ("jax", "tall"), ("jax", "stack")]
)
def test_every_primitive_is_the_native_one_but_for_sums(where, name, kind):
    lib = library(where)
    x = matrix(lib, kind, name)
    base = ops_of(x)
    native, carried = base._working_in(name), Rounded(base, format_of(name), simulated=False)
    y = carried.cast(x, name)
    np.testing.assert_array_equal(lib.to_numpy(x), lib.to_numpy(y))
    g = native.combine((1 / x.shape[-2],), (native.gram(x),))
    h = carried.cast(g, name)
    for label, product in PRODUCTS.items():
        want, got = (lib.to_numpy(product(*p)) for p in ((native, g, x), (carried, h, y)))
        rounded_again = carried.cast(lib.asarray(got), name)
        np.testing.assert_array_equal(got, lib.to_numpy(rounded_again), err_msg=label)
        assert units(got, want, name) <= 1, label
        assert np.mean(got == want) > 0.98, label
        # Neither operand was written to.
        np.testing.assert_array_equal(lib.to_numpy(x), lib.to_numpy(y), err_msg=label)
        np.testing.assert_array_equal(lib.to_numpy(g), lib.to_numpy(h), err_msg=label)


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("where", ["numpy", *WITH_PRODUCTS])
def test_a_number_on_a_diagonal_is_not_rounded_by_itself(where, name):
    lib = library(where)
    z = gaussian((3, 24, 24)) / 8
    x = lib.asarray(z)
    low = rounded(ops_of(x), name)
    x = low.cast(x, name)
    exact = lib.to_numpy(x).astype("f8") + 1.2345678 * np.eye(24)
    got = lib.to_numpy(low.add_diagonal(x, 1.2345678))
    fmt = format_of(name)
    unit = fmt.epsilon * 2.0 ** np.floor(np.log2(np.maximum(np.abs(exact), fmt.smallest_normal)))
    assert np.all(np.abs(got - exact) <= 0.5001 * unit)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("form", ["plain", "gram"])
@pytest.mark.parametrize("name", HALF)
def test_orthogonalize_in_float32_is_the_native_one(torch, name, form, kind, quick, slow):
    lib = library("torch")
    x = matrix(lib, kind, name)
    before = x.clone()
    for steps, precision in ((1, None), (5, None), (5, name)):
        given = x if precision is None else x.float()
        how = {"form": form, "steps": steps, "precision": precision}
        quick()
        native = orthogonalize(given, **how)
        slow()
        q = orthogonalize(given, **how)
        assert (q.dtype, q.shape) == (given.dtype, x.shape)
        assert torch.equal(q.to(getattr(torch, name)).to(q.dtype), q)
        want, got = lib.to_numpy(native), lib.to_numpy(q)
        if steps == 1:
            assert units(got, want, name) <= 1
        # Later steps amplify what sums in another order round otherwise.
        distance = np.linalg.norm(got - want) / np.linalg.norm(want)
        assert distance < (1 if steps == 1 else 20) * format_of(name).unit_roundoff
        out = torch.empty_like(given)
        assert orthogonalize(given, out=out, **how) is out
        assert torch.equal(out, q)
    assert torch.equal(x, before)


# -- addends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "gram"])
def test_few_factors_of_addends(torch, form, quick, monkeypatch):
    """There is a product to compile for each."""
    quick()
    factors = set()
    addmm = torch.addmm

    def recorded(*operands, beta=1.0, **how):
        factors.add(beta)
        return addmm(*operands, beta=beta, **how)

    monkeypatch.setattr(torch, "addmm", recorded)
    counts = []
    for seed in range(40):
        x = torch.tensor(gaussian((48, 32), seed)).bfloat16() * (1 + seed / 40)
        orthogonalize(x, form=form)
        counts.append(len(factors))
    assert counts[-1] == counts[0] <= 15


# -- outcome ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HALF)
def test_special_matrices_keep_their_outcome(torch, name, slow):
    slow()
    kind = getattr(torch, name)
    for shape in ((4, 3), (2, 3, 4)):
        assert not orthogonalize(torch.zeros(shape, dtype=kind)).any()
    assert orthogonalize(torch.zeros((0, 3), dtype=kind)).shape == (0, 3)
    assert orthogonalize(torch.zeros((0, 3, 3), dtype=kind)).dtype == kind
    fmt = format_of(name)
    a = torch.tensor(gaussian((6, 4)), dtype=kind)
    a /= a.abs().max()
    want = orthogonalize(a).float()
    # Scaling by powers of two within the normal numbers is exact.
    for power in (0.5 * fmt.largest, 2.0**9 * fmt.smallest_normal):
        scaled = a * 2.0 ** math.floor(math.log2(power))
        q = orthogonalize(scaled).float()
        assert float((q - want).norm()) < 0.05
    for bad in (math.nan, math.inf):
        broken = a.clone()
        broken[1, 2] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            orthogonalize(broken)


@pytest.mark.parametrize("name", HALF)
def test_products_in_float32_are_no_simulation(torch, name, slow):
    slow()
    x = torch.tensor(gaussian((12, 8)), dtype=getattr(torch, name))
    low = rounded(ops_of(x), name)
    assert isinstance(low, Rounded)
    assert not low.simulated
    assert polarlib.measure(x, "jordan").simulated is False
    assert polarlib.measure(x, "jordan", precision="float8_e5m2").simulated is True
    z = x.to(torch.complex64)
    assert rounded(ops_of(z), name, is_complex=is_complex(z)).simulated


@pytest.mark.parametrize("name", HALF)
def test_derivatives_of_rational_steps_pass_through_the_rounding(torch, name, slow):
    def gradient(dtype) -> np.ndarray:
        x = torch.tensor(gaussian((10, 6)), dtype=dtype, requires_grad=True)
        weights = torch.tensor(gaussian((10, 6), 1), dtype=dtype)
        (orthogonalize(x, schedule="halley") * weights).sum().backward()
        return x.grad.double().numpy()

    exact = gradient(torch.float64)
    slow()
    found = gradient(getattr(torch, name))
    assert np.linalg.norm(found - exact) < 0.2 * np.linalg.norm(exact)


def test_graphics_processors_multiply_as_before(torch, slow):
    slow()
    ops = torch_ops.TorchOps(ops_of(torch.eye(2)).xp, torch.device("cuda"), host=False)
    for name in HALF:
        assert not isinstance(rounded(ops, name), Rounded)
    cpu = ops_of(torch.eye(2))
    assert not isinstance(rounded(cpu, "float32"), Rounded)
    assert not isinstance(rounded(cpu, "float64"), Rounded)


def test_without_onednn_no_product_of_16_bits_is_quick(torch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's of TF32
        with torch.backends.mkldnn.flags(enabled=False):
            assert not any(map(torch_settings.multiplies_at_speed, HALF))


SCRIPT = """
import json, sys, time
import numpy as np, torch
from polarlib import orthogonalize
from polarlib.arrays.torch_settings import multiplies_at_speed

def seconds(f):
    f()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return min(times)

torch.set_num_threads(1)
a = torch.tensor(np.random.default_rng(0).standard_normal((256, 256)), dtype=torch.float32)
found = {}
for name in ("bfloat16", "float16"):
    x = a.to(getattr(torch, name))
    found[name] = {
        "at speed": multiplies_at_speed(name),
        "product": seconds(lambda: x @ x),
        "float32 product": seconds(lambda: a @ a),
        "orthogonalize": seconds(lambda: orthogonalize(x)),
        "result": orthogonalize(x).double().tolist(),
    }
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the variables are for x86 and tried on Linux")
def test_a_processor_without_such_products(torch):
    """In a process of its own, since oneDNN reads its variable once."""
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX"):
        pytest.skip("another processor")
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **WITHOUT},
        capture_output=True,
        text=True,
        check=True,
    )
    for name, row in json.loads(run.stdout).items():
        assert not row["at speed"]
        # 60 to 150 times as long as in float32 were measured; 15 products were of that kind.
        assert row["product"] > 5 * row["float32 product"]
        assert row["orthogonalize"] < 5 * row["product"]
        x = torch.tensor(np.random.default_rng(0).standard_normal((256, 256)))
        here = orthogonalize(x.float().to(getattr(torch, name))).double().numpy()
        distance = np.linalg.norm(here - np.array(row["result"])) / np.linalg.norm(here)
        assert distance < 20 * format_of(name).unit_roundoff
