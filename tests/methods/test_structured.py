"""QR factorisations in place, rational steps on one triangle, and the method made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
from conftest import Library, with_dask

from polarlib import testing
from polarlib._methods import lifting
from polarlib._methods.lifting import ENOUGH, THREE_POLES_ABOVE, TWO_POLES_ABOVE, lift, rational
from polarlib._methods.structured import structured
from polarlib.arrays import qr_kernels as kernels
from polarlib.arrays import routines
from polarlib.arrays.kernels import NumpyKernels
from polarlib.arrays.numpy_ops import NumpyOps
from polarlib.arrays.ops import ops_of

pytestmark = pytest.mark.skipif(routines.source() is None, reason="no routines of LAPACK")

TOL = 1e-13
TYPES = ("float64", "complex128")
# Below, at and above the widths of blocks.
SIZES = (1, 2, 7, 63, 64, 65, 129, 200)


def gaussian(m: int, n: int, dtype: str = "float64", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, 4])
    a = rng.standard_normal((m, n))
    if dtype.startswith("complex"):
        a = a + 1j * rng.standard_normal((m, n))
    return np.asfortranarray(a.astype(dtype))


def figures(a: np.ndarray, u: np.ndarray) -> tuple[float, float]:
    """Backward error and orthogonality."""
    h = u.conj().T @ a
    h = (h + h.conj().T) / 2
    gram = u.conj().T @ u
    size = float(np.linalg.norm(a)) or 1.0
    n = a.shape[1]
    return (
        float(np.linalg.norm(a - u @ h)) / size,
        float(np.linalg.norm(gram - np.eye(n))) / math.sqrt(n),
    )


def geometric(n: int, condition: float, *, m: int | None = None, dtype: str = "float64"):
    s = np.logspace(0, -math.log10(condition), n)
    return testing.with_singular_values(s, m=m or n, dtype=dtype, seed=1)


def gaussian_kernel(n: int, shift: float) -> np.ndarray:
    """Smooth: without pivoting, everything that starts from R loses half its digits and more."""
    x = np.arange(n) / n
    return np.exp(-100 * (x[:, None] - x) ** 2) + shift * np.eye(n)


# -- kernels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", *TYPES])
@pytest.mark.parametrize("pivot", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (64, 64), (200, 130), (150, 150)])
def test_factorisation(shape, pivot, dtype):
    m, n = shape
    a = gaussian(m, n, dtype)
    eps = float(np.finfo(dtype).eps)
    q = kernels.factorise(a.copy(order="F"), pivot=pivot)
    assert (q.order is None) is not pivot
    order = np.arange(n) if q.order is None else q.order
    assert sorted(order) == list(range(n))
    both = np.zeros((m, 2 * n), dtype, order="F")
    both[:n, :n] = np.triu(q.x[:n])
    both[:n, n:] = np.eye(n)
    kernels.apply(q, both)
    assert np.linalg.norm(both[:, :n] - a[:, order]) <= 20 * eps * np.linalg.norm(a)
    assert figures(both[:, n:], both[:, n:])[1] <= 20 * eps


def test_blocks_of_a_matrix_are_views():
    """Leading dimensions that are no numbers of rows."""
    big = gaussian(90, 80)
    before = big.copy()
    block = big[10:80, 5:65]
    a = block.copy()
    q = kernels.factorise(block)
    r = np.zeros((70, 60), order="F")
    r[:60] = np.triu(block[:60])
    assert np.allclose(kernels.apply(q, r), a, atol=1e-13)
    big[10:80, 5:65] = before[10:80, 5:65]
    assert np.array_equal(big, before)


@pytest.mark.parametrize("n", [40, 130])
def test_pivoting_grades_the_rows(n):
    """No row of R is much larger than its diagonal, nor ill-conditioned but for its length."""
    a = gaussian_kernel(n, 1e-12)

    def condition(pivot: bool) -> float:
        q = kernels.factorise(np.asfortranarray(a), pivot=pivot)
        r = np.triu(q.x)
        return float(np.max(np.abs(np.linalg.inv(r)) @ np.abs(r).sum(axis=1)))

    assert condition(True) < 100 * n < 1e6 < condition(False)


def test_pivoting_knows_what_is_left():
    """Columns that depend on those chosen come last, however long they are."""
    n = 64
    a, b, c = gaussian(3 * n, n), gaussian(n, n, seed=1), gaussian(3 * n, n, seed=2)
    x = np.concatenate([a, 1e-6 * c, a @ b], axis=1)[:, np.random.default_rng(3).permutation(3 * n)]
    q = kernels.factorise(np.asfortranarray(x), pivot=True)
    d = np.abs(np.diagonal(q.x))
    assert d[:n].min() > 1e-3
    assert 1e-4 > d[n : 2 * n].max() > d[n : 2 * n].min() > 1e-9
    assert d[2 * n :].max() < 1e-11


def test_pivoting_of_low_rank():
    """Products of integers: the rank is exact, and so are the zeros that come out."""
    rng = np.random.default_rng(0)
    a = (rng.integers(-3, 4, (150, 10)) @ rng.integers(-3, 4, (10, 150))).astype(float)
    for matrix in (a, np.zeros((150, 150)), np.ones((150, 150))):
        q = kernels.factorise(np.asfortranarray(matrix), pivot=True)
        c = np.asfortranarray(np.triu(q.x))
        scale = np.linalg.norm(matrix) or 1.0
        assert np.linalg.norm(kernels.apply(q, c) - matrix[:, q.order]) <= 1e-13 * scale


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n", SIZES)
def test_two_triangles(n, dtype):
    """Against the resolvent by the SVD, with well-conditioned and with graded rows."""
    for grading in (1.0, 1e-12):
        r = np.triu(gaussian(n, n, dtype)) / math.sqrt(n)
        r = np.asfortranarray(r + 2 * np.eye(n)) * np.geomspace(1, grading, n)[:, None]
        for s in (1e-7, 0.3):
            u, sigma, vh = scipy.linalg.svd(r)
            expected = 3 * (u * (sigma * s / (sigma**2 + s * s))) @ vh
            found = kernels.two_triangles(
                r.copy(order="F"), s, 3.0, np.full_like(r, np.nan, order="F")
            )
            # The worst change of the resolvent when R changes by rounding.
            assert np.linalg.norm(found - expected, 2) <= 1e-14 * max(1, 1 / s)


def test_inverse():
    r = np.asfortranarray(np.triu(gaussian(70, 70)) + 9 * np.eye(70))
    inverse = r.copy(order="F")
    assert routines.trtri(inverse)
    assert np.allclose(inverse @ r, np.eye(70), atol=1e-14)
    r[30, 30] = 0
    assert not routines.trtri(r)


def test_without_kernels(monkeypatch):
    """QDWH is used instead."""
    monkeypatch.setattr(NumpyOps, "kernels", lambda *_: None)
    a = geometric(20, 1e6)
    u, run = structured(a, ops_of(a), tol=TOL)
    assert max(figures(a, u)) < 1e-14
    assert "rational" not in run.note


# -- the function --------------------------------------------------------------------------------


@pytest.mark.parametrize("l", [1e-19, 1e-16, 1e-12, 1e-11, 3e-10, 1e-7, 2e-7, 1e-3, 0.3])
def test_rational_function_against_multiple_precision(l):
    """It equioscillates between `lower` and 1, at as many points as a best function must."""
    mpmath = pytest.importorskip("mpmath")
    f = rational(l)
    assert min(f.slope, f.inverse, *f.residues, *f.poles) > 0
    degree = 2 * len(f.poles) + 2
    assert degree == (4 if l > TWO_POLES_ABOVE else 6 if l > THREE_POLES_ABOVE else 8)
    with mpmath.workdps(40):
        numbers = [mpmath.mpf(l) ** (mpmath.mpf(i) / 4000) for i in range(4001)]
        values = [f(x) for x in numbers]
        low, high = min(values), max(values)
    assert abs(float(high) - 1) < 1e-13
    assert abs(float(low) / f.lower - 1) < 1e-3  # the samples miss the minima by a little
    assert float(low) >= f.lower * (1 - 1e-13)
    turns = np.diff(np.sign(np.diff(np.array(values, float))))
    assert np.count_nonzero(turns) == degree - 1


def test_rational_function_is_zolotarevs():
    """The interval shrinks as the degree-th power of the nome says: 4 (l / 4)^(1 / degree)."""
    for l in (1e-6, 1e-9, 1e-15):
        f = rational(l)
        degree = 2 * len(f.poles) + 2
        nearly = 4 * (l / 4) ** (1 / degree)
        assert abs(f.lower / nearly - 1) < 2 * nearly**2


# -- the step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("condition", [1.0, 30.0, 1e5, 1e9, 1e15])
@pytest.mark.parametrize("shape", [(n, n) for n in SIZES] + [(90, 40), (200, 130)])
def test_lift(shape, condition, dtype):
    m, n = shape
    a = geometric(n, condition, m=m, dtype=dtype)
    before = a.copy()
    a.setflags(write=False)
    for x in (a, np.asfortranarray(a)):
        lifted = lift(x, NumpyKernels())
        s = scipy.linalg.svdvals(a)
        slack = 10 * math.sqrt(n) * np.finfo(dtype).eps
        assert lifted.bounds[0] <= s[-1] + slack
        assert s[0] <= lifted.bounds[1] * (1 + slack)
        after = scipy.linalg.svdvals(lifted.x)
        assert lifted.lower * (1 - 1e-3) <= after[-1] <= after[0] <= 1 + slack
        # From bounds that are loose by sqrt(n) each, at worst.
        assert lifted.lower >= min(ENOUGH, 1 / condition) / 2
        assert lifted.lower >= 0.02 or condition < 2 / ENOUGH
        u, _, vh = scipy.linalg.svd(lifted.x)
        assert max(figures(a, lifted.restore(u @ vh))) < 8e-15
    assert np.array_equal(a, before)


def test_lift_takes_an_upper_bound():
    a = geometric(50, 1e10)
    loose, tight = lift(a, NumpyKernels()), lift(a, NumpyKernels(), upper=1.0)
    assert tight.bounds[1] == 1.0 < loose.bounds[1]
    assert tight.lower > loose.lower


@pytest.mark.parametrize("shift", [1e-6, 1e-10, 1e-13, 1e-15])
def test_smooth_kernels_are_pivoted(shift, monkeypatch):
    """They fail without pivoting, at condition numbers where everything else is accurate."""
    a = gaussian_kernel(100, shift)
    u, run = structured(a, ops_of(a), tol=TOL)
    assert "pivoting" in run.note
    assert max(figures(a, u)) < 5e-15
    monkeypatch.setattr(lifting, "PIVOT_ABOVE", math.inf)
    u, _ = structured(a, ops_of(a), tol=TOL)
    assert figures(a, u)[0] > 1e-13


def test_random_matrices_are_not_pivoted():
    for a in (geometric(150, 1e15), geometric(150, 1e8), gaussian(150, 150)):
        assert "pivoting" not in lift(a, NumpyKernels()).note


# -- the method ----------------------------------------------------------------------------------


def animals():
    n = 60
    yield from ((f"geometric, 1e{k}", geometric(n, 10.0**k)) for k in (2, 8, 12, 15, 18))
    s = np.where(np.arange(n) < n // 2, 1.0, 1e-13)
    yield "half of them tiny", testing.with_singular_values(s, seed=2)
    yield "one large", testing.with_singular_values(np.where(np.arange(n) < 1, 1.0, 1e-12))
    yield "one tiny", testing.with_singular_values(np.where(np.arange(n) < n - 1, 1.0, 1e-12))
    yield from ((f"Frank {k}", testing.frank(k)) for k in (8, 16, 60))
    yield from ((f"Hilbert {k}", testing.hilbert(k)) for k in (8, 12, 60))
    yield from ((f"Kahan {t}", testing.kahan(n, t)) for t in (1.2, 0.8, 0.6))
    yield "Kahan, transposed", testing.kahan(n).T
    yield "binomial", testing.binomial(24)
    yield "Wilkinson", testing.wilkinson(21)
    yield "Jordan", testing.jordan_block(n)
    yield "Vandermonde", np.vander(np.linspace(0, 1, n))
    yield "Vandermonde, backwards", np.vander(np.linspace(0, 1, n))[:, ::-1]
    yield "Gaussian kernel", gaussian_kernel(n, 1e-14)
    yield "random triangle", np.triu(gaussian(n, n))
    yield "ones below", np.tril(np.ones((n, n)))
    g = gaussian(n, n)
    down = np.geomspace(1, 1e-15, n)
    grading = (("columns", 1, down), ("rows", down, 1), ("both", down, down))
    for name, rows, columns in grading:
        a = g * np.reshape(rows, (-1, 1)) * columns
        yield f"graded {name}", a
        yield f"graded {name}, backwards", a[::-1, ::-1].copy()
    yield "graded against each other", g * down[:, None] * down[::-1]
    yield "low rank", gaussian(n, 30) @ gaussian(30, n, seed=1)
    rng = np.random.default_rng(0)
    yield "integers", (rng.integers(-3, 4, (n, 7)) @ rng.integers(-3, 4, (7, n))).astype(float)
    yield "ones", np.ones((n, n))
    yield "zero", np.zeros((n, n))
    yield "zero column", np.where(np.arange(n) == 3, 0.0, g)
    yield "zero row", np.where(np.arange(n)[:, None] == 3, 0.0, g)
    yield "nilpotent", np.eye(n, k=1)
    yield "diagonal", np.diag(np.geomspace(1e-15, 1, n))
    yield "minus one", -np.eye(n)


ANIMALS = dict(animals())


@pytest.mark.parametrize("name", ANIMALS)
def test_zoo(name):
    """As accurate as the SVD, singular or not; completed to orthonormal columns."""
    a = ANIMALS[name]
    u, run = structured(a, ops_of(a), tol=TOL)
    backward, orthogonality = figures(a, u)
    assert backward < 6e-15
    assert orthogonality < 4e-15
    assert run.converged
    h = u.T @ a
    assert scipy.linalg.eigvalsh(h + h.T)[0] >= -1e-14 * np.linalg.norm(a)
    s = scipy.linalg.svdvals(a)
    assert run.bounds is not None
    assert run.bounds[0] <= s[-1] + 1e-15 * len(a) * s[0]
    assert s[0] <= run.bounds[1] * (1 + 1e-14)


@pytest.mark.parametrize("condition", [1e8, 1e12, 1e15])
def test_accuracy_of_larger_matrices(condition):
    a = geometric(300, condition)
    u, run = structured(a, ops_of(a), tol=TOL)
    assert figures(a, u)[0] < 5e-15
    assert figures(a, u)[1] < 4e-15
    assert run.iterations <= 8
    assert "degree" in run.note


@pytest.mark.parametrize("dtype", TYPES)
def test_factor_against_multiple_precision(dtype):
    """By Newton's iteration with 60 digits; the forward error is that of the condition number."""
    mpmath = pytest.importorskip("mpmath")
    n, condition = 6, 1e9
    a = geometric(n, condition, dtype=dtype)
    with mpmath.workdps(60):
        x = mpmath.matrix(a.tolist())
        for _ in range(60):
            x = (x + (x**-1).transpose_conj()) / 2
        exact = np.array(x.tolist(), dtype=dtype)
    u, _ = structured(a, ops_of(a), tol=TOL)
    assert np.linalg.norm(u - exact) < 20 * condition * np.finfo(dtype).eps
    lead = scipy.linalg.svd(a)[2][:2].conj().T  # directions of large singular values are exact
    assert np.linalg.norm((u - exact) @ lead) < 1e-12


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_types_scales_and_layouts(dtype, scale):
    condition = 1e6 if dtype in ("float32", "complex64") else 1e13
    a = (geometric(40, condition, m=70) * scale).astype(dtype)
    a = a + 1j * a[:, ::-1] if dtype.startswith("complex") else a
    strided = np.zeros((140, 80), dtype)[::2, ::2]
    strided[...] = a
    eps = float(np.finfo(dtype).eps)
    for x in (a, np.asfortranarray(a), strided, a[:40], a[:40].T):
        before = x.copy()
        view = x.view()
        view.setflags(write=False)
        u, run = structured(view, ops_of(view), tol=100 * eps)
        assert np.array_equal(x, before)
        assert u.dtype == x.dtype
        assert u.shape == x.shape
        assert max(figures(x.astype(np.result_type(dtype, "float64")), u)) < 20 * eps
        assert run.converged


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [5, 150])
def test_not_finite(n, value):
    """Reported: polar() refuses such matrices unless check_finite=False."""
    a = gaussian(n, n)
    a[2, 1] = value
    for x in (a, a.astype("complex128")):
        with np.errstate(all="ignore"):
            u, run = structured(x, ops_of(x), tol=TOL)
        assert not run.converged
        assert run.bounds is None
        assert not np.isfinite(u).any()


def test_stacks():
    a = np.stack([geometric(20, c) for c in (10.0, 1e8, 1e15)])
    u, run = structured(a, ops_of(a), tol=TOL)
    for k in range(3):
        alone, _ = structured(a[k], ops_of(a), tol=TOL)
        assert np.array_equal(u[k], alone)
    s = np.linalg.svd(a, compute_uv=False)
    assert run.bounds is not None
    assert run.bounds[0] <= s.min() + 1e-16
    assert run.bounds[1] >= s.max()
    u, run = structured(a[:0], ops_of(a), tol=TOL)
    assert u.shape == (0, 20, 20)
    assert run.converged


def test_callback():
    a = geometric(30, 1e12, m=50)
    seen: list[tuple[int, np.ndarray]] = []
    u, run = structured(a, ops_of(a), tol=TOL, callback=lambda k, x: seen.append((k, x.copy())))
    assert [k for k, _ in seen] == list(range(1, run.iterations + 1))
    assert all(x.shape == a.shape for _, x in seen)
    assert np.allclose(seen[-1][1], u, atol=1e-14)
    first = scipy.linalg.svdvals(seen[0][1])
    assert 0.02 < first[-1] < first[0] <= 1 + 1e-14


def test_determinism():
    a = gaussian_kernel(100, 1e-12)
    one, two = (structured(a, ops_of(a), tol=TOL)[0] for _ in range(2))
    assert np.array_equal(one, two)


@with_dask
def test_other_libraries(lib: Library):
    a = geometric(20, 1e8)
    x = lib.asarray(a)
    u, run = structured(x, ops_of(x), tol=TOL)
    assert max(figures(a, lib.to_numpy(u))) < 1e-14
    assert run.converged
