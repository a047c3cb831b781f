"""svd_polar and eigh_polar: closed forms, higher precision, splits that go wrong, derivatives."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy.linalg
from conftest import DTYPES, HALF, library, with_dask
from standin import cupy_standin

from polarlib import eigh_polar, svd_polar, testing
from polarlib.arrays.numpy_ops import NumpyOps
from polarlib.arrays.ops import ops_of
from polarlib.uses import divide as module
from polarlib.uses import division as one
from polarlib.uses.division import LEFT, division

UNIT = {d: float(np.finfo(d).eps) / 2 for d in DTYPES}
REAL = {"complex64": "float32", "complex128": "float64"}


def gaussian(*shape, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        a = a + 1j * rng.standard_normal(shape)
    return a.astype(dtype)


def adjoint(x):
    return np.conj(np.swapaxes(x, -1, -2))


def hermitian(a):
    return (a + adjoint(a)) / 2


def with_eigenvalues(w, dtype="float64", seed=5):
    q, _ = np.linalg.qr(gaussian(len(w), len(w), dtype=dtype, seed=seed))
    return hermitian((q * np.asarray(w)) @ adjoint(q)).astype(dtype)


def wide(x):
    x = np.asarray(x)
    return x.astype("complex128" if x.dtype.kind == "c" else "float64")


def norm(x):
    return np.linalg.norm(x, axis=(-2, -1))


def spectral(x):
    return np.linalg.norm(x, 2, axis=(-2, -1))


def check_orthonormal(q, unit):
    """Columns; LAPACK's own are three times less so than those of divisions."""
    n = q.shape[-1]
    assert np.all(norm(adjoint(q) @ q - np.eye(n)) <= 3 * (n + 10) * unit)


def check_eigh(h, w, v, unit, name=""):
    """Order, residual and orthogonality; eigenvalues by LAPACK in double precision."""
    h, w, v = map(wide, (h, w, v))
    n = h.shape[-1]
    assert (w.shape, v.shape) == (h.shape[:-1], h.shape)
    assert np.all(np.diff(w, axis=-1) >= 0), name
    check_orthonormal(v, unit)
    size = norm(h)
    assert np.all(norm(h @ v - v * w[..., None, :]) <= (n + 10) * unit * size), name
    # LAPACK's own error, in double precision, is of the same size.
    error = np.abs(w - np.linalg.eigvalsh(h)).max(-1, initial=0)
    assert np.all(error <= (n + 10) * max(unit, 2.0**-53) * spectral(h)), name


def check_svd(a, u, s, vh, unit, name=""):
    """Order, residual and orthogonality; values by LAPACK in double precision."""
    a, u, s, vh = map(wide, (a, u, s, vh))
    (m, n), k = a.shape[-2:], min(a.shape[-2:])
    batch = a.shape[:-2]
    assert (u.shape, s.shape, vh.shape) == ((*batch, m, k), (*batch, k), (*batch, k, n))
    assert np.all(s >= 0), name
    assert np.all(np.diff(s, axis=-1) <= 0), name
    check_orthonormal(u, unit)
    check_orthonormal(adjoint(vh), unit)
    assert np.all(norm((u * s[..., None, :]) @ vh - a) <= 2 * (k + 10) * unit * norm(a)), name
    error = np.abs(s - np.linalg.svd(a, compute_uv=False)).max(-1, initial=0)
    assert np.all(error <= 2 * (k + 10) * unit * spectral(a)), name  # LAPACK's included


# -- closed forms and higher precision ---------------------------------------------------------


def second_difference(n):
    return scipy.linalg.toeplitz([2.0, -1.0] + [0.0] * (n - 2))


def kac(n):
    """Symmetric form of M. Kac's matrix: the eigenvalues are 1 - n, 3 - n, ..., n - 1."""
    k = np.arange(1.0, n)
    b = np.sqrt(k * (n - k))
    return np.diag(b, 1) + np.diag(b, -1)


def star(n):
    h = np.zeros((n, n))
    h[0, 1:] = h[1:, 0] = 1
    return h


CLOSED = {
    "second difference": (
        second_difference(60),
        2 - 2 * np.cos(np.arange(1, 61) * np.pi / 61),
    ),
    "ring": (  # all but two values are double
        scipy.linalg.circulant([0.0, 1.0] + [0.0] * 37 + [1.0]),
        np.sort(2 * np.cos(2 * np.pi * np.arange(40) / 40)),
    ),
    "kac": (kac(50), np.arange(-49.0, 50, 2)),
    "hadamard": (scipy.linalg.hadamard(64) * 1.0, np.repeat([-8.0, 8.0], 32)),
    "star": (
        star(50),
        np.r_[-7.0, np.zeros(48), 7.0],
    ),  # the diagonal is zero, and so are 48 values
    "exchange": (np.eye(41)[::-1], np.r_[-np.ones(20), np.ones(21)]),
    "ones": (np.ones((40, 40)), np.r_[np.zeros(39), 40.0]),
    "blocks": (
        scipy.linalg.block_diag(np.ones((16, 16)), 2 * np.eye(9), np.zeros((8, 8))),
        np.r_[np.zeros(23), 2 * np.ones(9), 16.0],
    ),
}


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("smallest", [1, 7])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.thinned(2)
def test_closed_forms(name, smallest, dtype):
    h, exact = CLOSED[name]
    h = h.astype(dtype)
    w, v = eigh_polar(h, smallest=smallest)
    assert (w.dtype.name, v.dtype.name) == (REAL.get(dtype, dtype), dtype)
    n, unit = len(h), UNIT[dtype]
    check_eigh(h, w, v, unit, name)
    # The entries of h are rounded.
    np.testing.assert_allclose(w, exact, rtol=0, atol=(n + 10) * unit * np.abs(exact).max())


def test_against_mpmath():
    """Gaps of a part in a thousand, and eigenvalues from 1 to 1e-12."""
    n = 24
    w = np.r_[1 + 1e-3 * np.arange(12), -np.geomspace(1, 1e-12, 12)]
    h = with_eigenvalues(w, seed=5)
    with mpmath.workdps(40):
        exact = np.array([float(x) for x in mpmath.eigsy(mpmath.matrix(h.tolist()), True)])
    for smallest in (1, 5):
        found, _ = eigh_polar(h, smallest=smallest)
        assert np.abs(found - np.sort(exact)).max() <= 10 * UNIT["float64"] * spectral(h)
        found = svd_polar(h, smallest=smallest).s
        assert np.abs(found - exact_values(h)).max() <= n * UNIT["float64"] * spectral(h)


SPECTRA = {
    "linear": lambda n: np.linspace(-1, 1, n),
    "geometric": lambda n: np.geomspace(1, 1e-20, n) * (-1.0) ** np.arange(n),
    "two clusters": lambda n: np.repeat([1.0, 2.0], [n // 2, n - n // 2]),
    "three clusters": lambda n: np.repeat([-1.0, 0.0, 1.0], [n // 3, n // 3, n - 2 * (n // 3)]),
    "zero to rounding": lambda n: np.r_[
        -np.ones(n // 3), 1e-15 * gaussian(n // 3, seed=3), np.ones(n - 2 * (n // 3))
    ],
    "near identity": lambda n: 1 + 1e-14 * gaussian(n, seed=3),
    "one large": lambda n: np.r_[1e-8 * np.arange(n - 1), 1.0],
    "power": lambda n: np.arange(1.0, n + 1) ** -2,
    "identity": np.ones,
    "zero": np.zeros,
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [33, 150])
@pytest.mark.thinned(2)
def test_spectra(name, dtype, n):
    h = with_eigenvalues(SPECTRA[name](n), dtype)
    before = h.copy()
    d = division(h, ops_of(h), 12)
    check_eigh(h, d.w, d.v, UNIT[dtype], name)
    assert not d.refused
    assert all(order <= 12 for order in d.finished)
    assert all(split.left <= LEFT / 2 for split in d.splits)
    np.testing.assert_array_equal(h, before)
    check_svd(h, *svd_polar(h, smallest=12), UNIT[dtype], name)


def test_eigenvalues_are_grouped_as_the_shift_says():
    h = with_eigenvalues(np.r_[-np.arange(1.0, 11), np.arange(1.0, 31)])
    split, parts = one._divided(h, 1e-14, np.random.default_rng(0), ops_of(h))
    (low, _), (high, _) = parts
    shift = np.median(np.diag(h))
    assert (split.order, split.below) == (40, np.sum(np.linalg.eigvalsh(h) < shift))
    assert np.linalg.eigvalsh(low).max() < shift < np.linalg.eigvalsh(high).min()


def test_what_is_divided():
    """Clusters are finished without the library; a diagonal matrix without a polar factor."""
    h = with_eigenvalues(SPECTRA["three clusters"](60))
    d = division(h, ops_of(h), 10)
    assert len(d.splits) == 2
    assert d.finished == ()
    h = np.diag([3.0, -1.0, 3.0, 0.0, 2.0])
    d = division(h, ops_of(h), 1)
    assert d.splits == d.finished == ()
    np.testing.assert_array_equal(d.w, [-1, 0, 2, 3, 3])
    np.testing.assert_array_equal(h @ d.v, d.v * d.w)


@pytest.mark.parametrize("n", [128, 129])
def test_smallest_by_default(n, monkeypatch):
    orders = []
    eigh = NumpyOps.eigh
    monkeypatch.setattr(NumpyOps, "eigh", lambda self, z: orders.append(z.shape) or eigh(self, z))
    eigh_polar(hermitian(gaussian(n, n)))
    if n <= 128:
        assert orders == [(n, n)]
    else:
        assert len(orders) >= 2
        assert sum(m for m, _ in orders) == n
    orders.clear()
    eigh_polar(hermitian(gaussian(5, 4, 4)))
    assert orders == [(5, 4, 4)]  # a stack of small ones, at once


# -- what goes wrong ---------------------------------------------------------------------------


def test_a_shift_that_is_an_eigenvalue():
    """The polar factor is then not Hermitian, and a second one is taken: of 48 zeros of 50."""
    h = star(50)
    d = division(h, ops_of(h), 1)
    assert sum(split.signs for split in d.splits) == len(d.splits) + 1
    u = one.unitary_factor(h, method=one.METHOD)
    assert norm(u - u.T) > 1
    s, taken = one._sign(h, ops_of(h))
    assert taken == 2
    assert norm(s @ s - np.eye(50)) < 1e-12
    assert norm(s @ h - h @ s) < 1e-12


def test_a_division_that_leaves_too_much_is_refused(monkeypatch):
    """Bases turned by 1e-10 make an off-diagonal part of that size: four shifts, then eigh."""
    h = with_eigenvalues(np.linspace(-1, 1, 40))
    bases, calls = one._bases, []

    def turned(s, below, rng, ops):
        calls.append(below)
        skew = gaussian(40, 40, seed=7)
        return bases(s, below, rng, ops) @ scipy.linalg.expm(1e-10 * (skew - skew.T))

    monkeypatch.setattr(one, "_bases", turned)
    d = division(h, ops_of(h), 10)
    assert len(calls) == 4
    assert (d.splits, d.finished, d.refused) == ((), (40,), (40,))
    check_eigh(h, d.w, d.v, UNIT["float64"])


def test_another_shift_after_a_bad_one(monkeypatch):
    h = with_eigenvalues(np.linspace(-1, 1, 40))
    bases, calls = one._bases, []

    def bad_at_first(s, below, rng, ops):
        calls.append(below)
        q = bases(s, below, rng, ops)
        return np.roll(q, 1, axis=1) if len(calls) == 1 else q

    monkeypatch.setattr(one, "_bases", bad_at_first)
    d = division(h, ops_of(h), 30)
    assert len(d.splits) == 1
    assert d.splits[0].signs == 2
    assert not d.refused
    check_eigh(h, d.w, d.v, UNIT["float64"])


@pytest.mark.parametrize("wrong", ["nan", "identity", "zero"])
def test_a_polar_factor_that_is_wrong(monkeypatch, wrong):
    def factor(x, **_):
        return {"nan": x * np.nan, "identity": np.eye(len(x)), "zero": x * 0}[wrong]

    monkeypatch.setattr(one, "unitary_factor", factor)
    h = with_eigenvalues(np.linspace(-1, 1, 30))
    d = division(h, ops_of(h), 10)
    assert d.refused == (30,)
    check_eigh(h, d.w, d.v, UNIT["float64"])


@pytest.mark.parametrize("wrong", ["columns", "turned"])
def test_the_result_is_checked(monkeypatch, wrong):
    """Eigenvectors of blocks that are not orthonormal, and orthonormal ones that are turned."""
    h = with_eigenvalues(np.linspace(-1, 1, 30))
    eigh = NumpyOps.eigh
    skew = gaussian(30, 30, seed=7)

    def wrong_in_blocks(self, z):
        w, v = eigh(self, z)
        n = len(z)
        if n == 30:
            return w, v
        if wrong == "columns":
            return w, v + 1e-6
        return w, v @ scipy.linalg.expm(1e-6 * (skew - skew.T)[:n, :n])

    monkeypatch.setattr(NumpyOps, "eigh", wrong_in_blocks)
    d = division(h, ops_of(h), 10)
    assert d.finished == d.refused == (30,)
    check_eigh(h, d.w, d.v, UNIT["float64"])


def test_what_is_near_a_multiple_of_the_identity_is_divided():
    """A hundred times what may be taken for diagonal, and a thousandth."""
    w = np.linspace(-1, 1, 40)
    h = with_eigenvalues(1 + 1e-13 * w)
    d = division(h, ops_of(h), 10)
    assert d.splits
    assert np.abs(d.w - np.linalg.eigvalsh(h)).max() < 20 * UNIT["float64"]
    h = np.eye(40) + 1e-18 * with_eigenvalues(w)
    assert not division(h, ops_of(h), 10).splits


def test_one_projection_is_not_enough(monkeypatch):
    """A second one takes off what the condition number of Gaussian columns magnifies."""
    h = with_eigenvalues(np.linspace(-1, 1, 100))
    s, _ = one._sign(h, ops_of(h))

    class IllConditioned:
        def standard_normal(self, shape):
            g = gaussian(*shape)
            g[:, 1] = g[:, 0] + 1e-9 * g[:, 1]
            return g

    q = one._bases(s, 50, IllConditioned(), ops_of(h))
    assert norm((q.T @ h @ q)[50:, :50]) < 1e-13
    signs = np.where(np.arange(100) < 50, -1.0, 1.0)
    g = IllConditioned().standard_normal((100, 100))
    once, _ = np.linalg.qr((g + s @ g * signs) / 2)
    assert norm((once.T @ h @ once)[50:, :50]) > 1e-9


# -- singular values ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 40), (60, 20), (20, 60), (1, 5), (5, 1), (3, 12, 9)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_svd_at_any_rank(shape, dtype):
    a = gaussian(*shape, dtype=dtype)
    before = a.copy()
    k = min(shape[-2:])
    low = a[..., :, :1] @ a[..., :1, :]
    half = a.copy()
    half[..., :, : (shape[-1] + 1) // 2] = 0
    for x in (a, low, half, 0 * a, np.swapaxes(a, -1, -2)):
        check_svd(x, *svd_polar(x, smallest=max(1, k // 4)), UNIT[dtype])
    np.testing.assert_array_equal(a, before)


def exact_values(a):
    """Singular values at 40 digits, of which LAPACK's of nearly orthogonal matrices have 14."""
    with mpmath.workdps(40):
        found = mpmath.svd(mpmath.matrix(a.tolist()), compute_uv=False)
        return np.sort([float(x) for x in found])[::-1][: min(a.shape)]


def test_svd_of_the_zoo():
    for name, a in testing.zoo(6):
        a = a / (np.abs(a).max() or 1.0)
        u, s, vh = svd_polar(a, smallest=2)
        check_svd(a, u, s, vh, UNIT["float64"], name)
        exact = exact_values(a)
        assert np.abs(s - exact).max() <= 20 * UNIT["float64"] * exact[0], name


def test_svd_of_the_bidiagonal_matrix_of_ones():
    n = 70
    a = np.eye(n) + np.eye(n, k=1)
    exact = 2 * np.cos(np.arange(1, n + 1) * np.pi / (2 * n + 1))
    np.testing.assert_allclose(svd_polar(a, smallest=9).s, exact, rtol=0, atol=n * 2.0**-52)


def test_no_svd_is_taken(monkeypatch):
    """Neither at full rank nor below, where the zero matrix alone falls back to it."""

    def refused(self, x):
        raise AssertionError

    monkeypatch.setattr(NumpyOps, "svd", refused)
    a = gaussian(30, 20)
    for x in (a, a[:, :1] @ a[:1], a @ np.diag(np.geomspace(1, 1e-18, 20))):
        check_svd(x, *svd_polar(x, smallest=5), UNIT["float64"])


@pytest.mark.parametrize("shape", [(12, 8), (2, 12, 8)])
def test_a_factor_that_is_not_semidefinite(monkeypatch, shape):
    """Orthonormal, with a Hermitian ``U^H A`` that has a negative eigenvalue: the SVD is taken."""
    a = gaussian(*shape)
    factor = module.unitary_factor

    def reflected(x, **how):
        q = np.linalg.eigh(np.swapaxes(x, -1, -2) @ x)[1]
        return factor(x, **how) @ (q * np.where(np.arange(8) == 3, -1, 1)) @ np.swapaxes(q, -1, -2)

    monkeypatch.setattr(module, "unitary_factor", reflected)
    check_svd(a, *svd_polar(a), UNIT["float64"])


@pytest.mark.parametrize("exponent", [-1000, -400, 400, 1000])
def test_powers_of_two_change_nothing(exponent):
    a, h = gaussian(30, 20), hermitian(gaussian(24, 24))
    u, s, vh = svd_polar(np.ldexp(a, exponent), smallest=6)
    expected = svd_polar(a, smallest=6)
    np.testing.assert_array_equal(np.ldexp(s, -exponent), expected.s)
    np.testing.assert_array_equal(u, expected.u)
    np.testing.assert_array_equal(vh, expected.vh)
    w, v = eigh_polar(np.ldexp(h, exponent), smallest=6)
    np.testing.assert_array_equal(np.ldexp(w, -exponent), eigh_polar(h, smallest=6).w)
    np.testing.assert_array_equal(v, eigh_polar(h, smallest=6).v)


def test_overflow_of_a_value_is_infinity():
    a = np.full((20, 20), 1.7e308)
    u, s, _ = svd_polar(a, smallest=4)
    assert s[0] == math.inf
    check_orthonormal(u, UNIT["float64"])
    w, v = eigh_polar(-a, smallest=4)
    assert w[0] == -math.inf
    assert np.isfinite(w[1:]).all()
    check_orthonormal(v, UNIT["float64"])
    assert svd_polar(np.full((40, 40), 60000, dtype="float16")).s[0] == math.inf


# -- libraries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_libraries(lib, dtype):
    if lib.name == "jax" and dtype != "complex64":
        pytest.skip("JAX compiles every operation anew for every dtype: one of them will do")
    for a in (gaussian(14, 9, dtype=dtype), gaussian(2, 5, 8, dtype=dtype)):
        if lib.name == "jax" and a.ndim > 2:
            continue
        x = lib.asarray(a)
        u, s, vh = svd_polar(x, smallest=4)
        assert (lib.dtype_name(u), lib.dtype_name(vh)) == (dtype, dtype)
        assert lib.dtype_name(s) == REAL.get(dtype, dtype)
        assert lib.device(u) == lib.device(s) == lib.device(vh) == lib.device(x)
        assert type(u) is type(s) is type(vh) is type(x)
        check_svd(a, *map(lib.to_numpy, (u, s, vh)), UNIT[dtype])
        np.testing.assert_array_equal(lib.to_numpy(x), a)
        h = hermitian(a[..., : a.shape[-1], : a.shape[-1]] if a.ndim == 2 else a @ adjoint(a))
        x = lib.asarray(h)
        w, v = eigh_polar(x, smallest=4)
        assert (lib.dtype_name(w), lib.dtype_name(v)) == (REAL.get(dtype, dtype), dtype)
        assert lib.device(w) == lib.device(v) == lib.device(x)
        check_eigh(h, *map(lib.to_numpy, (w, v)), UNIT[dtype])
        np.testing.assert_array_equal(lib.to_numpy(x), h)


@with_dask
@pytest.mark.parametrize("shape", [(6, 6), (2, 3, 4, 4)])
def test_at_once(lib, shape):
    """Up to `smallest` of the library, stacks as well."""
    h = hermitian(gaussian(*shape))
    w, v = eigh_polar(lib.asarray(h))
    check_eigh(h, *map(lib.to_numpy, (w, v)), UNIT["float64"])
    if lib.name != "jax":  # which compiles QDWH of stacks step by step: test_under_jit has it
        u, s, vh = svd_polar(lib.asarray(h))
        check_svd(h, *map(lib.to_numpy, (u, s, vh)), UNIT["float64"])


def test_dask_divides():
    h = with_eigenvalues(np.linspace(-1, 1, 12))
    w, v = eigh_polar(library("dask").asarray(h), smallest=6)
    check_eigh(h, np.array(w), np.array(v), UNIT["float64"])


@pytest.mark.parametrize("dtype", HALF)
def test_half(lib, dtype):
    if not lib.has(dtype):
        pytest.skip(f"{lib.name} has no {dtype}")
    if (lib.name, dtype) == ("jax", "float16"):
        pytest.skip("slow: compiled for every dtype")
    unit = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    x = lib.asarray(gaussian(10, 7), dtype)
    given = lib.to_numpy(x).astype("f8")
    parts = svd_polar(x, smallest=3)
    assert {lib.dtype_name(t) for t in parts} == {dtype}
    exact = np.linalg.svd(given, compute_uv=False)
    np.testing.assert_allclose(lib.to_numpy(parts.s), exact, rtol=1.01 * unit, atol=1e-5)
    check_orthonormal(wide(lib.to_numpy(parts.u)), unit)
    x = lib.asarray(hermitian(given[:7]), dtype)
    given = lib.to_numpy(x).astype("f8")
    w, v = eigh_polar(x, smallest=3)
    assert {lib.dtype_name(w), lib.dtype_name(v)} == {dtype}
    np.testing.assert_allclose(lib.to_numpy(w), np.linalg.eigvalsh(given), rtol=1.01 * unit)


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_cupy(dtype):
    h, a = with_eigenvalues(np.linspace(-1, 2, 24), dtype), gaussian(30, 20, dtype=dtype)
    with cupy_standin.installed() as cupy:
        eigen = eigh_polar(cupy.asarray(h), smallest=6)
        triplets = svd_polar(cupy.asarray(a), smallest=6)
        assert all(isinstance(t, cupy.ndarray) for t in (*eigen, *triplets))
        check_eigh(h, *(t.get() for t in eigen), UNIT[dtype])
        check_svd(a, *(t.get() for t in triplets), UNIT[dtype])


def test_host_memory_of_jax_is_divided_by_numpy(monkeypatch):
    lib = library("jax")
    kinds = []
    monkeypatch.setattr(
        module, "division", lambda z, ops, n: kinds.append(type(ops)) or division(z, ops, n)
    )
    h = with_eigenvalues(np.linspace(-1, 1, 40), "float32")
    w, v = eigh_polar(lib.asarray(h), smallest=10)
    assert kinds == [NumpyOps]
    assert (lib.dtype_name(w), lib.dtype_name(v)) == ("float32", "float32")
    check_eigh(h, lib.to_numpy(w), lib.to_numpy(v), UNIT["float32"])
    assert type(w) is type(v) is type(lib.asarray(h))


def test_array_likes_and_strides():
    for h in ([[0, 2], [2, 0]], np.array([[0, 2], [2, 0]], dtype="int8")):
        w, v = eigh_polar(h)
        np.testing.assert_allclose(w, [-2, 2], atol=1e-15)
        assert w.dtype == v.dtype == np.float64
        np.testing.assert_allclose(svd_polar(h).s, [2, 2])
    assert svd_polar([[True, False]]).s.tolist() == [1.0]
    a = np.broadcast_to(gaussian(20), (30, 20))
    check_svd(a, *svd_polar(a, smallest=5), UNIT["float64"])
    h = hermitian(gaussian(60, 60))[::-2, ::-2]
    for x in (h, h.T, np.asfortranarray(h), h.astype(">f8")):
        check_eigh(x.astype("f8"), *eigh_polar(x, smallest=7), UNIT["float64"])


def test_empty(lib):
    for shape in [(0, 3, 3), (2, 0, 0), (0, 0)]:
        x = lib.asarray(np.zeros(shape, dtype="complex64"))
        w, v = eigh_polar(x)
        assert (tuple(w.shape), tuple(v.shape)) == (shape[:-1], shape)
        assert (lib.dtype_name(w), lib.dtype_name(v)) == ("float32", "complex64")
    for shape in [(3, 0), (0, 3), (0, 4, 3), (2, 0, 3, 5)]:
        u, s, vh = svd_polar(lib.asarray(np.zeros(shape, dtype="complex64")))
        batch, (m, n), k = shape[:-2], shape[-2:], min(shape[-2:])
        assert tuple(u.shape) == (*batch, m, k)
        assert tuple(s.shape) == (*batch, k)
        assert tuple(vh.shape) == (*batch, k, n)
        assert lib.dtype_name(s) == "float32"


def test_one_by_one():
    assert eigh_polar([[-3.0]]).w.tolist() == [-3.0]
    u, s, vh = svd_polar([[-3.0]])
    assert (s.tolist(), (u * vh).tolist()) == ([3.0], [[-1.0]])
    u, s, vh = svd_polar([[0.0]])
    assert (s.tolist(), abs(u * vh).tolist()) == ([0.0], [[1.0]])


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "a", "options", "error", "words"),
    [
        (
            eigh_polar,
            [[0, 1], [2, 0]],
            {},
            ValueError,
            r"h is not Hermitian: .* pass \(h \+ h\^H\)",
        ),
        (eigh_polar, [[1j, 0], [0, 1]], {}, ValueError, "h is not Hermitian"),
        (eigh_polar, np.ones((3, 2)), {}, ValueError, r"eigh_polar needs square .* \(3, 2\)"),
        (eigh_polar, [[1.0, np.nan], [np.nan, 1]], {}, ValueError, "h contains NaN or infinity"),
        (eigh_polar, np.ones(3), {}, ValueError, r"h must be a matrix .* \(3,\)"),
        (eigh_polar, np.eye(2), {"smallest": 0}, ValueError, "smallest must be .* got 0"),
        (eigh_polar, [["a"]], {}, TypeError, "h must be an array of numbers"),
        (svd_polar, [[1.0, np.inf]], {}, ValueError, "a contains NaN or infinity"),
        (svd_polar, [[1.0, 1j * np.nan]], {}, ValueError, "a contains NaN or infinity"),
        (svd_polar, 3.0, {}, ValueError, r"shape \(\)"),
        (svd_polar, np.eye(2), {"smallest": 1.5}, ValueError, "smallest must be .* got 1.5"),
        (svd_polar, np.array([[None]]), {}, TypeError, "object"),
    ],
)
def test_bad_input(f, a, options, error, words):
    with pytest.raises(error, match=words):
        f(a, **options)


def test_hermitian_up_to_rounding():
    h = with_eigenvalues(np.linspace(-1, 1, 30))
    skew = gaussian(30, 30)
    skew = (skew - skew.T) / norm(skew)
    eigh_polar(h + 50 * 2.0**-52 * norm(h) * skew)
    with pytest.raises(ValueError, match="not Hermitian"):
        eigh_polar(h + 200 * 2.0**-52 * norm(h) * skew)


# -- derivatives -------------------------------------------------------------------------------


def weighted(values, y, xp):
    """A number from values and from a matrix, its imaginary part too."""
    first = xp.asarray(np.cos(np.arange(values.shape[-1])), dtype=values.dtype)
    second, third = (xp.asarray(gaussian(*y.shape, seed=k), dtype=values.dtype) for k in (9, 10))
    total = (first * values).sum() + (second * xp.real(y)).sum()
    return total + (third * xp.imag(y)).sum() if "complex" in str(y.dtype) else total


def of_triplets(f, x, xp):
    """A smooth function of A: the values, and ``U diag(d) V^H``, whatever the phases."""
    u, s, vh = f(x)
    k = s.shape[-1]
    d = xp.asarray(1.0 + np.arange(k) ** 2 % 7, dtype=s.dtype)
    return weighted(s, (u * d) @ vh, xp)


def of_eigenpairs(f, x, xp):
    """A smooth function of the Hermitian part of X: values, and ``V diag(d) V^H``."""
    w, v = f((x + xp.conj(xp.swapaxes(x, -1, -2))) / 2)
    d = xp.asarray(1.0 + np.arange(w.shape[-1]) ** 2 % 7, dtype=w.dtype)
    return weighted(w, (v * d) @ xp.conj(xp.swapaxes(v, -1, -2)), xp)


CASES = [
    (of_triplets, svd_polar, (6, 4)),
    (of_triplets, svd_polar, (4, 6)),
    (of_triplets, svd_polar, (5, 5)),
    (of_triplets, svd_polar, (4, 1)),
    (of_eigenpairs, eigh_polar, (6, 6)),
    (of_eigenpairs, eigh_polar, (1, 1)),
]


class TorchLike:
    """The names that the functions above use, of torch."""

    def __init__(self, torch):
        self.torch = torch
        self.conj, self.swapaxes, self.real, self.imag = (
            getattr(torch, name) for name in ("conj", "swapaxes", "real", "imag")
        )

    def asarray(self, x, dtype=None):
        return self.torch.tensor(x, dtype=dtype)


def separated(shape, is_complex):
    """Values well apart, so that differences of fourth order are accurate."""
    k = min(shape)
    a = gaussian(*shape, dtype="complex128" if is_complex else "float64", seed=4)
    u, _, vh = np.linalg.svd(a, full_matrices=False)
    return (u * (0.5 + np.arange(k)[::-1])) @ vh


def difference(value, a, e):
    h = 3e-4
    return (
        8 * (value(a + h * e) - value(a - h * e)) - (value(a + 2 * h * e) - value(a - 2 * h * e))
    ) / (12 * h)


def lapack(f):
    """Independent of polarlib, for differences."""
    if f is svd_polar:
        return lambda x: np.linalg.svd(x, full_matrices=False)
    return np.linalg.eigh


@pytest.mark.parametrize(("kind", "f", "shape"), CASES)
@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
def test_derivatives_in_torch(torch, kind, f, shape, is_complex):
    a = separated(shape, is_complex)
    xp = TorchLike(torch)
    e = gaussian(*shape, dtype=a.dtype.name, seed=8)
    wanted = difference(lambda x: kind(lapack(f), x, np), a, e)
    x = torch.tensor(a, requires_grad=True)

    def small(x):
        return f(x, smallest=2)

    kind(small, x, xp).backward()
    got = np.sum(x.grad.numpy().conj() * e).real
    assert got == pytest.approx(wanted, rel=1e-8)
    value = lambda x: kind(small, x, xp)  # noqa: E731
    _, along = torch.func.jvp(value, (torch.tensor(a),), (torch.tensor(e),))
    assert float(along) == pytest.approx(wanted, rel=1e-8)
    if not is_complex:
        stack = torch.tensor(np.stack([a, a + e / 10]))
        each = torch.vmap(torch.func.grad(value))(stack)
        np.testing.assert_allclose(each[0].numpy(), x.grad.numpy(), rtol=1e-9, atol=1e-9)
    single = torch.tensor(a).to(torch.complex64 if is_complex else torch.float32).requires_grad_()
    kind(small, single, xp).backward()
    assert single.grad.dtype == single.dtype
    scale = float(x.grad.abs().max())
    np.testing.assert_allclose(single.grad.numpy(), x.grad.numpy(), atol=2e-5 * scale)


@pytest.mark.parametrize("f", [svd_polar, eigh_polar])
@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
def test_derivatives_at_any_scale(torch, f):
    """Vectors of c A move 1/c as much, values as much; of a direction the Hermitian part counts."""
    a = hermitian(separated((5, 5), False))
    e = gaussian(5, 5, seed=8)
    weights = torch.tensor(gaussian(5, 5, seed=9))
    vectors, values = (1, 0) if f is eigh_polar else (0, 1)

    def turned(x):
        return (weights * f(x)[vectors] ** 2).sum()

    def slopes(c):
        x = torch.tensor(c * a, requires_grad=True)
        turned(x).backward()
        along = torch.func.jvp(turned, (torch.tensor(c * a),), (torch.tensor(e),))[1]
        moved = torch.func.jvp(lambda x: f(x)[values], (torch.tensor(c * a),), (torch.tensor(e),))
        return x.grad.numpy(), float(along), moved[1].numpy()

    gradient, along, moved = slopes(1.0)
    assert along == pytest.approx(float(np.sum(gradient * e)), rel=1e-10)
    for c in (2.0**12, 2.0**-700):
        other = slopes(c)
        np.testing.assert_allclose(other[0] * c, gradient, rtol=1e-12)
        assert other[1] * c == pytest.approx(along, rel=1e-12)
        np.testing.assert_allclose(other[2], moved, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_derivatives_in_half(torch, dtype):
    a = torch.tensor(separated((6, 4), False)).to(getattr(torch, dtype))
    xp = TorchLike(torch)
    x = a.clone().requires_grad_()
    of_triplets(svd_polar, x, xp).backward()
    exact = a.double().requires_grad_()
    of_triplets(svd_polar, exact, xp).backward()
    assert x.grad.dtype == x.dtype
    unit = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    error = (x.grad.double() - exact.grad).abs().max() / exact.grad.abs().max()
    assert error <= 8 * unit  # of the gradients of the results, which are rounded too


# QDWH of a traced matrix takes JAX long to compile.
@pytest.mark.parametrize("case", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_derivatives_in_jax(case):
    lib = library("jax")
    jax = pytest.importorskip("jax")
    kind, f, shape = CASES[case]
    a, e = separated(shape, False), gaussian(*shape, seed=8)
    wanted = difference(lambda x: kind(lapack(f), x, np), a, e)
    stack = lib.asarray(np.stack([a, a + e / 10]))
    got = jax.jit(jax.vmap(jax.grad(lambda x: kind(f, x, lib.xp))))(stack)
    assert float((got[0] * e).sum()) == pytest.approx(wanted, rel=1e-8)


def test_near_ties():
    """Two values that differ by 1e-8: the vectors turn by 1e8 times the direction."""
    torch = pytest.importorskip("torch")
    gap = 2.0**-26
    turn = np.array([[0.0, 1.0], [1.0, 0.0]])
    h = torch.tensor(np.diag([1.0, 1.0 + gap]), requires_grad=True)
    _, v = eigh_polar(h)
    (v[1, 0] / v[0, 0]).backward()  # tan of the angle: derivative h_12 / (w_1 - w_2)
    np.testing.assert_allclose(h.grad.numpy(), -turn / (2 * gap), rtol=1e-7)
    a = torch.tensor(np.diag([1.0 + gap, 1.0]), requires_grad=True)
    u, _, _ = svd_polar(a)
    (u[1, 0] / u[0, 0]).backward()
    exact = np.array([[0, 1.0], [1.0 + gap, 0]]) / ((1 + gap) ** 2 - 1)
    np.testing.assert_allclose(a.grad.numpy(), exact, rtol=1e-7)


def test_ties(torch):
    """Vectors have no derivative there; values have one in torch's backward mode."""
    for f, a, words in (
        (eigh_polar, np.diag([1.0, 1.0, 2.0]), "two eigenvalues are, to rounding, equal"),
        (svd_polar, np.diag([2.0, 1.0, 1.0]), "zero or equal"),
        (svd_polar, np.diag([2.0, 1.0, 0.0]), "zero or equal"),
    ):
        vectors = 1 if f is eigh_polar else 0
        x = torch.tensor(a, requires_grad=True)
        y = f(x)
        with pytest.raises(ValueError, match=words):
            y[vectors].sum().backward()
        x = torch.tensor(np.stack([np.diag([3.0, 2.0, 1.0]), a]), requires_grad=True)
        with pytest.raises(ValueError, match=r"in matrix \(1,\) of the stack; the values alone"):
            f(x)[vectors].sum().backward()
        x = torch.tensor(a, requires_grad=True)
        (f(x)[1 - vectors] ** 2).sum().backward()  # |A|_F^2
        np.testing.assert_allclose(x.grad.numpy(), 2 * a, atol=1e-14)


def test_under_jit():
    lib = library("jax")
    jax = pytest.importorskip("jax")
    a = gaussian(3, 7, 4)
    a[1] = a[1][:, :1] @ a[1][:1]
    svd, eigh = jax.jit(svd_polar), jax.jit(eigh_polar)
    check_svd(a, *svd(lib.asarray(a)), UNIT["float64"])
    zero = lib.asarray(0 * a)
    check_svd(0 * a, *svd(zero), UNIT["float64"])
    h = hermitian(gaussian(3, 4, 4))
    check_eigh(h, *eigh(lib.asarray(h)), UNIT["float64"])
    check_eigh(h, *jax.vmap(eigh_polar)(lib.asarray(h)), UNIT["float64"])
    h[1, 0, 1] += 1e-3
    h[2, 0, 0] = np.nan
    w, v = eigh(lib.asarray(h))
    assert np.isnan(w[1:]).all()
    assert np.isnan(v[1:]).all()
    np.testing.assert_allclose(w[0], np.linalg.eigvalsh(h[0]), atol=1e-14)
    a[0, 0, 0] = np.inf
    parts = svd(lib.asarray(a))
    assert all(np.isnan(t[0]).all() for t in parts)
    assert all(np.isfinite(t[1:]).all() for t in parts)
    tie = lib.asarray(np.stack([np.eye(4), np.diag(np.arange(4.0))]))
    got = jax.jit(jax.grad(lambda x: abs(eigh_polar(x).v).sum()))(tie)
    assert np.isnan(got[0]).all()
    assert np.isfinite(got[1]).all()
    values = jax.jit(jax.grad(lambda x: (eigh_polar(x).w ** 2).sum()))(tie)
    np.testing.assert_allclose(values, 2 * tie, atol=1e-14)


# -- the page ----------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch):
    if not (ROOT / "benchmarks").is_dir():
        pytest.skip("the benchmarks are not installed")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("spectral_division")


def test_the_page_is_that_of_the_data(benchmark):
    page = (ROOT / "docs" / "evidence" / "spectral_division.md").read_text(encoding="utf-8")
    figures = json.loads(benchmark.DATA.read_text(encoding="utf-8"))
    for name, body in benchmark.tables(figures).items():
        assert f"<!-- begin {name} -->\n{body}\n<!-- end {name} -->" in page
    guide = (ROOT / "docs" / "guide" / "spectral_division.md").read_text(encoding="utf-8")
    for name, other, error in (("eigh_polar", "eigh", 26), ("svd_polar", "svd", 30)):
        most = [
            max(row[who][q] for row in figures["accuracy"] for q in ("residual", "orthogonality"))
            for who in (name, f"scipy {other}")
        ]
        assert round(most[0]) == error
        assert (
            f"of `{name}` are at most {error} u" in " ".join(page.split()) or name != "eigh_polar"
        )
        assert f"{most[1]:.0f} u" in page
        ratios = [row[f"{name} ratio"] for row in figures["times"]]
        assert (
            f"`{name}` {'has ' * (name == 'eigh_polar')}{min(ratios):.2f} to {max(ratios):.2f}"
            in guide
        )
    for row in figures["accuracy"]:
        assert row["counts"]["refused"] == 0
        assert row["counts"]["left"] < LEFT
        for name in ("eigh_polar", "svd_polar"):  # what the page claims: a small multiple of n u
            assert max(row[name].values()) < benchmark.ORDER / 8


def test_what_the_page_is_made_of(benchmark, monkeypatch):
    for name, w in benchmark.spectra(40).items():
        h = benchmark.matrix(w, "float64")
        v = np.linalg.eigh(h)
        exact = benchmark.accuracy(h, w, v[0], v[1], v[1])
        assert exact["values"] < 40, name
        wrong = benchmark.accuracy(h, w, v[0] + 1e-12, v[1], v[1])
        assert wrong["values"] > 5000, name
        turned = v[1] + 1e-12 * np.roll(v[1], 1, axis=1)
        wrong = benchmark.accuracy(h, w, v[0], turned, v[1])
        assert min(wrong["residual"], wrong["orthogonality"]) > 500, name
    h = benchmark.matrix(np.linspace(-1, 1, 40), "float64")
    found = benchmark.counts(h, 10)
    assert found["splits"] == found["factors"] == len(found["orders"])
    assert sum(found["finished"]) == 40
    assert found["qr"] == pytest.approx(2 * sum((m / 40) ** 3 for m in found["orders"]))
    monkeypatch.setattr(benchmark, "SIZES", (20,))
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    rows = benchmark.times()
    assert [(r["n"], r["dtype"], r["rounds"]) for r in rows] == [
        (20, d, 3) for d in benchmark.DTYPES
    ]
    assert (
        "20 | float64" in benchmark.tables({"accuracy": [], "times": rows, "machine": ""})["times"]
    )
