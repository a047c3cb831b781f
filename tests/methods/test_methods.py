"""The methods by themselves: counts, accuracy, bounds, tall and singular matrices, stability."""

from __future__ import annotations

import importlib
import math

import mpmath
import numpy as np
import pytest
from conftest import with_dask

from polarlib import design
from polarlib._methods.minimax import minimax
from polarlib._methods.newton import newton
from polarlib._methods.newton_schulz import newton_schulz
from polarlib._methods.qdwh import CHOLESKY_BELOW, form, halley, qdwh, resolvent
from polarlib._methods.reduction import largest, noise, reduce_tall, rounded_down, start
from polarlib._methods.zolotarev import zolotarev
from polarlib.arrays.ops import Ops, ops_of
from polarlib.testing import (
    assert_unitary_factor,
    binomial,
    frank,
    hilbert,
    orthonormal,
    with_singular_values,
    zoo,
)

# The modules, which functions of the same name hide.
QDWH, MINIMAX = (importlib.import_module(f"polarlib._methods.{m}") for m in ("qdwh", "minimax"))
EPS = 2.0**-52
BOUNDED = {"qdwh": qdwh, "zolotarev": zolotarev, "minimax": minimax}  # by a certified interval
METHODS = BOUNDED | {"newton": newton, "newton_schulz": newton_schulz}
SPECTRA = {
    "geometric": lambda n, k: np.geomspace(1, 1 / k, n),
    "halves": lambda n, k: np.where(np.arange(n) < n // 2, 1, 1 / k),
    "one large": lambda n, k: np.where(np.arange(n) < 1, 1, 1 / k),
    "one small": lambda n, k: np.where(np.arange(n) < n - 1, 1, 1 / k),
}


def run(method, a, **knobs):
    """Factor and Run; a method never changes its input, and polar() mutes NumPy as here."""
    before = a.copy()
    with np.errstate(all="ignore"):
        u, run = method(a, ops_of(a), tol=knobs.pop("tol", 100 * EPS), **knobs)
    assert np.array_equal(a, before)
    return u, run


def errors(a, u):
    """Backward error and orthogonality."""
    h = np.conj(u.T) @ a
    h = (h + np.conj(h.T)) / 2
    orthogonality = np.linalg.norm(np.conj(u.T) @ u - np.eye(u.shape[1])) / math.sqrt(u.shape[1])
    return np.linalg.norm(a - u @ h) / np.linalg.norm(a), orthogonality


# -- counts ----------------------------------------------------------------------------------

# Iterations of the scalar recurrences.
CONDITIONS = (1.001, 1.1, 2, 10, 1e2, 1e3, 1e5, 1e7, 1e16)
COUNTS = {
    "qdwh": (2, 2, 3, 4, 4, 4, 5, 5, 6),
    "zolotarev 2": (1, 2, 2, 3, 3, 3, 3, 4, 4),
    "zolotarev 8": (1, 1, 1, 2, 2, 2, 2, 2, 2),
    "newton byers_xu": (3, 4, 4, 5, 6, 7, 7, 8, 9),
    "newton_schulz": (3, 5, 7, 11, 17, 22, 34, 45, 96),
    "minimax": (2, 3, 3, 5, 6, 8, 12, 15, 30),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    method, _, option = name.partition(" ")
    knobs = {}
    if option:
        knobs = {"scaling": option} if method == "newton" else {"poles": int(option)}
    found = []
    for condition in CONDITIONS:
        a = np.diag([1.0, -1 / condition])  # of which norms are bounds without slack
        known = {} if method == "newton" else {"lower": 1 / condition}
        u, outcome = run(METHODS[method], a, tol=10 * EPS, **knobs, **known)
        assert outcome.converged
        assert outcome.iterations == len(outcome.changes)
        found.append(outcome.iterations)
        np.testing.assert_allclose(u, np.diag([1.0, -1.0]), atol=10 * EPS)
    # Byers and Xu's bounds do not know that 1/1.1 and 1 are all there is.
    assert tuple(found) == COUNTS[name]


@pytest.mark.parametrize("method", BOUNDED)
def test_certified_bounds_cost_one_iteration_at_most(method):
    row = COUNTS[method if method != "zolotarev" else "zolotarev 8"]
    for condition, least in zip(CONDITIONS, row, strict=True):
        a = with_singular_values(np.geomspace(1, 1 / condition, 20), seed=1)
        _, outcome = run(BOUNDED[method], a)
        extra = {"qdwh": 1, "zolotarev": 1, "minimax": 2}[method]
        assert outcome.iterations <= least + extra


def test_published_logs_of_newton():
    _, outcome = run(newton, hilbert(6))
    assert outcome.iterations == 7
    log = [1.236974e03, 9.907912e-01, 9.407495e-01, 5.931747e-01, 3.697098e-02]
    np.testing.assert_allclose(outcome.changes[:5], log, rtol=5e-7)
    assert run(newton, binomial(16))[1].iterations == 7
    # Published: 8, by another stopping test; the seventh change is below that of hilb(6) above.
    _, outcome = run(newton, frank(16))
    assert outcome.iterations == 7
    assert outcome.changes[6] < run(newton, hilbert(6))[1].changes[6]


def test_byers_xu_stays_within_its_count_where_highams_does_not():
    values = np.linspace(1, 1e-5, 100)
    a = with_singular_values(values, seed=1)
    assert run(newton, a, scaling="byers_xu")[1].iterations == 7
    assert run(newton, a)[1].iterations > 7
    b = with_singular_values(np.linspace(1, 0.99, 100), seed=1)
    assert run(newton, b)[1].iterations <= 4 < run(newton, b, scaling="byers_xu")[1].iterations


# -- accuracy --------------------------------------------------------------------------------

# Backward error in epsilons at n = 40.
LIMITS = {"qdwh": 9, "zolotarev": 9, "minimax": 30, "newton": 20, "newton_schulz": 9}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("method", METHODS)
def test_backward_error_does_not_know_the_condition(method, spectrum):
    n = 40
    for condition in (1.0, 10.0, 1e2, 1e4, 1e6, 1e8, 1e10, 1e12, 1e15, 1e16):
        a = with_singular_values(SPECTRA[spectrum](n, condition), seed=2)
        u, outcome = run(METHODS[method], a)
        if "singular" in outcome.note:  # at 1e15 and 1e16 it is, to Newton-Schulz
            assert method == "newton_schulz"
            assert condition >= 1e15
            continue
        if condition > 1 / EPS and not outcome.converged:
            continue  # rounding decides whether this matrix is singular
        assert outcome.converged, condition
        backward, orthogonality = errors(a, u)
        assert backward <= LIMITS[method] * EPS, (condition, backward / EPS)
        assert orthogonality <= 10 * EPS, (condition, orthogonality / EPS)


@pytest.mark.parametrize("dtype", ["float32", "complex64", "complex128"])
@pytest.mark.parametrize("method", METHODS)
def test_dtypes(method, dtype):
    eps = float(np.finfo(dtype).eps)
    for condition in (1.5, 1e2, 1e4):
        a = with_singular_values(np.geomspace(1, 1 / condition, 30), 50, dtype=dtype, seed=3)
        u, outcome = run(METHODS[method], a, tol=100 * eps)
        assert outcome.converged
        assert u.dtype == a.dtype
        backward, orthogonality = errors(a.astype("complex128"), u.astype("complex128"))
        assert backward <= 30 * eps
        assert orthogonality <= 10 * eps


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("condition", [1e1, 1e6, 1e12])
def test_against_multiple_precision(method, condition):
    """The unitary factor moves by 2 / (s_i + s_j) times the backward error, here of unit size."""
    n = 5
    a = with_singular_values(np.append(np.ones(n - 1), 1 / condition), seed=5)
    with mpmath.workdps(60):
        u, _, v = mpmath.svd_r(mpmath.matrix(a.tolist()))
        exact = np.array((u * v).tolist(), dtype=float)
    found, _ = run(METHODS[method], a)
    np.testing.assert_allclose(found, exact, atol=50 * EPS)


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
@pytest.mark.parametrize("method", METHODS)
def test_entries_need_not_be_near_one(method, scale):
    a = with_singular_values(np.geomspace(1, 1e-3, 6), 9, seed=1)
    u, _ = run(METHODS[method], a)
    v, outcome = run(METHODS[method], a * scale)
    assert np.array_equal(u, v)
    low, high = outcome.bounds
    assert low <= 1e-3 * scale * (1 + 1e-10)
    assert high >= scale * (1 - 1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_orthonormal_columns_are_their_own_factor(method):
    for a in (orthonormal(9, 9), orthonormal(12, 4), np.array([[-3.0]]), 2 * np.eye(4)):
        u, outcome = run(METHODS[method], a)
        assert outcome.converged
        np.testing.assert_allclose(u, a / np.linalg.norm(a, 2), atol=10 * EPS)


# -- the two forms of the resolvent ----------------------------------------------------------


@pytest.mark.parametrize("c", [0.5, 99.0, 1e3, 1e8, 1e11, 1e20])
def test_resolvent_against_multiple_precision(c):
    n = 6
    a = with_singular_values(np.geomspace(1, 1e-8, n), seed=1)
    x, _ = resolvent(a, c, 2.0, ops_of(a), how=form(1 + c, n, EPS))
    with mpmath.workdps(60):
        m = mpmath.matrix(a.tolist())
        exact = np.array((2 * m * (mpmath.eye(n) + c * m.T * m) ** -1).tolist(), dtype=float)
    # By QR: relative to 1 / (2 sqrt(c)), the largest singular value that it can have.
    size = 2 / (2 * math.sqrt(c)) if c > CHOLESKY_BELOW else 1
    # The condition number of the map is sqrt(c).
    np.testing.assert_allclose(x / size, exact / size, atol=100 * EPS * max(1, math.sqrt(c)))


def test_cholesky_twice_is_as_accurate_as_householder(monkeypatch):
    a = with_singular_values(SPECTRA["halves"](60, 1e7), seed=2)
    u, outcome = run(qdwh, a)
    assert errors(a, u)[0] <= LIMITS["qdwh"] * EPS
    monkeypatch.setattr(QDWH, "TWICE_BELOW", 0.0)
    v, other = run(qdwh, a)
    assert outcome.matmuls > other.matmuls  # it was another form
    assert errors(a, v)[0] <= LIMITS["qdwh"] * EPS
    # One Cholesky factor where two are needed: 2e5 epsilons are lost, which these matrices show.
    monkeypatch.setattr(QDWH, "CHOLESKY_BELOW", 1e12)
    w, _ = run(qdwh, a)
    assert errors(a, w)[0] > 100 * LIMITS["qdwh"] * EPS


# -- bounds and reduction --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize("shape", [(40, 40), (60, 40), (200, 40)])
def test_bounds_hold_and_are_near(shape, dtype):
    m, n = shape
    eps = float(np.finfo(dtype).eps)
    for condition in (1.0, 1.001, 10.0, 1e3, 1e5, 1e8, 1e12, 1e15):
        if condition > 0.1 / eps:
            continue
        for spectrum in SPECTRA.values():
            a = with_singular_values(spectrum(n, condition), m, seed=3, dtype=dtype)
            s = np.linalg.svd(a.astype("complex128"), compute_uv=False)
            begin = start(a, ops_of(a))
            low, high = begin.bounds
            assert low <= s[-1] * (1 + 1e3 * eps) + 10 * eps
            assert s[0] * (1 - 10 * eps) <= high <= 1.001 * s[0] * math.sqrt(n)
            assert low >= s[-1] / (2 * math.sqrt(n)) - 10 * eps
            inner = np.linalg.svd(begin.x.astype("complex128"), compute_uv=False)
            assert inner[0] <= 1 + 20 * eps
            assert begin.lower <= inner[-1] * (1 + 1e3 * eps) + 10 * eps
            gram = np.conj(begin.x.T) @ begin.x
            assert np.abs(begin.gram - gram).max() <= 20 * eps


def test_bounds_on_the_zoo():
    for name, a in zoo(9):
        x = a if a.shape[0] >= a.shape[1] else np.conj(a.T)
        x = x / np.abs(x).max() if x.any() else x
        s = np.linalg.svd(x, compute_uv=False)
        with np.errstate(all="ignore"):
            low, high = start(x, ops_of(x)).bounds
        assert 0 <= low <= s[-1] + 20 * EPS * s[0], name
        assert high >= s[0] * (1 - 20 * EPS), name


def test_noise_is_what_gram_matrices_and_cholesky_factors_have():
    rng = np.random.default_rng(0)
    for n in (10, 100, 400):
        for a in (rng.standard_normal((n, n)), rng.random((n, n)), orthonormal(n, n)):
            x = a.astype("float32")
            ops = ops_of(x)
            factor = ops.cholesky(ops.gram(x)).astype("float64")
            if not np.isfinite(factor).all():  # a random matrix that is singular to rounding
                continue
            wide = x.astype("float64")
            e = factor @ factor.T - wide.T @ wide
            assert np.linalg.norm(e, 2) <= noise(2 * n, 2.0**-23) * np.linalg.norm(wide) ** 2


def test_upper_bounds_are_exact_where_they_can_be():
    q = orthonormal(30, 12) * 3
    ops = ops_of(q)
    high, mean, spread = largest(q, ops.gram(q), ops)
    assert high.item() == pytest.approx(9, rel=1e-14)
    assert mean.item() == pytest.approx(9, rel=1e-14)
    assert spread.item() < 1e-14


def test_rounding_down_keeps_few_values_and_stays_near():
    for l in [*np.geomspace(1e-18, 1, 500), 0.999, 0.9999]:
        r = rounded_down(float(l))
        assert r <= l
        assert r > l * (1 - 1 / 16)
        assert 1 - r <= (1 - l) * (1 + 1 / 8) or l < 0.5
    assert len({rounded_down(l) for l in np.geomspace(1e-3, 1e-2, 1000)}) < 100


class Counted(Ops):
    """Which factorisations are asked for."""

    def __init__(self, ops):
        self.ops, self.calls = ops, []

    def __getattribute__(self, name):
        if name in ("ops", "calls"):
            return object.__getattribute__(self, name)
        if name in ("qr", "cholesky", "svd"):
            self.calls.append(name)
        return getattr(self.ops, name)


@pytest.mark.parametrize(
    ("condition", "kinds"),
    [(1.0, {"cholesky"}), (1e4, {"cholesky"}), (1e6, {"cholesky"}), (1e8, {"cholesky", "qr"})],
)
def test_tall_reductions(condition, kinds):
    for dtype in ("float64", "complex128"):
        a = with_singular_values(np.geomspace(1, 1 / condition, 20), 90, dtype=dtype)
        ops = Counted(ops_of(a))
        s, lift, _ = reduce_tall(a, ops)
        assert set(ops.calls) == kinds
        q = lift(np.eye(20, dtype=dtype))
        assert np.linalg.norm(np.conj(q.T) @ q - np.eye(20)) < 50 * EPS
        assert np.linalg.norm(a - q @ s) < 20 * EPS * np.linalg.norm(a)


@pytest.mark.parametrize("condition", [1.0, 1e5, 1e8, 1e12, 1e15])
@pytest.mark.parametrize("method", METHODS)
def test_tall(method, condition):
    for m in (21, 100):
        a = with_singular_values(np.geomspace(1, 1 / condition, 20), m, seed=4)
        seen = []
        u, outcome = run(METHODS[method], a, callback=lambda k, x: seen.append((k, x.shape)))  # noqa: B023
        assert outcome.converged
        assert seen == [(k + 1, a.shape) for k in range(outcome.iterations)]
        assert max(errors(a, u)) <= 30 * EPS


def test_known_bounds_need_no_factorisation():
    for m in (12, 60):
        a = with_singular_values(np.geomspace(1, 1e-4, 12), m)
        ops = Counted(ops_of(a))
        u, _ = minimax(a, ops, tol=1e-14, lower=1e-4)
        assert not ops.calls
        assert_unitary_factor(a, u)


# -- stacks and singular matrices ------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 4), (9, 4)])
@pytest.mark.parametrize("method", METHODS)
def test_stacks_are_matrices_one_by_one(method, shape):
    spectra = [np.geomspace(1, 1 / k, 4) for k in (1.0, 1e3, 1e6)]
    scales = (1e-3, 1.0, 1e3)
    one = [c * with_singular_values(s, shape[0]) for c, s in zip(scales, spectra, strict=True)]
    stack = np.stack(one)[:, None]
    u, outcome = run(METHODS[method], stack)
    assert outcome.converged
    for k, a in enumerate(one):
        assert max(errors(a, u[k, 0])) <= 20 * EPS
    low, high = outcome.bounds
    assert low <= 1e-6 * 1e3
    assert high >= 1e3 * (1 - 1e-14)


SINGULAR = {
    "zero": np.zeros((4, 3)),
    "ones": np.ones((5, 5)),
    "zero column": np.diag([1.0, 0.0, 2.0]),
    "integers": np.array([[1.0, 2.0], [2.0, 4.0]]),
    "one of a stack": np.stack([np.eye(3), np.ones((3, 3)), np.diag([3.0, 2.0, 1.0])]),
}


@pytest.mark.parametrize("matrix", SINGULAR)
@pytest.mark.parametrize("method", METHODS)
def test_singular_matrices_are_left_soon(method, matrix):
    a = SINGULAR[matrix]
    u, outcome = run(METHODS[method], a)
    assert u.shape == a.shape
    assert outcome.iterations <= {"minimax": 40, "newton_schulz": 10, "newton": 10}.get(method, 13)
    if outcome.converged and method != "qdwh":  # QDWH's stopping test knows no orthogonality
        assert errors(a.reshape(-1, *a.shape[-2:])[0], u.reshape(-1, *u.shape[-2:])[0])[1] < 1e-14
    if method in ("minimax", "newton", "newton_schulz") and matrix != "integers":
        assert not outcome.converged
        assert "singular" in outcome.note


def test_newton_schulz_leaves_small_values_time_to_grow():
    # Far above rounding, but for many steps as good as zero.
    for least in (1e-6, 1e-9, 1e-12):
        a = with_singular_values([1, 1, 1, least], seed=1)
        u, outcome = run(newton_schulz, a)
        assert outcome.converged
        assert outcome.note == ""
        assert_unitary_factor(a, u)
    a = with_singular_values([1, 1, 1, 1e-16], seed=1)
    assert not run(newton_schulz, a)[1].converged
    # Rounding grows as well, in the null space: what matters is where it began.
    a = with_singular_values([*np.geomspace(1, 1e-6, 9), 0.0], seed=1)
    _, outcome = run(newton_schulz, a)
    assert not outcome.converged
    assert outcome.iterations < 50
    # A promise counts.
    assert run(newton_schulz, np.diag([1.0, 1e-16]), lower=1e-16)[1].converged


# -- stability -------------------------------------------------------------------------------


def test_polynomials_need_their_cushion():
    step = design.greedy(1e-15, [5])
    x = np.linspace(0.6, 1, 100001)
    dip = x[np.argmin(step(x))]  # mapped to 1e-12 where 1 goes to 2
    for values in (np.geomspace(1, 1e-15, 60), [1.0, *[dip] * 10, *np.geomspace(1, 1e-15, 10)]):
        a = with_singular_values(values, seed=2)
        u, outcome = run(minimax, a)
        assert outcome.converged
        assert errors(a, u)[0] < 1e-14


def test_polynomials_are_safe_at_the_upper_end():
    """Rounding above the interval would grow from step to step, since the steps are steep there."""
    a = with_singular_values(SPECTRA["one large"](60, 1e15), seed=2)
    assert run(minimax, a)[1].converged
    l = rounded_down(1e-15)
    safe = MINIMAX._steps(l, 0.1, EPS)
    bare = design.greedy(l, [5] * len(safe), cushion=0.1).steps
    with mpmath.workdps(40):
        values = []
        for steps in (safe, bare):
            x = 1 + 64 * mpmath.mpf(EPS)
            for step in steps:
                x = sum(mpmath.mpf(c) * x ** (2 * i + 1) for i, c in enumerate(step))
            values.append(abs(x - 1))
    assert values[0] < 1e-12
    assert values[1] > 1


# -- libraries -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("method", METHODS)
def test_every_library(lib, method, dtype):
    if lib.name == "jax" and dtype == "float32":
        pytest.skip("JAX compiles for every shape and dtype")
    eps = float(np.finfo(dtype).eps)
    values = np.geomspace(1, 1e-2 if dtype == "float32" else 1e-5, 3)
    tall = [with_singular_values(values, 7, dtype=dtype, seed=k) for k in range(2)]
    square = with_singular_values(values, 3, dtype=dtype)
    for a in [square] if lib.name == "jax" else [np.stack(tall), square]:
        x = lib.asarray(a)
        u, outcome = METHODS[method](x, ops_of(x), tol=100 * eps)
        assert lib.to_numpy(x).tobytes() == a.tobytes()
        assert type(u) is type(x)
        assert lib.dtype_name(u) == dtype
        assert outcome.converged
        assert_unitary_factor(a, lib.to_numpy(u), rtol=50 * eps)


@with_dask
@pytest.mark.parametrize("method", METHODS)
def test_singular_in_every_library(lib, method):
    if lib.name == "jax":
        pytest.skip("slow: every method is compiled")
    x = lib.asarray(np.stack([np.diag([1.0, 0.0, 2.0]), np.eye(3)]))
    with np.errstate(all="ignore"):
        u, _ = METHODS[method](x, ops_of(x), tol=1e-14)
    assert tuple(u.shape) == (2, 3, 3)


def test_unknown_scaling():
    with pytest.raises(ValueError, match=r"'byers'.*did you mean 'byers_xu'"):
        newton(np.eye(2), ops_of(np.eye(2)), tol=1e-14, scaling="byers")


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_halley_without_weights(dtype):
    """Small singular values grow threefold per step, then the error is cubed."""
    eps = float(np.finfo(dtype).eps)
    for n, extra in ((1, 0), (7, 0), (20, 30)):
        for condition in (1.0, 1e2, 1e5):
            a = with_singular_values(np.geomspace(1, 1 / condition, n), n + extra, dtype=dtype)
            u, result = run(halley, a)
            assert result.converged
            assert_unitary_factor(a, u, rtol=20 * eps)
            # The scalar iteration on the least and the largest value, scaled as the matrix may be.
            s, steps = 1 / (condition * math.sqrt(n)), 0
            while abs(1 - s) > eps:
                s, steps = s * (3 + s * s) / (1 + 3 * s * s), steps + 1
            assert result.iterations <= steps + 1
