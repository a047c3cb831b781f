"""Stacks of small matrices: tall closed forms, Halley steps, NumPy's LAPACK."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from conftest import DTYPES

from polarlib import ConvergenceWarning, Status, nearest_orthogonal, polar
from polarlib._methods.small import decompose
from polarlib._methods.stacked import serves, stacked
from polarlib.arrays.ops import ops_of
from polarlib.testing import with_singular_values

# Largest backward error and orthogonality, in epsilons: measured up to 10.2 for closed forms, 18
# for Halley steps and 35 for the SVD.
FEW, MORE = 20.0, 50.0
TALL = [(2, 1), (3, 2), (4, 3), (10, 3), (7, 4), (32, 3), (40, 2)]


def gaussian(shape: tuple[int, ...], dtype: str = "float64", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    if dtype.startswith("complex"):
        a = a + 1j * rng.standard_normal(shape)
    return a.astype(dtype)


def adjoint(a: np.ndarray) -> np.ndarray:
    return np.conj(np.swapaxes(a, -1, -2))


def norm(a: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a, axis=(-2, -1))


def mixed(count: int, m: int, n: int, dtype: str) -> np.ndarray:
    """Gaussian matrices, and others of every rank, scale and condition number among them."""
    a = gaussian((count, m, n), dtype)
    for r in range(n):
        a[r] = gaussian((m, r), dtype, 1) @ gaussian((r, n), dtype, 2)
    a[n, :, -1] = a[n, :, 0]
    a[n + 1] = 1
    a[n + 2, n - 1 :] = 0
    a[n + 3, :, 0] *= 1e-5
    small = float(np.finfo(dtype).eps)
    a[n + 4 : n + 7] *= np.array([small**2, 1 / small**2, small]).reshape(3, 1, 1)
    a[n + 7] *= small ** (np.arange(n) / max(n - 1, 1))
    if np.finfo(dtype).bits == 64:
        a[n + 8] *= 1e300
        a[n + 9] *= 1e-300
        a[n + 10, :, -1] *= 1e-200
    return a


def check(a: np.ndarray, u: np.ndarray, h: np.ndarray, few: float = FEW) -> None:
    """U is orthonormal, H Hermitian and semidefinite, and A = U H, each to rounding."""
    n, eps = a.shape[-1], float(np.finfo(a.dtype).eps)
    np.testing.assert_array_equal(h, adjoint(h))
    scale = np.abs(a).max(axis=(-2, -1), keepdims=True)
    scale[scale == 0] = 1
    x, p = (a / scale).astype(np.complex128), (h / scale).astype(np.complex128)
    v, size = u.astype(np.complex128), np.where(norm(x) == 0, 1, norm(x))
    assert np.all(norm(adjoint(v) @ v - np.eye(n)) <= few * eps * np.sqrt(n))
    assert np.all(norm(x - v @ p) <= few * eps * size)
    assert np.all(np.linalg.eigvalsh(p)[..., 0] >= -few * eps * size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n"), TALL)
def test_tall_stacks(m, n, dtype):
    a = mixed(60, m, n, dtype)
    before = a.tobytes()
    d = decompose(a, ops_of(a))
    assert a.tobytes() == before
    assert d.unitary.dtype == d.hermitian.dtype == a.dtype
    check(a, d.unitary, d.hermitian)
    eps = float(np.finfo(dtype).eps)
    scale = np.abs(a).max(axis=(-2, -1))
    scale[scale == 0] = 1
    s = np.linalg.svd((a / scale[:, None, None]).astype(np.complex128), compute_uv=False)
    clear = np.all(np.abs(np.log2((s + 1e-300) / (m * eps * s[:, :1] + 1e-300))) > 3, axis=-1)
    expected = (s > m * eps * s[:, :1]).sum(axis=-1)
    assert clear.sum() > 50
    np.testing.assert_array_equal(d.rank[clear], expected[clear])
    assert np.all(d.lower / scale <= s[:, -1] * (1 + 1e-6) + 8 * eps * s[:, 0])
    assert np.all(d.upper / scale >= s[:, 0] * (1 - 8 * eps))
    assert np.all(norm(adjoint(d.unitary) @ d.unitary - np.eye(n)) <= FEW * eps * np.sqrt(n))


@pytest.mark.parametrize(("m", "n"), TALL)
def test_tall_matrices_that_are_not_finite_stay_where_they_are(m, n):
    a = gaussian((30, m, n))
    clean = decompose(a, ops_of(a))
    a[4, -1, 0], a[9, 0, -1] = np.nan, np.inf
    d = decompose(a, ops_of(a))
    good = np.delete(np.arange(30), [4, 9])
    np.testing.assert_array_equal(d.unitary[good], clean.unitary[good])
    for k in (4, 9):
        assert np.isnan(d.unitary[k]).all()
        assert np.isnan(d.hermitian[k]).all()
        assert d.rank[k] == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(220, 10, 3), (220, 3, 10), (220, 8, 8), (300, 12, 6), (60, 2, 30, 17)]
)
@pytest.mark.parametrize("side", ["right", "left"])
def test_polar_of_stacks(shape, dtype, side):
    """Every figure of every matrix, for ill-conditioned and deficient ones as well."""
    if shape == (220, 3, 10):
        a = adjoint(mixed(220, 10, 3, dtype))
    elif len(shape) == 4:
        a = mixed(120, 30, 17, dtype).reshape(shape)
    else:
        a = mixed(*shape, dtype)
    before = a.tobytes()
    result = polar(a, side)
    assert a.tobytes() == before
    assert result.status is Status.CONVERGED, result.reason
    u, h = result
    assert u.shape == shape
    flip = side == "left"
    if (shape[-2] >= shape[-1]) != flip:
        check(adjoint(a) if flip else a, adjoint(u) if flip else u, h, MORE)
    eps = float(np.finfo(dtype).eps)
    for figure in (result.orthogonality, result.backward_error):
        assert figure.shape == shape[:-2]
        assert np.all(figure <= MORE * eps)
    scale = np.abs(a).max(axis=(-2, -1))
    scale[scale == 0] = 1
    s = np.linalg.svd((a / scale[..., None, None]).astype(np.complex128), compute_uv=False)
    cut = max(shape[-2:]) * eps * s[..., :1]
    clear = np.all(np.abs(np.log2((s + 1e-300) / (cut + 1e-300))) > 4, axis=-1)
    np.testing.assert_array_equal(result.rank[clear], (s > cut).sum(axis=-1)[clear])
    low, high = result.condition_bounds
    good = clear & (result.rank == min(shape[-2:]))
    condition = s[good][:, 0] / s[good][:, -1]
    slack = 1 + 1e-6 + 100 * eps * condition
    assert np.all(low[good] <= condition * slack)
    assert np.all(high[good] * slack >= condition)
    assert np.all(np.isinf(high[result.rank < min(shape[-2:])]))


@pytest.mark.parametrize("shape", [(220, 10, 3), (220, 8, 8), (110, 20, 16)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_finite_matrices_among_others(shape, dtype):
    a = gaussian(shape, dtype)
    whole = polar(a)
    a[3, 0, 0], a[5] = np.nan, np.inf
    with pytest.warns(ConvergenceWarning, match="nan"):
        result = polar(a, check_finite=False)
    good = np.delete(np.arange(len(a)), [3, 5])
    tol = 1000 * np.finfo(dtype).eps
    np.testing.assert_allclose(result.unitary[good], whole.unitary[good], atol=tol)
    for k in (3, 5):
        assert np.isnan(result.unitary[k]).all()
        assert np.isnan(result.backward_error[k])
        assert result.rank[k] == 0
    with pytest.raises(ValueError, match="NaN or infinity"):
        polar(a)


@pytest.mark.parametrize("shape", [(0, 10, 3), (0, 8, 8), (50, 0, 3), (3, 0, 4, 4), (50, 4, 0)])
def test_empty_stacks(shape):
    result = polar(np.zeros(shape))
    assert result.unitary.shape == shape
    assert result.rank.shape == shape[:-2]
    assert result.converged


# -- Halley steps ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "shape", [(320, 5, 5), (200, 8, 8), (60, 32, 32), (240, 24, 7), (4, 70, 9, 6)]
)
def test_halley_steps(shape, dtype):
    a = gaussian(shape, dtype)
    assert serves(a, ops_of(a))
    seen = []
    u, run = stacked(a, ops_of(a), tol=1e-13, callback=lambda k, x: seen.append((k, x.shape)))
    assert seen == [(k + 1, shape) for k in range(run.iterations)]
    left, s, right = np.linalg.svd(a.astype(float), full_matrices=False)
    # What rounding allows an error of U: the perturbation over the sum of the two smallest.
    bound = 40 * np.finfo(dtype).eps * s[..., 0] / (s[..., -1] + s[..., -2])
    assert np.all(norm(u - left @ right) <= bound)
    again, _ = stacked(a, ops_of(a), tol=1e-13)
    np.testing.assert_array_equal(u, again)


@pytest.mark.parametrize("condition", [1.0, 30.0, 900.0, 1e4, 1e8, 1e14])
def test_halley_steps_at_every_condition(condition):
    """The SVD where they do not converge, and both backward stable."""
    n, count = 6, 280
    s = np.geomspace(1, 1 / condition, n)
    a = np.stack([with_singular_values(s, 9, n, seed=k) for k in range(count)])
    result = polar(a)
    assert result.method == "hybrid"
    taken = int(result.reason.rpartition("; ")[2].split()[0])
    assert taken == (0 if condition < 1e3 else count if condition > 1e3 else taken)
    check(a, *result, MORE)
    low, high = result.condition_bounds
    assert np.all(low <= condition * (1 + 1e-12 + 1e-14 * condition))
    assert np.all(high >= condition * (1 - 1e-12 - 1e-14 * condition))


def test_other_matrices_do_not_change_a_result():
    a = gaussian((100, 8, 8))
    u, _ = stacked(a, ops_of(a), tol=1e-13)
    b = a.copy()
    b[::2] = 1
    v, _ = stacked(b, ops_of(b), tol=1e-13)
    np.testing.assert_array_equal(u[1::2], v[1::2])


# -- NumPy's LAPACK on stacks ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 2, 5, 5), (6, 9, 4), (6, 4, 9), (2, 70, 66), (0, 5, 5)])
def test_factorisations_of_stacks(shape, dtype):
    """Those of SciPy, matrix by matrix, up to phases; stacks too large for it as well."""
    a, ops = gaussian(shape, dtype), ops_of(np.zeros(1))
    tol = 100 * float(np.finfo(dtype).eps) * max(shape[-2:])
    u, s, vh = ops.svd(a)
    assert u.dtype == vh.dtype == a.dtype
    assert s.dtype == a.real.dtype
    q, r = ops.qr(a)
    assert q.dtype == r.dtype == a.dtype
    np.testing.assert_allclose((u * s[..., None, :]) @ vh, a, atol=tol)
    np.testing.assert_allclose(q @ r, a, atol=tol)
    np.testing.assert_allclose(adjoint(q) @ q, adjoint(u) @ u, atol=tol)
    for x, values in zip(a.reshape(-1, *shape[-2:]), s.reshape(-1, s.shape[-1]), strict=True):
        np.testing.assert_allclose(values, scipy.linalg.svdvals(x), atol=tol)


def test_one_bad_matrix_costs_the_others_nothing():
    ops = ops_of(np.zeros(1))
    z = np.stack([np.eye(4) * k for k in (1.0, 2.0, -1.0, 3.0)])
    factor = ops.cholesky(z)
    assert np.isnan(factor[2]).all()
    np.testing.assert_allclose(factor[[0, 1, 3]], np.sqrt(z[[0, 1, 3]]))
    shift = np.zeros((4, 1, 1))
    assert not ops.is_definite(z, shift)
    assert ops.is_definite(z[[0, 1, 3]], shift[:3])
    assert not ops.is_definite(z[[0, 1, 3]], shift[:3] + 1.5)
    z[2] = np.nan
    assert not ops.is_definite(z, shift)
    a = gaussian((4, 6, 6))
    a[1, 2, 2] = np.nan
    u, s, vh = ops.svd(a)
    good = [0, 2, 3]
    np.testing.assert_allclose(((u * s[..., None, :]) @ vh)[good], a[good], atol=1e-13)
    assert np.isnan(s[1]).all()


def test_an_svd_that_fails_goes_one_by_one(monkeypatch):
    a, ops = gaussian((4, 6, 6)), ops_of(np.zeros(1))
    _, s, _ = ops.svd(a)

    def fails(*args, **options):
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(np.linalg, "svd", fails)
    np.testing.assert_allclose(ops.svd(a)[1], s, rtol=1e-12)


def test_nearest_orthogonal_of_points():
    a = gaussian((100, 10, 3))
    left, _, right = np.linalg.svd(a, full_matrices=False)
    np.testing.assert_allclose(nearest_orthogonal(a), left @ right, atol=1e-13)
