"""NaN and infinity never reach LAPACK: some of its iterations would not end."""

from __future__ import annotations

import contextlib
import functools
import warnings

import numpy as np
import pytest
import scipy.linalg
from array_api_compat.numpy import linalg as compat

import polarlib
from polarlib import derivatives, norms
from polarlib.arrays import qr_kernels, routines
from polarlib.arrays.ops import ops_of
from polarlib.norms.low_rank import power_step, range_lmo

NAMES = (
    *("cholesky", "det", "eig", "eigh", "eigh_tridiagonal", "eigvals", "eigvalsh", "inv"),
    *("lstsq", "pinv", "qr", "slogdet", "solve", "solve_triangular", "svd", "svdvals"),
)


@pytest.fixture
def guarded(monkeypatch):
    """Every factorisation that Python can call refuses what is not finite."""
    counts = {"calls": 0}

    def checked(f):
        @functools.wraps(f)
        def call(*args, **kwargs):
            counts["calls"] += 1
            for a in args:
                if isinstance(a, np.ndarray) and a.dtype.kind in "fc":
                    assert np.isfinite(a).all(), f.__name__
            return f(*args, **kwargs)

        return call

    for module in (np.linalg, scipy.linalg, compat):
        for name in NAMES:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, checked(getattr(module, name)))
    call = routines.call

    def checked_call(name, kind, *arguments):
        # Without a matrix, a call asks for the length of a work array.
        a = next((a for a in arguments if isinstance(a, np.ndarray) and a.ndim == 2), None)
        factorises = name in ("potrf", "hetrf", "trtri", "gesdd", "gesvd", "getrf", "geqrf")
        if factorises and a is not None:
            counts["calls"] += 1
            assert np.isfinite(np.triu(a) if name in ("potrf", "hetrf", "trtri") else a).all()
        return call(name, kind, *arguments)

    monkeypatch.setattr(routines, "call", checked_call)
    monkeypatch.setattr(qr_kernels, "call", checked_call)
    return counts


CALLS = {
    "polar": lambda a: polarlib.polar(a, check_finite=False),
    **{
        method: functools.partial(polarlib.polar, method=method, check_finite=False)
        for method in polarlib._methods.METHODS
    },
    "checked": polarlib.polar,
    "orthogonalize": polarlib.orthogonalize,
    "halley schedule": lambda a: polarlib.orthogonalize(a, schedule="halley"),
    "nearest_orthogonal": polarlib.nearest_orthogonal,
    "nearest_rotation": polarlib.nearest_rotation,
    "procrustes": lambda a: polarlib.procrustes(a, np.ones(a.shape)),
    "sqrtm_psd": polarlib.sqrtm_psd,
    "sqrtm": polarlib.sqrtm,
    "signm": polarlib.signm,
    "inverse_root": lambda a: polarlib.inverse_root(a, 2),
    "inverse_root of known condition": lambda a: polarlib.inverse_root(a, 2, condition=9.0),
    "top_singular": lambda a: polarlib.top_singular(a, 1),
    "lanczos": lambda a: polarlib.top_singular(a, 1, method="lanczos"),
    "power_step": lambda a: power_step(a, np.eye(a.shape[-1])[:, :2]),
    "power_step from it": lambda a: power_step(np.ones(a.shape), a[..., :2]),
    "range_lmo": lambda a: range_lmo(a, np.eye(a.shape[-2])[:, :2]),
    "range_lmo in it": lambda a: range_lmo(np.ones(a.shape), a[..., :2]),
    "lmo": norms.schatten(3).lmo,
    "norm": norms.nuclear(),
    "project": norms.spectral().project,
    "clip": lambda a: norms.spectral_clip(a, 1.0),
    "power": lambda a: norms.spectral_power(a, 0.5),
    "jvp": lambda a: derivatives.polar_jvp(a, np.ones(a.shape)),
    "jvp along it": lambda a: derivatives.polar_jvp(np.eye(a.shape[-1]), a),
    "vjp": lambda a: derivatives.polar_vjp(np.eye(a.shape[-1]), a, a),
    "measure": lambda a: polarlib.measure(a, "svd"),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_is_not_finite_stays_out(guarded, call):
    rng = np.random.default_rng(0)
    for shape in ((3, 3), (6, 6), (2, 6, 6), (130, 130)):
        g = rng.standard_normal(shape)
        a = g @ np.swapaxes(g, -1, -2) + np.eye(shape[-1])
        for bad in (np.nan, np.inf):
            b = a.copy()
            b[..., 1, 2] = b[..., 2, 1] = bad
            with warnings.catch_warnings(), contextlib.suppress(ValueError):
                warnings.simplefilter("ignore")
                CALLS[call](b)
    # The guard is there.
    with pytest.raises(AssertionError):
        np.linalg.svd(b)
    assert guarded["calls"]


PRIMITIVES = {
    "svd": lambda ops, x: ops.svd(x),
    "singular_values": lambda ops, x: (ops.singular_values(x),),
    "qr": lambda ops, x: ops.qr(x),
    "cholesky": lambda ops, x: (ops.cholesky(x),),
    "eigh": lambda ops, x: ops.eigh(x),
    "inverse": lambda ops, x: (ops.inverse(x),),
    "determinant_sign": lambda ops, x: (ops.determinant_sign(x),),
    "solve_lower": lambda ops, x: (ops.solve_lower(ops.xp.tril(x), x),),
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_primitives_give_nan_for_the_bad_matrix_alone(lib, name, guarded):
    rng = np.random.default_rng(0)
    g = rng.standard_normal((4, 3, 3))
    a = g @ np.swapaxes(g, -1, -2) + np.eye(3)
    expected = PRIMITIVES[name](ops_of(a), a)
    a[1, 0, 0], a[3, 2, 1] = np.nan, np.inf
    x = lib.asarray(a)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = PRIMITIVES[name](ops_of(x), x)
    for found, right in zip(results, expected, strict=True):
        found = lib.to_numpy(found)
        assert np.isnan(found[1::2]).all()
        np.testing.assert_allclose(np.abs(found[::2]), np.abs(right[::2]), atol=1e-12)


def test_large_finite_matrices_are_finite(guarded):
    """Their sum overflows."""
    a = np.stack([np.full(100, 3e306), np.linspace(1e306, 3e306, 100)], axis=1)
    with np.errstate(over="ignore"):  # as in every public function
        q, _ = ops_of(a).qr(a)
    np.testing.assert_allclose(q.T @ q, np.eye(2), atol=1e-14)
    assert guarded["calls"] == 1
