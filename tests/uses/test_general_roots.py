"""Square roots and signs of general matrices against residuals, exact formulas and many digits."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy.linalg
from conftest import DTYPES, Library, library, off_the_host, with_dask
from standin import cupy_standin

from polarlib import signm, sqrtm
from polarlib.arrays.ops import ops_of
from polarlib.engine import sylvester
from polarlib.result import ConvergenceWarning
from polarlib.uses import few_steps, general_roots, schur

ROOT = Path(__file__).parents[2]
U = {"float16": 2.0**-11, "bfloat16": 2.0**-8} | {d: float(np.finfo(d).eps) / 2 for d in DTYPES}
FUNCTIONS = {"sqrtm": sqrtm, "signm": signm}
norm = np.linalg.norm


def gaussian(*shape: int, is_complex: bool = False, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    return a + 1j * rng.standard_normal(shape) if is_complex else a


def stable(*shape: int, is_complex: bool = False, seed: int = 0) -> np.ndarray:
    """Eigenvalues around 2, not normal: every function is defined."""
    n = shape[-1]
    g = gaussian(*shape, is_complex=is_complex, seed=seed)
    return 2 * np.eye(n) + 1.7 * g / np.linalg.norm(g, 2, axis=(-2, -1), keepdims=True)


def with_eigenvalues(values, *, is_complex: bool = False, seed: int = 0, departure: float = 0.5):
    """Not normal, with these eigenvalues up to rounding; real ones by pairs of blocks."""
    n = len(values)
    t = departure * np.triu(gaussian(n, n, is_complex=is_complex, seed=seed), 1)
    q = np.linalg.qr(gaussian(n, n, is_complex=is_complex, seed=seed + 1))[0]
    return q @ (t + np.diag(values)) @ q.conj().T


def block(low: float, high: float, n: int = 2) -> np.ndarray:
    """A pair of eigenvalues ``low +- i high``, and ones."""
    a = np.eye(n)
    a[:2, :2] = [[low, 3 * high], [-high / 3, low]]
    return a


def jordan(value: complex, n: int) -> np.ndarray:
    return value * np.eye(n) + np.eye(n, k=1)


KINDS = {
    "around 2": stable(6, 6),
    "around 2, complex": stable(6, 6, is_complex=True),
    "complex": gaussian(7, 7, is_complex=True),
    "40 columns": stable(40, 40),
    "pairs of eigenvalues": np.kron(np.eye(3), [[0.1, 2.0], [-1.0, 0.1]]) + np.eye(6, k=2),
    "one": np.array([[3.0]]),
    "one, complex": np.array([[-3.0 + 0.1j]]),
    "identity": np.eye(5),
    "a Jordan block": jordan(0.3, 6),
    "a Jordan block, complex": jordan(-0.3 + 1j, 5),
    "nearly defective": jordan(1.0, 4) + 1e-13 * gaussian(4, 4),
    "companion": scipy.linalg.companion([1.0, 2, 4, 3, 2]),
    "triangular": np.triu(gaussian(8, 8)) + 4 * np.eye(8),
    "graded": stable(6, 6) * np.geomspace(1, 1e-5, 6),
    "condition 1e12": np.diag(np.geomspace(1, 1e-12, 5)) + np.eye(5, k=1) * 1e-9,
    "near the negative axis": block(-1.0, 1e-6, 5),
    "very near the negative axis": block(-1.0, 1e-12, 3),
    "large": 1e300 * stable(3, 3),
    "small": 1e-300 * stable(3, 3),
}


def adjoint(x: np.ndarray) -> np.ndarray:
    return np.conj(np.swapaxes(x, -1, -2))


def assert_root(x: np.ndarray, a: np.ndarray, unit: float) -> None:
    """The promise on the host; the residual is evaluated in extended precision where there is."""
    scale = 2.0 ** (2 * round(math.log2(np.abs(a).max()) / 2))
    x, a = x / math.sqrt(scale), a / scale
    wide = np.longdouble if a.dtype.kind == "f" else np.clongdouble
    y = x.astype(wide)
    left = norm((y @ y - a).astype(np.result_type(a, np.float64)))
    assert left <= 10 * len(a) * unit * norm(x) ** 2
    assert x.dtype.kind == a.dtype.kind
    assert np.linalg.eigvals(x).real.min() > 0


def assert_sign(s: np.ndarray, a: np.ndarray, unit: float) -> None:
    n, a = len(a), a / np.abs(a).max()
    size = norm(s)
    assert norm(s @ s - np.eye(n)) <= 10 * n * unit * size**2
    assert norm(s @ a - a @ s) <= 10 * n * unit * size * norm(a)
    assert s.dtype.kind == a.dtype.kind
    positive = int((np.linalg.eigvals(a).real > 0).sum())
    assert abs(np.trace(s) - (2 * positive - n)) <= 10 * n * unit * size**2


# -- on the host -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_matrices(kind):
    a = KINDS[kind]
    assert_root(sqrtm(a), a, U["float64"])
    assert_sign(signm(a), a, U["float64"])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 17])
def test_many_matrices(n):
    for is_complex in (False, True):
        a = stable(200 if n < 8 else 20, n, n, is_complex=is_complex, seed=n)
        g = gaussian(*a.shape, is_complex=is_complex, seed=n)
        for x, s, b, c in zip(sqrtm(a), signm(g), a, g, strict=True):
            assert_root(x, b, U["float64"])
            assert_sign(s, c, U["float64"])


def test_larger_matrices():
    a = stable(150, 150)
    assert_root(sqrtm(a), a, U["float64"])
    g = gaussian(150, 150)
    assert_sign(signm(g), g, U["float64"])


def limit(step, a) -> np.ndarray:
    """Limit of an iteration of two matrices in 60 digits, of the first one."""
    with mpmath.workdps(60):
        y, z = mpmath.matrix(np.asarray(a).tolist()), mpmath.eye(len(a))
        change = 1
        while change > 1e-40:
            new, z = step(y, z)
            change, y = mpmath.mnorm(new - y, 1), new
        return np.array(y.tolist(), dtype=np.asarray(a).dtype)


def mp_sqrtm(a) -> np.ndarray:
    """By Denman and Beavers' iteration."""
    return limit(lambda y, z: ((y + mpmath.inverse(z)) / 2, (z + mpmath.inverse(y)) / 2), a)


def mp_signm(a) -> np.ndarray:
    """By Newton's iteration."""
    return limit(lambda y, z: ((y + mpmath.inverse(y)) / 2, z), a)


@pytest.mark.parametrize("is_complex", [False, True])
def test_against_sixty_digits(is_complex):
    a = stable(4, 4, is_complex=is_complex)
    np.testing.assert_allclose(sqrtm(a), mp_sqrtm(a), rtol=0, atol=1e-14)
    g = gaussian(4, 4, is_complex=is_complex)
    exact = mp_signm(g)
    np.testing.assert_allclose(signm(g), exact, rtol=0, atol=1e-13 * norm(exact) ** 2)
    with_scipy = scipy.linalg.sqrtm(a)
    np.testing.assert_allclose(sqrtm(a), with_scipy, rtol=0, atol=1e-13)


def test_jordan_blocks():
    """f(J) has the Taylor coefficients of f on its superdiagonals: binomial(1/2, k) here."""
    for value in (4.0, 0.25, -1 + 1j):
        x = sqrtm(jordan(value, 5))
        for k in range(5):
            exact = complex(mpmath.binomial(0.5, k) * mpmath.power(value, 0.5 - k))
            np.testing.assert_allclose(np.diagonal(x, k), exact, rtol=1e-13)
    np.testing.assert_array_equal(signm(jordan(-0.5, 4)), -np.eye(4))


def test_signs_of_triangular_matrices():
    """``[[a, b], [0, -c]]`` has the sign ``[[1, 2 b / (a + c)], [0, -1]]``."""
    s = signm([[2, 6], [0, -1]])
    np.testing.assert_allclose(s, [[1, 4], [0, -1]], rtol=1e-15)
    s = signm(np.array([[-1, 1e8], [0, 1.0]]))
    np.testing.assert_allclose(s, [[-1, 1e8], [0, 1]], rtol=1e-15, atol=1e-20)


def test_what_is_proportional():
    a = stable(5, 5)
    x, s = sqrtm(a), signm(a - 2 * np.eye(5))
    for k in (300, -300, 7):
        np.testing.assert_array_equal(sqrtm(a * 4.0**k), x * 2.0**k)
        np.testing.assert_array_equal(signm((a - 2 * np.eye(5)) * 2.0**k), s)
    np.testing.assert_array_equal(sqrtm(np.stack([a, a * 2.0**40]))[1], x * 2.0**20)


def test_lists_and_integers():
    assert sqrtm([[4, 0], [0, 9]]).tolist() == [[2.0, 0.0], [0.0, 3.0]]
    assert signm([[4, 0], [0, -9]]).tolist() == [[1.0, 0.0], [0.0, -1.0]]
    for f in FUNCTIONS.values():
        for shape in ((0, 0), (3, 0, 0), (0, 2, 2)):
            assert f(np.zeros(shape)).shape == shape
            assert f(np.zeros(shape, "complex64")).dtype == np.complex64


def test_layouts():
    a = stable(3, 5, 5)
    for name, f in FUNCTIONS.items():
        expected = f(a)
        wide = np.zeros((3, 10, 10))
        wide[:, ::2, ::2] = a
        for x in (np.asfortranarray(a), wide[:, ::2, ::2], a[::-1].copy()[::-1]):
            np.testing.assert_allclose(f(x), expected, rtol=0, atol=1e-13, err_msg=name)
        np.testing.assert_allclose(f(a[1]), expected[1], rtol=0, atol=1e-13)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_complex", [False, True])
def test_eigenvalues_without_a_root(is_complex):
    kind = complex if is_complex else float
    a = with_eigenvalues([1.0, -0.5, 2.0], is_complex=is_complex).astype(kind)
    with pytest.raises(ValueError, match=r"eigenvalue -5\.000e-01.*negative real axis.*exp\(-1j t"):
        sqrtm(a)
    with pytest.raises(ValueError, match=r"eigenvalue -2\.000e\+09"):
        sqrtm(a * 4e9)
    with pytest.raises(ValueError, match=r"-5\.000e-01.* of matrix \(1, 0\) of the stack"):
        sqrtm(np.stack([np.eye(3, dtype=kind), a])[:, None])
    for zero in (np.zeros((2, 2)), np.array([[0.0, 1], [0, 0]]), np.ones((3, 3)), np.zeros((1, 1))):
        with pytest.raises(ValueError, match=r"zero to rounding.*sqrtm_psd"):
            sqrtm(zero.astype(kind))
        with pytest.raises(ValueError, match="on the imaginary axis to rounding"):
            signm(zero.astype(kind))
    with pytest.raises(ValueError, match=r"0\.000e\+00[+-]2\.000e\+00j.*imaginary axis"):
        signm(np.array([[0, 2], [-2, 0]], kind))
    root = sqrtm(np.exp(-1j) * a) * np.exp(0.5j)  # as the message says
    np.testing.assert_allclose(root @ root, a, atol=1e-13)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_thresholds(dtype):
    """``n u |A|_F``, from either side."""
    unit = 3 * U[dtype] * math.sqrt(3)
    for factor, taken in ((0.5, False), (3.0, True)):
        for value in (-1 + 1j * factor * unit, -1 - 1j * factor * unit, factor * unit):
            a = np.diag([1, value, 1]).astype(dtype)
            if taken:
                np.testing.assert_allclose(np.diag(sqrtm(a))[1], np.sqrt(a[1, 1]), rtol=1e-6)
            else:
                with pytest.raises(ValueError, match="eigenvalue"):
                    sqrtm(a)
        a = np.diag([1, 1j + factor * unit, -1]).astype(dtype)
        if taken:
            np.testing.assert_array_equal(signm(a), np.diag([1, 1, -1]))
        else:
            with pytest.raises(ValueError, match="imaginary axis"):
                signm(a)


def test_bad_input():
    for f in FUNCTIONS.values():
        with pytest.raises(ValueError, match="square matrices"):
            f(np.ones((2, 3)))
        with pytest.raises(ValueError, match="NaN or infinity in 1 of 4 entries"):
            f([[1.0, math.nan], [0, 1]])
        with pytest.raises(TypeError):
            f([["a", "b"], ["c", "d"]])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_not_shown_is_not_returned(name, monkeypatch):
    """With an equation that is solved wrongly, nothing passes the check."""
    solve = schur.triangular_sylvester

    def wrong(a, b, c, sign=1):
        return solve(a, b, c, sign) * 1.5

    monkeypatch.setattr(schur, "triangular_sylvester", wrong)
    monkeypatch.setattr(schur, "SMALL", 0)
    with pytest.raises(ConvergenceWarning, match="did not pass the check"):
        FUNCTIONS[name](gaussian(30, 30, is_complex=True))


def test_newtons_step_repairs_a_root(monkeypatch):
    fill = schur._fill_sqrt

    def rough(t, r, i, j):
        fill(t, r, i, j)
        r[0, -1] *= 1 + 1e-11

    monkeypatch.setattr(schur, "_fill_sqrt", rough)
    a = stable(20, 20)
    assert_root(sqrtm(a), a, U["float64"])


# -- a few steps on the host ----------------------------------------------------------------------


def near_the_axis(n: int, *, is_complex: bool, seed: int) -> np.ndarray:
    """A stack with an eigenvalue, or a pair, 1e-17 to 1 from the negative axis, or from zero."""
    rng = np.random.default_rng(seed)
    k = 40
    distance = 10.0 ** rng.uniform(-17, 0, k)
    if is_complex:
        t = np.zeros((k, n, n), complex)
        radius, angle = 10.0 ** rng.uniform(-1, 1, (k, n)), rng.uniform(-2, 2, (k, n))
        t[:, range(n), range(n)] = radius * np.exp(1j * angle)
        t[:, 0, 0] = np.where(rng.random(k) < 0.5, -1 + 1j * distance, distance)
    else:
        t = np.zeros((k, n, n))
        t[:, range(n), range(n)] = 10.0 ** rng.uniform(-1, 1, (k, n))
        t[:, 0, 0] = t[:, 1, 1] = -np.cos(distance)
        t[:, 0, 1], t[:, 1, 0] = np.sin(distance), -np.sin(distance)
    t += 10.0 ** rng.uniform(-4, 1) * np.triu(rng.standard_normal((k, n, n)), 2)
    q = np.linalg.qr(gaussian(k, n, n, is_complex=is_complex, seed=seed))[0]
    return q @ t @ adjoint(q)


@pytest.mark.parametrize("unit", [U["float32"], U["float64"]])
@pytest.mark.parametrize("is_complex", [False, True])
def test_a_few_steps_take_nothing_that_is_refused(is_complex, unit):
    """All that is taken has eigenvalues as far from the axis as is said, and the principal root."""
    shown_at_all, least = 0, math.inf
    for seed in range(40):
        n = 2 + seed % 6
        a = near_the_axis(n, is_complex=is_complex, seed=seed)
        if seed % 4 == 0:  # negative eigenvalues, of any size
            a = gaussian(40, n, n, is_complex=is_complex, seed=seed) + seed / 20 * np.eye(n)
        a /= np.abs(a).max(axis=(1, 2), keepdims=True)
        x, shown = few_steps.by_few_steps(a, n * unit, schur.CLOSE)
        shown_at_all += int(shown.sum())
        for b, y in zip(a[shown], x[shown], strict=True):
            w = np.linalg.eigvals(b)
            least = min(least, np.maximum(np.abs(w.imag), w.real).min() / norm(b) / (n * unit))
            assert norm(y @ y - b) <= 4 * n * U["float64"] * norm(y) ** 2
            assert np.linalg.eigvals(y).real.min() > 0
    assert shown_at_all > 100
    assert least >= 0.89 * few_steps.MARGIN


def test_a_few_steps_leave_what_single_precision_may_refuse():
    """Small eigenvalues, of which the residual of a root in double precision says nothing."""
    values = np.ones((2000, 2))
    values[:, 0] = 10.0 ** np.random.default_rng(0).uniform(-8, -2, 2000)
    q = np.linalg.qr(gaussian(2000, 2, 2))[0]
    a = (q * values[:, None]) @ adjoint(q)
    cut = 2 * U["float32"]
    assert few_steps.by_few_steps(a, 2 * U["float64"], 100.0)[1].sum() > 1000
    shown = few_steps.by_few_steps(a, cut, 100.0)[1]
    assert shown.any()
    assert values[shown].min() >= 0.89 * few_steps.MARGIN * cut


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("n", [2, 4, 9, 20])
def test_a_few_steps_take_what_is_well_conditioned(n, is_complex):
    """Of stacks that LAPACK would take one after the other, nothing is left to it."""
    a = stable(30, n, n, is_complex=is_complex, seed=n)
    a = a @ a
    a /= np.abs(a).max(axis=(1, 2), keepdims=True)
    x, shown = few_steps.by_few_steps(a, n * U["float64"], schur.CLOSE)
    assert shown.mean() >= 0.9
    for b, y, good in zip(a, x, shown, strict=True):
        if good:
            assert_root(y, b, U["float64"])


def test_stacks_of_all_kinds_are_as_single_matrices(monkeypatch):
    """Stacks in which each way is taken; errors name the place in the whole stack."""
    a = stable(3, 4, 5, 5)
    a[0, 1] = np.triu(a[0, 1])  # exactly triangular
    a[1, 2] *= np.geomspace(1, 1e-12, 5)  # not shown by a few steps
    x = sqrtm(a)
    assert not np.tril(x[0, 1], -1).any()
    for i in np.ndindex(3, 4):
        assert_root(x[i], a[i], U["float64"])
    monkeypatch.setattr(schur, "by_few_steps", lambda a, *_: (a, np.zeros(len(a), bool)))
    np.testing.assert_allclose(sqrtm(a[0]), x[0], rtol=0, atol=1e-13)
    monkeypatch.undo()
    a[2, 1] = with_eigenvalues([1.0, -0.5, 2.0, 3.0, 4.0])
    with pytest.raises(ValueError, match=r"-5\.000e-01 of matrix \(2, 1\) of the stack"):
        sqrtm(a)
    a[1, 3] = 0
    with pytest.raises(ValueError, match=r"of matrix \(1, 3\) of the stack.*zero to rounding"):
        sqrtm(a)


@pytest.mark.parametrize("is_complex", [False, True])
def test_stacks_after_schur_decompositions_are_refined(is_complex, monkeypatch):
    """Of perturbed factors Newton's step in their basis makes a root."""
    given = schur.schur

    def rough(x):
        t, q, w, found = given(x)
        return t * (1 + 1e-11 * np.triu(gaussian(*t.shape[1:]), 1)), q, w, found

    monkeypatch.setattr(schur, "schur", rough)
    a = stable(10, 6, 6, is_complex=is_complex)
    with monkeypatch.context() as patched:
        patched.setattr(schur, "_sqrt", lambda *_: None)  # for one matrix
        x = schur._by_schur(a, "sqrtm", U["float64"], np.ones(10), np.arange(10), (10,))
    for y, b in zip(x, a, strict=True):
        assert_root(y, b, U["float64"])
    monkeypatch.setattr(schur, "triangular_sylvesters", lambda r, c: 0 * c)
    monkeypatch.setattr(schur, "triangular_sylvester", lambda a, b, c: c)
    bad = schur._by_schur(a, "sqrtm", U["float64"], np.ones(10), np.arange(10), (10,))
    assert np.isnan(bad).all()


# -- libraries -------------------------------------------------------------------------------------


def as_double(lib: Library, x) -> np.ndarray:
    y = lib.to_numpy(x)
    return y.astype("complex128" if y.dtype.kind == "c" else "float64")


@with_dask
def test_every_library(lib):
    dtypes = DTYPES[:1] if lib.name == "jax" else (*DTYPES, "float16", "bfloat16")
    for dtype in (d for d in dtypes if lib.has(d)):
        is_complex = dtype.startswith("complex")
        a = np.stack([s * stable(4, 4, is_complex=is_complex, seed=s) for s in (1, 3)])
        for x in (lib.asarray(a, dtype), lib.asarray(a[0] - 2 * np.eye(4), dtype)):
            before = as_double(lib, x)
            stack = before.ndim == 3
            f, check = (sqrtm, assert_root) if stack else (signm, assert_sign)
            y = f(x)
            assert type(y) is type(x)
            assert lib.dtype_name(y) == dtype
            assert lib.device(y) == lib.device(x)
            np.testing.assert_array_equal(as_double(lib, x), before)
            found = as_double(lib, y)
            for r, b in zip(*((found, before) if stack else ([found], [before])), strict=True):
                check(r, b, U[dtype])


@pytest.fixture
def cupy():
    with cupy_standin.installed() as module:
        yield module


def test_on_a_device(cupy):
    for dtype in DTYPES:
        check_on_a_device(cupy, dtype)


def check_on_a_device(cupy, dtype):
    is_complex = dtype.startswith("complex")
    a = stable(3, 6, 6, is_complex=is_complex).astype(dtype)
    g = gaussian(3, 6, 6, is_complex=is_complex).astype(dtype)
    for f, x in ((sqrtm, a), (signm, g)):
        found = f(cupy.asarray(x))
        assert isinstance(found, cupy.ndarray)
        assert found.dtype == x.dtype
        expected = f(x)
        error = norm(found.get() - expected, axis=(1, 2))
        assert np.all(error <= 40 * U[dtype] * norm(expected, axis=(1, 2)) ** 3)
    with pytest.raises(ValueError, match=r"eigenvalue -1\.000e\+00 of matrix \(1,\)"):
        sqrtm(cupy.asarray(np.stack([np.eye(2), -np.eye(2)]).astype(dtype)))
    # Two equal negative eigenvalues, which rounding makes a pair of complex ones.
    twice = with_eigenvalues([-1.0, -1, 2, 3], departure=0.0).astype(dtype)
    twice[0, 0] += 0
    with pytest.raises(ValueError, match="negative real axis"):
        sqrtm(cupy.asarray(twice))
    with pytest.raises(ValueError, match="imaginary axis"):
        signm(cupy.asarray(np.array([[0, 1], [-1, 0]], dtype)))


def test_what_products_do_not_show_is_computed_on_the_host(cupy):
    """Pairs near the negative axis take a step for each factor of two."""
    a = block(-1.0, 1e-11, 3)
    np.testing.assert_array_equal(sqrtm(cupy.asarray(a)).get(), sqrtm(a))


# -- by products -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [k for k in KINDS if "very" not in k and k not in ("large", "small")]
)
def test_products_and_inverses_alone(kind):
    """The promise elsewhere: ``10 n u kappa(X) |A|``."""
    a = KINDS[kind] / np.abs(KINDS[kind]).max()
    n, unit = len(a), U["float64"]
    x, good, steps = general_roots._by_products(a, "sqrtm", unit, ops_of(a))
    assert good.all()
    assert steps <= 20
    assert norm(x @ x - a) <= 10 * n * unit * norm(x) * norm(np.linalg.inv(x)) * norm(a)
    s, good, _ = general_roots._by_products(a, "signm", unit, ops_of(a))
    assert good.all()
    assert norm(s - signm(a)) <= 100 * n * unit * norm(s) ** 3
    if n > 8:
        return
    exact = sqrtm(a)
    # The condition number of the root: the equation's solution for the worst right side.
    kron = np.kron(np.eye(n), exact) + np.kron(exact.T, np.eye(n))
    condition = np.linalg.norm(np.linalg.inv(kron), 2)
    loss = 10 * n * unit * norm(x) * norm(np.linalg.inv(x)) * norm(a)
    assert norm(x - exact) <= 2 * condition * loss


@pytest.mark.parametrize("name", FUNCTIONS)
def test_traces(name):
    jnp = library("jax").xp
    jax = importlib.import_module("jax")
    f = FUNCTIONS[name]
    a = stable(3, 4, 4) if name == "sqrtm" else gaussian(3, 4, 4)
    expected = f(a)
    limit = 100 * U["float64"] * norm(expected) ** 3
    for run in (jax.vmap(f), jax.jit(jax.vmap(f)))[name == "sqrtm" :]:
        np.testing.assert_allclose(run(jnp.asarray(a)), expected, rtol=0, atol=limit)
    bad = np.tile(np.eye(4), (9, 1, 1))
    bad[1, 2, 2] = -1
    bad[2, :2, :2] = [[0, 1], [-1, 0]]
    bad[3, 0, 1] = math.nan
    for seed in range(5):  # in any basis
        bad[4 + seed] = with_eigenvalues([-1.0, -1, 2, 3], departure=0.0, seed=seed)
    lost = np.isnan(np.array(jax.jit(f)(jnp.asarray(bad)))).any(axis=(1, 2))
    root = name == "sqrtm"
    assert lost.tolist() == [False, root, not root, True, *[root] * 5]


@pytest.mark.parametrize("n", [2, 3, 7, 20])
@pytest.mark.parametrize("where", ["traced", "device"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_eigenvalue_that_is_zero_to_rounding(name, where, n, monkeypatch):
    """Scaling moves it away from the axis in one step."""
    f, a = FUNCTIONS[name], with_eigenvalues([0.0, *range(1, n)], departure=0.0, seed=n)
    xp = library("jax" if where == "traced" else "torch").xp
    if where == "traced":
        assert np.isnan(np.array(importlib.import_module("jax").jit(f)(xp.asarray(a)))).all()
        return
    off_the_host(monkeypatch)
    with pytest.raises(ValueError, match="to rounding"):
        f(xp.asarray(a))


def test_without_double_precision():
    jnp = library("jax").xp
    jax = importlib.import_module("jax")
    off = jax.enable_x64(False) if hasattr(jax, "enable_x64") else jax.experimental.disable_x64()
    a, g = (f(4, 4).astype("float32") for f in (stable, gaussian))
    with off:
        x = np.array(jax.jit(sqrtm)(jnp.asarray(a)))
        s = np.array(jax.jit(signm)(jnp.asarray(g)))
        gradient = jax.grad(lambda a: jnp.sum(sqrtm(a)))(jnp.asarray(a))
        whole = np.array(sqrtm(jnp.asarray(a)))
    unit, wide = U["float32"], a.astype("f8")
    y = x.astype("f8")
    assert x.dtype == np.float32
    assert norm(y @ y - wide) <= 10 * 4 * unit * norm(y) * norm(np.linalg.inv(y)) * norm(a)
    assert norm(s - signm(g.astype("f8"))) <= 40 * unit * norm(s) ** 3
    assert_root(whole.astype("f8"), wide, unit)
    exact = frechet(sqrtm, wide.T, np.ones((4, 4)))
    np.testing.assert_allclose(gradient, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def test_what_torch_records(torch):
    for f in FUNCTIONS.values():
        with pytest.raises(TypeError, match="reads entries of its matrix"):
            f(torch.zeros((3, 3), device="meta"))


# -- derivatives -----------------------------------------------------------------------------------


def frechet(f, a: np.ndarray, e: np.ndarray) -> np.ndarray:
    """``L_f(A, E)``, the upper right block of f([[A, E], [0, A]]): Higham 2008, theorem 3.6."""
    n, scale = len(a), norm(a) / norm(e)
    whole = np.block([[a, scale * e], [np.zeros_like(a), a]])
    return np.asarray(f(whole))[:n, n:] / scale


# Where a derivative by eigenvectors fails, or loses digits.
PLACES = {
    "around 2": stable(4, 4),
    "the identity": np.eye(3),
    "a Jordan block": jordan(0.5, 4),
    "nearly defective": jordan(0.5, 4) + 1e-10 * gaussian(4, 4),
    "equal eigenvalues": with_eigenvalues([1.0, 1, 1, 3], departure=0.0),
    "a pair": np.array([[-0.2, 2.0, 1], [-1.0, -0.2, 0], [0, 0, 1]]),
    "a small eigenvalue": with_eigenvalues([1.0, 0.5, 1e-6]),
}


def signed(a: np.ndarray) -> np.ndarray:
    """The same with an eigenvalue to the left of the axis."""
    n = len(a)
    whole = np.zeros((n + 1, n + 1))
    whole[:n, :n] = a
    whole[:, n] = np.arange(n + 1) - 1.5
    whole[n, n] = -1
    return whole


# torch says so when it first differentiates forward.
script = pytest.mark.filterwarnings("ignore:`torch.jit.script`")


@script
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("place", PLACES)
def test_derivatives_against_blocks_in_many_digits(torch, name, place):
    exact = {"sqrtm": mp_sqrtm, "signm": mp_signm}[name]
    a = PLACES[place] if name == "sqrtm" else signed(PLACES[place])
    e, w = gaussian(len(a), len(a), seed=1), gaussian(len(a), len(a), seed=2)
    f = FUNCTIONS[name]
    along, against = frechet(exact, a, e), frechet(exact, a.T, w)
    x = torch.tensor(a)
    _, moved = torch.func.jvp(f, (x,), (torch.tensor(e),))
    (gradient,) = torch.func.vjp(f, x)[1](torch.tensor(w))
    # Rounding of A and F, through the condition number of the derivative.
    inverse = norm(np.linalg.inv(a)) * norm(a)
    limit = 100 * U["float64"] * inverse * norm(exact(a)) ** 2
    for got, wanted in ((moved, along), (gradient, against)):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=limit * norm(wanted))
    b = a.astype("f4")
    single = torch.tensor(b, requires_grad=True)
    (f(single) * torch.tensor(w.astype("f4"))).sum().backward()
    wanted = frechet(exact, b.astype("f8").T, w.astype("f4").astype("f8"))
    limit = 100 * U["float32"] * inverse * norm(exact(a)) ** 2
    np.testing.assert_allclose(single.grad, wanted, rtol=0, atol=limit * norm(wanted))


@script
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("is_complex", [False, True])
def test_every_mode_of_torch(torch, name, is_complex):
    f = FUNCTIONS[name]
    a = stable(2, 3, 3, is_complex=is_complex)
    if name == "signm":
        a[..., 0, :] *= -1
    x = torch.tensor(a, requires_grad=True)
    assert torch.autograd.gradcheck(f, (x,), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, (x,), check_fwd_over_rev=True)
    torch.testing.assert_close(torch.vmap(f)(x.detach()), f(x.detach()))

    def total(a):
        return (f(a) * a.mH).real.sum()

    each = torch.vmap(torch.func.grad(total))(x.detach())
    (whole,) = torch.autograd.grad(total(x), x)
    torch.testing.assert_close(each, whole)
    half = torch.tensor(a).to(torch.complex64 if is_complex else torch.bfloat16).requires_grad_()
    total(half).backward()
    assert half.grad.dtype == half.dtype
    torch.testing.assert_close(
        half.grad.to(x.dtype), whole, rtol=0, atol=0.1 if not is_complex else 1e-4
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = x.detach().to(torch.complex64 if is_complex else torch.float32)
        torch.testing.assert_close(f(y), f(x.detach()).to(y.dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_mode_of_jax(name):
    jnp = library("jax").xp
    jax = importlib.import_module("jax")
    f = FUNCTIONS[name]
    a = stable(3, 3) * np.array([[-1.0 if name == "signm" else 1.0], [1], [1]])
    e, w = gaussian(3, 3, seed=1), gaussian(3, 3, seed=2)
    x = jnp.asarray(a)

    def total(a):
        return jnp.sum(f(a) * w)

    _, moved = jax.jvp(f, (x,), (jnp.asarray(e),))
    np.testing.assert_allclose(moved, frechet(f, a, e), rtol=0, atol=1e-12)
    exact = frechet(f, a.T, w)
    gradient = jax.jit(jax.vmap(jax.grad(total)))(x[None])[0]
    np.testing.assert_allclose(gradient, exact, rtol=0, atol=1e-12)
    if name == "signm":  # of the same equation
        return
    second = jnp.sum(jax.jit(jax.hessian(total))(x) * e, axis=(2, 3))
    h = 1e-5
    differences = (frechet(f, (a + h * e).T, w) - frechet(f, (a - h * e).T, w)) / (2 * h)
    np.testing.assert_allclose(second, differences, rtol=0, atol=1e-7)


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("same", [False, True])
def test_the_equation_of_derivatives(is_complex, same):
    """By Schur decompositions and by products; single matrices and stacks; NaN stays by itself."""
    a, w = stable(3, 5, 5, is_complex=is_complex), gaussian(3, 5, 5, is_complex=is_complex, seed=3)
    b = a if same else stable(3, 5, 5, is_complex=is_complex, seed=7)
    found = sylvester.solve(a, b, w)
    residual = norm(a @ found + found @ b - w)
    assert residual <= 200 * U["float64"] * (norm(a) + norm(b)) * norm(found)
    other = sylvester.by_products(a, b, w, ops_of(a))
    np.testing.assert_allclose(other, found, rtol=0, atol=1e-12)
    np.testing.assert_allclose(sylvester.solve(a[0], b[0], w[0]), found[0], rtol=0, atol=1e-13)
    a[1, 0, 0] = math.nan
    for solution in (sylvester.solve(a, b, w), sylvester.by_products(a, b, w, ops_of(a))):
        assert np.isnan(solution[1]).all()
        np.testing.assert_allclose(solution[::2], found[::2], rtol=0, atol=1e-12)


# -- the page --------------------------------------------------------------------------------------


@pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="benchmarks are not installed")
@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("right", ["same", "adjoint", "other"])
def test_stacks_of_equations_on_the_host(is_complex, right, monkeypatch):
    """By inverses where that is as good, by Schur decompositions else; NaN for NaN alone."""
    a = stable(40, 5, 5, is_complex=is_complex, seed=1)
    a[3] = np.diag([1e-9, 1, 1, 1, 1]) + np.triu(a[3], 1)
    for i in range(20, 24):  # by inverses worse than by Schur decompositions
        q = np.linalg.qr(a[i])[0]
        a[i] = q * np.geomspace(1, 1e-7, 5) @ adjoint(q)
    other = stable(40, 5, 5, is_complex=is_complex, seed=2)
    b = {"same": a, "adjoint": adjoint(a).copy(), "other": other}[right]
    w = gaussian(40, 5, 5, is_complex=is_complex, seed=3)
    w[7, 0, 0] = math.nan
    seen = []
    schurs = sylvester._by_schur
    monkeypatch.setattr(sylvester, "_by_schur", lambda *x: (seen.append(len(x[0])), schurs(*x))[1])
    x = sylvester.solution(a, b, w)
    assert sum(seen) <= 10
    assert np.isnan(x[7]).all()
    assert np.isfinite(np.delete(x, 7, axis=0)).all()
    for i in range(40):
        left = norm(a[i] @ x[i] + x[i] @ b[i] - w[i])
        size = norm(a[i]) + norm(b[i])
        assert i == 7 or left <= 2 * 5 * U["float64"] * size * norm(x[i])
    singular = a.copy()
    singular[0] = 0  # not even an inverse: all of them by Schur decompositions
    y = sylvester.solution(singular, singular if right == "same" else other, w)
    assert np.isfinite(np.delete(y, [0, 7], axis=0)).all()


def test_the_page_is_made_of_the_data(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("general_roots")
    figures = json.loads((ROOT / "docs/data/general_roots.json").read_text("utf-8"))
    page = (ROOT / "docs/evidence/roots.md").read_text("utf-8")
    assert module.accuracy_table(figures["accuracy"]) in page
    times = figures["times"]
    assert module.time_table(times["rows"], times["machine"]) in page
    faster = sum(row["ratio"] > 1 for row in times["rows"])
    assert f"faster than SciPy in {faster} of {len(times['rows'])} cases" in page
    pairs = [(r["polarlib"], r["scipy"]) for r in figures["accuracy"] if r["function"] == "sqrtm"]
    shown = [tuple(float(f"{x:.2g}") for x in pair) for pair in pairs]
    below, equal = sum(a < b for a, b in shown), sum(a == b for a, b in shown)
    assert f"in {below} of {len(shown)} families of matrices, equal in {equal}, and above" in page
    guide = (ROOT / "docs/guide/roots.md").read_text("utf-8")
    ratios = {(r["function"], r["matrices"]): f"{r['ratio']:.2f} times" for r in times["rows"]}
    for case in (("sqrtm", "100 x 100"), ("sqrtm", "10 x 10"), ("signm", "300 x 300")):
        assert ratios[case] in guide
    for row in figures["accuracy"]:
        assert row["polarlib"] <= 10, row
        assert row["polarlib error"] is None or row["polarlib error"] <= 3 * row["scipy error"], row
