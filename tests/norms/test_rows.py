"""Normalised rows and balanced rows against their definitions."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from conftest import DTYPES, HALF, Library, library, with_dask
from standin import cupy_standin

import polarlib
from polarlib import norms
from polarlib.norms import normalise, row_balanced
from polarlib.testing import with_singular_values

EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7} | {d: float(np.finfo(d).eps) for d in DTYPES}
SHAPES = [(7, 4), (4, 7), (5, 5), (1, 1), (1, 4), (4, 1), (2, 3, 5, 3)]
FUNCTIONS = {
    "rows": lambda g: normalise(g, "rows"),
    "columns": lambda g: normalise(g, "columns"),
    "balanced": row_balanced,
    "balanced thrice": lambda g: row_balanced(g, 3),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def gaussian(shape, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    if dtype.startswith("complex"):
        a = a + 1j * rng.standard_normal(shape)
    return a.astype(dtype)


def isometry(a):
    """The partial isometry of what is above rounding."""
    u, s, vh = np.linalg.svd(a, full_matrices=False)
    keep = s > max(a.shape) * np.finfo(s.dtype).eps * s[0]
    return (u * keep) @ vh


def balanced(g, iterations):
    """The definition, entry by entry, of one matrix in double precision."""
    m, n = g.shape
    d = [1 / np.linalg.norm(row) if row.any() else 1.0 for row in g]
    for k in range(iterations):
        u = isometry(np.diag(d) @ g)
        if k + 1 < iterations:
            for i in range(m):
                square = (np.abs(u[i]) ** 2).sum()
                if square > 0 and g[i].any():
                    d[i] *= np.sqrt(min(m, n) / (m * square))
            d = [x / max(d) for x in d]
    return u


def expected(name, g):
    if name in ("rows", "columns"):
        axis = -1 if name == "rows" else -2
        size = np.sqrt((np.abs(g) ** 2).sum(axis=axis, keepdims=True))
        return g / np.where(size == 0, 1, size)
    k = 3 if "thrice" in name else 2
    flat = g.reshape(-1, *g.shape[-2:])
    return np.stack([balanced(a, k) for a in flat]).reshape(g.shape)


# -- what both promise -------------------------------------------------------------------------


@every_function
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_equals_the_definition(name, shape, dtype):
    g = gaussian(shape, dtype, seed=3)
    before = g.copy()
    np.testing.assert_allclose(FUNCTIONS[name](g), expected(name, g), rtol=0, atol=1e-13)
    np.testing.assert_array_equal(g, before)
    strided = np.repeat(g, 2, axis=-1)[..., ::2]
    np.testing.assert_allclose(FUNCTIONS[name](strided), expected(name, g), rtol=0, atol=1e-13)


@every_function
@with_dask
def test_keeps_library_and_dtype_and_input(name, lib: Library):
    few = {"jax": ("complex64", "bfloat16"), "dask": ("float32", "complex128")}
    for dtype in few.get(lib.name, (*DTYPES, *HALF)):
        if not lib.has(dtype):
            continue
        a = gaussian((2, 4, 3), dtype if dtype in DTYPES else "float32", seed=1)
        g = lib.asarray(a, dtype)
        before = np.array(lib.to_numpy(g))
        t = FUNCTIONS[name](g)
        assert lib.dtype_name(t) == dtype
        assert lib.device(t) == lib.device(g)
        np.testing.assert_array_equal(lib.to_numpy(g), before)
        wide = before.astype("complex128" if dtype.startswith("complex") else "float64")
        want = expected(name, wide)
        np.testing.assert_allclose(lib.to_numpy(t), want, rtol=0, atol=30 * EPS[dtype])


@every_function
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_cupy(name, dtype):
    g = gaussian((2, 5, 3), dtype, seed=2)
    with cupy_standin.installed() as cupy:
        t = FUNCTIONS[name](cupy.asarray(g))
        assert type(t).__module__.startswith(("cupy", "standin"))
        np.testing.assert_allclose(t.get(), expected(name, g), rtol=0, atol=30 * EPS[dtype])


@every_function
def test_zero_empty_integers_and_array_likes(name):
    f = FUNCTIONS[name]
    for dtype in DTYPES:
        t = f(np.zeros((3, 2), dtype))
        assert t.dtype == dtype
        assert not t.any()
    for shape in [(0, 3), (3, 0), (0, 0), (0, 5, 3), (2, 0, 3)]:
        assert f(np.zeros(shape)).shape == shape
    whole = [[3, 1], [0, 2]]
    np.testing.assert_array_equal(f(whole), f(np.array(whole, float)))


@every_function
def test_zero_rows_and_columns_stay_zero(name):
    g = gaussian((2, 6, 4), seed=4)
    g[0, 2] = 0
    g[1, :, 1] = 0
    t = FUNCTIONS[name](g)
    assert not t[0, 2].any()
    np.testing.assert_allclose(t[1, :, 1], 0, atol=1e-14)
    np.testing.assert_allclose(t, expected(name, g), rtol=0, atol=1e-13)


@every_function
def test_not_finite_is_refused_on_the_host_and_kept_apart_elsewhere(name):
    bad = gaussian((2, 3, 3))
    bad[0, 1, 2] = np.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 of 18 entries.*\(0, 1, 2\)"):
        FUNCTIONS[name](bad)
    strict = pytest.importorskip("array_api_strict")
    t = np.asarray(FUNCTIONS[name](strict.asarray(bad)))
    assert np.isnan(t[0]).all()
    np.testing.assert_allclose(t[1], FUNCTIONS[name](bad[1]), atol=1e-15)


@pytest.mark.parametrize("dtype", ["float64", "complex128", "float32"])
def test_rows_of_any_scale_beside_each_other(dtype, lib: Library):
    """XLA takes subnormal numbers for zero."""
    if lib.name == "jax" and dtype != "float64":
        pytest.skip("compiled for each dtype")
    g = gaussian((5, 3), dtype, seed=5)
    large, small = (1e300, 1e-300) if dtype != "float32" else (1e36, 1e-36)
    scales = np.array([large, small, 1, large, small]).astype(g.real.dtype)[:, None]
    x = g * scales
    got = lib.to_numpy(normalise(lib.asarray(x), "rows"))
    np.testing.assert_allclose(got, expected("rows", g), rtol=0, atol=4 * EPS[dtype])
    turned = lib.to_numpy(normalise(lib.asarray(np.ascontiguousarray(x.T)), "columns"))
    np.testing.assert_array_equal(turned.T, got)
    if lib.name != "jax":
        both = lib.to_numpy(row_balanced(lib.asarray(x)))
        np.testing.assert_allclose(both, row_balanced(g), rtol=0, atol=60 * EPS[dtype])
        least = np.finfo(g.real.dtype).smallest_subnormal
        tiny = np.array([[2, 1], [0, 3]]).astype(dtype) * least
        unit = lib.to_numpy(normalise(lib.asarray(tiny), "rows"))
        np.testing.assert_allclose(unit, [[0.8**0.5, 0.2**0.5], [0, 1]], atol=EPS[dtype])


def test_largest_numbers_do_not_overflow():
    top = np.finfo(float).max
    g = np.array([[top + top * 1j, top], [top, -top]])
    np.testing.assert_allclose(normalise(g, "rows"), expected("rows", g / top), atol=1e-15)


@pytest.mark.parametrize("which", ["row", None, 1, "Rows"])
def test_bad_words(which):
    with pytest.raises(ValueError, match="which must be 'rows' or 'columns', got"):
        normalise(np.eye(2), which)


@pytest.mark.parametrize("iterations", [0, -1, 1.5, True, "2"])
def test_bad_iterations(iterations):
    with pytest.raises(ValueError, match="iterations must be an integer of at least 1, got"):
        row_balanced(np.eye(2), iterations)


@every_function
def test_bad_matrices(name):
    with pytest.raises(ValueError, match=r"g must be a matrix .* got shape \(3,\)"):
        FUNCTIONS[name](np.ones(3))
    with pytest.raises(TypeError, match="g must be an array of numbers"):
        FUNCTIONS[name]("abc")
    with pytest.raises(ValueError, match="unknown method 'qwdh'"):
        row_balanced(np.eye(3), polar="qwdh")


# -- balanced rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_balanced_against_many_digits(iterations):
    """The definition in 40 digits, the polar factor by the eigenvalues of the Gram matrix."""
    g = gaussian((5, 2), seed=6) * np.array([1, 10, 0.1, 3, 1e-3])[:, None]
    with mpmath.workdps(40):
        a = mpmath.matrix(g.tolist())
        d = [1 / mpmath.norm(a[i, :]) for i in range(5)]
        for k in range(iterations):
            b = mpmath.diag(d) * a
            values, vectors = mpmath.eigsy(b.T * b)
            root = vectors * mpmath.diag([1 / mpmath.sqrt(x) for x in values]) * vectors.T
            u = b * root
            if k + 1 < iterations:
                d = [x * mpmath.sqrt(2 / (5 * mpmath.norm(u[i, :]) ** 2)) for i, x in enumerate(d)]
        want = np.array(u.tolist(), dtype=float)
    np.testing.assert_allclose(row_balanced(g, iterations), want, rtol=0, atol=2e-15)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_rows_approach_one_length_and_columns_are_orthonormal(dtype):
    g = gaussian((40, 8), dtype, seed=7) * np.geomspace(1, 1e8, 40)[:, None]
    off = []
    for iterations in (1, 2, 4, 30):
        u = row_balanced(g, iterations)
        np.testing.assert_allclose(u.conj().T @ u, np.eye(8), atol=1e-13)
        off.append(np.abs(np.linalg.norm(u, axis=1) - np.sqrt(8 / 40)).max())
    assert off[0] > off[1] > off[2] > off[3]
    assert off[3] < 1e-6


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5)])
def test_positive_multiples_of_rows_change_nothing(shape):
    g = gaussian(shape, seed=8)
    u = row_balanced(g, 3)
    powers = 2.0 ** np.random.default_rng(1).integers(-300, 300, shape[0])
    np.testing.assert_array_equal(row_balanced(g * powers[:, None], 3), u)
    others = np.random.default_rng(1).uniform(0.1, 10, shape[0])
    np.testing.assert_allclose(row_balanced(g * others[:, None], 3), u, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(4, 9), (5, 5)])
def test_wide_of_full_rank_is_the_polar_factor_of_normalised_rows(shape):
    g = gaussian(shape, seed=9)
    want = polarlib.polar(normalise(g, "rows")).unitary
    for iterations in (1, 2, 5):
        np.testing.assert_allclose(row_balanced(g, iterations), want, rtol=0, atol=1e-13)


def test_rank_deficient_matrices_are_not_completed():
    g = with_singular_values([2.0, 1.0, 0.0], 7, 3, seed=1)
    u = row_balanced(g, 3)
    np.testing.assert_allclose(np.linalg.svd(u)[1], [1, 1, 0], atol=1e-13)
    np.testing.assert_allclose(u, balanced(g, 3), rtol=0, atol=1e-12)


def test_rounding_errors_of_zero_rows_leave_the_others_alone():
    """Twenty iterations in which a zero row would be taken for one of length 1e-8 or less."""
    g = gaussian((30, 4), "float32", seed=10)
    g[::3] = 0
    u = row_balanced(g, 20)
    assert not u[::3].any()
    # Shares of m rows: of the 20 that are left each has norm sqrt(4 / 20) in the end.
    np.testing.assert_allclose(np.linalg.norm(u, axis=1)[1::3], 0.2**0.5, atol=2e-2)


def test_a_row_orthogonal_to_the_others_keeps_length_one():
    g = np.zeros((4, 2))
    g[0, 0] = 1
    g[1:, 1] = 3, 4, 5
    u = row_balanced(g, 6)
    np.testing.assert_allclose(np.linalg.norm(u, axis=1), [1, *[3**-0.5] * 3], atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_balanced_by_a_schedule_or_a_method(dtype, lib: Library):
    if lib.name == "jax" or not lib.has(dtype):
        pytest.skip("compiling schedules takes seconds, and they are tested elsewhere")
    a = gaussian((24, 8), "float32", seed=11)
    g = lib.asarray(a, dtype)
    exact = expected("balanced", np.float64(lib.to_numpy(g)))
    for polar in ("polar_express", "qdwh", lambda x: polarlib.polar(x, method="svd")):
        if dtype == "bfloat16" and polar != "polar_express":
            continue
        t = row_balanced(g, polar=polar)
        assert lib.dtype_name(t) == dtype
        off = np.linalg.norm(lib.to_numpy(t) - exact) / np.linalg.norm(exact)
        assert off < (1e-5 if polar != "polar_express" else 0.2)


def test_a_schedule_gets_matrices_of_the_callers_format(torch):
    seen = []

    def factor(x):
        seen.append((x.dtype, tuple(x.shape)))
        return polarlib.orthogonalize(x)

    row_balanced(torch.ones(6, 4, dtype=torch.bfloat16), 3, polar=factor)
    assert seen == [(torch.bfloat16, (6, 4))] * 3


# -- the optimizers of the literature ----------------------------------------------------------


def test_muoneq_and_muon_plus_and_normuon_and_aurora():
    """Written out, in double precision with the exact polar factor."""
    g = gaussian((9, 5), seed=12)
    square = g * g
    row = g / np.sqrt(square.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(isometry(normalise(g, "rows")), isometry(row), rtol=0, atol=1e-14)
    # MuonEq's RC: both norms of the same matrix.
    both = g / np.sqrt(square.sum(1))[:, None] / np.sqrt(square.sum(0))
    assert not np.allclose(normalise(normalise(g, "rows"), "columns"), both)
    np.testing.assert_allclose(
        normalise(g, "rows") * (np.linalg.norm(g, axis=0) ** -1), both, rtol=1e-14
    )
    # NorMuon with beta_2 = 0: rows over the roots of their mean squares, Frobenius norm restored.
    o = isometry(g)
    step = o / np.sqrt((o * o).mean(axis=1, keepdims=True))
    step *= np.linalg.norm(o) / np.linalg.norm(step)
    want = normalise(o, "rows") * np.linalg.norm(o) / np.sqrt(9)
    np.testing.assert_allclose(want, step, rtol=1e-13)
    # Aurora of a wide matrix is that of its transpose; without the scale of its aspect ratio.
    wide = g.T
    np.testing.assert_allclose(row_balanced(wide.T).T, balanced(wide.T, 2).T, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
def test_one_sided_polargrad(shape):
    """As Emerging-Optimizers has it, by eigenvalues of a Gram matrix; on the page in one line."""
    g = gaussian(shape, seed=23)
    c = g - g.mean(axis=0)
    for gram, left in ((c @ c.T, True), (c.T @ c, False)):
        values, vectors = np.linalg.eigh(gram)
        keep = values > 1e-12 * values[-1]
        root = np.where(keep, np.where(keep, values, 1) ** -0.5, 0)
        inverse = (vectors * root) @ vectors.T
        u = inverse @ c if left else c @ inverse
        want = u * np.sqrt(np.maximum(values, 0)).sum() ** 0.7
        got = norms.nuclear()(c) ** 0.7 * norms.spectral().lmo(c)
        np.testing.assert_allclose(got, want - want.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(got.mean(axis=0), 0, atol=1e-14)


# -- derivatives -------------------------------------------------------------------------------


def slope(f, x, e, h=1e-3):
    d = [f(x + k * h * e) - f(x - k * h * e) for k in (1, 2, 3)]
    return (45 * d[0] - 9 * d[1] + d[2]) / (60 * h)


@every_function
@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
@pytest.mark.parametrize("complex_", [False, True])
def test_torch_derivatives(name, shape, complex_, torch):
    f = FUNCTIONS[name]
    dtype = "complex128" if complex_ else "float64"
    x, e, w = (gaussian((2, *shape), dtype, seed) for seed in (13, 14, 15))
    a = torch.from_numpy(x).requires_grad_()
    f(a).backward(torch.from_numpy(w))
    want = np.vdot(w, slope(f, x, e)).real
    assert np.vdot(a.grad.numpy(), e).real == pytest.approx(want, rel=1e-8)
    grad = torch.func.grad(lambda a, b: (f(a) * b.conj()).real.sum())
    each = torch.vmap(grad)(torch.from_numpy(x), torch.from_numpy(w))
    np.testing.assert_allclose(each.numpy(), a.grad.numpy(), atol=1e-13)


@every_function
def test_derivative_of_zero_rows_is_zero(name, torch):
    x, w = gaussian((6, 3), seed=16), gaussian((6, 3), seed=17)
    x[2] = 0
    for scale in (1.0, 1e150):
        a = torch.from_numpy(x * scale).requires_grad_()
        FUNCTIONS[name](a).backward(torch.from_numpy(w))
        grad = a.grad.numpy()
        assert np.isfinite(grad).all()
        if name != "columns":
            assert not grad[2].any()
            # Along each row the function is constant.
            np.testing.assert_allclose((grad * x).sum(axis=1) * scale, 0, atol=1e-12)
    a = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    FUNCTIONS[name](a).sum().backward()
    assert not a.grad.any()


@every_function
def test_torch_at_equal_singular_values_and_in_half_precision(name, torch):
    f = FUNCTIONS[name]
    x, e = np.linalg.qr(gaussian((6, 3), seed=18))[0], gaussian((6, 3), seed=19)
    a = torch.from_numpy(x).requires_grad_()
    f(a).backward(torch.from_numpy(e))
    assert np.vdot(a.grad.numpy(), e) == pytest.approx(np.vdot(e, slope(f, x, e)), rel=1e-8)
    b = torch.from_numpy(x).to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", torch.float16):
        y = f(b)
    y.backward(torch.ones_like(y))
    assert b.grad.dtype == torch.bfloat16
    assert bool(torch.isfinite(b.grad).all())


@pytest.mark.parametrize("name", ["rows", "balanced"])
def test_jax(name):
    library("jax")
    import jax

    f = FUNCTIONS[name]
    x, e, w = (gaussian((2, 5, 3), "float64", seed) for seed in (20, 21, 22))
    x[0, 1] = 0
    e[0, 1] = 0  # a zero row jumps in any other direction
    want = np.vdot(w, slope(f, x, e))
    grad = jax.jit(jax.vmap(jax.grad(lambda a, b: jax.numpy.sum(f(a) * b))))(x, w)
    assert np.vdot(grad, e) == pytest.approx(want, rel=1e-8)
    assert not np.asarray(grad)[0, 1].any()
