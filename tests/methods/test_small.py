"""Stacks of matrices up to 4 x 4, against the SVD, multiple precision and brute force."""

from __future__ import annotations

import itertools
import warnings

import mpmath
import numpy as np
import pytest
from conftest import DTYPES
from hypothesis import given, settings
from hypothesis import strategies as st

from polarlib import polar
from polarlib._methods import small as module
from polarlib._methods import small_algebra
from polarlib._methods.small import decompose, small
from polarlib.arrays.ops import ops_of
from polarlib.testing import with_singular_values
from polarlib.uses.nearest import _shown_rotation as rotation

SIZES = (1, 2, 3, 4)
# Largest backward error and orthogonality, in epsilons: measured up to 4.5 on a million matrices.
FEW = 8.0


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


def check(a: np.ndarray) -> module.Decomposition:
    """Everything that a decomposition promises, recomputed in double precision or better."""
    before = a.tobytes()
    d = decompose(a, ops_of(a))
    assert a.tobytes() == before
    n, eps = a.shape[-1], float(np.finfo(a.dtype).eps)
    u, h = d.unitary, d.hermitian
    assert u.dtype == h.dtype == a.dtype
    assert u.shape == h.shape == a.shape
    np.testing.assert_array_equal(h, adjoint(h))
    wide = np.clongdouble if a.dtype.kind == "c" else np.longdouble
    scale = np.abs(a).max(axis=(-2, -1), keepdims=True)
    scale[scale == 0] = 1
    x, p, v = (m.astype(wide) for m in (a, h, u))
    x, p = x / scale, p / scale
    size = np.where(norm(x) == 0, 1, norm(x))
    error = np.sqrt((np.abs(x - v @ p) ** 2).sum((-2, -1))) / size
    defect = np.sqrt((np.abs(adjoint(v) @ v - np.eye(n)) ** 2).sum((-2, -1)) / n)
    assert error.max(initial=0) <= FEW * eps
    assert defect.max(initial=0) <= FEW * eps
    # The figures are what they say, up to the rounding of measuring them.
    assert np.all(np.abs(d.backward_error - error) <= 4 * eps)
    assert np.all(np.abs(d.orthogonality - defect) <= 4 * eps)
    assert d.definite.all()
    low = np.linalg.eigvalsh(p.astype(np.complex128))[..., 0]
    assert np.all(low >= -FEW * eps * size)
    assert d.orthogonality.shape == d.rank.shape == d.lower.shape == a.shape[:-2]
    s = np.linalg.svd((a / scale).astype(np.complex128), compute_uv=False) * scale[..., 0]
    np.testing.assert_array_less(d.lower * (1 - 1e-6), s[..., -1] + 8 * eps * s[..., 0] + 1e-320)
    np.testing.assert_array_less(s[..., 0] * (1 - 4 * eps), d.upper * (1 + 1e-6) + 1e-300)
    return d


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_gaussian_and_deficient(n, dtype):
    rng = np.random.default_rng(1)
    a = gaussian((3000, n, n), dtype)
    d = check(a)
    assert np.all(d.rank == n)
    assert d.repaired < 0.05 * len(a)  # the rest does not slow the whole
    for r in range(n):  # every rank, exactly or up to rounding
        product = gaussian((500, n, r), dtype, 2) @ gaussian((500, r, n), dtype, 3)
        assert np.all(check(product).rank == r)
    integers = rng.integers(-2, 3, (2000, n, n)).astype(dtype)
    expected = np.linalg.matrix_rank(integers.astype(np.complex128))
    np.testing.assert_array_equal(check(integers).rank, expected)


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
@pytest.mark.parametrize("n", SIZES)
def test_all_conditions(n, dtype):
    rng = np.random.default_rng(n)
    s = 10.0 ** rng.uniform(-18, 0, (2000, n))
    q = np.linalg.qr(gaussian((2, 2000, n, n), dtype, 4).astype("complex128"))[0]
    if not dtype.startswith("complex"):
        q = np.linalg.qr(gaussian((2, 2000, n, n), dtype, 4))[0]
    check(((q[0] * s[:, None, :]) @ q[1]).astype(dtype))


@pytest.mark.parametrize("ratio", [1.0, 0.1, 0.03, 1e-3, 1e-6, 1e-10, 0.0])
def test_unitary_factor_in_multiple_precision(ratio):
    """Error of U below 2 eps ||A|| / (s2 + s3), for reflections as well."""
    for seed in range(4):
        s = [1.0, 0.9 * ratio, 0.5 * ratio]
        a = with_singular_values(s, 3, 3, seed=seed)
        if ratio == 0.0:
            continue
        with mpmath.workdps(60):
            u, _, v = mpmath.svd_r(mpmath.matrix(a.tolist()))
            exact = np.array((u * v).tolist(), dtype=float)
            _, singular, _ = np.linalg.svd(a)
        found = decompose(a, ops_of(a)).unitary
        bound = 10 * 2.2e-16 * singular[0] / (singular[1] + singular[2])
        assert norm(found - exact) <= bound
        assert np.sign(np.linalg.det(found)) == np.sign(np.linalg.det(exact))


def special(n: int) -> dict[str, np.ndarray]:
    """Matrices that break closed forms."""
    eye = np.eye(n)
    half_turn = np.diag([-1.0] * (n - n % 2) + [1.0] * (n % 2))
    cases = {
        "zero": 0 * eye,
        "identity": eye,
        "minus": -eye,
        "half turn": half_turn,
        "nilpotent": np.eye(n, k=1),
        "ones": np.ones((n, n)),
        "nearly zero column": eye * np.array([1.0] * (n - 1) + [1e-17]),
        "nearly singular": np.ones((n, n)) + 1e-15 * gaussian((n, n)),
        "graded": gaussian((n, n)) * 10.0 ** -np.arange(0, 12 * n, 12),
        "subnormal": 5e-324 * eye,
        "subnormal full": 1e-310 * gaussian((n, n)),
        "largest": np.full((n, n), 1e307) * np.sign(gaussian((n, n), seed=3)),
        "tiny": 1e-150 * gaussian((n, n)),
        "huge": 1e150 * gaussian((n, n)),
    }
    for k, p in enumerate(itertools.permutations(range(n))):
        cases[f"permutation {k}"] = eye[list(p)]
        cases[f"signed permutation {k}"] = -eye[list(p)]
    return cases


@pytest.mark.parametrize("n", SIZES)
def test_special_matrices(n):
    cases = special(n)
    together = np.stack(list(cases.values()))
    d = decompose(together, ops_of(together))
    assert d.orthogonality.max() < FEW * 2.3e-16
    assert d.definite.all()
    for k, (name, a) in enumerate(cases.items()):
        if "subnormal" not in name:  # a subnormal H is rounded to few digits
            assert d.backward_error[k] < FEW * 2.3e-16, name
        if "permutation" in name:
            np.testing.assert_allclose(d.unitary[k], a, atol=1e-15)
    np.testing.assert_array_equal(d.unitary[0], np.eye(n))
    np.testing.assert_array_equal(d.hermitian[0], np.zeros((n, n)))
    assert d.rank[0] == 0
    assert d.backward_error[0] == 0


@pytest.mark.parametrize("n", SIZES)
def test_scale_invariance_is_exact(n):
    a = gaussian((50, n, n))
    u = decompose(a, ops_of(a)).unitary
    for exponent in (-900, -300, 300, 900):
        b = a * 2.0**exponent
        d = decompose(b, ops_of(b))
        np.testing.assert_array_equal(d.unitary, u)
        np.testing.assert_array_equal(
            d.hermitian, decompose(a, ops_of(a)).hermitian * 2.0**exponent
        )


@pytest.mark.parametrize("n", SIZES)
def test_not_finite_stays_where_it_is(n):
    a = gaussian((40, n, n))
    clean = decompose(a, ops_of(a))
    bad = a.copy()
    bad[3, -1, 0], bad[7, 0, -1] = np.nan, -np.inf
    d = decompose(bad, ops_of(bad))
    rest = np.delete(np.arange(40), [3, 7])
    np.testing.assert_array_equal(d.unitary[rest], clean.unitary[rest])
    for k in (3, 7):
        assert np.isnan(d.unitary[k]).all()
        assert np.isnan(d.hermitian[k]).all()
        assert np.isnan(d.backward_error[k])
        assert d.rank[k] == 0
        assert not d.definite[k]
    r = rotation(bad)
    assert np.isnan(r[[3, 7]]).all()
    assert np.isfinite(r[rest]).all()


def test_parts_do_not_show(monkeypatch):
    a = gaussian((100, 3, 3))
    a[::7] = 0
    whole = decompose(a, ops_of(a))
    monkeypatch.setattr(module, "CHUNK", 16)
    parts = decompose(a, ops_of(a))
    for x, y in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(x, y)
    single = decompose(a[1], ops_of(a))
    np.testing.assert_array_equal(single.unitary, whole.unitary[1])
    assert single.rank.shape == ()
    assert decompose(a[:0], ops_of(a)).unitary.shape == (0, 3, 3)
    grid = decompose(a.reshape(5, 20, 3, 3), ops_of(a))
    np.testing.assert_array_equal(grid.rank, whole.rank.reshape(5, 20))


def test_memory_layouts():
    a = gaussian((30, 3, 3))
    a.setflags(write=False)
    u = decompose(a, ops_of(a)).unitary
    for b in (np.asfortranarray(a), a[::-1].copy()[::-1], np.repeat(a, 2, axis=0)[::2]):
        np.testing.assert_array_equal(decompose(b, ops_of(b)).unitary, u)
    turned = adjoint(a)
    np.testing.assert_allclose(decompose(turned, ops_of(turned)).unitary, adjoint(u), atol=1e-14)


# -- rotations -------------------------------------------------------------------------------


def nearest_rotation(a: np.ndarray) -> np.ndarray:
    """From LAPACK's SVD, which itself is wrong by up to 60 epsilons on Gaussian matrices."""
    u, _, vh = np.linalg.svd(a)
    u[..., -1] *= np.sign(np.linalg.det(u @ vh))[..., None]
    return u @ vh


@pytest.mark.parametrize("n", [2, 3, 4])
def test_rotation_in_multiple_precision(n):
    a = gaussian((40, n, n))
    a[::4] *= 10.0 ** -np.arange(0, 3 * n, 3)  # columns of very different lengths
    r = rotation(a)
    for x, found in zip(a, r, strict=True):
        with mpmath.workdps(60):
            u, s, v = mpmath.svd_r(mpmath.matrix(x.tolist()))
            sign = mpmath.sign(mpmath.det(u * v))
            exact = u * mpmath.diag([1] * (n - 1) + [sign]) * v
            bound = 8 * 2.3e-16 * s[0] / (s[n - 2] + sign * s[n - 1])
            assert mpmath.mnorm(mpmath.matrix(found.tolist()) - exact, "f") <= bound


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", SIZES)
def test_rotation_against_svd(n, dtype):
    a = gaussian((3000, n, n), dtype)
    r = rotation(a)
    assert r.dtype == a.dtype
    eps = float(np.finfo(dtype).eps)
    s = np.linalg.svd(a.astype(float), compute_uv=False)
    gap = (
        np.ones(3000)
        if n == 1
        else (s[:, -2] + np.sign(np.linalg.det(a.astype(float))) * s[:, -1]) / s[:, 0]
    )
    error = norm(r - nearest_rotation(a.astype(float)))
    assert np.all(error <= 100 * eps / gap)
    assert np.all(np.abs(np.linalg.det(r.astype(float)) - 1) < FEW * eps)
    assert np.all(norm(adjoint(r) @ r - np.eye(n)) < 2 * FEW * eps)


@pytest.mark.parametrize("n", SIZES)
def test_rotation_of_special_matrices(n):
    cases = special(n)
    a = np.stack(list(cases.values()))
    r = rotation(a)
    assert np.all(np.abs(np.linalg.det(r) - 1) < 1e-14)
    assert np.all(norm(adjoint(r) @ r - np.eye(n)) < 1e-14)
    # What it maximises, against the largest possible: s1 + ... + s_(n-1) + sign s_n.
    scale = np.abs(a).max(axis=(-2, -1), keepdims=True)
    x = a / np.where(scale == 0, 1, scale)
    s = np.linalg.svd(x, compute_uv=False)
    s[:, -1] *= np.where(np.linalg.det(x) < 0, -1, 1)
    gained = np.einsum("kij,kij->k", r, x)
    full = np.linalg.svd(x, compute_uv=False)[:, -1] > 1e-12
    np.testing.assert_allclose(gained[full], s.sum(-1)[full], atol=1e-13)
    np.testing.assert_allclose(np.abs(gained), gained, atol=(1e-13 if n > 1 else 10))
    np.testing.assert_array_equal(r[0], np.eye(n))
    np.testing.assert_array_equal(r, rotation(a))


def test_rotation_beats_every_other():
    a = gaussian((20, 3, 3), seed=5)
    a[::2] *= np.sign(np.linalg.det(a[::2]))[:, None, None] * -1  # reflections
    r = rotation(a)
    q = np.linalg.qr(gaussian((2000, 3, 3), seed=6))[0]
    q *= np.sign(np.linalg.det(q))[:, None, None]
    near = r[:, None] @ np.linalg.qr(np.eye(3) + 0.01 * gaussian((200, 3, 3), seed=7))[0]
    near *= np.sign(np.linalg.det(near))[..., None, None]
    best = np.einsum("kij,kij->k", r, a)
    assert np.all(np.einsum("qij,kij->kq", q, a) <= best[:, None] + 1e-12)
    assert np.all(np.einsum("kqij,kij->kq", near, a) <= best[:, None] + 1e-12)


@settings(max_examples=60)
@given(
    st.lists(st.integers(-3, 3), min_size=9, max_size=9),
    st.integers(-1000, 1000),
    st.sampled_from([1.0, 1e-8, 1e-16]),
)
def test_any_3_x_3(entries, exponent, perturbation):
    a = np.reshape(np.array(entries, dtype=float), (1, 3, 3))
    a = (a + perturbation * np.arange(9).reshape(3, 3) * (perturbation < 1)) * 2.0**exponent
    d = decompose(a, ops_of(a))
    assert d.backward_error.max() < FEW * 2.3e-16
    assert d.orthogonality.max() < FEW * 2.3e-16
    assert d.definite.all()
    r = rotation(a)
    assert abs(np.linalg.det(r[0]) - 1) < 1e-14
    assert norm(r @ adjoint(r) - np.eye(3))[0] < 1e-14


# -- the method, other libraries, bad input --------------------------------------------------


@pytest.mark.parametrize("shape", [(50, 5, 3), (7, 2), (3, 3), (2, 3, 6, 4), (4, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_method(shape, dtype):
    a = gaussian(shape, dtype)
    seen = []
    u, run = small(a, ops_of(a), tol=1e-13, callback=lambda k, x: seen.append((k, x)))
    eps = float(np.finfo(dtype).eps)
    left, _, right = np.linalg.svd(a.astype(np.complex128), full_matrices=False)
    s = np.linalg.svd(a.astype(np.complex128), compute_uv=False)
    assert u.dtype == a.dtype
    assert np.all(norm(u - left @ right) <= 60 * eps * s[..., 0] / s[..., -1])
    assert run.converged
    assert run.bounds[0] <= s.min() * (1 + 1e-5)
    assert run.bounds[1] >= s.max() * (1 - 1e-5)
    assert [k for k, _ in seen] == [1]
    assert seen[0][1] is u


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_libraries(lib, dtype):
    """On the host by closed forms; on what may be a device by the library's SVD alone."""
    for n in (3,) if lib.name == "jax" else SIZES:
        a = gaussian((40, n, n), dtype)
        a[3], a[5], a[8, 0, 0] = 0, np.ones((n, n)), np.nan
        expected = decompose(a, ops_of(a))
        x = lib.asarray(a)
        ops = ops_of(x)
        if ops.host:
            d = decompose(x, ops)
        else:
            with warnings.catch_warnings(action="ignore"):
                d = polar(x, method="small", check_finite=False)
        assert type(d.unitary) is type(x)
        assert lib.dtype_name(d.unitary) == dtype
        tall = np.delete(np.arange(40), [3, 5, 8])
        atol = 500 * float(np.finfo(dtype).eps)
        np.testing.assert_allclose(lib.to_numpy(d.unitary)[tall], expected.unitary[tall], atol=atol)
        np.testing.assert_allclose(
            lib.to_numpy(d.hermitian)[tall], expected.hermitian[tall], atol=atol
        )
        np.testing.assert_array_equal(d.rank, expected.rank)
        assert np.isnan(lib.to_numpy(d.unitary)[8]).all()
        good = np.delete(np.arange(40), 8)
        few = (FEW if ops.host else 4 * FEW) * np.finfo(dtype).eps  # the SVD's: 2 to 16, by n
        assert d.backward_error[good].max() <= few
        assert d.orthogonality[good].max() <= few
        if not dtype.startswith("complex"):
            r = lib.to_numpy(rotation(x))
            assert np.all(np.abs(np.linalg.det(r[good].astype(float)) - 1) < 1e-5)


@pytest.mark.parametrize("n", SIZES)
def test_only_nearest_rotations_are_shown_to_be_such(n):
    """Of all signed permutations, those with det +1 that reach the largest trace of R^T A."""
    s = np.arange(n, 0, -1.0) - 0.5
    for sign in (1, -1):
        a = np.diag(s * ([1.0] * (n - 1) + [sign]))
        best = s.sum() - (1 - sign) * s[-1]
        for p in itertools.permutations(range(n)):
            for signs in itertools.product((1.0, -1.0), repeat=n):
                r = np.eye(n)[list(p)] * signs
                nearest = np.linalg.det(r) > 0 and np.trace(r.T @ a) > best - 0.1
                for t in (r, r + 1e-9 * gaussian((n, n))) if nearest else (r,):
                    entries = [m[:, :, None] for m in (t, a)]
                    shown = small_algebra.is_nearest_rotation(*entries, 2e-14, ops_of(a))[0]
                    assert shown == (nearest and t is r)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_closed_forms_near_rank_one_are_not_believed(dtype):
    """What Newton's iteration for the quartic divides by is rounding there."""
    rng = np.random.default_rng(0)
    for ratio in (0.0, *10.0 ** -np.arange(1.0, 13)):
        s = ratio ** np.arange(3) * rng.choice([1, 1, -1], (4000, 3))
        q = np.linalg.qr(rng.standard_normal((2, 4000, 3, 3)))[0]
        a = ((q[0] * s[:, None, :]) @ q[1]).astype(dtype)
        entries = np.ascontiguousarray(np.moveaxis(a, 0, -1))
        norm2 = np.sum(entries * entries, axis=(0, 1))
        for proper in (False, True):
            with np.errstate(all="ignore"):
                factor = small_algebra.closed_factor(entries, norm2, ops_of(a), proper=proper)
            u = np.moveaxis(factor.unitary, -1, 0)[factor.safe]
            defect = norm(adjoint(u) @ u - np.eye(3))
            assert defect.max(initial=0) <= 3 * FEW * np.finfo(dtype).eps


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: decompose(np.eye(5), ops_of(np.eye(5))), ValueError, r"shape \(5, 5\)"),
        (lambda: decompose(np.ones((3, 4)), ops_of(np.eye(3))), ValueError, r"tall.*\(3, 4\)"),
        (
            lambda: module.rotation(np.ones((3, 4)), ops_of(np.eye(3))),
            ValueError,
            r"square.*\(3, 4\)",
        ),
        (lambda: small(np.ones((9, 5)), ops_of(np.eye(3)), tol=1e-9), ValueError, r"\(9, 5\)"),
        (
            lambda: small(np.ones((2, 3)), ops_of(np.eye(3)), tol=1e-9),
            ValueError,
            r"tall.*\(2, 3\)",
        ),
        (lambda: module.rotation(1j * np.eye(3), ops_of(np.eye(3))), TypeError, "complex128"),
    ],
)
def test_bad_calls(call, error, match):
    with pytest.raises(error, match=match):
        call()
