"""inverse_root: its promise evaluated in 200 bits, and what Shampoo asks of it."""

from __future__ import annotations

import flint
import numpy as np
import pytest
import scipy.linalg

import polarlib
from polarlib import design, inverse_root
from polarlib.arrays.ops import ops_of
from polarlib.uses import functions

ORDERS = (2, 3, 4, 5, 6, 8)
DTYPES = ("float32", "float64", "complex64", "complex128")


def definite(n: int, condition: float, dtype: str, kind: str, rng) -> np.ndarray:
    """Hermitian, with eigenvalues of one kind, of any size."""
    g = rng.standard_normal((n, n))
    if dtype.startswith("complex"):
        g = g + 1j * rng.standard_normal((n, n))
    w = {
        "geometric": np.geomspace(1 / condition, 1, n),
        "clustered": np.where(np.arange(n) < n // 2, 1 / condition, 1.0),
        "one small": np.r_[1 / condition, np.ones(n - 1)],
        "one large": np.r_[np.ones(n - 1) / condition, 1],
    }[kind]
    q = np.linalg.qr(g)[0]
    a = ((q * w) @ q.conj().T * rng.choice([1.0, 3.7, 1e-5, 7e4])).astype(dtype)
    return (a + a.conj().T) / 2


def exact_matrix(a: np.ndarray):
    if a.dtype.kind == "c":
        return flint.acb_mat([[flint.acb(z.real, z.imag) for z in row] for row in a.tolist()])
    return flint.arb_mat([[flint.arb(x) for x in row] for row in a.tolist()])


def residual(root: np.ndarray, a: np.ndarray, p: int) -> float:
    """``||R^floor(p/2) A R^ceil(p/2) - I||_F``."""
    precision = flint.ctx.prec
    try:
        flint.ctx.prec = 200
        r, product = exact_matrix(root), exact_matrix(a)
        for _ in range(p // 2):
            product = r * product
        for _ in range(p - p // 2):
            product = product * r
        n, total = len(a), 0.0
        for i in range(n):
            for j in range(n):
                z = product[i, j] - (i == j)
                parts = (z.real, z.imag) if a.dtype.kind == "c" else (z,)
                total += sum(float(x.mid()) ** 2 for x in parts)
        return total**0.5
    finally:
        flint.ctx.prec = precision


def allowed(a: np.ndarray, p: int) -> float:
    w, v = scipy.linalg.eigh(a, driver="evd")
    lapack = ((v * w ** (-1 / p)) @ v.conj().T).astype(a.dtype)
    return max(3 * residual(lapack, a, p), p * len(a) * float(np.finfo(a.dtype).eps) / 2)


@pytest.mark.parametrize("kind", ["geometric", "clustered", "one small", "one large"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.thinned(2)
def test_small_matrices(dtype, kind):
    """LAPACK may be right by luck there, and a power that is off by a unit is too much."""
    rng = np.random.default_rng(0)
    unit = float(np.finfo(dtype).eps) / 2
    for n in (1, 2, 3, 5):
        for p in ORDERS:
            for condition in (1.0, 10.0, 1e3, 0.009 / unit):
                a = definite(n, condition, dtype, kind, rng)
                root = inverse_root(a, p)
                assert residual(root, a, p) <= allowed(a, p), (n, p, condition)


def test_two_columns():
    """One in a hundred fails without a correction of what rounding the products leaves."""
    rng = np.random.default_rng(0)
    for i in range(400):
        p, condition = ORDERS[i % 6], (1.0, 3.0, 1e3)[i % 3]
        a = definite(2, condition, "float64", "geometric", rng)
        assert residual(inverse_root(a, p), a, p) <= allowed(a, p), (i, p)


@pytest.mark.parametrize("p", [2, 3, 4, 8])
@pytest.mark.slow
def test_larger_matrices(p):
    rng = np.random.default_rng(p)
    for dtype in DTYPES:
        unit = float(np.finfo(dtype).eps) / 2
        for n in (16, 17, 50):
            for condition in (10.0, 0.009 / unit):
                a = definite(n, condition, dtype, "geometric", rng)
                assert residual(inverse_root(a, p), a, p) <= allowed(a, p), (dtype, n, condition)


@pytest.mark.parametrize("p", [3, 5, 7, 17, 64])
def test_powers_of_numbers_are_rounded_once(p):
    """1 / p is rounded, and a power by it more."""
    x = np.random.default_rng(p).uniform(0.01, 50, 300)
    roots = functions._scalar_roots(x, p, ops_of(x))
    for a, r in zip(x, roots, strict=True):
        one = np.array([[r]])
        assert residual(one, np.array([[a]]), p) <= 1.001 * p * 2.0**-53
    exact = 2.0 ** (p * np.arange(-3, 4) * 1.0)
    assert (
        inverse_root(exact[:, None, None], p)[:, 0, 0].tolist()
        == (2.0 ** -np.arange(-3.0, 4)).tolist()
    )


# -- Shampoo: batches of preconditioners, every few steps, from the roots before -------------------


def preconditioners(count: int, n: int, dtype: str, seed: int = 0) -> np.ndarray:
    """Averages of ``G G^T`` with decaying spectra, and what Shampoo adds to them."""
    rng = np.random.default_rng(seed)
    g = rng.standard_normal((count, n, 3 * n)) * np.geomspace(1, 1e-2, n)[:, None]
    a = g @ np.swapaxes(g, 1, 2) / (3 * n) + 1e-5 * np.eye(n)
    return a.astype(dtype)


@pytest.mark.parametrize("p", [2, 4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batches_and_warm_starts(p, dtype):
    a = preconditioners(5, 12, dtype)
    a = (a + np.swapaxes(a, 1, 2)) / 2
    roots = inverse_root(a, p)
    later = 0.999 * a + 0.001 * preconditioners(5, 12, dtype, seed=1)
    later = ((later + np.swapaxes(later, 1, 2)) / 2).astype(dtype)
    for found, b in ((roots, a), (inverse_root(later, p, start=roots), later)):
        for r, x in zip(found, b, strict=True):
            assert residual(r, x, p) <= allowed(x, p)


def test_a_warm_start_takes_fewer_products(monkeypatch):
    """Of a matrix that changed a little, of a moderate condition: nothing but Newton's steps."""
    a = definite(12, 8.0, "float32", "geometric", np.random.default_rng(0))
    root = inverse_root(a, 4)

    def refused(*_):
        raise AssertionError("not from the start")

    monkeypatch.setattr(functions, "_by_products", refused)
    monkeypatch.setattr(functions, "_by_eigenvectors", refused)
    near = (a * np.float32(1.001)).astype("float32")
    assert residual(inverse_root(near, 4, start=root), near, 4) <= allowed(near, 4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_published_and_designed_sets(dtype):
    """``|R A^(1/p) - I|`` is at most the schedule's error, for every matrix of a batch."""
    sets = {2: polarlib.schedule("inverse_sqrt_nv"), 4: design.inverse_root(4, 0.02, [9] * 6)}
    for p, s in sets.items():
        worst = 1.5 * s.lower**p  # above the lower end, the bound of the norm being larger than it
        a = np.stack(
            [
                definite(8, 0.3 / worst, "float64", "geometric", np.random.default_rng(i))
                for i in range(3)
            ]
        ).astype(dtype)
        a = (a + np.swapaxes(a, 1, 2)) / 2
        found = inverse_root(a, p, schedule=s)
        assert found.dtype == a.dtype
        for r, x in zip(found.astype("f8"), a.astype("f8"), strict=True):
            w, v = np.linalg.eigh(x)
            error = np.linalg.norm(r @ ((v * w ** (1 / p)) @ v.T) - np.eye(8), 2)
            assert error <= s.error() + (2e-3 if dtype == "float32" else 1e-10)
