"""The short way of one small NumPy matrix: the same results as the stages, and the same refusals.

A callback changes nothing but the way: with one, a matrix goes through the stages.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import DTYPES

import polarlib
from polarlib import ConvergenceWarning, Status, nearest_orthogonal, polar
from polarlib._methods import METHODS
from polarlib._methods.auto import WORTH_IT
from polarlib._stages.short import short_factor, short_polar
from polarlib.arrays import single
from polarlib.engine.evidence import EXACT_UP_TO
from polarlib.testing import assert_polar, assert_unitary_factor, with_singular_values

SHAPES = [(1, 1), (1, 6), (6, 1), (2, 2), (5, 5), (9, 4), (4, 9), (1000, 3), (30, 70), (70, 70)]
SHAPES += [(WORTH_IT - 1, WORTH_IT - 1), (EXACT_UP_TO + 1, 200), (200, EXACT_UP_TO)]
LAYOUTS = {
    "rows": np.ascontiguousarray,
    "columns": np.asfortranarray,
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "sliced": lambda a: np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3],
}


def matrix(shape, dtype="float64", seed=0):
    rng = np.random.default_rng([seed, *shape])
    a = rng.standard_normal(shape)
    return (a + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else a).astype(dtype)


def by_stages(a, side="right", **options):
    return polar(a, side, callback=lambda *_: None, **options)


def is_larger(side, shape):
    """Whether the larger of two Hermitian factors is asked for: it may exceed the memory."""
    m, n = shape
    return m != n and (m < n) != (side == "left")


def outcome(result):
    names = ("status", "converged", "method", "reason", "iterations", "matmuls", "rank", "trace")
    return {name: getattr(result, name) for name in names}


def check_figures(a, result, side):
    """The figures, by their definitions in double precision."""
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    u, h, exact = (t.astype(wide) for t in (*result, a))
    k, eps = min(a.shape), float(np.finfo(a.dtype).eps)
    gram = u @ u.conj().T if a.shape[0] < a.shape[1] else u.conj().T @ u
    orthogonality = np.linalg.norm(gram - np.eye(k)) / np.sqrt(k)
    product = h @ u if side == "left" else u @ h
    error = np.linalg.norm(exact - product) / np.linalg.norm(exact)
    # What is measured in the precision of the matrix is itself rounded; above, it is an estimate.
    rel = 0.2 if k > EXACT_UP_TO else 0.05
    assert result.orthogonality == pytest.approx(orthogonality, rel=rel, abs=2 * k**0.5 * eps)
    assert result.backward_error == pytest.approx(error, rel=rel, abs=2 * k**0.5 * eps)
    assert type(result.orthogonality) is type(result.backward_error) is float


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_results_are_those_of_the_stages(shape, dtype, side):
    a = matrix(shape, dtype)
    eps = float(np.finfo(dtype).eps)
    for method in ("auto", "svd"):
        assert (short_polar(a, side, method, None) is None) == is_larger(side, shape)
        result, expected = polar(a, side, method=method), by_stages(a, side, method=method)
        assert outcome(result) == outcome(expected)
        assert_polar(a, *result, side=side, rtol=50 * eps)
        np.testing.assert_array_equal(result.hermitian, result.hermitian.conj().T)
        # Both are backward stable: they differ by as much as the factors are sensitive.
        sensitive = 100 * eps * max(expected.condition_bounds[0], 1)
        assert np.linalg.norm(result.unitary - expected.unitary) <= sensitive * min(shape) ** 0.5
        size = np.linalg.norm(a)
        assert np.linalg.norm(result.hermitian - expected.hermitian) <= 100 * eps * size
        np.testing.assert_allclose(
            result.condition_bounds, expected.condition_bounds, rtol=sensitive + 1e-6
        )
        assert type(result.unitary) is type(result.hermitian) is np.ndarray
        assert result.unitary.dtype == result.hermitian.dtype == a.dtype
        check_figures(a, result, side)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("shape", [(6, 6), (9, 6), (6, 9), (80, 80)])
def test_rank_deficient_matrices(shape, rank, dtype):
    values = np.r_[np.geomspace(1, 0.1, rank), np.zeros(min(shape) - rank)]
    a = with_singular_values(values, max(shape), dtype=dtype)
    a = a if a.shape == shape else np.ascontiguousarray(a.conj().T)
    eps = float(np.finfo(dtype).eps)
    for side in ("right", "left"):
        assert (short_polar(a, side, "auto", None) is None) == is_larger(side, shape)
        result, expected = polar(a, side), by_stages(a, side)
        assert outcome(result) == outcome(expected)
        assert result.rank == rank
        assert result.condition_bounds[1] == expected.condition_bounds[1] == np.inf
        assert_polar(a, *result, side=side, rtol=50 * eps)
        check_figures(a, result, side)
        # U is not unique, H of the smaller size is.
        if result.hermitian.shape[0] == min(shape):
            np.testing.assert_allclose(result.hermitian, expected.hermitian, atol=50 * eps)
    part = polar(a, completion=False)
    assert np.linalg.norm(part.unitary) == pytest.approx(rank**0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_unitary_factor_alone(shape, dtype):
    a = matrix(shape, dtype)
    before = a.copy()
    assert short_factor(a) is not None
    u = nearest_orthogonal(a)
    np.testing.assert_allclose(u, polar(a).unitary, atol=20 * np.finfo(dtype).eps)
    assert_unitary_factor(a, u, rtol=50 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(a, before)
    assert not np.shares_memory(a, u)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float64", "complex64"])
@pytest.mark.parametrize("shape", [(7, 7), (8, 5), (5, 8), (70, 66)])
def test_memory_orders(shape, dtype, layout):
    plain = matrix(shape, dtype)
    a = LAYOUTS[layout](plain)
    a.setflags(write=False)
    for side in ("right", "left"):
        assert (short_polar(a, side, "auto", None) is None) == is_larger(side, shape)
        result, expected = polar(a, side), polar(plain, side)
        eps = float(np.finfo(dtype).eps)
        np.testing.assert_allclose(result.unitary, expected.unitary, atol=1e3 * eps)
        np.testing.assert_allclose(result.hermitian, expected.hermitian, atol=1e3 * eps)
        np.testing.assert_array_equal(a, plain)
        for factor in result:
            assert factor.flags.writeable
            assert not np.shares_memory(factor, a)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scales(dtype):
    """What rounds off the range is scaled by the stages; the rest need not be."""
    a, top = matrix((6, 6), dtype), 30 if np.finfo(dtype).bits == 32 else 290
    expected = polar(a)
    for exponent in (-top, -top // 2, -5, 5, top // 2, top):
        scaled = (a * 10.0**exponent).astype(dtype)
        short = short_polar(scaled, "right", "auto", None)
        assert (short is None) == (abs(exponent) > 5)
        with np.errstate(all="raise"):
            result = polar(scaled)
        assert result.status is Status.CONVERGED
        eps = float(np.finfo(dtype).eps)
        np.testing.assert_allclose(result.unitary, expected.unitary, atol=1e3 * eps)
        assert result.backward_error < 50 * eps
    zero = np.zeros((3, 2), dtype)
    assert short_polar(zero, "right", "auto", None) is None
    assert polar(zero).rank == 0


def test_underflow_does_not_raise():
    a = np.diag([1.0, 5e-324, 1e-310])
    with np.errstate(all="raise"):
        assert short_polar(a, "right", "auto", None) is not None
        np.testing.assert_array_equal(polar(a).unitary, np.eye(3))


@pytest.mark.parametrize(
    ("a", "options"),
    [
        (np.array([[1.0, np.nan], [2, 3]]), {}),
        (np.array([[1.0, 2], [-np.inf, 3]]), {}),
        (np.ones((2, 3, 0)), {"rtol": 2}),
        (np.ones(3), {}),
        (np.ones((2, 2), "U1"), {}),
        (np.eye(2), {"rtol": 0}),
        (np.eye(2), {"rtol": "1"}),
        (np.eye(2), {"side": "up"}),
        (np.eye(2), {"side": np.array(["right", "left"])}),
        (np.eye(2), {"method": "svdd"}),
        (np.eye(2), {"method": ["svd"]}),
        (np.eye(2), {"throw": 1}),
        (np.eye(2), {"check_finite": None}),
        (np.eye(2), {"completion": "yes"}),
        (np.eye(2), {"overwrite_a": 0}),
        (np.eye(2), {"cond": 0.5}),
        (np.eye(2), {"sigma_min": 1.0, "method": "svd"}),
        (np.eye(2), {"out": np.eye(2)}),
    ],
)
def test_refusals_are_the_same(a, options):
    found = []
    for call in (polar, by_stages):
        try:
            call(a, **options)
        except (ValueError, TypeError) as error:
            found.append((type(error), str(error)))
        else:
            found.append((None, ""))
    assert found[0] == found[1]


def test_what_is_not_for_it_goes_through_the_stages():
    a = matrix((4, 4))
    others = [
        a.astype("f2"),
        a.astype(">f8"),
        a.astype("g"),
        a.view(np.matrix),
        a[None],
        a.tolist(),
    ]
    for other in [
        *others,
        np.ones((2, 2), int),
        np.ones((0, 3)),
        matrix((2, 1025)),
        matrix((WORTH_IT, WORTH_IT)),
    ]:
        assert short_polar(other, "right", "auto", None) is None
        assert short_factor(other) is None
    for method in ("qdwh", "polar_express", polarlib.schedule("polar_express"), 3):
        assert short_polar(a, "right", method, None) is None
    assert short_polar(a, "right", "auto", 1e-30) is None
    with pytest.warns(ConvergenceWarning, match="tolerance 1.00e-30"):
        assert polar(a, rtol=1e-30).status is Status.NOT_CONVERGED


# -- faults ----------------------------------------------------------------------------------


def _flipped(u, s, vh):
    return u * np.r_[np.ones(len(s) - 1), -1], s, vh


FAULTS = {
    "flipped": _flipped,
    "short": lambda u, s, vh: (u * 0.99, s, vh),
    "one direction": lambda u, s, vh: (u * np.r_[np.ones(len(s) - 1), 1 - 1e-3], s, vh),
    "permuted": lambda u, s, vh: (u[:, ::-1], s, vh),
    "mirrored": lambda u, s, vh: (u, s, vh[:, ::-1]),
    "values too large": lambda u, s, vh: (u, s * 1.01, vh),
    "lost": lambda u, s, vh: (u * np.nan, s * np.nan, vh),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("n", [5, EXACT_UP_TO + 20])
def test_a_wrong_svd_is_found_by_the_evidence(n, fault, monkeypatch):
    """The stages, whose SVD is another function, then decompose the matrix."""
    right = single._svd
    monkeypatch.setattr(single, "_svd", lambda x, kind: FAULTS[fault](*right(x, kind)))
    a = with_singular_values(np.geomspace(1, 1e-3, n))
    assert short_polar(a, "right", "auto", None) is None
    assert short_factor(a) is None
    assert_polar(a, *polar(a), rtol=1e-13)
    assert_unitary_factor(a, nearest_orthogonal(a), rtol=1e-13)


def test_an_svd_that_does_not_converge_is_left_to_the_stages(monkeypatch):
    monkeypatch.setattr(single, "_svd", lambda x, kind: None)
    a = matrix((6, 4))
    assert short_polar(a, "right", "auto", None) is None
    assert polar(a).status is Status.CONVERGED


def test_another_method_in_its_place_is_run_and_checked(monkeypatch):
    def wrong(x, ops, *, tol, callback=None):
        u, run = right(x, ops, tol=tol)
        return -u, run

    right = METHODS["svd"]
    monkeypatch.setitem(METHODS, "svd", wrong)
    a = matrix((5, 5))
    with pytest.warns(ConvergenceWarning):
        result = polar(a * np.nan, method="svd", check_finite=False)
    assert result.status is Status.NOT_CONVERGED
    assert np.linalg.norm(polar(a, method="svd").unitary + nearest_orthogonal(a)) < 1e-13


# -- what it is for --------------------------------------------------------------------------


def calls(f):
    """Number of Python calls inside the package."""
    found, home = 0, str(Path(polarlib.__file__).parent)

    def profile(frame, event, arg):
        nonlocal found
        found += event == "call" and frame.f_code.co_filename.startswith(home)

    f()
    sys.setprofile(profile)
    try:
        f()
    finally:
        sys.setprofile(None)
    return found


def test_calls_are_few():
    a = matrix((16, 16))
    with warnings.catch_warnings():
        assert 5 * calls(lambda: polar(a)) < calls(lambda: by_stages(a))
        assert calls(lambda: nearest_orthogonal(a)) <= calls(lambda: polar(a))
