"""Settings of the array libraries that change products: autocast, matmul precision, TF32.

Each is read and never changed. Exact results are those of float32 under every setting; the hardware
that multiplies float32 in less is emulated by rounding the operands of torch's products.
"""

import contextlib

import numpy as np
import pytest

import polarlib
from polarlib import derivatives, norms
from polarlib.arrays import ops as ops_module
from polarlib.arrays import torch_settings
from polarlib.arrays.torch_settings import multiplies_at_speed

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

# Forward derivatives make torch compile some of its own functions once.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

aten = torch.ops.aten
# Positions of the operands that are rounded.
PRODUCTS = {aten.mm: (0, 1), aten.bmm: (0, 1), aten.addmm: (1, 2), aten.baddbmm: (1, 2)}
PRODUCTS |= {aten.mv: (0, 1), aten.dot: (0, 1), aten.addmv: (1, 2)}
SET = {"tf32": "high", "bfloat16": "medium"}


def rounded_operand(x, fmt):
    """Float32 with the digits of a format, to nearest, ties to even."""
    if x.dtype != torch.float32:
        return x
    if fmt == "bfloat16":
        return x.bfloat16().float()
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & -0x2000).view(torch.float32)


class Reduced(TorchDispatchMode):
    """Hardware that does what a setting of torch permits it."""

    def __init__(self, fmt):
        super().__init__()
        self.fmt = fmt
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        args = list(args)
        for i in PRODUCTS.get(func.overloadpacket, ()):
            self.products += args[i].dtype == torch.float32
            args[i] = rounded_operand(args[i], self.fmt)
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def settings_restored():
    torch_settings.operand_format.cache_clear()
    yield
    torch.set_float32_matmul_precision("highest")
    torch_settings.operand_format.cache_clear()


@contextlib.contextmanager
def setting(name):
    """Run under a setting, with the hardware that obeys it."""
    kind, _, fmt = name.partition(" ")
    if kind == "autocast":
        with torch.autocast("cpu", dtype=getattr(torch, fmt)):
            yield
    elif kind == "ignored":  # by the processor that runs this
        torch.set_float32_matmul_precision(SET[fmt])
        yield
    else:
        torch.set_float32_matmul_precision(SET[fmt])
        with Reduced(fmt):
            yield
    torch.set_float32_matmul_precision("highest")


SETTINGS = ["autocast bfloat16", "autocast float16", "reduced tf32", "reduced bfloat16"]
x, y = torch.tensor(np.random.default_rng(0).standard_normal((2, 40, 24)), dtype=torch.float32)
square = x[:24]
definite = x.mT @ x
stack = torch.tensor(np.random.default_rng(1).standard_normal((50, 3, 3)), dtype=torch.float32)
large = torch.tensor(np.random.default_rng(2).standard_normal((180, 150)), dtype=torch.float32)
z = torch.complex(x, y)


def gradient(f, *arrays):
    arrays = [a.clone().requires_grad_() for a in arrays]
    leaves = f(*arrays)
    weights = torch.linspace(0.5, 1.5, leaves.numel()).reshape(leaves.shape)
    (leaves * weights).real.sum().backward()
    return tuple(a.grad for a in arrays)


EXACT = {
    **{
        f"polar {m}": lambda m=m: tuple(polarlib.polar(square, method=m))
        for m in ("auto", "svd", "qdwh", "zolotarev", "newton", "newton_schulz")
    },
    "polar of 150 columns": lambda: tuple(polarlib.polar(large)),
    "polar left": lambda: tuple(polarlib.polar(x.mT, side="left")),
    "polar complex": lambda: tuple(polarlib.polar(z)),
    "polar stack": lambda: tuple(polarlib.polar(stack)),
    "polar of a schedule": lambda: polarlib.polar(x, method="polar_express").unitary,
    "nearest_orthogonal": lambda: polarlib.nearest_orthogonal(x),
    "nearest_rotation": lambda: polarlib.nearest_rotation(square),
    "nearest_rotation stack": lambda: polarlib.nearest_rotation(stack),
    "procrustes": lambda: polarlib.procrustes(x, y),
    "procrustes rotation": lambda: polarlib.procrustes(x, y, rotation=True),
    "sqrtm_psd": lambda: polarlib.sqrtm_psd(definite),
    "inverse_root": lambda: polarlib.inverse_root(definite, 4),
    "top_singular": lambda: polarlib.top_singular(large, 3)[1],
    "nuclear": lambda: norms.nuclear()(x),
    "nuclear dual": lambda: norms.nuclear().dual_norm(x),
    "spectral sharp": lambda: norms.spectral(polar=polarlib.nearest_orthogonal).sharp(x),
    "ky_fan lmo": lambda: norms.ky_fan(2).lmo(x),
    "spectral_power": lambda: norms.spectral_power(x, 0.5),
    "polar_jvp": lambda: derivatives.polar_jvp(x, y),
    "polar_vjp": lambda: derivatives.polar_vjp(x, y, definite),
    "orthogonalize in float32": lambda: polarlib.orthogonalize(x, precision="float32"),
    "orthogonalize by halley": lambda: polarlib.orthogonalize(
        x, schedule="halley", precision="float32"
    ),
    "orthogonalize in float64": lambda: polarlib.orthogonalize(x.double()),
    "orthogonalize_vjp": lambda: derivatives.orthogonalize_vjp(x, y, precision="float32"),
    "gradient of polar": lambda: gradient(lambda a: polarlib.polar(a).hermitian, x),
    "gradient of orthogonalize": lambda: gradient(
        lambda a: polarlib.orthogonalize(a, precision="float32"), x
    ),
    "gradient of procrustes": lambda: gradient(lambda a: polarlib.procrustes(a, y), x),
    "torch.func.grad": lambda: torch.func.grad(
        lambda a: (polarlib.nearest_orthogonal(a) * y).sum()
    )(x),
    "torch.func.jvp": lambda: torch.func.jvp(polarlib.nearest_orthogonal, (x,), (y,))[1],
    "torch.func.jvp of orthogonalize": lambda: torch.func.jvp(
        lambda a: polarlib.orthogonalize(a, precision="float32"), (x,), (y,)
    )[1],
    "torch.func.vmap": lambda: torch.func.vmap(
        lambda a: polarlib.orthogonalize(a, precision="float32")
    )(stack),
}


def tensors(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", EXACT)
def test_exact_results_under_every_setting(name):
    plain = tensors(EXACT[name]())
    for how in SETTINGS:
        with setting(how):
            got = tensors(EXACT[name]())
        for a, b in zip(got, plain, strict=True):
            assert a.dtype == b.dtype, how
            error = float((a - b).abs().max() / b.abs().max())
            # Rounding in another order, at condition numbers up to some hundreds.
            assert error <= 2e-4, (how, error)


def test_the_emulation_reaches_products_and_nothing_else():
    with Reduced("bfloat16") as mode:
        reduced = x.mT @ x
        torch.linalg.svd(x)
    assert mode.products == 2
    assert float((reduced - x.mT @ x).abs().max()) > 1e-3


@pytest.mark.parametrize("later", ["autocast bfloat16", "reduced tf32", "reduced bfloat16"])
@pytest.mark.parametrize(
    "f",
    [
        polarlib.nearest_orthogonal,
        lambda a: polarlib.orthogonalize(a, precision="float32"),
        lambda a: polarlib.orthogonalize(a, schedule="halley", precision="float32"),
        lambda a: polarlib.procrustes(a, y),
        lambda a: norms.nuclear()(a),
    ],
)
def test_a_setting_that_comes_with_the_backward_pass(f, later):
    def run(how):
        a = x.clone().requires_grad_()
        result = f(a)
        weights = torch.linspace(0.5, 1.5, result.numel()).reshape(result.shape)
        total = (result * weights).sum()
        with contextlib.nullcontext() if how is None else setting(how):
            total.backward()
        return a.grad

    plain = run(None)
    assert float((run(later) - plain).abs().max() / plain.abs().max()) <= 1e-4


def test_second_derivatives_under_autocast():
    def second(a):
        a = a.clone().requires_grad_()
        (first,) = torch.autograd.grad(
            (polarlib.nearest_orthogonal(a) * y).sum(), a, create_graph=True
        )
        return torch.autograd.grad((first * y).sum(), a)[0]

    plain = second(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = second(x)
    assert float((got - plain).abs().max() / plain.abs().max()) <= 1e-4


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16", "complex64"])
def test_orthogonalize_is_the_same_under_autocast(dtype):
    for a in (z if dtype == "complex64" else x.to(getattr(torch, dtype)), stack.to(torch.float32)):
        plain = polarlib.orthogonalize(a)
        for kind in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype=kind):
                assert torch.equal(polarlib.orthogonalize(a), plain)
                assert torch.equal(polarlib.orthogonalize(a, form="gram"), form_of(a))


def form_of(a):
    with torch.autocast("cpu", enabled=False):
        return polarlib.orthogonalize(a, form="gram")


@pytest.mark.parametrize("form", ["plain", "gram"])
@pytest.mark.parametrize("fmt", ["tf32", "bfloat16"])
def test_orthogonalize_plans_for_the_format_that_multiplies(fmt, form):
    wanted = {name: polarlib.orthogonalize(a, precision=fmt, form=form) for name, a in INPUTS}
    with setting(f"reduced {fmt}"):
        for name, a in INPUTS:
            assert ops_module.ops_of(a).multiplier(a) == fmt
            q = polarlib.orthogonalize(a, form=form)
            assert q.dtype == a.dtype
            # Where a format is not the processor's own, sums are in another order.
            own = fmt != "tf32" and multiplies_at_speed(fmt)
            assert float((q - wanted[name]).abs().max()) <= (0 if own else 5e-3)
            top = float(torch.linalg.svdvals(q.double()).max())
            assert top < 1.2


INPUTS = [("tall", x), ("wide", large.mT), ("stack", stack)]


def test_tf32_is_native_under_its_setting_alone():
    from polarlib.arrays.rounded import rounded

    assert rounded(ops_module.ops_of(x), "tf32").simulated
    with setting("reduced tf32"):
        assert not rounded(ops_module.ops_of(x), "tf32").simulated
        assert rounded(ops_module.ops_of(z), "tf32", is_complex=True).simulated


@pytest.mark.parametrize("fmt", ["tf32", "bfloat16"])
def test_derivatives_and_traces_are_of_the_same_schedule(fmt):
    with setting(f"reduced {fmt}"):
        along = derivatives.orthogonalize_jvp(x, y)
        trace = polarlib.measure(x, "polar_express")
        listed = polarlib.orthogonalize_all([x, large])
        alone = polarlib.orthogonalize(x)
        exact = polarlib.measure(x, "newton")
    wanted = derivatives.orthogonalize_jvp(x, y, precision=fmt)
    assert float((along - wanted).abs().max() / wanted.abs().max()) <= 1e-4
    same = polarlib.measure(x, "polar_express", precision=fmt)
    assert np.abs(trace.singular_values - same.singular_values).max() <= 5e-3
    assert torch.equal(listed[0], alone)
    assert exact.orthogonality[-1] < 1e-5


@pytest.mark.parametrize("fmt", ["tf32", "bfloat16"])
def test_a_setting_that_the_processor_ignores_changes_nothing(fmt):
    plain = polarlib.orthogonalize(x), polarlib.polar(x).unitary
    with setting(f"ignored {fmt}"):
        if ops_module.ops_of(x).multiplier(x) != "float32":
            pytest.skip("this processor has such products")
        # Sums may be in another order: oneDNN multiplies in place of MKL.
        assert float((polarlib.orthogonalize(x) - plain[0]).abs().max()) <= 1e-5
        assert float((polarlib.polar(x).unitary - plain[1]).abs().max()) <= 1e-5


def test_settings_are_found_wherever_they_are_made_and_are_left_alone():
    def read():
        backends = torch.backends
        return backends.mkldnn.matmul.fp32_precision, backends.cuda.matmul.fp32_precision

    holders = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul, torch.backends
    try:
        for holder in holders:  # what was set for one of them would count more
            holder.fp32_precision = "none"
        for holder in holders:
            holder.fp32_precision = "tf32"
            made = read()
            torch_settings.operand_format.cache_clear()
            with Reduced("tf32"):
                assert ops_module.ops_of(x).multiplier(x) == "tf32"
                polarlib.polar(x)
                polarlib.orthogonalize(x)
            assert read() == made
            holder.fp32_precision = "none"
    finally:
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        polarlib.orthogonalize(x)
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16


def test_a_setting_without_entries_to_try_is_believed():
    from torch._subclasses.fake_tensor import FakeTensorMode

    torch.set_float32_matmul_precision("medium")
    with FakeTensorMode():
        a = torch.empty(20, 10, device="meta")
        assert ops_module.ops_of(a).multiplier(a) == "bfloat16"
        assert polarlib.orthogonalize(a).shape == (20, 10)
