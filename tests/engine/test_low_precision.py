"""What orthogonalize promises of itself: its own schedule, its normalisation, its safety."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import scipy.linalg
from conftest import library, ml_dtype
from hypothesis import given, settings
from hypothesis import strategies as st

from polarlib import (
    Schedule,
    ScheduleWarning,
    default_schedule,
    orthogonalize,
    orthogonalize_all,
    polar,
    schedule,
    schedules,
)
from polarlib.arrays.formats import FORMATS, format_of
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.rounded import round_to
from polarlib.engine.iterate import matrix_products
from polarlib.engine.normalise import BOUNDS, normalise
from polarlib.testing import SPECTRA, orthonormal, spectrum, with_singular_values

ADVERSARIAL = SPECTRA[11:]


def matrices():
    """Matrices that have little in common."""
    rng = np.random.default_rng(1)
    yield "constant", np.ones((24, 16))
    yield "Hadamard", scipy.linalg.hadamard(16).astype(float)
    yield "one column", rng.standard_normal((9, 1))
    yield "one entry", np.array([[-3.0]])
    yield "Gaussian", rng.standard_normal((40, 24))
    for name in SPECTRA:
        yield name, with_singular_values(spectrum(name, 16), 48, seed=2)


MATRICES = dict(matrices())
FROM_GRAM = [name for name, bound in BOUNDS.items() if bound.from_gram]


# -- the bounds from the Gram matrix ---------------------------------------------------------


@pytest.mark.parametrize("kind", FROM_GRAM)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize("name", MATRICES)
def test_bounds_are_bounds(name, dtype, kind):
    a = MATRICES[name].astype(dtype)
    for x in (a, np.stack([a, 2 * a])):
        y, products = normalise(x, ops_of(x), kind)
        top = np.linalg.norm(y.astype(np.complex128), 2, axis=(-2, -1))
        assert products == 1
        assert np.all(top <= 1 + 4 * np.finfo(dtype).eps)
        assert np.all(top >= 0.2)


def test_moments_are_the_better_bound_and_exact_for_equal_singular_values():
    for name, a in MATRICES.items():
        ops = ops_of(a)
        top = {k: np.linalg.norm(normalise(a, ops, k)[0], 2) for k in (*FROM_GRAM, "frobenius")}
        assert top["moments"] >= top["schatten4"] * (1 - 1e-6) >= top["frobenius"] * (1 - 2e-6)
        if name in ("ones", "constant", "Hadamard", "rank one"):
            assert top["moments"] > 1 - 1e-5, name


@given(
    s=st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda s: max(s) > 1e-3),
    scale=st.integers(-30, 30),
)
@settings(max_examples=60)
def test_moments_bound_the_largest_singular_value(s, scale):
    a = with_singular_values(np.sort(s)[::-1], len(s) + 2) * 2.0**scale
    y, _ = normalise(a, ops_of(a), "moments")
    assert np.linalg.norm(y, 2) <= 1 + 1e-12
    # Wolkowicz and Styan, Theorem 2.1, by numpy alone.
    eigenvalues = np.square(s)
    bound = eigenvalues.mean() + math.sqrt(len(s) - 1) * eigenvalues.std()
    assert np.linalg.norm(a, 2) / np.linalg.norm(y, 2) <= 2.0**scale * math.sqrt(bound) * 1.001


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("name", MATRICES)
def test_the_first_step_sees_a_normalised_matrix(name, precision):
    """The bound is taken from the rounded Gram matrix, and must hold in every format."""
    a = MATRICES[name].astype("float32" if precision != "float64" else "float64")
    once = Schedule(steps=[(1.0, 0.0)], lower=0.5, normalisation="moments", name="once")
    for x in (a, np.stack([a, a])):
        q = orthogonalize(x, schedule=once, precision=precision).astype("f8")
        top = np.linalg.norm(q, 2, axis=(-2, -1))
        # One rounding of the input, where its entries are rounded alike, and one of the quotient.
        assert np.all(top <= 1 + 2.5 * format_of(precision).unit_roundoff)


@pytest.mark.parametrize("lib", ["numpy", "torch"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_input_is_rounded_once(lib, precision):
    """A step that is a factor rounds the input and the result; a third rounding is seen."""
    a = with_singular_values(np.geomspace(1, 1e-2, 24), 40, seed=5).astype("float32")
    once = Schedule(steps=[(0.9, 0.0, 0.0)], lower=0.5, normalisation="moments", name="once")
    xp = library(lib)
    q = orthogonalize(xp.asarray(a), schedule=once, precision=precision)
    q = np.array([[float(v) for v in row] for row in q])
    large = abs(a) > abs(a).max() / 100
    s = np.float32(1 / np.mean((q / a)[large]))  # the divisor

    def in_format(x):
        return round_to(x, format_of(precision), ops_of(x))

    twice = in_format(in_format(a) / s)
    found, wanted = (np.std((x / a)[large] * s) for x in (q, twice))
    assert 0.5 * wanted < found < 1.1 * wanted


@pytest.mark.parametrize(
    ("normalisation", "spent"),
    [("moments", 0), ("schatten4", 0), ("frobenius", 0), ("none", 0), ("spectral", 4)],
)
@pytest.mark.parametrize("form", ["plain", "gram"])
def test_products_spent_on_the_normalisation(normalisation, spent, form):
    """A Gram matrix and three squarings for the spectral norm, none where the first step's do."""
    counted = []

    class Counting(Ops):
        host = True

        def matmul(self, a, b, out=None):
            counted.append(a.shape)
            return super().matmul(a, b)

    from polarlib._methods import polynomial

    a = np.random.default_rng(0).standard_normal((12, 8)) / 10
    chosen = default_schedule("float64")
    ops = Counting(ops_of(a).xp)
    _, run = polynomial(a, ops, chosen, precision="float64", normalisation=normalisation, form=form)
    assert len(counted) == run.matmuls == matrix_products(chosen.steps, form=form) + spent


# -- scale, zero, form -----------------------------------------------------------------------


RANGE = {"float32": (-120, 120), "float64": (-1000, 1000), "bfloat16": (-120, 120)}


@pytest.mark.parametrize("where", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_the_same_factor_for_every_power_of_two(where, dtype):
    lib = library(where)
    if not lib.has(dtype):
        pytest.skip(f"{where} has no {dtype}")
    a = np.random.default_rng(4).standard_normal((12, 8)).astype(ml_dtype(dtype))
    low, high = RANGE.get(dtype, (-10, 12))
    expected = lib.to_numpy(orthogonalize(lib.asarray(a, dtype)))
    for k in range(low, high, 7):
        scaled = (a.astype("f8") * 2.0**k).astype(a.dtype)
        if k < -5 and not np.array_equal(scaled.astype("f8") * 2.0**-k, a.astype("f8")):
            continue  # subnormal numbers were rounded: another matrix
        q = lib.to_numpy(orthogonalize(lib.asarray(scaled, dtype)))
        np.testing.assert_array_equal(q, expected)


def test_scales_that_are_no_powers_of_two():
    a = np.random.default_rng(4).standard_normal((12, 8))
    expected = orthogonalize(a)
    for c in (1e-300, 3e-7, 0.7, 1.0 + 1e-9, 1e3, 1e25, 1e300):
        np.testing.assert_allclose(orthogonalize(c * a), expected, atol=1e-12)


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("form", ["plain", "gram"])
def test_zero_stays_zero(precision, form):
    for shape in [(4, 3), (3, 4), (2, 4, 3)]:
        q = orthogonalize(np.zeros(shape, "float32"), precision=precision, form=form)
        assert not q.any()
    mixed = np.zeros((2, 3, 2), "float32")
    mixed[1] = np.eye(3, 2)
    q = orthogonalize(mixed, precision=precision, form=form)
    assert not q[0].any()
    assert abs(q[1, 0, 0] - 1) < 0.3


@pytest.mark.parametrize(
    ("precision", "most"),
    [
        *(("bfloat16", 1.1), ("float16", 1.1), ("float32", 1.1)),
        *(("float8_e4m3", 1.2), ("float8_e5m2", 1.3)),
    ],
)
@pytest.mark.parametrize("steps", [5, 9])
@pytest.mark.parametrize("form", ["plain", "gram", "auto"])
def test_nothing_blows_up(precision, most, steps, form):
    for name in ("constant", "Hadamard", *ADVERSARIAL):
        for a in (MATRICES[name].astype("f4"), np.stack([MATRICES[name]] * 2).astype("f4")):
            q = orthogonalize(a, steps=steps, precision=precision, form=form).astype("f8")
            assert np.linalg.norm(q, 2, axis=(-2, -1)).max() < most, name
            assert np.all(np.sum(q * a, axis=(-2, -1)) > 0), name


@pytest.mark.parametrize("name", ["polar_express", "polar_express_102", "you", "jordan"])
def test_gram_form_in_a_finer_format_stays_near_the_plain_form(name):
    """Two formats, all restarts from the bounds."""
    for key in ("log-uniform 1e-7", "linear", "half log-uniform, half zero"):
        a = with_singular_values(spectrum(key, 48), 192, seed=3).astype("f4")
        plain = orthogonalize(a, schedule=name, precision="bfloat16", form="plain")
        for gram_precision in ("bfloat16", "float16", "tf32", "float32"):
            q = orthogonalize(
                a, schedule=name, precision="bfloat16", gram_precision=gram_precision, form="gram"
            )
            top = max(1.0, np.linalg.norm(plain, 2))
            assert np.linalg.norm(q.astype("f8"), 2) < top + 0.08, (key, gram_precision)


def test_gram_precision_is_checked_and_idle_in_plain_form():
    a = np.random.default_rng(0).standard_normal((8, 4)).astype("f4")
    with pytest.raises(ValueError, match="unknown number format 'half'"):
        orthogonalize(a, gram_precision="half")
    plain = orthogonalize(a, precision="bfloat16", form="plain", gram_precision="float32")
    np.testing.assert_array_equal(plain, orthogonalize(a, precision="bfloat16", form="plain"))
    # Square: "auto" is the plain form.
    square = orthogonalize(a[:4], gram_precision="bfloat16")
    np.testing.assert_array_equal(square, orthogonalize(a[:4], form="plain"))
    same = orthogonalize(a, precision="bfloat16", form="gram", gram_precision="bfloat16")
    np.testing.assert_array_equal(same, orthogonalize(a, precision="bfloat16", form="gram"))


@pytest.mark.parametrize("schedule", ["auto", "adaptive"])
@pytest.mark.parametrize("shape", [(15, 46), (46, 46)])
def test_gram_matrices_in_a_coarser_format(shape, schedule):
    """The default schedule of a finer format diverges by the rounding of coarser matrices."""
    most = {"auto": 1.05, "adaptive": 1.15}[schedule]
    for seed, (precision, coarser) in enumerate(
        (("float64", "bfloat16"), ("float32", "float16"), ("float16", "bfloat16"))
    ):
        a = np.random.default_rng(seed).standard_normal((6, *shape)).astype("f4")
        options = {"precision": precision, "gram_precision": coarser, "form": "gram"}
        q = orthogonalize(a, schedule=schedule, **options).astype("f8")
        assert np.linalg.norm(q, 2, axis=(-2, -1)).max() < most, options
    s = default_schedule("float32")
    with pytest.warns(ScheduleWarning, match="no safety factor for rounding to bfloat16"):
        orthogonalize(a, schedule=s, precision="float32", gram_precision="bfloat16", form="gram")


def test_accuracy_on_the_interval():
    """Singular values in the interval end within the error, and the factor is the polar factor."""
    for precision in ("float64", "float32", "bfloat16", "float16"):
        own = default_schedule(precision, steps=6)
        a = with_singular_values(np.geomspace(1, 0.05, 32), 96, seed=5)
        a = a.astype("f8" if precision == "float64" else "f4")
        q = orthogonalize(a, steps=6, precision=precision, form="plain").astype("f8")
        u, _ = polar(a.astype("f8"))
        unit = format_of(precision).unit_roundoff
        assert np.linalg.norm(q - u, 2) < own.error() + 12 * unit


# -- torch and JAX ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1024, 1024), (640, 1400), (1400, 640)], ids=str)
@pytest.mark.parametrize(("dtype", "apart"), [("bfloat16", 0.1), ("float32", 1e-4)])
def test_large_torch_products_by_panels(torch, shape, dtype, apart):
    """Half of a Hermitian product, mirrored: the same result as the whole."""
    from polarlib.arrays import torch_ops
    from polarlib.arrays.ops import ops_of

    s = np.geomspace(1, 0.3, min(shape))
    u, v = orthonormal(shape[0], s.size, seed=1), orthonormal(s.size, shape[1], seed=2)
    a = torch.from_numpy((u * s) @ v).to(getattr(torch, dtype))
    before = a.clone()
    by_panels = [orthogonalize(a, form=form) for form in ("plain", "gram")]
    assert torch.equal(a, before)
    limit, torch_ops.PANELS_FROM = torch_ops.PANELS_FROM, 1 << 62
    try:
        whole = [orthogonalize(a, form=form) for form in ("plain", "gram")]
    finally:
        torch_ops.PANELS_FROM = limit
    unit = format_of(dtype).unit_roundoff
    for x, y in zip(by_panels, whole, strict=True):
        assert x.shape == a.shape
        assert torch.linalg.norm((x - y).float()) <= apart * math.sqrt(min(shape))
        away = np.linalg.norm(x.double().numpy() - u @ v) / math.sqrt(min(shape))
        assert away <= default_schedule(dtype).error() + 4 * unit
    g = torch.from_numpy(np.random.default_rng(0).standard_normal((1024, 1024))).to(a.dtype)
    product = ops_of(g).gram(g)
    assert torch.equal(product, product.mT)
    # One rounding each, and those of the sums in single precision.
    exact = g.mT.double() @ g.double()
    sums = 1024 * 2.0**-24 * (abs(g.double()).mT @ abs(g.double()))
    assert torch.all(abs(product.double() - exact) <= unit * abs(exact) + sums)


def test_torch_keeps_the_memory_order(torch):
    """A wide tensor gives a wide one that is contiguous, as its users expect."""
    for shape in [(6, 3), (3, 6), (600, 1200)]:
        for dtype in (torch.bfloat16, torch.float32):
            q = orthogonalize(torch.randn(*shape).to(dtype), form="plain")
            assert q.is_contiguous()


def test_jax_compiles_once_for_a_shape():
    jnp = library("jax").xp
    from polarlib.orthogonalization import run as orthogonalization

    traced = []
    original = orthogonalization.polynomial

    def spy(*args, **kwargs):
        traced.append(args[0].shape)
        return original(*args, **kwargs)

    x = jnp.asarray(np.random.default_rng(0).standard_normal((11, 7)), dtype=jnp.float32)
    orthogonalization.polynomial = spy
    try:
        for c in (1.0, 2.0, 3.0):
            orthogonalize(c * x, steps=3)
        assert traced == [(11, 7)]
        orthogonalize(x[:, :5], steps=3)
        assert traced == [(11, 7), (11, 5)]
        orthogonalize(x, steps=3)
        assert len(traced) == 2
    finally:
        orthogonalization.polynomial = original


# -- many matrices, and memory ---------------------------------------------------------------


@pytest.mark.parametrize("where", ["numpy", "numpy-readonly", "torch", "jax", "array_api_strict"])
def test_many_matrices(where):
    lib = library(where)
    rng = np.random.default_rng(2)
    shapes = [(8, 4), (4, 8), (8, 4), (5, 5), (2, 8, 4), (4, 8), (8, 4), (160, 120), (160, 120)]
    arrays = [rng.standard_normal(s) for s in shapes]
    given = [lib.asarray(a, "float32" if i == 6 else "float64") for i, a in enumerate(arrays)]
    results = orthogonalize_all(iter(given), steps=4)
    assert [tuple(q.shape) for q in results] == shapes
    for i, (x, q) in enumerate(zip(given, results, strict=True)):
        assert q.dtype == x.dtype
        tolerance = 1e-5 if i == 6 else 1e-12
        expected = lib.to_numpy(orthogonalize(x, steps=4))
        np.testing.assert_allclose(lib.to_numpy(q), expected, atol=tolerance)


@pytest.mark.parametrize("name", ["auto", "jordan"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("where", ["numpy", "torch"])
def test_a_batch_differs_by_amplified_rounding(where, dtype, name):
    lib = library(where)
    s = default_schedule(dtype) if name == "auto" else schedule(name)
    unit = np.finfo(dtype).eps / 2
    # The bound of the norm cancels where singular values are equal.
    cancelled = unit if name == "auto" else 0.0
    for shape in ((8, 4), (64, 64), (32, 96)):
        n = min(shape)
        values = (np.ones(n), np.geomspace(1, 1e-3, n), np.geomspace(1, 1e-6, n))
        arrays = [with_singular_values(v, max(shape), seed=i) for i, v in enumerate(values)]
        given = [lib.asarray(a if a.shape == shape else a.T, dtype) for a in arrays]
        given.append(lib.asarray(np.ones((3, 2)), dtype))  # of a shape of its own
        results = orthogonalize_all(given, schedule=name)
        for x, q in zip(given, results, strict=True):
            alone = lib.to_numpy(orthogonalize(x, schedule=name))
            assert (
                np.linalg.norm(lib.to_numpy(q) - alone, 2)
                <= 64 * unit * s.slope + 4 * (n * cancelled) ** 0.5
            )
        np.testing.assert_array_equal(lib.to_numpy(results[-1]), alone)


def test_many_matrices_of_several_libraries(torch):
    a = np.random.default_rng(2).standard_normal((4, 3))
    first, second = orthogonalize_all([a, torch.tensor(a)])
    assert isinstance(first, np.ndarray)
    np.testing.assert_allclose(second.numpy(), first, atol=1e-12)


def test_bad_lists():
    assert orthogonalize_all([]) == []
    a = np.eye(3)
    with pytest.raises(TypeError, match="has no argument out"):
        orthogonalize_all([a], out=a)
    with pytest.raises(TypeError, match="takes a list of arrays, got ndarray"):
        orthogonalize_all(a)
    with pytest.raises(TypeError, match="takes a list of arrays, got int"):
        orthogonalize_all(3)
    with pytest.raises(ValueError, match=r"gradients\[1\] must be a matrix"):
        orthogonalize_all([a, np.ones(3)])
    with pytest.raises(ValueError, match=r"gradients\[0, 2\]: .*NaN"):
        orthogonalize_all([a, np.eye(2), a * np.nan])
    with pytest.raises(ValueError, match=r"gradients\[0\]: unknown schedule"):
        orthogonalize_all([a], schedule="polar_expres")


@pytest.mark.parametrize(
    ("shape", "form"),
    [((512, 512), "auto"), ((2048, 256), "gram"), ((256, 2048), "gram"), ((256, 2048), "plain")],
)
def test_workspace(shape, form):
    """Beyond the result: at most two copies of the input and three of the small square."""
    a = np.random.default_rng(0).standard_normal(shape).astype("f4")
    orthogonalize(a, form=form)
    tracemalloc.start()
    orthogonalize(a, form=form)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 2 * a.nbytes + 3 * 4 * min(shape) ** 2 + 20_000


@pytest.mark.filterwarnings("ignore:schedule 'root_2048x2048' is valid")
def test_every_published_set_runs_in_its_normalisation():
    """The shared Gram matrix serves any set that asks for it."""
    a = np.random.default_rng(0).standard_normal((20, 8))
    for name in schedules():
        if schedule(name).normalisation != "aol":
            for kind in FROM_GRAM:
                q = orthogonalize(a, schedule=name, normalisation=kind)
                y, _ = normalise(a, ops_of(a), kind, schedule(name).input_safety)
                expected = orthogonalize(y, schedule=name, normalisation="none")
                np.testing.assert_allclose(q, expected, atol=1e-9)
