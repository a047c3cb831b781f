"""Simulated formats against ml_dtypes, NumPy and torch, exactly where possible."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import library, ml_dtype

from polarlib import orthogonalize
from polarlib.arrays.dual import DualOps
from polarlib.arrays.formats import FORMATS, format_of
from polarlib.arrays.library import to_working_format
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.rounded import round_to, rounded
from polarlib.arrays.wrapper import COMPUTED, EXACT, Wrapper
from polarlib.testing import SPECTRA, spectrum, with_singular_values

DTYPE_OF = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "float8_e4m3": "float8_e4m3fn",
    "float8_e5m2": "float8_e5m2",
}
SIMULATED = ("numpy", "array_api_strict", "torch", "jax")


def patterns() -> np.ndarray:
    """Hard float32 numbers: all 16-bit patterns, ties, neighbours, subnormals, specials."""
    every = np.arange(1 << 16, dtype=np.uint32)
    bf16 = (every << 16).view(np.float32)
    fp16 = every.astype(np.uint16).view(np.float16).astype(np.float32)
    rng = np.random.default_rng(0)
    random = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    # Every tie of every format, and its two neighbours, at random exponents.
    heads = rng.integers(0, 1 << 32, 20_000, dtype=np.uint32)
    ties = []
    for drop in (13, 16, 20, 21):
        mask = np.uint32((1 << drop) - 1)
        tie = (heads & ~mask) | np.uint32(1 << (drop - 1))
        ties += [tie, tie - np.uint32(1), tie + np.uint32(1), heads & ~mask, heads | mask]
    subnormal = rng.integers(0, 1 << 23, 20_000, dtype=np.uint32)
    small = np.ldexp(rng.standard_normal(20_000), rng.integers(-30, 0, 20_000)).astype(np.float32)
    # Multiples of half the smallest number of fp16 and of both 8-bit formats: subnormal ties.
    k = np.arange(-4096, 4097).astype(np.float32)
    halves = [np.ldexp(k, e) for e in (-25, -10, -17, -26, -11, -18)]
    limits = np.float32([65504, 65519.996, 65520, 65520.004, 448, 464, 463.99997, 464.00003, 480])
    limits = np.concatenate(
        [limits, np.float32([57344, 61440, 61439.996, 61440.004, 3.3895314e38])]
    )
    special = np.float32(
        [0.0, -0.0, np.inf, -np.inf, np.nan, np.finfo("f4").max, np.finfo("f4").tiny]
    )
    parts = [bf16, fp16, random, *(t.view(np.float32) for t in ties), subnormal.view(np.float32)]
    return np.concatenate([*parts, small, *halves, limits, -limits, special]).astype(np.float32)


X = patterns()


def reference(name: str, x: np.ndarray) -> np.ndarray:
    dtype = ml_dtype(DTYPE_OF[name])
    if dtype is None:
        pytest.skip("ml_dtypes is not installed")
    with np.errstate(all="ignore"):
        return x.astype(dtype).astype(np.float32)


def assert_same_bits(got: np.ndarray, expected: np.ndarray, x: np.ndarray) -> None:
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    bad = np.flatnonzero(got.view(np.uint32)[~nan] != expected.view(np.uint32)[~nan])
    where = np.flatnonzero(~nan)[bad][:5]
    assert bad.size == 0, [(x[i].item(), got[i].item(), expected[i].item()) for i in where]


# -- rounding --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DTYPE_OF)
@pytest.mark.parametrize("where", SIMULATED)
def test_rounding_is_bit_identical(where, name):
    lib = library(where)
    x = X
    if where == "jax":  # XLA on a CPU may treat subnormal float32 numbers as zero
        x = X[(np.abs(X) >= np.finfo("f4").tiny) | (X == 0) | np.isnan(X)]
    a = lib.asarray(x)
    before = x.tobytes()
    with np.errstate(all="ignore"):
        got = lib.to_numpy(round_to(a, format_of(name), ops_of(a)))
    assert got.dtype == np.float32
    assert np.array_equal(lib.to_numpy(a).view(np.uint32), np.frombuffer(before, np.uint32))
    assert_same_bits(got, reference(name, x), x)


def test_tf32():
    # 13 bits dropped, nearest even: by exact integer arithmetic on the significand.
    x = X[np.isfinite(X)]
    got = round_to(x, format_of("tf32"), ops_of(x))
    bits = x.view(np.uint32).astype(np.uint64)
    low, kept = bits & 0x1FFF, bits >> 13
    up = (low > 0x1000) | ((low == 0x1000) & (kept & 1 == 1))
    expected = ((kept + up) << 13).astype(np.uint32).view(np.float32)
    assert_same_bits(got, expected, x)


@pytest.mark.parametrize("name", [*DTYPE_OF, "tf32"])
def test_rounding_twice_is_rounding_once(name):
    fmt = format_of(name)
    once = round_to(X, fmt, ops_of(X))
    assert_same_bits(round_to(once, fmt, ops_of(X)), once, X)
    assert_same_bits(-round_to(-X, fmt, ops_of(X)), once, X)


@pytest.mark.parametrize("name", [*DTYPE_OF, "tf32"])
def test_relative_error_of_rounding(name):
    fmt = format_of(name)
    x = X[(np.abs(X) >= fmt.smallest_normal) & (np.abs(X) <= fmt.largest)].astype(np.float64)
    y = round_to(x.astype(np.float32), fmt, ops_of(X)).astype(np.float64)
    worst = (np.abs(y - x) / np.abs(x)).max()
    sharp = fmt.unit_roundoff / (1 + fmt.unit_roundoff)  # at the tie next to a power of two
    assert 0.99 * sharp < worst <= sharp


def test_shapes_layouts_and_complex():
    x = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    fmt, ops = format_of("bfloat16"), ops_of(x)
    full = round_to(x, fmt, ops)
    np.testing.assert_array_equal(round_to(x.T, fmt, ops), full.T)
    np.testing.assert_array_equal(round_to(x[::-2, ::3], fmt, ops), full[::-2, ::3])
    np.testing.assert_array_equal(round_to(np.broadcast_to(x, (2, 6, 8)), fmt, ops)[1], full)
    np.testing.assert_array_equal(round_to(x[:0], fmt, ops), full[:0])
    z = (x[:, :4] + 1j * x[:, 4:]).astype(np.complex64)
    w = round_to(z, fmt, ops)
    assert w.dtype == np.complex64
    np.testing.assert_array_equal(w.real, full[:, :4])
    np.testing.assert_array_equal(w.imag, full[:, 4:])


# -- the table of formats --------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "tf32"])
def test_formats_table(name):
    fmt = FORMATS[name]
    if hasattr(np, name):
        info = np.finfo(name)
    else:
        info = pytest.importorskip("ml_dtypes").finfo(ml_dtype(DTYPE_OF[name]))
    assert fmt.name == name
    assert fmt.epsilon == float(info.eps)
    assert fmt.unit_roundoff == float(info.eps) / 2
    assert fmt.significand == info.nmant + 1
    assert fmt.smallest_normal == float(info.smallest_normal)
    assert fmt.largest == float(info.max)
    assert fmt.carrier in ("float32", "float64")
    with np.errstate(all="ignore"):
        over = np.float64(info.max) * 2
        dtype = np.dtype(name) if hasattr(np, name) else ml_dtype(DTYPE_OF[name])
        np.testing.assert_equal(float(np.asarray(over).astype(dtype)), fmt.saturates_to)


def test_tf32_in_the_table():
    fmt = FORMATS["tf32"]
    assert fmt.unit_roundoff == FORMATS["float16"].unit_roundoff
    assert fmt.smallest_normal == FORMATS["float32"].smallest_normal
    assert FORMATS["bfloat16"].largest < fmt.largest < FORMATS["float32"].largest


@pytest.mark.parametrize("bad", ["bf16", "", None, 16, np.float16, ["float32"]])
def test_unknown_formats(bad):
    with pytest.raises(ValueError, match="unknown number format"):
        format_of(bad)


def test_who_is_simulated():
    x = np.eye(2, dtype=np.float32)
    assert rounded(ops_of(x), "bfloat16").simulated
    assert not rounded(ops_of(x), "float32").simulated
    for where in ("torch", "jax"):
        try:
            lib = library(where)
        except pytest.skip.Exception:
            continue
        ops = ops_of(lib.asarray(x))
        for name in ("bfloat16", "float16"):
            assert not rounded(ops, name).simulated
            assert rounded(ops, name, is_complex=True).simulated
        assert rounded(ops, "float8_e4m3").simulated


# -- products --------------------------------------------------------------------------------


def bf16_pair(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pair = [rng.standard_normal((n, n)).astype(np.float32) for _ in range(2)]
    return tuple(round_to(x, format_of("bfloat16"), ops_of(x)) for x in pair)


def power_for(name: str, x: np.ndarray) -> float:
    """The power of two that a matrix carries: 8-bit entries fill the range but for one binade."""
    fmt = format_of(name)
    if not name.startswith("float8"):
        return 1.0
    return 2.0 ** (np.floor(np.log2(np.abs(x).max())) - np.floor(np.log2(fmt.largest)) + 1)


def test_products_are_rounded_once():
    for name in DTYPE_OF:
        low = rounded(ops_of(X), name)
        a, b = (low.cast(x, name) for x in bf16_pair(16))
        exact = a.astype("f8") @ b.astype("f8")
        fmt = format_of(name)
        c = low.gemm(a, b, a, alpha=0.5, beta=-0.25)
        wide = 0.5 * exact - 0.25 * a
        power = power_for(name, wide)
        size = np.maximum(np.abs(wide), fmt.smallest_normal * power)
        ulp = fmt.epsilon * 2.0 ** np.floor(np.log2(size))
        assert np.all(np.abs(c - wide) <= 0.5 * ulp * (1 + 1e-3) + 1e-5)
        c = (c / power).astype("f4")
        np.testing.assert_array_equal(c, reference(name, c))


@pytest.mark.parametrize("name", ["float8_e4m3", "float8_e5m2"])
def test_a_power_of_two_for_each_matrix_of_8_bits(lib, name):
    """Of each in a stack, for both parts of complex ones, at any size of the entries."""
    if lib.name == "jax" and name == "float8_e5m2":
        pytest.skip("slow: compiled for every format")
    fmt = format_of(name)
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 6, 5)).astype("f4")
    a[1] *= 2.0**-30
    a[2] *= 2.0**30
    x = lib.asarray(np.concatenate([a, np.zeros((1, 6, 5), "f4")]))
    got = lib.to_numpy(rounded(ops_of(x), name).cast(x, name))
    assert not got[3].any()
    for before, after in zip(a, got[:3], strict=True):
        power = power_for(name, before)
        np.testing.assert_array_equal(after, reference(name, before / power) * power)
        assert np.all(np.abs(after - before) <= fmt.unit_roundoff * np.abs(before))
    z = lib.asarray(a[0] + 1j * a[2], "complex64")
    got = lib.to_numpy(rounded(ops_of(z), name, is_complex=True).cast(z, name))
    power = power_for(name, a[2])  # one for both parts
    np.testing.assert_array_equal(got.imag, reference(name, a[2] / power) * power)
    np.testing.assert_array_equal(got.real, reference(name, a[0] / power) * power)
    for bad in (np.nan, np.inf):
        broken = a[0].copy()
        broken[1, 2] = bad
        x = lib.asarray(broken)
        assert not np.isfinite(lib.to_numpy(rounded(ops_of(x), name).cast(x, name))[1, 2])


def test_agreement_with_torch_bfloat16_products(torch):
    a, b = bf16_pair(256)
    low = rounded(ops_of(a), "bfloat16")
    ours = low.matmul(a, b)
    theirs = (torch.tensor(a).bfloat16() @ torch.tensor(b).bfloat16()).float().numpy()
    assert np.mean(ours == theirs) >= 0.999
    c = bf16_pair(256, 5)[0]
    ours = low.gemm(a, b, c, alpha=1.0, beta=-1.5)
    theirs = torch.addmm(*(torch.tensor(t).bfloat16() for t in (c, a, b)), beta=-1.5)
    assert np.mean(ours == theirs.float().numpy()) >= 0.99


@pytest.mark.parametrize("form", ["plain", "gram"])
@pytest.mark.parametrize(
    ("where", "name"),
    [("torch", "bfloat16"), ("torch", "float16"), ("jax", "bfloat16"), ("jax", "float16")],
)
def test_native_and_simulated_agree_over_a_schedule(where, name, form):
    lib = library(where)
    # Rounding differs in single entries, and is amplified, most where singular values are small.
    for key in ("log 1e-3", "rank one", "linear"):
        a = with_singular_values(spectrum(key, 32), 64, dtype="float32")
        # One normalisation: on the host the library's own divides by a number, elsewhere an array.
        how = {"schedule": "polar_express", "precision": name, "form": form}
        native = lib.to_numpy(orthogonalize(lib.asarray(a), **how))
        simulated = orthogonalize(a, **how)
        unit = format_of(name).unit_roundoff
        assert np.linalg.norm(native - simulated) / math.sqrt(32) < 40 * unit
        s, t = (np.linalg.svd(x, compute_uv=False) for x in (native, simulated))
        np.testing.assert_allclose(s, t, atol=40 * unit)


def test_the_input_is_rounded_once_and_the_norm_is_not():
    # 4096 ones: a norm summed in bfloat16 would stop at 16.
    dtype = ml_dtype("bfloat16")
    if dtype is None:
        pytest.skip("ml_dtypes is not installed")
    q = orthogonalize(np.ones((4096, 1), dtype)).astype("f4")
    assert 0.8 < np.linalg.norm(q) < 1.2


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", [*DTYPE_OF, "tf32", "float32", "float64"])
@pytest.mark.parametrize("where", SIMULATED)
def test_every_precision_on_every_library(where, name):
    lib = library(where)
    a = with_singular_values(np.linspace(1, 0.3, 6), 20)
    for dtype in ("float32", "float64", "complex64"):
        x = lib.asarray(a, dtype)
        q = orthogonalize(x, schedule="newton_schulz_3", steps=7, precision=name, form="plain")
        assert lib.dtype_name(q) == dtype
        s = np.linalg.svd(lib.to_numpy(q), compute_uv=False)
        assert np.all(np.abs(s - 1) < 0.01 + 4 * format_of(name).unit_roundoff)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_is_as_good_as_its_format(name):
    u = format_of(name).unit_roundoff
    for key in SPECTRA:
        s = spectrum(key, 32)
        a = with_singular_values(s, 128, dtype="float32")
        q = orthogonalize(a, precision=name, form="plain").astype("f8")
        h = q.T @ a
        # The direction of every large singular vector is kept.
        skew = np.linalg.norm(h - h.T) / np.linalg.norm(a)
        assert skew < 16 * u, key


# -- the protocol of wrappers ----------------------------------------------------------------

# Results of the primitives that a wrapper computes, but for those that give storage.
RESULTS = {
    "add_diagonal": lambda ops, x: ops.add_diagonal(x + 0.0, 0.3),
    "add_scaled_identity": lambda ops, x: ops.add_scaled_identity(x + 0.0, 0.7, 0.3)[0],
    "combine": lambda ops, x: ops.combine((0.3, 0.7), (x, x)),
    "gemm": lambda ops, x: ops.gemm(x, x, x, alpha=0.3, beta=0.7),
    "gemm_hermitian": lambda ops, x: ops.gemm_hermitian(x, x, x, alpha=0.3, beta=0.7),
    "gram": lambda ops, x: ops.gram(x),
    "make_hermitian": lambda ops, x: ops.make_hermitian(x + 0.0),
    "matmul": lambda ops, x: ops.matmul(x, x),
    "quadratic": lambda ops, x: ops.quadratic(x, (0.1, 0.3, 0.7)),
}


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_every_result_of_a_simulation_is_rounded(name):
    assert set(RESULTS) == COMPUTED - {"buffer", "reusable"}
    base = ops_of(np.eye(2))
    low, fmt = rounded(base, name), format_of(name)
    x = np.random.default_rng(0).standard_normal((20, 20)).astype("float32")
    x = round_to(x @ x.T / 20, fmt, base)
    converted = {"to_working_format": lambda ops, x: to_working_format(x * 0.3, ops)}
    for primitive, apply in (RESULTS | converted).items():
        got = apply(low, x)
        np.testing.assert_array_equal(got, round_to(got, fmt, base), err_msg=primitive)
    for primitive in EXACT:
        np.testing.assert_array_equal(getattr(low, primitive)(x), getattr(base, primitive)(x))


def test_a_new_primitive_must_be_declared(monkeypatch):
    monkeypatch.setattr(Ops, "square", lambda self, x: x * x, raising=False)
    base = ops_of(np.eye(2))
    for wrapper in (rounded(base, "bfloat16"), DualOps(base)):
        with pytest.raises(TypeError, match=r"declare each primitive .* \['square'\]"):
            type("Forgetful", (type(wrapper),), {})
        assert not hasattr(wrapper, "square")


def test_a_wrapper_must_compute():
    with pytest.raises(TypeError, match=r"Partial must define .*'gemm'"):
        type("Partial", (Wrapper,), {"matmul": Ops.matmul})
