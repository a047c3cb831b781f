"""tf32 and 8 bits as devices have them: few operations of rounding, products of the format itself.

No device is needed: the arithmetic for one runs on tensors of the CPU, where torch has the product
of 8 bits too.
"""

from __future__ import annotations

import numpy as np
import pytest
from test_precision import X

import polarlib
from polarlib.arrays import torch_formats
from polarlib.arrays.formats import format_of
from polarlib.arrays.ops import ops_of
from polarlib.arrays.rounded import Rounded, round_to, rounded

TF32, E4M3 = format_of("tf32"), format_of("float8_e4m3")


def gaussian(torch, *shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def device_ops(x):
    ops = ops_of(x)
    ops.host = False
    return ops


class Counting:
    """Number of operators that torch runs, but for views, and the calls of one of them."""

    def __init__(self):
        dispatch = pytest.importorskip("torch.utils._python_dispatch")
        self.names = names = []

        class Mode(dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, f, types, args=(), kwargs=None):
                names.append(str(f).split(".")[1])
                return f(*args, **(kwargs or {}))

        self.mode = Mode()

    def __enter__(self):
        self.mode.__enter__()
        return self

    def __exit__(self, *error):
        self.mode.__exit__(*error)

    @property
    def count(self):
        views = {"view", "detach", "view_as_real", "view_as_complex", "t", "transpose"}
        return len([name for name in self.names if name not in views])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_binary_scales_by_bits(torch, dtype):
    peaks = torch.tensor(np.abs(X), dtype=getattr(torch, dtype))
    if dtype == "float64":
        more = [5e-324, 1e-310, 2.3e-308, 1e300, 1.7e308]
        peaks = torch.cat((peaks, torch.tensor(more, dtype=torch.float64)))
    peaks = peaks[:, None, None]
    on_host = np.asarray(ops_of(peaks.numpy()).binary_scale(peaks.numpy()))
    with Counting() as run:
        got = device_ops(peaks).binary_scale(peaks)
    assert run.count == 5
    assert got.dtype == peaks.dtype
    # Logarithms are rounded: they may give the power of two next to a number that is close to one.
    near = np.frexp(peaks.numpy())[0]
    far = (near < 1 - 1e-6) & (near > 0.5 + 1e-6) & (peaks.numpy() > np.finfo(dtype).tiny)
    assert far.mean() > 0.5
    exact = far | (near == 0) | ~np.isfinite(near)
    assert np.array_equal(got.numpy()[exact], on_host[exact])
    normal = np.isfinite(peaks.numpy()) & (peaks.numpy() > np.finfo(dtype).tiny)
    quotient = (peaks / got).numpy()[normal]
    assert quotient.min() >= 1
    assert (
        quotient.max() < 4
    )  # below 2, but for the largest exponent, whose reciprocal is subnormal


# -- tf32 ------------------------------------------------------------------------------------------


def test_tf32_by_sums_is_tf32_by_bits(torch):
    x = torch.tensor(X)
    got, wanted = (round_to(x, TF32, ops).numpy() for ops in (device_ops(x), ops_of(x)))
    size = np.abs(X)
    normal = (size >= 2.0**-126) & (size < 2.0**115)
    assert normal.sum() > 100_000
    assert np.array_equal(got[normal].view(np.uint32), wanted[normal].view(np.uint32))
    # As the docstring has it beyond.
    assert np.array_equal(got[size < 2.0**-126], X[size < 2.0**-126])
    assert not np.isfinite(got[size >= 2.0**116]).any()
    assert np.isnan(got[np.isnan(X)]).all()


def test_tf32_by_sums_of_views_and_complex(torch):
    x = gaussian(torch, 3, 7, 5)
    for view in (x.mT, x[:, ::2], x[:1].expand(4, 7, 5)):
        assert torch.equal(round_to(view, TF32, device_ops(x)), round_to(view, TF32, ops_of(x)))
    z = torch.complex(x, x.flip(0))
    for view in (z, z.mT.conj()):
        got, wanted = (round_to(view, TF32, ops) for ops in (device_ops(z), ops_of(z)))
        assert torch.equal(got, wanted)


def test_tf32_takes_three_operators_a_matrix(torch):
    x = gaussian(torch, 8, 6)
    ops = Rounded(device_ops(x), TF32, simulated=True)
    with Counting() as one:
        ops._operand(x)
    assert one.count == 3
    g = ops.gram(x)
    with Counting() as square:
        ops.quadratic(g, (1.0, 2.0, 3.0))
    assert square.count == 3 + 1  # one matrix is rounded once, and one product


# -- 8 bits ----------------------------------------------------------------------------------------


@pytest.fixture
def native(torch, monkeypatch):
    """CPU tensors on a device that multiplies e4m3; each product is checked for cuBLAS's rules."""
    if not hasattr(torch, "_scaled_mm"):
        pytest.skip("torch has no products of 8 bits")
    calls, multiply = [], torch._scaled_mm

    def checked(a, b, *, scale_a, scale_b, out_dtype, use_fast_accum):
        assert a.dtype == b.dtype == torch.float8_e4m3fn
        assert a.stride(1) == 1
        assert b.stride(0) == 1
        assert a.shape[1] % 16 == b.shape[1] % 16 == 0
        assert scale_a.shape == scale_b.shape == ()
        assert scale_a.dtype == scale_b.dtype == torch.float32
        assert out_dtype == torch.float32
        assert not use_fast_accum
        calls.append((a.shape, b.shape))
        return multiply(
            a, b, scale_a=scale_a, scale_b=scale_b, out_dtype=out_dtype, use_fast_accum=False
        )

    monkeypatch.setattr(torch, "_scaled_mm", checked)
    monkeypatch.setattr(
        torch_formats, "multiplies_eight_bits", lambda name, device: name == "float8_e4m3"
    )
    return calls


@pytest.mark.parametrize("scale", [1.0, 1e-6, 3e5])
def test_products_of_8_bits_are_those_of_the_simulation(torch, native, scale):
    x = gaussian(torch, 96, 64)
    base = device_ops(x)
    ops, simulation = rounded(base, "float8_e4m3"), Rounded(base, E4M3, simulated=True)
    assert not ops.simulated
    y = ops.cast(x * scale, "float8_e4m3")
    g = simulation.gram(y)
    for name, *args in (
        ("gram", y),
        ("matmul", y, g),
        ("gemm", y, g, y, 0.7, -1.2),
        ("gemm", y, g, y * torch.nan, 0.7, 0.0),
        ("gemm_hermitian", g, g, g, -0.5, 2.0),
        ("quadratic", g, (1.0, 2.0, 3.0)),
    ):
        before = len(native)
        got, wanted = (getattr(o, name)(*args) for o in (ops, simulation))
        assert len(native) == before + 1, name
        # Sums in another order: an entry may be rounded the other way.
        size = float(wanted.abs().max())
        assert float((got - wanted).abs().max()) <= 2 * E4M3.unit_roundoff * size
        assert float((got != wanted).float().mean()) < 0.01, name


def test_operands_of_8_bits_are_exact(torch, native):
    """The scale of a product leaves every entry of a rounded matrix a number of the format."""
    ops = rounded(device_ops(torch.ones(2, 2)), "float8_e4m3")
    found = []

    def keep(a, b, scales, name):
        found.extend(zip((a, b), scales, strict=True))

    ops.base._product_of_rounded = keep
    for k in range(-8, 9):
        # Largest entries that are rounded up to the next power of two, and smallest ones.
        x = gaussian(torch, 16, 16, seed=k % 7) * 2.0**k
        x[0, 0] = 2.0 ** (k + 6) * (255.9 / 256)
        x[0, 1:] = 2.0 ** (k + 5 - 16) * torch.arange(1, 16)
        y = ops.cast(x, "float8_e4m3")
        ops.matmul(y, y)
    assert len(found) == 2 * 17
    for x, scale in found:
        eight = (x / scale).to(torch.float8_e4m3fn).to(torch.float32)
        assert torch.equal(eight * scale, x)


@pytest.mark.parametrize(
    ("shape", "count"), [((96, 64), 15), ((64, 96), 15), ((2, 96, 64), 0), ((96, 60), 0)]
)
@pytest.mark.parametrize("name", ["float8_e4m3", "float8_e5m2"])
def test_orthogonalize_in_8_bits(torch, native, shape, count, name):
    x = gaussian(torch, *shape)
    got = polarlib.orthogonalize(x, precision=name, form="plain", steps=5)
    assert len(native) == (count if name == "float8_e4m3" else 0)
    s = torch.linalg.svdvals(got)
    assert 0.3 < float(s.min()) <= float(s.max()) < 1.7


def test_8_bits_of_what_torch_differentiates(torch, native):
    x = gaussian(torch, 32, 16).requires_grad_()
    polarlib.orthogonalize(x, precision="float8_e4m3").sum().backward()
    assert torch.isfinite(x.grad).all()
    y = torch.vmap(lambda x: polarlib.orthogonalize(x, precision="float8_e4m3"))(
        gaussian(torch, 2, 32, 16)
    )
    assert torch.isfinite(y).all()


def test_a_cpu_has_no_8_bits(torch):
    ask = torch_formats.multiplies_eight_bits
    assert not ask("float8_e4m3", torch.device("cpu"))
    assert rounded(ops_of(torch.ones(2, 2)), "float8_e4m3").simulated


@pytest.mark.parametrize(
    ("capability", "hip", "known"), [((8, 9), None, 1), ((8, 6), None, 0), ((9, 4), "6.4", 0)]
)
def test_devices_with_8_bits(torch, monkeypatch, capability, hip, known):
    ask = torch_formats.multiplies_eight_bits.__wrapped__
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    device = torch.device("cuda", 0)
    assert ask("float8_e4m3", device) is bool(known)
    assert not ask("float8_e5m2", device)
    assert not ask("bfloat16", device)
