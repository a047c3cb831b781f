"""Symmetric products by Triton: values in its interpreter, instructions of the compiled kernel.

The interpreter is chosen when triton is imported, so its tests run in a process of their own.
Neither needs a GPU or a driver. Not shown: speed, and rounding inside tensor cores.
"""

import itertools
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import polarlib
from polarlib.arrays import triton_symmetric
from polarlib.arrays.ops import ops_of
from polarlib.arrays.rounded import rounded
from polarlib.arrays.triton_symmetric import constants, halved, kernel, symmetric_product
from polarlib.engine import symmetric

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own")
compiled = pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
DTYPES = ("bfloat16", "float16", "float32")
# Smaller than a tile, one more than a tile, several tiles with a rest, a vector, and nothing.
SHAPES = ((1, 1), (7, 3), (65, 33), (130, 70), (64, 64), (5, 0), (0, 4))
CASES = [(*shape, ()) for shape in SHAPES] + [(65, 33, (3,)), (9, 40, (2, 2)), (4, 4, (0,))]


@compiled
def test_values_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def integers(shape, seed=0):
    """Numbers whose products and sums are exact in every format."""
    return torch.randint(-1, 2, shape, generator=torch.manual_seed(seed)).double()


def orders(x):
    """The same matrices by rows, by columns, and as a part of larger ones."""
    padded = x.new_full((*x.shape[:-2], x.shape[-2] + 2, 2 * x.shape[-1] + 1), torch.nan)
    part = padded[..., 1:-1, 1::2]
    part.copy_(x)
    return x.contiguous(), x.mT.contiguous().mT, part


def assert_equal(got, want, dtype):
    assert got.dtype == getattr(torch, dtype)
    assert torch.equal(got.double(), want)
    assert torch.equal(got, got.mT)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k", "stack"), CASES)
def test_gram_matrices(n, k, stack, dtype):
    whole = integers((*stack, k, n))
    for x in orders(whole.to(getattr(torch, dtype))):
        ops = halved(rounded_like(x))
        assert_equal(ops.gram(x), whole.mT @ whole, dtype)
        out = ops.buffer((*stack, n, n), x).fill_(torch.nan)
        assert ops.gram(x, out) is out
        assert_equal(out, whole.mT @ whole, dtype)


def rounded_like(x):
    """Arithmetic in the format of a tensor, its own whatever the processor does fast."""
    return ops_of(x)._working_in(str(x.dtype)[6:])


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "stack"), [(n, stack) for n, _, stack in CASES])
def test_polynomials_of_symmetric_matrices(n, stack, dtype):
    whole = integers((*stack, n, n)).triu()
    whole = whole + whole.mT
    wanted = 0.5 * whole @ whole - 2.0 * whole
    for g in orders(whole.to(getattr(torch, dtype))):
        assert_equal(halved(rounded_like(g)).quadratic(g, (9.0, -2.0, 0.5)), wanted, dtype)


@interpreted
def test_products_of_two_matrices_that_commute():
    g = integers((70, 70)).triu()
    g = g + g.mT
    square, c = g @ g, torch.full((70, 70), torch.nan)
    got = symmetric_product(g.float(), square.float(), c, -0.5, 0.0, None, exact=True)
    assert_equal(got, -0.5 * g @ square, "float32")


@interpreted
def test_the_lower_triangle_counts():
    """What is symmetric but for rounding becomes so exactly."""
    a = torch.randn(100, 60, generator=torch.manual_seed(0))
    b = torch.randn(60, 100, generator=torch.manual_seed(1))
    got = symmetric_product(a, b, a, 1.0, 0.0, None, exact=True)
    lower = torch.tril(a.double() @ b.double())
    assert torch.equal(got, got.mT)
    assert float((torch.tril(got) - lower).abs().max()) < 1e-4


@interpreted
def test_large_tiles(monkeypatch):
    monkeypatch.setattr(triton_symmetric, "LARGE_FROM", 100)
    x = integers((40, 130))
    ops = halved(rounded_like(x.bfloat16()))
    assert constants(130, 2, addend=False, exact=True)[0]["TILE"] == 128
    assert_equal(ops.gram(x.bfloat16()), x.mT @ x, "bfloat16")


@interpreted
def test_other_products_are_torchs():
    wide, long = torch.ones(8, 4, dtype=torch.float64), torch.ones(1 << 15, 4)
    ops = halved(rounded_like(torch.ones(1, 1)))
    for x in (wide, long, torch.ones(8, 4, dtype=torch.complex64)):
        assert torch.equal(ops.gram(x), ops_of(x).gram(x))
        g = ops.gram(x)
        assert torch.equal(ops.quadratic(g, (0, 1, 1)), ops_of(x).quadratic(g, (0, 1, 1)))


@pytest.fixture
def measured(monkeypatch):
    """Products by half, measured to take less time on the processor; counts them."""
    taken = []

    def product(*args, **kwargs):
        taken.append(args[0].shape)
        return symmetric_product(*args, **kwargs)

    monkeypatch.setattr(triton_symmetric, "symmetric_product", product)
    monkeypatch.setattr(symmetric, "can_halve", lambda ops, name: name == "float32")
    monkeypatch.setattr(symmetric, "symmetric_cost", lambda *args, **kwargs: 0.6)
    return taken


@interpreted
@pytest.mark.parametrize("form", ["plain", "gram"])
@pytest.mark.parametrize("shape", [(96, 64), (2, 30, 80)])
def test_orthogonalize_takes_them(measured, shape, form, monkeypatch):
    x = torch.randn(shape, generator=torch.manual_seed(0))
    how = {"schedule": "polar_express", "form": form, "restarts": ()}
    q = polarlib.orthogonalize(x, **how)
    assert len(measured) >= 10  # five steps, two products each
    monkeypatch.undo()
    torch.testing.assert_close(q, polarlib.orthogonalize(x, **how), atol=2e-5, rtol=0)


# -- the switch ------------------------------------------------------------------------------


def cuda(**attributes):
    """Arithmetic that says it is of a GPU's tensors; nothing is computed with it."""
    ops = rounded(ops_of(torch.ones(1, 1)), "float32")
    vars(ops).update({"device": SimpleNamespace(type="cuda"), "host": False} | attributes)
    return ops


def test_off_unless_measured(monkeypatch, tmp_path):
    monkeypatch.delenv("POLARLIB_COSTS", raising=False)
    ops = cuda()
    assert triton_symmetric.can_halve(ops, "float32")
    assert symmetric.by_measurement(ops, 1024) is ops
    path = tmp_path / "costs.toml"
    monkeypatch.setenv("POLARLIB_COSTS", str(path))
    for cost, taken in ((0.7, True), (1.3, False)):
        write_costs(path, cost)
        found = symmetric.by_measurement(ops, 1024)
        assert (found is not ops) == taken
        assert (type(found) is triton_symmetric.TorchSymmetricOps) == taken
        assert symmetric.by_measurement(cuda(working="bfloat16"), 1024).__class__ is type(ops)
        assert found.working == "float32"


def write_costs(path, cost):
    import polarlib.design.cost_tables as tables
    from polarlib import bench

    columns = {k: [1.0] for k in tables.KERNELS if k != "matmul"}
    table = {"measured": True, "source": str(cost), "sizes": [512], "float32": columns}
    table |= {"float64": columns, "symmetric": {"float32": [cost]}}
    bench.add_costs(path, {"torch": {"gpu": table}})
    tables._read.cache_clear()
    tables._symmetric_cost.cache_clear()


def test_what_has_no_such_products(monkeypatch):
    assert not triton_symmetric.can_halve(cuda(), "float64")
    assert not triton_symmetric.can_halve(cuda(device=SimpleNamespace(type="cpu")), "float32")
    x = torch.ones(2, 2, requires_grad=True)
    assert not triton_symmetric.can_halve(rounded(ops_of(x), "float32"), "float32")
    simulated = rounded(ops_of(x.detach()), "float8_e4m3")
    assert not triton_symmetric.can_halve(simulated, "float8_e4m3")
    monkeypatch.setattr(triton_symmetric, "is_installed", lambda: False)
    assert not triton_symmetric.can_halve(cuda(), "float32")


# -- compiled, without a device ---------------------------------------------------------------

INSTRUCTIONS = {80: "mma.sync", 90: "wgmma", 100: "tcgen05"}
KINDS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@compiled
@pytest.mark.parametrize("capability", INSTRUCTIONS)
@pytest.mark.parametrize(
    ("dtype", "exact", "n"),
    [(d, True, n) for d, n in itertools.product(DTYPES, (1024, 4096))] + [("float32", False, 1024)],
)
def test_the_kernel_compiles(capability, dtype, exact, n):
    asm = assembled(capability, dtype, n, addend=n > 2048, exact=exact)
    assert len(asm["cubin"]) > 1000
    on_tensor_cores = dtype != "float32" or not exact
    assert (INSTRUCTIONS[capability] in asm["ptx"]) == on_tensor_cores


def assembled(capability, dtype, n, *, addend, exact):
    """The kernel as it is compiled for large contiguous matrices."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    fixed, warps = constants(n, 2 if dtype != "float32" else 4, addend=addend, exact=exact)
    fixed |= {"WIDEN": False, "a_inner": 1, "b_column": 1, "c_column": 1, "y_column": 1}
    signature = dict.fromkeys(kernel().arg_names, "i32")
    signature |= dict.fromkeys(("a", "b", "c", "y"), f"*{KINDS[dtype]}")
    signature |= {"alpha": "fp32", "beta": "fp32"} | dict.fromkeys(fixed, "constexpr")
    aligned = ("a", "b", "c", "y", "n", "k", "a_row", "b_inner", "c_row", "y_row")
    attrs = {(kernel().arg_names.index(a),): [["tt.divisibility", 16]] for a in aligned}
    source = ASTSource(kernel(), signature=signature, constexprs=fixed, attrs=attrs)
    target = GPUTarget("cuda", capability, 32)
    return compile(source, target=target, options={"num_warps": warps}).asm
