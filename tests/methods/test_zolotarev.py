"""Zolotarev's steps against elliptic functions, equioscillation and QDWH; the method on the zoo."""

from __future__ import annotations

import ast
import itertools
import math

import mpmath
import numpy as np
import pytest

from polarlib import Schedule, Status, design, plot, polar
from polarlib._methods import METHODS
from polarlib._methods.qdwh import weights
from polarlib._methods.zolotarev import steps_for, zolotarev
from polarlib._schedules.steps import numbers
from polarlib.arrays.ops import ops_of
from polarlib.design.zolotarev import RationalSchedule, best_steps
from polarlib.design.zolotarev import zolotarev as design_zolotarev
from polarlib.testing import assert_polar, assert_unitary_factor, with_singular_values, zoo

LOWERS = (1e-30, 1e-16, 1e-8, 1e-3, 0.1, 0.9, 0.999)


def value(step, x):
    scale, residues, poles = step
    terms = zip(residues, poles, strict=True)
    return scale * (x + sum(a * x / (x * x + c) for a, c in terms))


@pytest.mark.parametrize("r", [1, 2, 3, 8])
@pytest.mark.parametrize("lower", LOWERS)
def test_poles_against_elliptic_functions(r, lower):
    with mpmath.workdps(120):
        m = 1 - mpmath.mpf(lower) ** 2
        k = mpmath.ellipk(m)
        found = design_zolotarev(r, lower).steps[0][2]
        for j, c in enumerate(found):
            u = (2 * j + 1) * k / (2 * r + 1)
            exact = (lower * mpmath.ellipfun("sc", u, m=m)) ** 2
            assert abs(c / exact - 1) < 4e-16


@pytest.mark.parametrize("r", [1, 2, 5, 8])
@pytest.mark.parametrize("lower", [1e-30, 1e-16, 1e-6, 1e-2, 0.5, 0.9])
def test_equioscillation(r, lower):
    """Best if and only if 1 - E and 1 + E are taken in turn at 2 r + 2 points of [lower, 1]."""
    step = design_zolotarev(r, lower).steps[0]
    error = best_steps(r, lower, 1.0)[1][0]
    with mpmath.workdps(140):
        l = mpmath.mpf(lower)
        m = 1 - l**2
        k = mpmath.ellipk(m)
        points = [mpmath.ellipfun("dn", i * k / (2 * r + 1), m=m) for i in range(2 * r + 2)]
        points = [mpmath.mpf(1), *points[1:-1], l]
        values = [value(step, x) - 1 for x in points]
        # The coefficients are doubles: they keep the error to their rounding.
        slack = 1e-14
        assert all(abs(v - (-1) ** i * error) < slack for i, v in enumerate(values))
        assert all(x > y for x, y in itertools.pairwise(points))
        grid = [l ** (mpmath.mpf(i) / 400) for i in range(401)]
        assert all(abs(value(step, x) - 1) <= error + slack for x in grid)


def test_errors_from_an_independent_source():
    s = design_zolotarev(1, 1e-16)
    assert len(s) == 6
    expected = [0.99998, 0.892, 0.122, 1.15e-4]
    for k, e in enumerate(expected, 1):
        assert s.truncate(k).error() == pytest.approx(e, rel=1e-3)
    assert best_steps(1, 1e-16, 1e-12)[1][4] == pytest.approx(9.5e-14, rel=5e-3)
    assert len(design_zolotarev(8, 1e-16)) == 2


@pytest.mark.parametrize("lower", [1e-16, 1e-8, 1e-3, 0.5, 0.9])
def test_one_pole_is_the_weighted_halley_step(lower):
    (a, b), c = weights(lower)
    _, (residue,), (pole,) = design_zolotarev(1, lower).steps[0]
    assert pole * c == pytest.approx(1, rel=1e-14)
    assert (pole + residue) * b / a == pytest.approx(1, rel=1e-14)


@pytest.mark.thinned(4)
@pytest.mark.parametrize("r", [1, 2, 4, 8])
@pytest.mark.parametrize("lower", LOWERS)
def test_every_truncation_is_centred(r, lower):
    s = design_zolotarev(r, lower)
    _, errors = best_steps(r, lower, 2.0**-50)
    assert s.error() < 2e-15
    for k in range(1, len(s) + 1):
        part = s.truncate(k)
        lo, hi = part.image()
        assert abs(lo + hi - 2) < 1e-14
        assert abs(part.error() - errors[k - 1]) < 1e-14
        x = np.geomspace(lower, 1, 5001)
        off = np.abs(part(x) - 1)
        assert off.max() <= part.error() + 1e-14
        assert off.max() >= part.error() * (1 - 1e-3) - 1e-14
    assert s.factorisations == r * len(s)


def test_steps_compose_to_the_best_of_the_product_of_the_types():
    # Two steps of type (3, 2) are the best of type (9, 8).
    two = best_steps(1, 1e-3, 1e-30)[1][1]
    assert best_steps(4, 1e-3, 1e-30)[1][0] == pytest.approx(two, rel=1e-12)


def test_image_of_other_intervals():
    s = design_zolotarev(2, 1e-4)
    rng = np.random.default_rng(0)
    for _ in range(20):
        lo, hi = np.sort(10 ** rng.uniform(-6, 1, 2))
        x = np.geomspace(lo, hi, 20001)
        low, high = s.image(lo, hi)
        y = s(x)
        assert low <= y.min() + 1e-14 * high
        assert high >= y.max() - 1e-14 * high
        assert low == pytest.approx(y.min(), rel=1e-5)
        assert high == pytest.approx(y.max(), rel=1e-5)
    h = 1e-12
    assert s.slope == pytest.approx(s(h) / h, rel=1e-12)


def test_bad_requests():
    for r in (0, -1, 1.0, True, "1", None):
        with pytest.raises(ValueError, match="r must be an integer of at least 1"):
            design_zolotarev(r, 0.1)
    for lower in (0, 1, -0.1, 1.5, math.nan, math.inf, "a", None):
        with pytest.raises(ValueError, match="lower must be a number between 0 and 1"):
            design_zolotarev(2, lower)
    s = design_zolotarev(1, 0.1)
    for k in (0, 1.0):
        with pytest.raises(ValueError, match="steps must be an integer of at least 1"):
            s.truncate(k)
    with pytest.raises(ValueError, match=f"at most {len(s)} .* got {len(s) + 1}; .*repeat='last'"):
        s.truncate(len(s) + 1)
    with pytest.raises(ValueError, match="repeat must be None, 'forever' or 'last', got 'on'"):
        s.truncate(1, repeat="on")


def test_poles_that_underflow_are_refused():
    with pytest.raises(ValueError, match=r"poles .* are beyond double coefficients"):
        design_zolotarev(2, 1e-200)
    # Elsewhere rounding costs nothing: no term is negative.
    assert design_zolotarev(40, 1e-16).error() < 2.0**-50


def test_steps_go_on():
    s = design_zolotarev(1, 0.1)
    k = len(s) + 3
    assert s.truncate(k, repeat="last").steps == s.steps + s.steps[-1:] * 3
    assert s.truncate(k, repeat="forever").steps == (s.steps * 3)[:k]
    assert s.truncate(k, repeat="last").error() < 1e-15
    for interval in ((0, 1), (2, 1), (1, math.inf)):
        with pytest.raises(ValueError, match=r"must be a number above 0|0 < lower <= upper"):
            s.image(*interval)
    for steps in (((1.0, (1.0,), ()),), ((1.0, (-1.0,), (1.0,)),), ((math.nan, (1.0,), (1.0,)),)):
        with pytest.raises(ValueError, match=r"all positive|must be a number above 0"):
            Schedule(steps=steps, lower=0.1, normalisation="spectral")
    with pytest.raises(ValueError, match="at least one step"):
        Schedule(steps=(), lower=0.1, normalisation="spectral")


def test_the_former_name_makes_a_schedule():
    s = design_zolotarev(2, 0.1)
    with pytest.warns(DeprecationWarning, match="design.RationalSchedule is now polarlib.Schedule"):
        old = RationalSchedule(steps=s.steps, lower=s.lower, name=s.name, source=s.source)
    assert old == s


@pytest.mark.parametrize("r", [1, 3, 8])
def test_the_interface_of_every_schedule(r, tmp_path):
    s = design_zolotarev(r, 1e-8)
    s.to_json(tmp_path / "s.json")
    assert Schedule.from_json(tmp_path / "s.json") == s
    assert ast.literal_eval(s.to_code("python")) == s.steps
    for kind in ("c", "triton", "cuda", "latex"):
        with pytest.raises(ValueError, match=r"is for schedules of polynomials; .* is rational"):
            s.to_code(kind)
    for refused in (s.certify, lambda: design.restarts(s, "bfloat16"), lambda: design.table(s)):
        with pytest.raises(ValueError, match=r"is for schedules of polynomials; .* is rational"):
            refused()
    assert s.is_rational
    assert not Schedule(steps=[(1.5, -0.5)], lower=0.5).is_rational
    assert s.divergence_limit > 1.5
    assert max(map(abs, s.image(1, s.divergence_limit * (1 - 1e-12)))) <= 2
    assert max(map(abs, s.image(1, s.divergence_limit * (1 + 1e-12)))) > 2
    assert s.is_safe_in("bfloat16")
    assert s.to_dict()["figures"]["error"] == s.error()
    rounded = s.quantize("float32")
    assert all(float(np.float32(v)) == v for step in rounded.steps for v in numbers(step))
    assert rounded.error() < 1e-5
    ax = plot.polynomial(s.truncate(1))
    assert "worst error, at" in " ".join(t.get_text() for t in ax.get_legend().get_texts())


def test_what_rational_steps_cannot_be_combined_with():
    step = (1 / 3, [8 / 3], [1 / 3])
    fields = {"steps": [step], "lower": 0.5, "normalisation": "spectral"}
    for name, value in (("normalisation", "frobenius"), ("input_safety", 1.01), ("stride", 3)):
        with pytest.raises(ValueError, match=f"{name} must be .* for rational steps, got"):
            Schedule(**fields | {name: value})
    with pytest.raises(ValueError, match="target must be 'polar' for rational steps, got 'clip'"):
        Schedule(**fields, target="clip")
    with pytest.raises(ValueError, match="all polynomials or all rational, got both"):
        Schedule(**fields | {"steps": [step, (1.5, -0.5)]})


# -- the method ------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _listed(monkeypatch):
    monkeypatch.setitem(METHODS, "zolotarev", zolotarev)


@pytest.mark.parametrize(
    ("condition", "poles"),
    [(1.001, 1), (2, 2), (10, 3), (1e3, 4), (1e5, 5), (1e7, 6), (1e10, 7), (1e16, 8)],
)
def test_two_iterations_with_few_poles(condition, poles):
    steps, errors = steps_for(1 / condition, 2.0**-52, None)
    assert len(steps) <= 2
    assert len(steps[0][2]) == poles
    assert errors[-1] < 1e-15


ZOO = dict(zoo(8))


@pytest.mark.parametrize("animal", ZOO)
def test_zoo(animal):
    a = ZOO[animal]
    for side in ("right", "left"):
        result = polar(a, method="zolotarev", side=side)
        assert result.converged, result
        assert_polar(a, *result, side=side, rtol=50 * 2.0**-52)
        assert_unitary_factor(a, result.unitary, rtol=50 * 2.0**-52)


def test_zoo_in_single_precision():
    for animal, a in zoo(8, dtype="float32"):
        result = polar(a, method="zolotarev")
        assert result.converged, animal
        assert_polar(a, *result, rtol=50 * 2.0**-23)


@pytest.mark.parametrize("condition", [1.0, 10.0, 1e5, 1e10, 1e15])
def test_backward_error_does_not_know_the_condition(condition):
    values = np.geomspace(1, 1 / condition, 60)
    result = polar(with_singular_values(values, 80, seed=1), method="zolotarev")
    assert result.status is Status.CONVERGED
    assert result.iterations <= 2
    assert result.orthogonality <= 10 * 2.0**-52
    assert result.backward_error <= 10 * 2.0**-52


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_every_library(lib, dtype):
    rng = np.random.default_rng(0)
    eps = float(np.finfo(dtype).eps)
    if lib.name == "jax" and dtype in ("float64", "complex64"):
        pytest.skip("JAX compiles for every shape and dtype")
    for shape in [(4, 3)] if lib.name == "jax" else [(5, 5), (7, 4), (1, 1), (2, 3, 4, 3)]:
        a = rng.standard_normal(shape)
        if dtype.startswith("complex"):
            a = a + 1j * rng.standard_normal(shape)
        a = a.astype(dtype)
        x = lib.asarray(a)
        u, run = zolotarev(x, ops_of(x), tol=100 * eps)
        assert lib.to_numpy(x).tobytes() == a.tobytes()
        assert type(u) is type(x)
        assert lib.dtype_name(u) == dtype
        assert run.converged
        assert_unitary_factor(a, lib.to_numpy(u), rtol=50 * eps)


def test_callback_and_counts():
    a = with_singular_values(np.geomspace(1, 1e-9, 6), 9)
    seen = []
    _, run = zolotarev(a, ops_of(a), tol=1e-14, callback=lambda k, x: seen.append((k, x)))
    assert [k for k, _ in seen] == list(range(1, run.iterations + 1))
    assert all(x.shape == (9, 6) for _, x in seen)
    assert len(run.changes) == run.iterations == 2
    # Gram matrices at the start and of each iterate, the way back to 9 rows, and in the first
    # iteration the poles: one by Householder's QR, five by Cholesky-QR.
    assert run.matmuls == 1 + 2 + 1 + 1 + 5 * 2


def test_a_bound_that_is_too_large_is_made_good():
    # Smallest singular values below the bound: they end below 1, and products finish.
    a = with_singular_values(np.geomspace(1, 1e-5, 12))
    u, run = zolotarev(a, ops_of(a), tol=1e-14, lower=1e-3)
    assert run.converged
    assert run.iterations > 2
    assert_unitary_factor(a, u, rtol=50 * 2.0**-52)


def test_zero_stays_zero_in_the_method():
    u, run = zolotarev(np.zeros((3, 3)), ops_of(np.zeros(1)), tol=1e-14)
    assert not u.any()
    assert not run.converged
