"""The fast path: its kernels, its plans, and what it certifies."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from conftest import DTYPES, with_dask

from polarlib._methods.hybrid import hybrid, plan
from polarlib.arrays import blas
from polarlib.arrays.ops import Ops, ops_of
from polarlib.design.cost_tables import kernel_costs
from polarlib.engine.drive import LAST
from polarlib.testing import assert_polar, orthonormal, with_singular_values, zoo

EPS = {d: float(np.finfo(d).eps) for d in DTYPES}
# One block of a kernel, one entry more than a block, several with a rest.
SIZES = (1, 5, 128, 129, 300)


def gaussian(m: int, n: int, dtype: str = "float64", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((m, n))
    if dtype.startswith("complex"):
        a = a + 1j * rng.standard_normal((m, n))
    return a.astype(dtype)


def graded(n: int, condition: float, dtype: str = "float64", m: int | None = None) -> np.ndarray:
    return with_singular_values(np.geomspace(1, 1 / condition, n), m, dtype=dtype)


def run(x: np.ndarray, **keywords):
    before = x.copy()
    with np.errstate(all="ignore"):
        u, what = hybrid(x, ops_of(x), tol=1e-3, **keywords)
    np.testing.assert_array_equal(x, before)
    assert u.shape == x.shape
    assert u.dtype == x.dtype
    return u, what


def hermitian_factor(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    w = u.conj().T @ x
    return (w + w.conj().T) / 2


def check(x: np.ndarray, u: np.ndarray, epsilons: float, orthonormal: float = 12) -> None:
    rtol = epsilons * EPS[x.dtype.name]
    wide = np.complex128 if x.dtype.kind == "c" else np.float64
    x, u = x.astype(wide), u.astype(wide)
    n = u.shape[1]
    defect = np.linalg.norm(u.conj().T @ u - np.eye(n)) / math.sqrt(n)
    assert (
        defect <= orthonormal * rtol / epsilons
    )  # the last step takes it off, whatever the condition
    assert_polar(x, u, hermitian_factor(x, u), rtol=rtol)


# -- kernels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_kernels(n, dtype):
    x = np.asfortranarray(gaussian(n, n, dtype) / math.sqrt(n))
    eps = 100 * EPS[dtype]
    g = blas.gram(x)
    reference = x.conj().T @ x
    np.testing.assert_allclose(np.triu(g), np.triu(reference), atol=eps)
    assert not np.tril(g, -1).any()
    rows = blas.gram(x, alpha=2.0, rows=True)
    np.testing.assert_allclose(np.triu(rows), 2 * np.triu(x @ x.conj().T), atol=eps)
    size = np.linalg.norm(reference)
    assert blas.upper_norm(g) == pytest.approx(size, rel=eps)
    assert blas.norm(x) == pytest.approx(np.linalg.norm(x), rel=eps)
    whole = blas.mirror(g, np.empty_like(g))
    np.testing.assert_array_equal(whole, whole.conj().T)
    np.testing.assert_array_equal(blas.mirror(g.copy(order="F")), whole)
    out = np.empty_like(x)
    np.testing.assert_allclose(blas.times(x, g, out), x @ reference, atol=eps)
    np.testing.assert_allclose(blas.times(x, g, out, beta=0.5), x @ reference + 0.5 * x, atol=eps)
    square = g.copy(order="F")
    blas.quadratic(square, out, 3.0, -4.0, 2.0)
    expected = 3 * np.eye(n) - 4 * reference + 2 * reference @ reference
    np.testing.assert_allclose(np.triu(square), np.triu(expected), atol=8 * eps)
    z = g.copy(order="F")
    blas.add_diagonal(z, 0.5)
    shifted = reference + 0.5 * np.eye(n)
    factor = z.copy(order="F")
    assert blas.resolvent(x, z, out, 1.5, 0.25)
    np.testing.assert_allclose(out @ shifted, 1.5 * x + 0.25 * x @ shifted, atol=eps)
    assert blas.cholesky(factor)
    r = np.triu(factor)
    np.testing.assert_allclose(r.conj().T @ r, shifted, atol=eps)
    tall = np.asfortranarray(gaussian(n + 3, n, dtype, 1))
    solved = np.empty_like(tall)
    blas.solve(tall, factor, solved)
    np.testing.assert_allclose(solved @ r, tall, atol=10 * eps)
    wide = np.asfortranarray(tall.conj().T)
    solved = np.empty_like(wide)
    blas.solve(wide, factor, solved, rows=True)
    np.testing.assert_allclose(r.conj().T @ solved, wide, atol=10 * eps)
    values = np.linalg.eigvalsh(shifted)
    upper = np.asfortranarray(np.triu(shifted))
    assert blas.largest(upper, 8) == pytest.approx(values[-1], rel=0.1)
    assert blas.smallest(factor, 8) == pytest.approx(values[0], rel=0.1)


def test_kernels_say_when_a_matrix_is_not_definite():
    z = np.asfortranarray(np.diag([1.0, -1.0]))
    assert not blas.cholesky(z.copy(order="F"))
    assert not blas.resolvent(np.eye(2, order="F"), z, np.empty((2, 2), order="F"), 1.0, 0.0)
    assert math.isnan(blas.largest(np.full((3, 3), np.inf, order="F"), 3))


def layouts(x: np.ndarray) -> list[np.ndarray]:
    """The same matrix row-major, column-major, and strided in both directions."""
    padded = np.zeros((2 * x.shape[0], 2 * x.shape[1]), x.dtype)
    padded[::2, ::2] = x
    return [np.ascontiguousarray(x), np.asfortranarray(x), padded[::2, ::2]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n"), [(130, 130), (200, 90), (90, 200)])
def test_primitives_in_every_memory_order(m, n, dtype):
    eps = 100 * EPS[dtype]
    a, b, c = gaussian(m, n, dtype), gaussian(n, 150, dtype, 1), gaussian(m, 150, dtype, 2)
    a, b, c = a / 10, b / 10, c / 10
    product, gram = a @ b, a.conj().T @ a
    for x in layouts(a):
        ops = ops_of(x)
        assert ops.frobenius(x)[0, 0] == pytest.approx(np.linalg.norm(a), rel=eps)
        np.testing.assert_array_equal(ops.max_abs(x), Ops.max_abs(ops, x))
        for out in (None, *layouts(np.zeros_like(gram))):
            g = ops.gram(x, out)
            assert out is None or g is out
            np.testing.assert_allclose(g, gram, atol=eps)
            np.testing.assert_array_equal(g, g.conj().T)
        for y in layouts(b):
            for out in (None, *layouts(np.full_like(c, np.nan))):
                result = ops.matmul(x, y, out)
                assert out is None or result is out
                np.testing.assert_allclose(result, product, atol=eps)
                result = ops.gemm(x, y, c, alpha=-0.5, beta=2.0, out=out)
                assert out is None or result is out
                np.testing.assert_allclose(result, 2 * c - 0.5 * product, atol=eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hermitian_split(dtype):
    w = gaussian(300, 300, dtype)
    for x in layouts(w):
        ops = ops_of(x)
        expected, rest = Ops.hermitian_split(ops, w.copy())
        h, skew = ops.hermitian_split(x.copy(order="K"))
        np.testing.assert_array_equal(h, expected)
        assert skew.shape == rest.shape
        assert skew.dtype == rest.dtype
        assert skew[0, 0] == pytest.approx(rest[0, 0], rel=100 * EPS[dtype])


def test_max_abs_propagates_nan():
    x = gaussian(200, 200)
    x[170, 3] = -9
    assert ops_of(x).max_abs(x) == 9
    x[60, 60] = np.nan
    assert np.isnan(ops_of(x).max_abs(x))
    z = np.full((200, 200), 3 - 4j)
    assert ops_of(z).max_abs(z) == 4


def test_is_definite():
    a = gaussian(150, 150, "complex128")
    z = a.conj().T @ a
    least = np.linalg.eigvalsh(z)[0]
    ops = ops_of(z)
    for x in layouts(z):
        before = x.copy()
        assert ops.is_definite(x, np.full((1, 1), 0.99 * least))
        assert not ops.is_definite(x, np.full((1, 1), 1.01 * least))
        np.testing.assert_array_equal(x, before)


# -- plans -----------------------------------------------------------------------------------


def outcome(steps, l: float) -> np.ndarray:
    """Singular values after the steps of a plan, from a dense grid on [l, 1]."""
    s = np.geomspace(l, 1, 3001)
    for step in steps:
        s = np.array([step(v) for v in s])
    return s


@pytest.mark.parametrize("eps", [2.0**-52, 2.0**-23])
@pytest.mark.parametrize("l", [0.999, 0.5, 0.3, 0.1, 0.01, 1e-3, 1e-4, 1e-6, 1e-9])
def test_plan_brings_every_singular_value_close_enough_for_the_last_step(l, eps):
    steps, cost = plan(l, eps)
    defect = np.abs(1 - outcome(steps, l) ** 2).max()
    assert min(factor * defect ** ((degree + 1) // 2) for degree, factor in LAST.items()) <= eps
    assert cost > 0
    # A longer way cannot be cheaper; grids make plans differ by a little.
    assert plan(l / 4, eps)[1] > cost - 0.05
    # What certifies bounds.
    for step in steps:
        values = np.array([step(s) for s in np.linspace(0, 1.01, 2001)])
        known = [step.largest(s) for s in np.linspace(0, 1.01, 2001)]
        np.testing.assert_allclose(known, np.maximum.accumulate(values), rtol=1e-5, atol=1e-12)
        assert np.all(known >= values)


def test_plan_follows_the_costs():
    usual = kernel_costs("numpy", "float64", 1024)
    assert any(step.denominator for step in plan(0.3, 2.0**-52, usual)[0])
    steps, _ = plan(0.3, 2.0**-52, usual | {"cholesky": 100.0})
    assert not any(step.denominator for step in steps)
    halley = [
        sum(step.denominator > 0 for step in plan(0.03, 2.0**-52, costs)[0])
        for costs in (usual | {"solve": 5.0}, usual)
    ]
    assert halley[0] < halley[1]


def test_step_scales_to_an_upper_bound():
    for step in plan(1e-2, 2.0**-52)[0]:
        assert step.scaled(8.0)(8 * 0.3) == pytest.approx(step(0.3), rel=1e-14)


# -- the factor ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("condition", [1.0, 10.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize(("m", "n"), [(40, 40), (130, 130), (90, 40)])
def test_accuracy(m, n, condition, dtype):
    x = graded(n, condition, dtype, m)
    for y in layouts(x):
        y.flags.writeable = False
        u, what = run(y)
        assert what.converged
        check(y, u, 40)


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_nearly_singular(dtype):
    """Small singular values are lost in the Gram matrix, and raised from there."""
    for m in (60, 150):
        x = graded(60, 0.1 / EPS[dtype], dtype, m)
        u, what = run(x)
        assert what.converged
        check(x, u, 100)


@pytest.mark.parametrize("scale", [2.0**-20, 3.0, 2.0**20])
def test_scale_does_not_matter(scale):
    x = graded(30, 1e3)
    u, what = run(x * scale)
    assert what.converged
    check(x, u, 40)


def test_orthonormal_matrices_take_one_step():
    for n in (1, 2, 50):
        q = orthonormal(n, n)
        u, what = run(q)
        assert what.iterations == 1
        np.testing.assert_allclose(u, q, atol=1e-14)


@with_dask
def test_every_library(lib):
    for shape, dtype in [
        ((40, 40), "float64"),
        ((50, 30), "complex128"),
        ((2, 3, 9, 8), "float32"),
    ]:
        a = np.random.default_rng(0).standard_normal(shape).astype(dtype)
        x = lib.asarray(a)
        u, what = hybrid(x, ops_of(x), tol=1e-3)
        assert what.converged
        assert lib.dtype_name(u) == dtype
        u = lib.to_numpy(u)
        for index in np.ndindex(*shape[:-2]):
            check(a[index], u[index], 60)


def test_any_other_library_takes_the_same_steps():
    x = graded(60, 1e5)
    expected, _ = run(x)
    ops = ops_of(x)
    seen = []
    u, what = hybrid(x[None], ops, tol=1e-3, callback=lambda k, v: seen.append((k, v.shape)))
    assert what.converged
    np.testing.assert_allclose(u[0], expected, atol=1e-9)
    assert seen == [(k + 1, (1, 60, 60)) for k in range(what.iterations)]


def test_stack_reports_the_worst():
    stack = np.stack([graded(20, 2.0), graded(20, 1e5), graded(20, 30.0)])
    u, what = hybrid(stack, ops_of(stack), tol=1e-3)
    each = [run(a)[1] for a in stack]
    assert what.iterations == max(r.iterations for r in each)
    assert what.matmuls == max(r.matmuls for r in each)
    assert what.bounds == (min(r.bounds[0] for r in each), max(r.bounds[1] for r in each))
    for a, v in zip(stack, u, strict=True):
        check(a, v, 40)


# -- what it certifies -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_bounds_hold(dtype):
    matrices = [(f"condition {c:g}", graded(50, c)) for c in (1, 3, 100, 1e4, 1e7, 1e10)]
    matrices += [
        ("tall", graded(30, 1e5, m=90)),
        ("Gaussian", gaussian(80, 80)),
        *zoo(12, dtype=dtype),
    ]
    certified = 0
    for name, a in matrices:
        a = a[..., : min(a.shape)].astype(dtype)
        if a.ndim > 2 or not np.isfinite(a).all() or not a.any():
            continue
        a /= np.abs(a).max()
        _, what = run(a)
        s = np.linalg.svd(a.astype("float64"), compute_uv=False)
        rounding = 20 * EPS[dtype] * s[0]
        if what.bounds is not None:
            low, high = what.bounds
            assert 0 <= low <= s[-1] + rounding, name
            assert high >= s[0] - rounding, name
            certified += low > 0.5 * s[-1]
        if what.converged and s[-1] > rounding:
            assert what.bounds is not None, name
    assert certified >= 8


def test_defect_that_comes_free_is_the_defect():
    seen = []
    _, what = run(graded(130, 30.0), callback=lambda k, v: seen.append((k, v.copy())))
    assert [k for k, _ in seen] == list(range(1, what.iterations + 1))
    measured = [np.linalg.norm(np.eye(130) - v.T @ v) / math.sqrt(130) for _, v in seen[:-1]]
    # One is measured before each polynomial step, the last one included.
    assert len(what.changes) >= 2
    for free, exact in zip(reversed(what.changes), reversed(measured), strict=False):
        assert free == pytest.approx(exact, rel=1e-6, abs=1e-14)


@pytest.mark.parametrize("m", [40, 100])
def test_a_bound_that_is_too_large_is_found_out(m):
    x = graded(40, 100.0, m=m)
    u, what = run(x, lower=0.3)
    assert what.converged
    assert what.bounds is None or what.bounds[0] <= 0.01 * (1 + 1e-12)
    check(x, u, 200)
    u, what = run(graded(40, 1e8, m=m), lower=0.3)
    # The reduction of tall matrices shows that the Gram matrix cannot be used, for every `lower`.
    assert what.converged == (m > 40)


def test_a_bound_saves_the_estimate():
    x = graded(40, 50.0)
    u, what = run(x, lower=0.02)
    assert what.converged
    check(x, u, 40)


SINGULAR = {
    "zero": np.zeros((6, 6)),
    "one": np.ones((6, 6)),
    "zero column": np.diag([1.0, 2.0, 0.0, 3.0]),
    "nilpotent": np.diag(np.ones(7), 1),
    "tall zero": np.zeros((9, 4)),
    "tall of rank one": np.ones((9, 4)),
    "graded by rows": np.diag(10.0 ** -np.arange(0, 40, 2.0)),
    "rank one, large": np.ones((140, 140)),
}


@pytest.mark.parametrize("name", SINGULAR)
@pytest.mark.parametrize("dtype", DTYPES)
def test_singular_matrices_are_completed(name, dtype):
    """By the rational step, which raises them by rounding; a zero matrix has nothing to go by."""
    x = SINGULAR[name].astype(dtype)
    # Reflections of equal columns round alike, and it adds up.
    limit = 100 if name == "rank one, large" else 40
    for y in (x, np.asfortranarray(x)):
        u, what = run(y)
        assert np.isfinite(u).all()
        assert what.converged == bool(x.any())
        if what.converged:
            check(y, u, limit, limit)
        u, what = run(y, may_decompose=True)
        assert what.converged
        check(y, u, limit, limit)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_the_rational_step_singular_matrices_are_given_up(dtype, monkeypatch):
    monkeypatch.setattr(sys.modules["polarlib._methods.hybrid"], "_lifted", lambda *_: None)
    x = SINGULAR["one"].astype(dtype)
    u, what = run(x)
    assert not what.converged
    assert np.isfinite(u).all()
    _, what = run(x, may_decompose=True)
    assert what.method == "svd"
    # Of a stack, each matrix has values of its own.
    _, what = run(np.stack([x, 2 * x]), may_decompose=True)
    assert what.singular_values.shape == (2, len(x))
    values = np.array(what.singular_values)
    np.testing.assert_allclose(values[1], 2 * values[0], atol=1e-5)
    # One that is not singular is not decomposed.
    assert run(np.stack([x, np.eye(len(x), dtype=dtype)]), may_decompose=True)[1].converged


def test_singular_matrices_of_other_libraries(lib):
    if lib.name.startswith("numpy"):
        pytest.skip("completed")
    for a in (np.zeros((2, 5, 5)), np.ones((8, 4)), np.diag([1.0, 2.0, 0.0, 3.0])):
        x = lib.asarray(a)
        with np.errstate(all="ignore"):
            _, what = hybrid(x, ops_of(x), tol=1e-3)
        assert not what.converged


def test_decomposition_where_that_costs_less():
    x = graded(30, 10.0)
    costs = kernel_costs("numpy", "float64", 30)
    u, what = run(x, may_decompose=True, costs=costs | {"svd": 0.1})
    assert what.method == "svd"
    check(x, u, 40)
    _, what = run(x, may_decompose=True, costs=costs | {"svd": 1e3})
    assert what.method == ""
    assert what.note
