"""Nearest matrices, Procrustes problems and square roots against references of other kinds."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.linalg
from conftest import DTYPES, Library, library, with_dask
from scipy.spatial.transform import Rotation

from polarlib._methods import small
from polarlib.arrays.ops import ops_of
from polarlib.result import ConvergenceWarning
from polarlib.testing import assert_unitary_factor, orthonormal, rotation, with_singular_values, zoo
from polarlib.uses.nearest import _rotation, nearest_orthogonal, nearest_rotation
from polarlib.uses.procrustes import procrustes
from polarlib.uses.roots import sqrtm_psd

EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10} | {d: float(np.finfo(d).eps) for d in DTYPES}
REAL = ("float32", "float64")
HALF = ("float16", "bfloat16")


def gaussian(*shape: int, dtype: str = "float64", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    if dtype.startswith("complex"):
        a = a + 1j * rng.standard_normal(shape)
    return a.astype(dtype)


def adjoint(x: np.ndarray) -> np.ndarray:
    return np.conj(np.swapaxes(x, -1, -2))


def given(lib: Library, a: np.ndarray, dtype: str):
    """Array of a library, rounded to a dtype, and its values in double precision."""
    if not lib.has(dtype):
        pytest.skip(f"{lib.name} has no {dtype}")
    x = lib.asarray(a, dtype)
    wide = "complex128" if dtype.startswith("complex") else "float64"
    return x, lib.to_numpy(x).astype(wide)


def check_astype_like(lib: Library, x, reference, shape: tuple[int, ...]) -> np.ndarray:
    """Type, dtype, device, shape; the values in double precision."""
    assert type(x) is type(reference)
    assert lib.dtype_name(x) == lib.dtype_name(reference)
    assert lib.device(x) == lib.device(reference)
    assert tuple(x.shape) == shape
    y = lib.to_numpy(x)
    return y.astype("complex128" if y.dtype.kind == "c" else "float64")


def dtypes_for(lib: Library, dtypes: tuple[str, ...]) -> tuple[str, ...]:
    """JAX compiles for every shape and dtype."""
    return dtypes[:1] if lib.name == "jax" else tuple(d for d in dtypes if lib.has(d))


# -- nearest orthogonal ----------------------------------------------------------------------


def test_nearest_orthogonal(lib):
    shapes = [(5, 5), (7, 4), (4, 7), (1, 1), (2, 3, 5, 3), (2, 2, 2)]
    for dtype in dtypes_for(lib, (*DTYPES, *HALF)):
        for shape in shapes[::3] if lib.name == "jax" else shapes:
            a = gaussian(*shape, dtype="complex128" if dtype.startswith("complex") else "float64")
            x, wide = given(lib, a, dtype)
            u = check_astype_like(lib, nearest_orthogonal(x), x, shape)
            np.testing.assert_array_equal(lib.to_numpy(x), lib.to_numpy(given(lib, a, dtype)[0]))
            assert_unitary_factor(
                wide, u, rtol=3 * EPS[dtype] if dtype in HALF else 50 * EPS[dtype]
            )


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_nothing_is_nearer(dtype):
    for shape in [(4, 4), (6, 3), (3, 6)]:
        a = gaussian(*shape, dtype=dtype)
        u = nearest_orthogonal(a)
        s = np.linalg.svd(a, compute_uv=False)
        distance = np.linalg.norm(a - u)
        assert distance == pytest.approx(np.linalg.norm(s - 1), rel=1e-13)
        for seed in range(20):  # of neighbours and of strangers
            d = gaussian(shape[0], shape[0], dtype=dtype, seed=seed)
            near = scipy.linalg.expm(1e-2 * (d - d.conj().T)) @ u
            far = orthonormal(*shape, seed=seed, dtype=dtype)
            for q in (near, far):
                for order in (2, "fro", "nuc"):
                    assert np.linalg.norm(a - u, order) <= np.linalg.norm(a - q, order) + 1e-14


def test_zoo_to_nearest_orthogonal():
    for _, a in zoo(6):
        u = nearest_orthogonal(a)
        assert_unitary_factor(a, u)


def test_no_hermitian_factor_overflows():
    largest = np.finfo("f8").max
    np.testing.assert_allclose(nearest_orthogonal(np.full((100, 1), largest)), 0.1, rtol=1e-14)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (0, 2, 2), (2, 0, 3)])
def test_empty(lib, shape):
    if lib.name == "jax" and shape != (0, 2, 2):
        pytest.skip("slow: compiled for every shape")
    x = lib.asarray(np.zeros(shape))
    check_astype_like(lib, nearest_orthogonal(x), x, shape)
    square = (*shape[:-2], shape[-1], shape[-1])
    for turn in (False, True):
        q = check_astype_like(lib, procrustes(x, x, rotation=turn), x, square)
        np.testing.assert_allclose(adjoint(q) @ q, np.broadcast_to(np.eye(shape[-1]), square))
    if shape[-1] == shape[-2]:
        check_astype_like(lib, nearest_rotation(x), x, shape)
        check_astype_like(lib, sqrtm_psd(x), x, shape)


# -- nearest rotation ------------------------------------------------------------------------


def exact_rotation(a: np.ndarray) -> np.ndarray:
    """Nearest rotation of a 3 x 3 matrix from quaternions, at 50 digits, and no SVD.

    P. B. Davenport's method: the eigenvector of the largest eigenvalue of a 4 x 4 matrix.
    """
    with mpmath.workdps(50):
        b = mpmath.matrix(a.tolist())
        trace = b[0, 0] + b[1, 1] + b[2, 2]
        z = [b[2, 1] - b[1, 2], b[0, 2] - b[2, 0], b[1, 0] - b[0, 1]]
        k = mpmath.matrix(4, 4)
        k[0, 0] = trace
        for i in range(3):
            k[0, i + 1] = k[i + 1, 0] = z[i]
            for j in range(3):
                k[i + 1, j + 1] = b[i, j] + b[j, i] - (trace if i == j else 0)
        values, vectors = mpmath.eigsy(k)
        w, x, y, z = vectors[:, max(range(4), key=lambda i: values[i])]
        rows = [
            [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
        ]
        return np.array([[float(v) for v in row] for row in rows])


def is_rotation(q: np.ndarray, atol: float = 1e-14) -> None:
    eye = np.broadcast_to(np.eye(q.shape[-1]), q.shape)
    np.testing.assert_allclose(adjoint(q) @ q, eye, atol=atol)
    np.testing.assert_allclose(np.linalg.det(q), 1.0, atol=20 * atol)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "s",
    [
        (3.0, 2.0, 1.0),
        (1.0, 1.0, 0.5),
        (1.0, 1e-3, 1e-9),
        (1.0, 1e-6, 0.0),
        (2.0, 1.0, 1e-200),
        (1.0, 0.999999, 1e-3),
        (1e6, 1.0, 0.5),
    ],
)
def test_against_quaternions(s, sign):
    for seed in range(10):
        u, v = orthonormal(3, 3, seed=seed), orthonormal(3, 3, seed=100 + seed)
        u[:, 2] *= sign * np.linalg.det(u) * np.linalg.det(v)
        for scale in (1.0, 2.0**500, 2.0**-500):
            a = (u * s) @ v.T
            q = nearest_rotation(a * scale)
            is_rotation(q)
            # The rotation of A + D is off by at most this for D of a few epsilons.
            gap = s[1] + sign * s[2]
            np.testing.assert_allclose(q, exact_rotation(a), atol=20 * 2.0**-52 * s[0] / gap)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 30])
def test_nearest_rotation_is_nearest(n):
    for seed in range(8):
        a = gaussian(n, n, seed=seed)
        a[0] *= np.sign(np.linalg.det(a)) * (-1) ** seed
        q = nearest_rotation(a)
        is_rotation(q)
        s = np.linalg.svd(a, compute_uv=False)
        square = np.sum((s - 1) ** 2) + (4 * s[-1] if seed % 2 else 0)
        assert np.linalg.norm(a - q) ** 2 == pytest.approx(square, rel=1e-12, abs=1e-13)
        if seed % 2 == 0:
            np.testing.assert_allclose(q, nearest_orthogonal(a), atol=1e-12)
        skew = gaussian(n, n, seed=50 + seed)
        near = scipy.linalg.expm(1e-2 * (skew - skew.T)) @ q
        assert np.linalg.norm(a - q) <= np.linalg.norm(a - near) + 1e-14


def test_rotations_on_dask():
    lib = library("dask")
    for n in (3, 6):
        x, wide = given(lib, gaussian(2, n, n, seed=n), "float32")
        q = check_astype_like(lib, nearest_rotation(x), x, (2, n, n))
        np.testing.assert_allclose(q, nearest_rotation(wide), atol=20 * EPS["float32"])


def test_rotations_of_every_library(lib):
    for dtype in dtypes_for(lib, (*REAL, *HALF)):
        eps = EPS[dtype]
        for n in (3, 6) if lib.name == "jax" else (1, 2, 3, 4, 5, 6):
            # Both signs, a singular matrix and zero, in one stack.
            stack = gaussian(2, 3, n, n, seed=n)
            stack[0, 0] *= -1
            stack[0, 1, 0] = stack[0, 1, -1] if n > 1 else 0
            stack[1, 2] = 0
            x, wide = given(lib, stack, dtype)
            q = check_astype_like(lib, nearest_rotation(x), x, stack.shape)
            np.testing.assert_array_equal(lib.to_numpy(x).astype("f8"), wide)
            is_rotation(q, atol=(3 if dtype in HALF else 20) * eps)
            best = np.linalg.svd(wide, compute_uv=False)
            best[..., -1] *= np.where(np.linalg.det(wide) < 0, -1, 1)
            reached = np.sum(q * wide, axis=(-2, -1))
            assert np.all(reached >= best.sum(-1) - 20 * n * eps * (1 + np.abs(best[..., 0])))


def is_nearest(a: np.ndarray, r: np.ndarray, eps: float) -> None:
    """Rotations that reach the largest trace of R^T A, by an SVD in double precision."""
    a, r = a.astype(float), r.astype(float)
    n = a.shape[-1]
    s = np.linalg.svd(a, compute_uv=False)
    # The last sign is that of U V^T: the determinant of A, where it is not rounding.
    sign = np.where(np.linalg.slogdet(a)[0] < 0, -1, 1)
    best = s[..., :-1].sum(-1) + sign * s[..., -1]
    assert np.all(np.abs(adjoint(r) @ r - np.eye(n)) <= 20 * eps)
    assert np.all(np.abs(np.linalg.det(r) - 1) <= 20 * n * eps)
    assert np.all(np.sum(r * a, axis=(-2, -1)) >= best - 20 * n * eps * s[..., 0])


def near_low_rank(count: int, n: int, dtype: str, seed: int = 0) -> np.ndarray:
    """Ranks 0 and 1, and nearly these: sigma_2 / sigma_1 from 1 to 1e-12; half reflections."""
    rng = np.random.default_rng(seed)
    ratio = np.r_[0.0, 10.0 ** -np.arange(0.0, 13)]
    s = np.ones((len(ratio), count, n))
    s[..., 1:] = ratio[:, None, None] * rng.uniform(0.1, 1, (len(ratio), count, n - 1))
    q = np.linalg.qr(rng.standard_normal((2, len(ratio), count, n, n)))[0]
    a = (q[0] * s[..., None, :]) @ q[1]
    exact = rng.standard_normal((count, n, 1)) * rng.standard_normal((count, 1, n))
    return np.concatenate([a, exact[None], 0 * exact[None]]).astype(dtype)


@pytest.mark.parametrize("dtype", REAL)
def test_rotations_of_nearly_rank_one(lib, dtype):
    """Covariances of points on a line, or nearly so."""
    if dtype not in dtypes_for(lib, REAL):
        pytest.skip("slow: compiled for every dtype")
    sizes = (3, 5) if lib.name in ("jax", "array_api_strict") else (1, 2, 3, 4, 5)
    for n in sizes:
        a = near_low_rank(3 if n > 4 else 100, n, dtype, seed=n)
        r = check_astype_like(lib, nearest_rotation(lib.asarray(a)), lib.asarray(a), a.shape)
        is_nearest(a, r, EPS[dtype])


@pytest.mark.parametrize("dtype", REAL)
def test_kabsch_of_points_on_a_line(lib, dtype):
    if dtype not in dtypes_for(lib, REAL):
        pytest.skip("slow: compiled for every dtype")
    rng = np.random.default_rng(0)
    for count in (2, 3, 10):
        p = rng.standard_normal((300, count, 1)) * rng.standard_normal((300, 1, 3))
        p = (p - p.mean(axis=1, keepdims=True)).astype(dtype)
        b = p @ np.linalg.qr(rng.standard_normal((300, 3, 3)))[0].astype(dtype)
        q = procrustes(lib.asarray(p), lib.asarray(b), rotation=True)
        q = check_astype_like(lib, q, lib.asarray(p), (300, 3, 3))
        is_nearest(adjoint(p.astype(float)) @ b, q, EPS[dtype])
        np.testing.assert_allclose(p @ q, b, atol=100 * EPS[dtype])


def test_rotations_that_cannot_be_looked_at():
    """Under jit and vmap: the choice is made there."""
    xp = library("jax").xp
    import jax

    for n, mapped in ((3, jax.jit), (3, jax.vmap), (5, jax.jit)):
        a = near_low_rank(4, n, "float64", seed=n).reshape(-1, n, n)
        a[-1, 0, 0] = np.nan
        r = np.asarray(mapped(lambda x: _rotation(x, ops_of(x)))(xp.asarray(a)))
        is_nearest(a[:-1], r[:-1], EPS["float64"])
        assert np.isnan(r[-1]).all()


def test_a_rotation_that_is_none_is_not_returned(lib, monkeypatch):
    """Wrong closed forms are followed by an SVD; after a wrong SVD there is nothing to return."""
    right = small.closed_factor

    def wrong(x, norm2, ops, *, proper=False):
        factor = right(x, norm2, ops, proper=proper)
        u = factor.unitary
        rows = [u[1:2, :, :], u[:1, :, :], u[2:, :, :]]
        return factor._replace(unitary=ops.xp.concat(rows, axis=0))

    monkeypatch.setattr(small, "closed_factor", wrong)
    a = gaussian(20, 3, 3)  # JAX remembers what it compiled by shape
    x = lib.asarray(a)
    is_nearest(a, lib.to_numpy(nearest_rotation(x)), EPS["float64"])
    monkeypatch.setattr(small, "svd_factor", lambda y, ops, eps, proper: (y, []))
    kind = next(k for k in type(ops_of(x)).__mro__ if "svd" in vars(k))
    svd = kind.svd

    def wrong_svd(self, x):
        u, s, vh = svd(self, x)
        return u, s, vh * 1.01

    monkeypatch.setattr(kind, "svd", wrong_svd)
    x, big = lib.asarray(a[:19]), lib.asarray(gaussian(2, 6, 6))
    for call in (
        lambda: nearest_rotation(x),
        lambda: nearest_rotation(big),
        lambda: procrustes(x, x, rotation=True),
    ):
        with pytest.raises(ConvergenceWarning, match="no rotation passed the check"):
            call()


def test_rotations_of_rotations():
    for n in (2, 3, 4, 7):
        for angle in (0.0, 1e-8, 1.0, np.pi - 1e-8, np.pi, -np.pi):
            q = rotation(n, angle, seed=n)
            np.testing.assert_allclose(nearest_rotation(q), q, atol=1e-15 * n)
            np.testing.assert_allclose(nearest_rotation(3 * q), q, atol=1e-15 * n)


def test_ties_are_rotations():
    for a in (
        -np.eye(3),
        np.diag([1.0, 1, -1]),
        -np.eye(5),
        np.diag([-2.0, 0, 0]),
        np.zeros((4, 4)),
    ):
        q = nearest_rotation(a)
        is_rotation(q)
        s = np.linalg.svd(a, compute_uv=False)
        sign = -1 if np.linalg.det(a) < 0 else 1
        assert np.sum(q * a) == pytest.approx(s[:-1].sum() + sign * s[-1], abs=1e-14)


@pytest.mark.parametrize("dtype", REAL)
def test_rotations_at_any_scale(dtype):
    top = 36 if dtype == "float32" else 300
    for n in (2, 3, 4, 6):
        a = gaussian(n, n, dtype=dtype, seed=n)
        q = nearest_rotation(a)
        for exponent in (-top, -5, 5, top):
            scaled = (a * 10.0**exponent).astype(dtype)
            np.testing.assert_allclose(nearest_rotation(scaled), q, atol=60 * EPS[dtype])


# -- Procrustes ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("shape", [(9, 4), (4, 4), (3, 5), (1, 1)])
def test_procrustes_against_the_singular_value_decomposition(shape, dtype):
    # SciPy 1.13's own function is wrong for complex matrices.
    a, b = gaussian(*shape, dtype=dtype), gaussian(*shape, dtype=dtype, seed=1)
    q = procrustes(a, b)
    u, values, vh = np.linalg.svd(adjoint(a) @ b)
    expected, total = u @ vh, values.sum()
    size = np.linalg.norm(a) ** 2 + np.linalg.norm(b) ** 2
    assert np.linalg.norm(a @ q - b) ** 2 == pytest.approx(size - 2 * total, abs=1e-14 * size)
    np.testing.assert_allclose(adjoint(q) @ q, np.eye(shape[1]), atol=1e-14)
    if shape[0] >= shape[1]:
        np.testing.assert_allclose(q, expected, atol=1e-12)
    # The factor that the docstring gives.
    s = np.sum(np.conj(a @ q) * b).real / np.sum(np.abs(a) ** 2)
    assert s == pytest.approx(total / np.linalg.norm(a) ** 2, rel=1e-13)
    fit = [np.linalg.norm(t * a @ q - b) for t in (s, s * 1.01, s * 0.99)]
    assert fit[0] < min(fit[1:])


@with_dask
def test_procrustes_of_every_library(lib):
    for dtype in dtypes_for(lib, (*DTYPES, *HALF)):
        wide = "complex128" if dtype.startswith("complex") else "float64"
        a = gaussian(2, 9, 3, dtype=wide)
        exact = np.stack([orthonormal(3, 3, seed=i, dtype=wide) for i in range(2)])
        x, _ = given(lib, a, dtype)
        y, _ = given(lib, lib.to_numpy(x) @ exact, dtype)
        q = check_astype_like(lib, procrustes(x, y), x, (2, 3, 3))
        np.testing.assert_allclose(q, exact, atol=20 * EPS[dtype])
        np.testing.assert_array_equal(lib.to_numpy(x), lib.to_numpy(given(lib, a, dtype)[0]))


@pytest.mark.parametrize("mirror", [False, True])
def test_kabsch(mirror):
    for seed in range(10):
        a = gaussian(12, 3, seed=seed)
        exact = rotation(3, 0.1 + seed, seed=seed)
        b = a @ exact + 0.05 * gaussian(12, 3, seed=100 + seed)
        if mirror:
            b[:, 0] *= -1
        q = procrustes(a, b, rotation=True)
        is_rotation(q)
        expected, _ = Rotation.align_vectors(b, a)  # of columns: b = R a
        np.testing.assert_allclose(q.T, expected.as_matrix(), atol=1e-12)
        assert np.linalg.det(procrustes(a, b)) == pytest.approx(-1 if mirror else 1)


def test_flat_clouds():
    """Points in a plane: a rotation is determined, an orthogonal matrix is not."""
    a = gaussian(8, 3)
    a[:, 2] = 0
    exact = rotation(3, 2.0, seed=4)
    np.testing.assert_allclose(procrustes(a, a @ exact, rotation=True), exact, atol=1e-14)
    q = procrustes(a, a @ exact)
    np.testing.assert_allclose(a @ q, a @ exact, atol=1e-14)
    np.testing.assert_allclose(q.T @ q, np.eye(3), atol=1e-14)


def test_stacks_broadcast(lib):
    if lib.name == "jax":
        pytest.skip("slow: compiled for every shape")
    a, b = gaussian(5, 3), gaussian(4, 5, 3, seed=1)
    q = lib.to_numpy(procrustes(lib.asarray(a), lib.asarray(b)))
    assert q.shape == (4, 3, 3)
    for i in range(4):
        np.testing.assert_allclose(q[i], procrustes(a, b[i]), atol=1e-13)
    q = lib.to_numpy(procrustes(lib.asarray(b), lib.asarray(a), rotation=True))
    for i in range(4):
        np.testing.assert_allclose(q[i], procrustes(b[i], a, rotation=True), atol=1e-13)


def test_products_do_not_overflow():
    a, b = gaussian(5, 3), gaussian(5, 3, seed=1)
    q = procrustes(a, b)
    for c, d in [(1e300, 1e300), (1e-300, 1e-300), (1e300, 1e-300)]:
        np.testing.assert_allclose(procrustes(c * a, d * b), q, atol=1e-13)
        np.testing.assert_allclose(
            procrustes(c * a, d * b, rotation=True), procrustes(a, b, rotation=True), atol=1e-13
        )


def test_mixed_dtypes():
    a, b = gaussian(5, 3, dtype="float32"), gaussian(5, 3, dtype="complex128", seed=1)
    assert procrustes(a, b).dtype == np.complex128
    assert procrustes(b, a).dtype == np.complex128
    assert procrustes(a, a.astype("f8")).dtype == np.float64
    assert procrustes([[1, 0], [0, 1]], [[0, 1], [1, 0]]).tolist() == [[0.0, 1.0], [1.0, 0.0]]


# -- square roots ----------------------------------------------------------------------------


def exact_root(a: np.ndarray) -> np.ndarray:
    """By an eigendecomposition of 50 digits."""
    with mpmath.workdps(60):
        eigen = mpmath.eighe if a.dtype.kind == "c" else mpmath.eigsy
        values, q = eigen(mpmath.matrix(a.tolist()))
        h = q * mpmath.diag([mpmath.sqrt(abs(v)) for v in values]) * q.H
        return np.array(h.tolist(), dtype=complex if a.dtype.kind == "c" else float)


def definite(values, dtype: str, seed: int = 0) -> np.ndarray:
    """Return an exactly Hermitian matrix, with about these eigenvalues."""
    q = orthonormal(len(values), len(values), seed=seed, dtype=dtype)
    a = (q * np.asarray(values)) @ q.conj().T
    return (a + a.conj().T) / 2


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e6, 1e12])
def test_square_root_against_multiple_precision(condition, dtype):
    for seed in range(3):
        a = definite(np.geomspace(1, 1 / condition, 6), dtype, seed)
        h = sqrtm_psd(a)
        np.testing.assert_array_equal(h, adjoint(h))
        assert np.linalg.norm(h @ h - a) <= 60 * 2.0**-52 * np.linalg.norm(a)
        # H X + X H = D for the change X of H: at most |D| / (2 sqrt(lambda_n)).
        limit = 30 * 2.0**-52 * np.linalg.norm(a) * math.sqrt(condition)
        np.testing.assert_allclose(h, exact_root(a), atol=limit)
        assert np.all(np.linalg.eigvalsh(h) > 0)


@pytest.mark.parametrize("order", [[5, 4, 3, 2, 1, 0], [3, 0, 5, 1, 4, 2]])
def test_square_root_of_graded_matrices(order):
    """Errors of eps |H|, where an eigendecomposition has those of sqrt(eps) |H|."""
    scale = np.geomspace(1, 1e-12, 6)[order]
    for seed in range(5):
        a = definite([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], "float64", seed)
        a = scale[:, None] * a * scale
        a = (a + a.T) / 2
        h, exact = sqrtm_psd(a), exact_root(a)
        # Cholesky's error is relative to the scales, and the polar factor's to |H|, 1 at most.
        np.testing.assert_allclose(h, exact, rtol=0, atol=10 * EPS["float64"])


@with_dask
def test_square_roots_of_every_library(lib):
    for dtype in dtypes_for(lib, (*DTYPES, *HALF)):
        wide = "complex128" if dtype.startswith("complex") else "float64"
        stack = np.stack([definite([3.0, 2.0, 1.0, 0.5], wide, i) for i in range(3)])
        stack = stack * np.array([1.0, 1e-3, 1e2])[:, None, None]
        x, values = given(lib, stack, dtype)
        before = values.copy()
        h = check_astype_like(lib, sqrtm_psd(x), x, (3, 4, 4))
        np.testing.assert_array_equal(lib.to_numpy(x), before.astype(lib.to_numpy(x).dtype))
        np.testing.assert_array_equal(h, adjoint(h))
        size = np.linalg.norm(values, axis=(-2, -1))
        assert np.all(np.linalg.norm(h @ h - values, axis=(-2, -1)) <= 20 * EPS[dtype] * size)


def test_semidefinite(lib):
    for dtype in dtypes_for(lib, DTYPES):
        wide = "complex128" if dtype.startswith("complex") else "float64"
        g = np.round(3 * gaussian(5, 2)) + (1j if wide == "complex128" else 0)
        stack = np.stack([g @ g.conj().T, np.zeros((5, 5)), definite(np.arange(1, 6.0), wide)])
        x, values = given(lib, stack.astype(wide), dtype)
        h = check_astype_like(lib, sqrtm_psd(x), x, (3, 5, 5))
        np.testing.assert_array_equal(h, adjoint(h))
        assert not h[1].any()
        size = np.linalg.norm(values, axis=(-2, -1))
        assert np.all(np.linalg.norm(h @ h - values, axis=(-2, -1)) <= 30 * EPS[dtype] * size)
        small = np.linalg.eigvalsh(h)[..., 0]
        assert np.all(small >= -10 * EPS[dtype] * np.sqrt(size))


def test_stacks_of_definite_and_singular_matrices(lib):
    """Each matrix has the root that it has alone, by a method that is right for it."""
    scale = np.geomspace(1, 1e-9, 5)
    graded = scale[:, None] * definite([1.0, 0.9, 0.8, 0.7, 0.6], "float64") * scale
    graded = (graded + graded.T) / 2  # small entries that eigenvalues would lose
    low = np.round(3 * gaussian(5, 2))
    stack = np.stack([graded, low @ low.T, np.diag([1.0, 1, 1, 0, 0]), np.eye(5)])
    h = lib.to_numpy(sqrtm_psd(lib.asarray(stack)))
    np.testing.assert_allclose(h[0], exact_root(graded), rtol=1e-6)
    for a, root in zip(stack[1:], h[1:], strict=True):
        assert np.linalg.norm(root @ root - a) <= 1e-14 * np.linalg.norm(a)
    np.testing.assert_array_equal(h[3], np.eye(5))


@pytest.mark.parametrize("name", ["torch", "jax", "array_api_strict"])
def test_root_of_a_large_singular_matrix(name):
    """Of so many entries that a library might look at a part of them for NaN."""
    f = gaussian(8, 72, dtype="float32")
    a = f.T @ f
    h = np.asarray(sqrtm_psd(library(name).asarray(a)), dtype="f8")
    assert np.linalg.norm(h @ h - a) <= 1e-5 * np.linalg.norm(a)


def test_square_root_of_a_projector_and_of_ones():
    ones = np.ones((7, 7))
    np.testing.assert_allclose(sqrtm_psd(ones), ones / math.sqrt(7), atol=1e-15 * 7)
    q = orthonormal(7, 3)
    projector = q @ q.T
    np.testing.assert_allclose(sqrtm_psd((projector + projector.T) / 2), projector, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_square_root_at_any_scale(dtype):
    a = definite([4.0, 2.0, 1.0], "complex128" if dtype == "complex64" else "float64")
    h = sqrtm_psd(a.astype(dtype))
    top = 37 if dtype == "complex64" else 300
    for exponent in (-top, -3, 3, top):
        scaled = (a * 10.0**exponent).astype(dtype)
        root = sqrtm_psd(scaled).astype("c16")
        np.testing.assert_allclose(root / 10.0 ** (exponent / 2), h, atol=20 * EPS[dtype])
    np.testing.assert_array_equal(sqrtm_psd(4.0**40 * a), 2.0**40 * sqrtm_psd(a))


def test_known_square_roots():
    np.testing.assert_array_equal(sqrtm_psd(np.diag([4, 9, 0])), np.diag([2.0, 3.0, 0.0]))
    # Eigenvalues 1 and 9 of [[5, 4i], [-4i, 5]].
    np.testing.assert_allclose(sqrtm_psd([[5, 4j], [-4j, 5]]), [[2, 1j], [-1j, 2]], atol=1e-14)
    for n in (2, 5, 9):
        a = scipy.linalg.hilbert(n)
        h = sqrtm_psd(a)
        assert np.linalg.norm(h @ h - a) <= 1e-14
        if n < 9:
            np.testing.assert_allclose(h, scipy.linalg.sqrtm(a).real, atol=1e-9)


# -- bad calls -------------------------------------------------------------------------------

A = gaussian(3, 3)
NAN = np.where(np.eye(3) > 0, np.nan, A)
S = A @ A.T

BAD = [
    (lambda: nearest_orthogonal(NAN), ValueError, r"a contains NaN or infinity in 3 of 9"),
    (lambda: nearest_orthogonal([1.0]), ValueError, r"shape \(1,\)"),
    (lambda: nearest_orthogonal("x"), TypeError, "'x'"),
    (lambda: nearest_rotation(NAN), ValueError, r"a contains NaN or infinity in 3 of 9"),
    (lambda: nearest_rotation(A[:2]), ValueError, r"nearest_rotation needs square.*\(2, 3\)"),
    (lambda: nearest_rotation(A + 1j), TypeError, "real matrices, got complex128.*closed form"),
    (lambda: nearest_rotation(None), TypeError, "None"),
    (lambda: procrustes(A, A[:2]), ValueError, r"same rows and columns.*\(3, 3\), \(2, 3\)"),
    (lambda: procrustes(A, A[:, :2]), ValueError, r"\(3, 3\), \(3, 2\)"),
    (lambda: procrustes(A, NAN), ValueError, "b contains NaN"),
    (lambda: procrustes(NAN, A), ValueError, "a contains NaN"),
    (lambda: procrustes(A, "x"), TypeError, "b must be.*'x'"),
    (lambda: procrustes(np.stack([A] * 2), np.stack([A] * 3)), ValueError, "must broadcast"),
    (lambda: procrustes(A, A + 1j, rotation=True), TypeError, r"rotation=True.*complex128"),
    (lambda: procrustes(A, A, True), TypeError, "positional"),
    (lambda: sqrtm_psd(NAN), ValueError, "a contains NaN"),
    (lambda: sqrtm_psd(A[:2]), ValueError, r"sqrtm_psd needs square.*\(2, 3\)"),
    (lambda: sqrtm_psd(A), ValueError, r"not Hermitian: .* is \d.\de-01, allowed are \d"),
    (lambda: sqrtm_psd(S + 1j * S), ValueError, "not Hermitian"),
    (lambda: sqrtm_psd(np.diag([1.0, -0.25])), ValueError, r"smallest eigenvalue is -2.500e-01$"),
    (lambda: sqrtm_psd(-1e100 * np.eye(2)), ValueError, r"smallest eigenvalue is -1.000e\+100"),
    (lambda: sqrtm_psd(np.diag([1.0, 1.0, -1e-10])), ValueError, "-1.000e-10"),
    (
        lambda: sqrtm_psd(np.stack([S, -100 * np.eye(3)])[None]),
        ValueError,
        r"-1.000e\+02 in matrix \(0, 1\) of the stack",
    ),
]


@pytest.mark.parametrize(("call", "error", "match"), BAD)
def test_bad_calls(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_two_libraries():
    strict = library("array_api_strict")
    with pytest.raises(TypeError, match="one library, got numpy and array_api_strict"):
        procrustes(A, strict.asarray(A))


def test_rounding_is_not_indefinite():
    a = definite([1.0, 0.5, 0.0], "float64")
    h = sqrtm_psd(a - 1e-15 * np.eye(3))
    np.testing.assert_allclose(h @ h, a, atol=1e-14)


def test_inputs_in_any_memory():
    a = gaussian(4, 4)
    big = np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3]
    for b in (np.asfortranarray(a), big, a[::-1, ::-1][::-1, ::-1], a.astype(">f8")):
        b.setflags(write=False)
        np.testing.assert_allclose(nearest_orthogonal(b), nearest_orthogonal(a), atol=1e-14)
        np.testing.assert_allclose(nearest_rotation(b), nearest_rotation(a), atol=1e-14)
        np.testing.assert_allclose(procrustes(b, a), np.eye(4), atol=1e-14)
        gram = b @ b.T
        gram.setflags(write=False)
        np.testing.assert_allclose(sqrtm_psd(gram), sqrtm_psd(a @ a.T), atol=1e-13)


def test_condition_of_the_root_is_the_root_of_the_condition():
    a = with_singular_values(np.geomspace(1, 1e-5, 8))
    gram = a.T @ a
    h = sqrtm_psd((gram + gram.T) / 2)
    np.testing.assert_allclose(h, scipy.linalg.polar(a)[1], atol=1e-10)
